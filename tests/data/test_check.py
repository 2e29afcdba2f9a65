"""--mode=check_data and --bad_images=skip: every problem is listed, nothing else is left out."""

import json
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import encoded, photograph, write_folder

from larq_adambnn.commands import check_data
from larq_adambnn.data import check
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run


def settings(folder, **changes):
    options = {"mode": "check_data", "image_size": 32, "batch_size": 4, **changes}
    return Config(dataset="image_folder", data_dir=str(folder), **options)


def write_unusual(folder):
    """Files that look odd and must work."""
    image, china = photograph("china").resize((90, 60)), folder / "train" / "china"
    (china / "cmyk.JPEG").write_bytes(encoded(image.convert("CMYK")))
    (china / "grey.JPEG").write_bytes(encoded(image.convert("L")))
    (china / "png.JPEG").write_bytes(encoded(image, "PNG"))
    (china / "one.jpg").write_bytes(encoded(image.resize((1, 1))))
    (china / "wide.jpg").write_bytes(encoded(image.resize((10_000, 30))))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (china / "turned.jpg").write_bytes(encoded(image, exif=exif))


def write_bad(folder):
    """Files and folders that cannot be used; returns {path: a part of the reason}."""
    jpeg = encoded(photograph("flower").resize((90, 60)))
    flower = folder / "train" / "flower"
    (flower / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (flower / "zero.jpg").write_bytes(b"")
    (flower / "text.jpg").write_text("this is text")
    (flower / "link.jpg").symlink_to("/nowhere/at/all.jpg")
    (flower / "directory.jpg").mkdir()
    os.mkfifo(flower / "pipe.jpg")
    (folder / "train" / "empty").mkdir()
    (folder / "val" / "zebra").mkdir()
    (folder / "val" / "zebra" / "a.jpg").write_bytes(jpeg)
    (folder / "val" / "china" / "cut.jpg").write_bytes(jpeg[:-1])
    return {
        "train/flower/truncated.jpg": "is truncated",
        "train/flower/zero.jpg": "is empty (0 bytes)",
        "train/flower/text.jpg": "is not an image: it begins with b'this is text'",
        "train/flower/link.jpg": "is a broken link",
        "train/flower/pipe.jpg": "is no regular file",
        "train/empty": "is a class without images",
        "val/zebra": "is no class of the training (1 images)",
        "val/china/cut.jpg": "is truncated",
    }


def listed(lines, folder, expected):
    """Checks that lines name each problem once, with its reason."""
    lines = [line for line in lines if str(folder) in line]
    for name, reason in expected.items():
        (line,) = [line for line in lines if f"{folder}/{name} " in line.replace("`", "")]
        assert reason in line
    return len(lines)


def test_a_good_folder_has_no_problems(tmp_path, capsys):
    folder = write_folder(tmp_path)
    write_unusual(folder)
    check_data.main(settings(folder))
    out = capsys.readouterr().out
    assert "train: 18 examples read, 0 problems" in out
    assert "val: 4 examples read, 0 problems" in out
    assert "note: 1 images of train carry a rotation" in out
    assert f"such as {folder}/train/china/turned.jpg" in out


def test_every_problem_is_listed_and_the_status_says_so(server, tmp_path):
    folder = write_folder(tmp_path)
    write_unusual(folder)
    expected = write_bad(folder)
    flags = ("--mode=check_data", "--dataset=image_folder", f"--data_dir={folder}")
    status, out, err = server.start(*flags).finish()
    assert status == 2
    assert err == "error: --mode=check_data found 8 problems, which are listed above\n"
    lines = [line for line in out.splitlines() if " images, " not in line]
    listed([line for line in lines if not line.startswith("note")], folder, expected)
    assert "train: 21 examples read, 6 problems" in lines
    assert "val: 5 examples read, 2 problems" in lines


def test_a_progress_bar_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("larq_adambnn.progress._QUIET_SECONDS", 0.0)
    check_data.main(settings(write_folder(tmp_path)))
    out = capsys.readouterr().out
    assert "checking train: 100%" in out
    assert "12/12" in out


def load(folder, **changes):
    return datasets.load(settings(folder, mode="summary", **changes))


def note(dataset, run):
    datasets.remember(dataset, settings("", bad_images="skip"), run)


def test_error_stops_at_the_first_problem(tmp_path):
    folder = write_folder(tmp_path)
    write_bad(folder)
    dataset = load(folder)
    with pytest.raises(UsageError, match="such problems; mode=check_data lists them") as raised:
        dataset.source("train")
    assert str(folder) in str(raised.value)


def test_skip_leaves_out_what_is_bad_and_nothing_else(tmp_path):
    folder = write_folder(tmp_path)
    write_unusual(folder)
    good = {str(path) for path in folder.glob("*/*/*")}
    expected = write_bad(folder)
    dataset = load(folder, bad_images="skip")
    kept = set()
    for split in ("train", "val"):
        source = dataset.source(split)
        kept |= {source.name(index) for index in range(len(source))}
    assert kept == good
    problems = [*dataset.left_out("train"), *dataset.left_out("val")]
    assert listed(map(str, problems), folder, expected) == len(expected)
    for stream in (dataset.train().take(9), dataset.evaluation()):
        for images, _ in stream:
            assert np.isfinite(images).all()


def test_streams_of_a_run_that_skips_resume_and_share(tmp_path):
    folder = write_folder(tmp_path / "data", train=8)
    write_bad(folder)
    run = Run(tmp_path / "run")
    dataset = load(folder, bad_images="skip", output_dir=str(run.directory))
    note(dataset, run)
    whole = list(dataset.train().take(10).as_numpy_iterator())
    again = load(folder, bad_images="skip", output_dir=str(run.directory))
    received = list(again.train(4).take(6).as_numpy_iterator())
    for one, other in zip(received, whole[4:], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    shards = [next(iter(again.train(4, shard=(i, 2)))) for i in range(2)]
    np.testing.assert_array_equal(tf.concat([shard[0] for shard in shards], 0), whole[4][0])


def test_what_a_run_left_out_is_not_looked_for_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    write_bad(folder)
    run = Run(tmp_path / "run")
    options = {"bad_images": "skip", "output_dir": str(run.directory)}
    dataset = load(folder, **options)
    note(dataset, run)
    noted = json.loads(run.left_out.read_text())
    assert {split: len(problems) for split, problems in noted.items()} == {"train": 6, "val": 2}
    monkeypatch.setattr(check, "defects", lambda *_: pytest.fail("read everything again"))
    again = load(folder, **options)
    for split in ("train", "val"):
        assert again.left_out(split) == dataset.left_out(split)
        assert len(again.source(split)) == len(dataset.source(split))


def test_a_run_whose_files_have_changed_is_not_resumed(tmp_path):
    folder = write_folder(tmp_path / "data")
    write_bad(folder)
    run = Run(tmp_path / "run")
    options = {"bad_images": "skip", "output_dir": str(run.directory)}
    note(load(folder, **options), run)
    (folder / "train" / "china" / "000.JPEG").unlink()
    with pytest.raises(UsageError, match="expected the files that the run began with"):
        load(folder, **options).source("train")
    run.left_out.write_text("{")
    with pytest.raises(UsageError, match=r"left_out\.json: expected what --bad_images"):
        load(folder, **options)


def test_nothing_that_can_be_used(tmp_path):
    folder = write_folder(tmp_path)
    for path in (folder / "val").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="expected images in val; none of them can be used"):
        load(folder, bad_images="skip").source("val")


def test_a_run_that_meets_a_bad_image_stops_with_its_name(server, tmp_path):
    folder = write_folder(tmp_path / "data", train=8)
    bad = folder / "train" / "flower" / "001.JPEG"
    bad.write_bytes(bad.read_bytes()[:500])
    flags = ["--model=reactnet18", "--image_size=32", "--noexport", "--batch_size=8"]
    flags += ["--epochs=1", "--loss=cross_entropy", "--dataset=image_folder"]
    status, _, err = server.start(
        *flags, f"--data_dir={folder}", f"--output_dir={tmp_path}/run"
    ).finish()
    assert status == 2
    assert err.startswith(f"error: {bad} is truncated or damaged: ")
    assert err.count("\n") == 1
