"""--mode=predict: classes of image files, by a run and by its .tflite."""

import io
import json
import os
import shutil

import exports
import numpy as np
import PIL.Image
import pytest

import main
from larq_adambnn import export
from larq_adambnn.commands.predict import image_files
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets, students
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_network, data_dir):
    """A run of random weights with its .tflite."""
    directory = tmp_path_factory.mktemp("predicted") / "run"
    exports.make_run(directory, "--dataset=digits", f"--data_dir={data_dir}")
    assert main.main(["--mode=export", f"--run={directory}", "--check_images=20"]) == 0
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, run):
    """The first test images as PNG files of 8 x 8, and their logits as evaluation gives them."""
    config = load_run(run)
    dataset = datasets.load(config)
    source = dataset.source("test")
    folder = tmp_path_factory.mktemp("pictures")
    encoded, _ = source.lookup(np.arange(20))
    for number, item in enumerate(encoded):
        (folder / f"{number:02}.png").write_bytes(source.load(item).numpy())
    student = students.load_student(Run(run), config, dataset)
    images, _ = next(dataset.evaluation("test", batch_size=20).as_numpy_iterator())
    return folder, student.predict(images, verbose=0).astype(float)


def predict(capsys, *flags):
    assert main.main(["--mode=predict", "--json", *flags]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("devices: CPU (") if flags[0].startswith("--run") else err == ""
    return json.loads(out)


@pytest.mark.parametrize("by", ["run", "tflite"])
def test_the_same_as_evaluation(by, run, pictures, capsys):
    """Preprocessing and network: the probabilities are those of the evaluation's images."""
    folder, logits = pictures
    flag = f"--run={run}" if by == "run" else f"--tflite={run}/model.tflite"
    results = predict(capsys, flag, f"--images={folder}")
    assert [r["image"] for r in results] == [str(folder / f"{n:02}.png") for n in range(20)]
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    expected = exponents / exponents.sum(-1, keepdims=True)
    for result, probabilities in zip(results, expected, strict=True):
        best = np.argsort(-probabilities)[:5]
        assert [p["class"] for p in result["predictions"]] == [str(i) for i in best]
        received = [p["probability"] for p in result["predictions"]]
        np.testing.assert_allclose(received, probabilities[best], rtol=1e-3)


def test_the_table(run, pictures, capsys):
    folder, _ = pictures
    files = [folder / "03.png", folder / "01.png"]
    flags = [f"--run={run}", "--images=" + ",".join(map(str, files))]
    results = predict(capsys, *flags)
    assert main.main(["--mode=predict", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    for number, result in enumerate(results):
        block = lines[6 * number : 6 * number + 6]
        assert block[0] == str(files[number]) == result["image"]
        for line, best in zip(block[1:], result["predictions"], strict=True):
            assert line.split() == [f"{100 * best['probability']:.2f}", "%", best["class"]]


def test_other_sizes_and_formats(run, tmp_path, capsys):
    """Colour, transparency and any size are taken; each is resized as in evaluation."""
    random = np.random.default_rng(0)
    for name, mode, shape in (
        ("a.jpg", "RGB", (40, 60, 3)),
        ("b.bmp", "RGB", (7, 9, 3)),
        ("c.png", "RGBA", (33, 33, 4)),
        ("d.gif", "L", (64, 64)),
    ):
        picture = PIL.Image.fromarray(random.integers(0, 256, shape).astype(np.uint8), mode)
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    by_run = predict(capsys, f"--run={run}", f"--images={tmp_path}")
    by_file = predict(capsys, f"--tflite={run}/model.tflite", f"--images={tmp_path}")
    assert [r["image"][-5:] for r in by_run] == ["a.jpg", "b.bmp", "c.png", "d.gif"]
    for one, other in zip(by_run, by_file, strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["class"] == b["class"]
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-3)


def test_a_file_and_its_json_may_be_moved_and_renamed(run, pictures, tmp_path, capsys):
    folder, _ = pictures
    shutil.copy(run / "model.tflite", tmp_path / "digits.tflite")
    shutil.copy(run / "export.json", tmp_path / "digits.json")
    flag = f"--images={folder}/00.png"
    moved = predict(capsys, f"--tflite={tmp_path}/digits.tflite", flag)
    assert moved == predict(capsys, f"--tflite={run}/model.tflite", flag)


def refused(capsys, *flags):
    assert main.main(["--mode=predict", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize("name", ["empty.png", "text.jpg", "cut.png", "link.png"])
def test_what_is_no_image(name, run, pictures, tmp_path, capsys):
    folder, _ = pictures
    content = {
        "empty.png": b"",
        "text.jpg": b"this is text",
        "cut.png": (folder / "00.png").read_bytes()[:60],
        "link.png": None,  # to nowhere
    }[name]
    if content is None:
        (tmp_path / name).symlink_to("nowhere.png")
    else:
        (tmp_path / name).write_bytes(content)
    for flag in (f"--run={run}", f"--tflite={run}/model.tflite"):
        assert name in refused(capsys, flag, f"--images={folder},{tmp_path}")


def test_paths_without_images(run, tmp_path, capsys):
    flag = f"--run={run}"
    assert "--images" in refused(capsys, flag)
    assert "does not exist" in refused(capsys, flag, "--images=nowhere.png")
    (tmp_path / "notes.txt").write_text("")
    assert "it holds none" in refused(capsys, flag, f"--images={tmp_path}")
    with pytest.raises(UsageError, match="does not exist"):
        image_files(("nowhere",))
    with pytest.raises(UsageError, match="/dev/zero', which is neither"):
        image_files(("/dev/zero",))


def test_libjpegs_notes_are_told_with_debug_only(server, one_step_run, tmp_path):
    jpeg = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(jpeg, "JPEG")
    (tmp_path / "a.jpg").write_bytes(jpeg.getvalue()[:-2] + bytes(10) + jpeg.getvalue()[-2:])
    flags = ("--mode=predict", f"--run={one_step_run.directory}", f"--images={tmp_path}")
    status, _, err = server.start(*flags).finish()
    assert status == 0 and err.startswith("devices: ") and err.count("\n") == 1
    status, _, err = server.start(*flags, "--debug").finish()
    assert status == 0 and "extraneous bytes" in err


def test_folders_behind_links(tmp_path):
    (tmp_path / "all" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").write_text("")
    (tmp_path / "all" / "a.png").write_text("")
    (tmp_path / "all" / "deep" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "all")
    found = [str(path.relative_to(tmp_path)) for path in image_files((str(tmp_path / "all"),))]
    assert found == ["all/a.png", "all/deep/link/b.png"]


@pytest.mark.parametrize("damage", ["text", "cut", "zeros"])
def test_what_is_no_tflite(damage, run, pictures, tmp_path, capsys):
    folder, _ = pictures
    tflite = (run / "model.tflite").read_bytes()
    content = {"text": b"no model", "cut": tflite[:5000], "zeros": tflite[:64] + bytes(9000)}
    path = tmp_path / "model.tflite"
    path.write_bytes(content[damage])
    shutil.copy(run / "export.json", tmp_path)
    line = refused(capsys, f"--tflite={path}", f"--images={folder}")
    assert "Expected a TFLite model" in line
    assert str(path) in line


def test_a_tflite_needs_its_json(run, pictures, tmp_path, capsys):
    folder, _ = pictures
    path = shutil.copy(run / "model.tflite", tmp_path)
    flags = (f"--tflite={path}", f"--images={folder}")
    assert "expected the export.json that was written with" in refused(capsys, *flags)
    (tmp_path / "broken.json").write_text("{")
    assert "expected the export.json" in refused(capsys, *flags)
    info = (run / "export.json").read_text()
    (tmp_path / "export.json").write_text(info.replace('"mean"', '"average"'))
    line = refused(capsys, *flags)
    assert f"{tmp_path}/export.json: expected what an export wrote" in line
    assert "preprocessing.mean" in line
    (tmp_path / "export.json").write_text(info.replace('"crop": "', '"crop": "un'))
    line = refused(capsys, *flags)
    assert f"{tmp_path}/export.json: expected what an export wrote: Expected crop to be" in line


def test_another_batch_size_is_refused(run, pictures, tmp_path, capsys):
    """LCE's interpreter takes one image at a time."""
    folder, _ = pictures
    graph = export.tflite.Graph((run / "model.tflite").read_bytes())
    graph.graph.tensors[graph.inputs[0]].shape = np.array([2, 32, 32, 1], np.int32)
    path = tmp_path / "two.tflite"
    path.write_bytes(graph.to_bytes())
    line = refused(capsys, f"--tflite={path}", f"--images={folder}")
    assert "takes one image at a time" in line
    assert "(2, 32, 32, 1)" in line


def test_names_that_are_not_utf8_and_hidden_files(run, pictures, tmp_path, capsys):
    folder, logits = pictures
    shutil.copy(folder / "00.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    for name in (".hidden.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    for flag in (f"--run={run}", f"--tflite={run}/model.tflite"):
        (found,) = predict(capsys, flag, f"--images={tmp_path}")
        assert found["image"] == rf"{tmp_path}/caf\xe9.png"
        assert found["predictions"][0]["class"] == str(logits[0].argmax())
    assert main.main(["--mode=predict", flag, f"--images={tmp_path}"]) == 0
    assert rf"{tmp_path}/caf\xe9.png" in capsys.readouterr().out
    broken = os.fsencode(tmp_path) + b"/\xff.png"
    with open(broken, "wb") as file:
        file.write(b"no image")
    assert r"\xff.png is not an image" in refused(capsys, flag, f"--images={tmp_path}")


@pytest.mark.parametrize("damage", ["another", "cut"])
def test_a_file_that_fails_its_self_test(damage, run, pictures, tmp_path, capsys):
    folder, _ = pictures
    for name in ("model.tflite", "export.json", "model.selftest.bin"):
        shutil.copy(run / name, tmp_path)
    test = tmp_path / "model.selftest.bin"
    content = bytearray(test.read_bytes())
    content[24 + 4 * 10 : 24 + 4 * 20] = np.full(10, 1e3, "<f4").tobytes()  # expected of the first
    test.write_bytes(content if damage == "another" else content[:-1])
    line = refused(capsys, f"--tflite={tmp_path}/model.tflite", f"--images={folder}")
    expected = {"another": "does not pass model.selftest.bin: output", "cut": "truncated"}
    assert expected[damage] in line
