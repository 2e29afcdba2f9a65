"""A run remembers its data: other data stop it, and inference needs none."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import write_folder

import main
from larq_adambnn import weights
from larq_adambnn.data.statistics import IMAGENET
from larq_adambnn.errors import UsageError
from larq_adambnn.names import APPLICATIONS
from larq_adambnn.runs import datasets, provenance, students, teachers
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run

FLAGS = (
    "--model=reactnet18",
    "--dataset=image_folder",
    "--image_size=32",
    "--crop=none",
    "--noflip",
    "--batch_size=6",
    "--order=one_step",
    "--loss=cross_entropy",
    "--epochs=1",
    "--snapshots=0",
    "--nodeterministic",
)


pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_network):
    """(folder of china and flower, the run that was trained on it)."""
    place = tmp_path_factory.mktemp("trained")
    folder = write_folder(place / "data")
    flags = (f"--data_dir={folder}", f"--output_dir={place}/run")
    assert main.main([*FLAGS, *flags]) == 0
    return folder, place / "run"


@pytest.fixture
def copied(trained, tmp_path):
    """The same, to be changed."""
    return tuple(
        shutil.copytree(path, tmp_path / name)
        for path, name in zip(trained, ("data", "run"), strict=True)
    )


def contents(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(capsys, *flags):
    capsys.readouterr()
    assert main.main(list(map(str, flags))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def command(capsys, *flags):
    capsys.readouterr()
    assert main.main(list(map(str, flags))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_what_is_remembered(trained):
    _, run = trained
    content = json.loads((run / "data.json").read_text())
    assert content["class_names"] == ["china", "flower"]
    assert content["dataset"] == "image_folder"
    assert content["split"] == "val"
    assert content["channels"] == 3
    assert (content["mean"], content["std"]) == tuple(map(list, IMAGENET))
    assert {split: parts["examples"] for split, parts in content["examples"].items()} == {
        "train": 12,
        "val": 4,
    }


def add(name, copy="train/china/000.JPEG"):
    def change(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / copy, folder / name)

    return change


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def other_pixels(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def rename_class(folder):
    for split in ("train", "val"):
        rename(f"{split}/flower", f"{split}/aloe")(folder)


def swap(folder):
    """As many files as before in each class, but two have changed places."""
    rename("train/china/000.JPEG", "train/flower/000.JPEG")(folder)
    rename("train/flower/001.JPEG", "train/china/001.JPEG")(folder)


CHANGES = {
    "file added": (add("train/china/zzz.JPEG"), "12 examples of train", "received 13"),
    "file removed": (
        lambda folder: (folder / "train/china/000.JPEG").unlink(),
        "12 examples of train",
        "received 11",
    ),
    "file renamed": (
        rename("train/china/000.JPEG", "train/china/999.JPEG"),
        "12 examples of train",
        "received as many with other file names",
    ),
    "file in another class": (
        rename("train/china/002.JPEG", "train/flower/000.JPEG"),
        "12 examples of train",
        "received as many with other file names",
    ),
    "files change places": (swap, "12 examples of train", "as many with other file names"),
    "file replaced": (
        add("train/china/000.JPEG", copy="train/china/002.JPEG"),
        "12 examples of train",
        "received as many with other file sizes",
    ),
    "file of the same name and size": (
        lambda folder: other_pixels(folder / "train/china/000.JPEG"),
        "12 examples of train",
        "received as many with other contents",
    ),
    "class renamed": (rename_class, "2 classes", "received them without 'flower', with 'aloe'"),
    "class renamed in train": (
        rename("train/flower", "train/aloe"),
        "2 classes",
        "received them without 'flower', with 'aloe'",
    ),
    "class added": (add("train/aloe/0.JPEG"), "2 classes", "received them with 'aloe'"),
    "class removed": (
        lambda folder: shutil.rmtree(folder / "train/flower"),
        "2 classes",
        "received them without 'flower'",
    ),
    "file added to val": (add("val/china/zzz.JPEG"), "4 examples of val", "received 5"),
    "test split added": (
        add("test/china/0.JPEG"),
        "data evaluated on val",
        "received data evaluated on test",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_data_stop_a_run_before_any_work(name, copied, capsys):
    folder, run = copied
    change, was, now = CHANGES[name]
    change(folder)
    before = contents(run)
    line = refused(capsys, f"--flagfile={run}/flags.cfg", f"--data_dir={folder}")
    assert f"--output_dir: {run} holds a run on {was}; expected the same data" in line
    assert now in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("mean", [0.5, 0.5, 0.5], "images with mean=(0.5, 0.5, 0.5); "),
        ("std", [0.25, 0.25, 0.25], "images with std=(0.25, 0.25, 0.25); "),
    ],
)
def test_another_normalization_stops_a_run(key, value, line, copied, capsys):
    folder, run = copied
    content = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**content, key: value}))
    assert line in refused(capsys, f"--flagfile={run}/flags.cfg", f"--data_dir={folder}")


def test_the_same_data_elsewhere_go_on_and_a_former_run_remembers_them_from_then_on(copied, capsys):
    folder, run = copied
    expected = (run / "data.json").read_bytes()
    flags = (f"--flagfile={run}/flags.cfg", f"--data_dir={folder}")
    command(capsys, *flags)
    assert (run / "data.json").read_bytes() == expected
    (run / "data.json").unlink()
    command(capsys, *flags)
    assert (run / "data.json").read_bytes() == expected


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"class_names": 3}', "null", b"\xff\xfe", "CUT", "CHANNELS", "NAN"],
)
def test_a_damaged_record_is_one_line(text, copied, capsys):
    folder, run = copied
    content = (run / "data.json").read_text()
    text = {
        "CUT": content[:-20],
        "CHANNELS": content.replace('"channels": 3', '"channels": 1'),
        "NAN": content.replace("0.485", "NaN"),
    }.get(text, text)
    (run / "data.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for flags in (
        (f"--flagfile={run}/flags.cfg", f"--data_dir={folder}"),
        ("--mode=predict", f"--run={run}", f"--images={folder}/val"),
    ):
        assert f"{run}/data.json: expected what a training wrote" in refused(capsys, *flags)


def test_the_split_is_a_part_of_the_run(copied, capsys):
    """--reload_best chooses by it; evaluating on another one goes on working."""
    folder, run = copied
    line = refused(capsys, f"--flagfile={run}/flags.cfg", f"--data_dir={folder}", "--split=train")
    assert "--split=test" in line and "received --split=train" in line
    out = command(
        capsys, "--mode=evaluate", f"--run={run}", f"--data_dir={folder}", "--split=train"
    )
    assert "train top-1" in out and "of 12 images" in out


# Inference


def test_predict_export_and_summary_need_no_data_set(copied, capsys):
    folder, run = copied
    images = shutil.copytree(folder / "val", folder.parent / "images")
    predict = ("--mode=predict", "--json", f"--run={run}", f"--images={images}")
    expected = command(capsys, *predict, f"--data_dir={folder}")
    assert {p["class"] for p in json.loads(expected)[0]["predictions"]} == {"china", "flower"}
    add("train/aloe/0.JPEG")(folder)  # the first class now
    assert command(capsys, *predict, f"--data_dir={folder}") == expected
    folder.rename(folder.parent / "gone")
    gone = f"--data_dir={folder}"
    assert command(capsys, *predict, gone) == expected
    assert "tiny" in command(capsys, "--mode=summary", f"--run={run}", gone)
    out = command(capsys, "--mode=export", f"--run={run}", gone, "--check_images=10")
    (line,) = [line for line in out.splitlines() if "check: passed" in line]
    assert "on 10 random images (data_dir: expected" in line
    by_file = command(capsys, *predict[:2], f"--tflite={run}/model.tflite", f"--images={images}")
    for one, other in zip(json.loads(expected), json.loads(by_file), strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-3)
    assert "--data_dir" in refused(capsys, "--mode=evaluate", f"--run={run}", gone)
    folder.mkdir()  # a disk that is not mounted
    with pytest.raises(UsageError) as raised:  # after which an export takes random images
        config = load_run(run, mode="export", data_dir=str(folder))
        datasets.load(config, provenance.read(Run(run)))
    assert raised.type is UsageError
    line = refused(capsys, "--mode=evaluate", f"--run={run}", gone)
    assert f"--data_dir: expected a split of image_folder in '{folder}'; there is none" in line


def evaluated(capsys, run, folder, *flags):
    """(top-1 in percent, images) as printed."""
    out = command(capsys, "--mode=evaluate", f"--run={run}", f"--data_dir={folder}", *flags)
    words = out.splitlines()[-1].split()
    return float(words[words.index("top-1") + 1]), int(words[-2])


def test_evaluation_labels_by_the_names_of_the_classes(copied, eager, capsys):
    """Also where train/ has changed or is gone, and by the .tflite alone."""
    folder, run = copied
    for index in range(1, 6):  # many more flowers than chinas
        add(f"val/flower/copy{index}.JPEG", copy="val/flower/001.JPEG")(folder)
    expected = evaluated(capsys, run, folder)
    assert expected[1] == 9
    tflite = f"--tflite={run}/model.tflite"
    add("train/aloe/0.JPEG")(folder)
    add("val/ant", copy="train/china/000.JPEG")(folder)  # a file beside the classes
    assert evaluated(capsys, run, folder) == expected
    shutil.rmtree(folder / "train")
    assert evaluated(capsys, run, folder) == expected
    assert evaluated(capsys, run, folder, tflite) == expected
    alone = ("--mode=evaluate", tflite, "--dataset=image_folder", f"--data_dir={folder}")
    assert f"top-1 {expected[0]:.2f} %" in command(capsys, *alone)
    right = {}
    for name in ("china", "flower"):  # a class at a time
        part = folder.parent / name
        shutil.copytree(folder / "val" / name, part / "val" / name)
        right[name] = evaluated(capsys, run, part)
    assert sum(count for _, count in right.values()) == 9
    top1 = sum(share * count for share, count in right.values()) / 9
    assert top1 == pytest.approx(expected[0], abs=0.01)
    (folder / "val" / "flower").rename(folder / "val" / "rose")
    for flags in (("--mode=evaluate", f"--run={run}", f"--data_dir={folder}"), alone):
        assert "val/rose is no class of the training (7 images)" in refused(capsys, *flags)


def test_a_data_set_of_tfds_need_not_be_there(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    dataset = datasets.load(load_run(run, mode="evaluate"))
    provenance.write(Run(run), provenance.of(dataset))
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    predict = ("--mode=predict", "--json", f"--run={run}", f"--images={tmp_path}/x.png")
    expected = command(capsys, *predict)
    content = json.loads((run / "data.json").read_text())
    content["class_names"] = [f"number {index}" for index in range(10)]
    (run / "data.json").write_text(json.dumps(content))
    (tmp_path / "empty").mkdir()
    received = command(capsys, *predict, f"--data_dir={tmp_path}/empty")
    assert received.replace("number ", "") == expected
    assert os.listdir(tmp_path / "empty") == []
    line = refused(capsys, "--mode=evaluate", f"--run={run}")
    assert "--dataset: expected the 10 classes that the network knows; digits is without" in line


# Teachers


@pytest.fixture
def teacher(digits_run, tmp_path):
    """A copy of the run that knows the digits, and a function that changes its data.json."""
    run = shutil.copytree(digits_run, tmp_path / "teacher")
    dataset = datasets.without_images(load_run(run))
    known = provenance.of(dataset, trained=False)

    def change(**changes):
        provenance.write(Run(run), dataclasses.replace(known, **changes))

    return run, dataset, change


def test_a_teacher_of_another_data_set_has_its_own_normalization(teacher):
    run, dataset, change = teacher
    config = load_run(run, mode="train", teacher=(str(run),), loss="distribution")
    model = students.load_student(Run(run), config, dataset)
    pixels = np.random.default_rng(0).uniform(size=(8, 32, 32, 1))
    (mean,), (std,) = dataset.preparation.mean, dataset.preparation.std
    images = tf.constant((pixels - mean) / std, tf.float32)  # the student's
    for own in ((mean, std), (0.5, 0.25), (0.1, 0.9)):
        change(mean=own[:1], std=own[1:])
        received = teachers.load(config, dataset, str(run))(images).numpy()
        expected = model(tf.constant((pixels - own[0]) / own[1], tf.float32), training=False)
        # Binary layers: a sign of some image may turn with the rounding.
        close = np.isclose(received, expected, rtol=1e-4, atol=1e-4).all(axis=1)
        assert close.sum() >= 7, own
        if own != (mean, std):
            assert not np.allclose(received, model(images, training=False), atol=0.01)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"class_names": tuple("012345678")}, "a teacher of 10 classes, as digits has; "),
        ({"class_names": tuple("9876543210")}, "a teacher of the classes of digits in their order"),
        (
            {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            "a teacher of 1 channels, as digits has; ",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_leaves_nothing_behind(
    changes, line, teacher, data_dir, tmp_path, capsys
):
    run, _, change = teacher
    change(**changes)
    flags = (*FLAGS, "--dataset=digits", f"--data_dir={data_dir}", "--loss=distribution")
    flags += (f"--teacher={run}", f"--output_dir={tmp_path}/run")
    assert f"--teacher: expected {line}" in refused(capsys, *flags)
    assert not (tmp_path / "run").exists()


def test_the_names_of_kerass_networks():
    expected = {name for name in dir(tf.keras.applications) if name[:1].isupper()}
    assert set(APPLICATIONS) == expected


@pytest.mark.parametrize("name", ["run", "resnet34", "VGG16"])
def test_a_teacher_whose_weights_are_damaged_leaves_nothing_behind(
    name, teacher, data_dir, tmp_path, capsys
):
    run, _, _ = teacher
    bad = run / "checkpoints" / "step2.weights.h5" if name == "run" else tmp_path / "bad.pth"
    bad.write_bytes(b"no weights")
    flags = [*FLAGS, "--dataset=digits", f"--data_dir={data_dir}", "--loss=distribution"]
    flags += [f"--teacher={run if name == 'run' else name}", f"--output_dir={tmp_path}/run"]
    flags += [] if name == "run" else [f"--teacher_weights={bad}"]
    line = refused(capsys, *flags)
    assert ("--teacher: " if name == "run" else "--teacher_weights: ") in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("several", [False, True])
def test_a_run_goes_on_with_the_teacher_that_it_was_begun_with(
    several, teacher, eager, data_dir, tmp_path, capsys
):
    run, dataset, _ = teacher
    flags = [*FLAGS, "--dataset=digits", f"--data_dir={data_dir}", "--loss=distribution"]
    flags += ["--train_images=12", "--split=test[:12]", "--noexport"]
    other = shutil.copytree(run, tmp_path / "other")
    flags += [f"--teacher={f'{other},' if several else ''}{run}", f"--output_dir={tmp_path}/run"]
    command(capsys, *flags)
    weights_file = run / "checkpoints" / "step2.weights.h5"
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    if several:
        digest = hashlib.sha256(2 * digest.encode()).hexdigest()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["teacher"] == digest
    command(capsys, *flags)

    other = students.load_student(Run(run), load_run(run), dataset)
    other.layers[1].set_weights([2 * w for w in other.layers[1].get_weights()])
    weights.save(other, weights_file)
    before = contents(tmp_path / "run")
    line = refused(capsys, *flags)
    assert f"--teacher: expected the weights that {tmp_path}/run was begun with" in line
    assert contents(tmp_path / "run") == before
