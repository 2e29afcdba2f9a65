"""Run directories with damaged or foreign files, and disks that take none: one line, status 2."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import numpy as np
import PIL.Image
import pytest

import main
from larq_adambnn import files
from larq_adambnn.runs import exporting
from larq_adambnn.runs.directory import Run

ROOT = pathlib.Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_run, tiny_network):
    """A run with everything that a training, an export and an analysis leave behind."""
    run = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(digits_run, run)
    text = (run / "flags.cfg").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("--source=", "--mode="))]
    (run / "flags.cfg").write_text("\n".join([*lines, "--loss=cross_entropy", "--noexport"]))
    (run / "metrics.csv").write_text(
        "step,epoch,loss,accuracy,val_loss,val_accuracy,seconds\n1,1,2,0.5,2,0.5,3\n"
    )
    (run / "analysis.json").write_text('[{"plot": "a.png", "caption": "A figure."}]')
    (run / "left_out.json").write_text('{"train": [{"name": "a.png", "reason": "is no image"}]}')
    assert main.main(["--mode=export", f"--run={run}"]) == 0
    assert main.main([*reported(run)]) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def content(directory):
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock" and path.suffix != ".png"
    }


def refused(capsys, *flags):
    assert main.main(list(map(str, flags))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def reported(run):
    """The command that only writes the report of a finished run again."""
    return (f"--flagfile={run}/flags.cfg",)


def test_the_run_itself_is_reported(run):
    assert main.main([*reported(run)]) == 0
    report = (run / "report.md").read_text()
    for text in ("## model.tflite", "check: passed", "A figure.", "`a.png` is no image"):
        assert text in report


TEXTS = ("export.json", "analysis.json", "left_out.json", "metrics.csv", "flags.cfg")


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"{", b"[3]", b'{"a": 1}', b"a,b\n1,2\n", os.mkdir]
)
@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_file_is_named(name, damage, run, capsys):
    path = run / name
    if callable(damage):
        path.unlink()
        damage(path)
    else:
        path.write_bytes(damage)
    before = content(run)
    err = refused(capsys, *reported(run))
    assert name in err
    assert content(run) == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/proc/self/mem")])
@pytest.mark.parametrize("name", [*TEXTS, "data.json", "devices.txt"])
def test_what_is_no_file_or_cannot_be_read_is_named(name, make, run, capsys):
    """A pipe that nobody writes to, and what a disk that fails gives."""
    path = run / name
    path.unlink(missing_ok=True)
    make(path)
    assert name in refused(capsys, *reported(run))


# The .tflite and its export.json


def flip(path):
    """Flips a bit in the middle of a file, where its weights are."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.fixture
def picture(tmp_path):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_flipped_bit_of_a_tflite_is_noticed(run, data_dir, picture, capsys):
    tflite = run / "model.tflite"
    flip(tflite)
    data = (f"--data_dir={data_dir}", "--dataset=digits")
    for flags in (
        ("--mode=evaluate", f"--run={run}"),
        ("--mode=evaluate", *data),
        ("--mode=predict", f"--images={picture}"),
    ):
        err = refused(capsys, *flags, f"--tflite={tflite}")
        assert str(tflite) in err and "export.json" in err and "damaged" in err
    assert main.main([*reported(run)]) == 0
    report = (run / "report.md").read_text()
    assert "model.tflite is another file, or damaged" in report
    assert "check: passed" not in report
    (row,) = (line for line in report.splitlines() if line.startswith("| .tflite"))
    assert "%" not in row


@pytest.mark.parametrize("mode", ["evaluate", "predict", "export", "analyze", "summary"])
@pytest.mark.parametrize(
    ("flag", "has"),
    [
        ("image_size=64", "32"),
        ("dataset=mnist", "digits"),
        ("width=0.5", "1.0"),
        ("channels=3", "0"),
    ],
)
def test_what_a_run_has_not_is_not_ignored(mode, flag, has, finished, picture, capsys):
    """The run's network and data count; a flag that asks for others would do nothing."""
    images = [f"--images={picture}"] if mode == "predict" else []
    err = refused(capsys, f"--mode={mode}", f"--run={finished}", f"--{flag}", *images)
    name, asked = flag.split("=")
    assert f"--{name}: expected {has}, as the run in {finished} has; received {asked}" in err


@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip, "is another file, or damaged"), (lambda path: path.unlink(), "is not there")],
)
def test_a_self_test_of_another_export_is_noticed(damage, says, run, capsys):
    damage(run / "model.selftest.bin")
    assert not exporting.is_current(Run(run))
    assert main.main([*reported(run)]) == 0
    assert f"model.selftest.bin {says}" in (run / "report.md").read_text()


@pytest.mark.parametrize("name", ["model.tflite", "renamed.tflite"])
def test_an_export_json_beside_another_tflite(name, run, data_dir, tmp_path, capsys):
    """Renamed or not, it is of the only file that it can be of; of a third one it is not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(run / "model.tflite", folder / name)
    shutil.copy(run / "export.json", folder)
    flags = ("--mode=evaluate", f"--data_dir={data_dir}", "--dataset=digits")
    assert main.main([*flags, f"--tflite={folder / name}"]) == 0
    other = shutil.copy(folder / name, folder / "other.tflite")
    flip(folder / "other.tflite")
    if name == "model.tflite":
        assert main.main([*flags, f"--tflite={other}"]) == 0
        (folder / "export.json").write_text("[]")
        assert f"{folder}/export.json: expected" in refused(
            capsys, *flags, f"--tflite={folder / name}"
        )
    else:
        (folder / name).unlink()
        assert "export.json" in refused(capsys, *flags, f"--tflite={other}")


# Weights


def test_damaged_weights_are_named(run, data_dir, capsys):
    path = run / "checkpoints" / "step2.weights.h5"
    files.add_sum(path)
    flags = ("--mode=evaluate", f"--run={run}", f"--data_dir={data_dir}")
    assert main.main(list(flags)) == 0
    flip(path)
    assert str(path) in refused(capsys, *flags)


@pytest.mark.parametrize("flag", ["init_from", "teacher"])
def test_a_training_that_needs_damaged_weights_leaves_nothing(flag, run, tmp_path, capsys):
    path = run / "checkpoints" / "step2.weights.h5"
    files.add_sum(path)
    flip(path)
    flags = (f"--output_dir={tmp_path}/new", f"--{flag}={run}", "--order=one_step")
    loss = "--loss=distribution" if flag == "teacher" else "--loss=cross_entropy"
    err = refused(capsys, *reported(run), *flags, loss)
    assert f"--{flag}: {path}: cannot read weights" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value, run, data_dir, capsys):
    path = run / "checkpoints" / "step2.weights.h5"
    with h5py.File(path, "r+") as file:
        names = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        dataset = file[names[0]]
        dataset[(0,) * dataset.ndim] = value
    for mode in ("evaluate", "export"):
        err = refused(capsys, f"--mode={mode}", f"--run={run}", f"--data_dir={data_dir}")
        assert f"{path}: expected finite weights; " in err and ":0 has NaN or infinity" in err


# Disks that take nothing


MODES = {
    "report": lambda run: [*reported(run)],
    "export": lambda run: ["--mode=export", f"--run={run}"],
    "analyze": lambda run: ["--mode=analyze", f"--run={run}", "--resolution=3"],
}


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_is_named(mode, run, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = content(run)
    monkeypatch.setattr(files.os, "fsync", full)
    err = refused(capsys, *MODES[mode](run))
    assert f"{run}/" in err and "no space left on device" in err
    assert content(run) == before


def test_a_read_only_disk_is_named_and_can_be_read_from(run, data_dir, picture, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk])
    assert mounted.returncode == 0, "this test mounts a small tmpfs and needs the right to"
    try:
        copy = shutil.copytree(run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for flags in (
            *(make(copy) for make in MODES.values()),
            [*reported(run), f"--output_dir={disk}/new"],
        ):
            err = refused(capsys, *flags)
            assert f"{disk}/" in err and "read-only file system" in err
        for flags in (["--mode=evaluate"], ["--mode=predict", f"--images={picture}"]):
            assert main.main([*flags, f"--run={copy}", f"--data_dir={data_dir}"]) == 0
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "holds something else"),
        ("file/run", "not a directory"),
        ("x" * 300, "file name too long"),
        ("nul\0", "expected text that can be a name"),
        ("\ud800", "expected text that can be a name"),
    ],
)
def test_impossible_directories_are_named(name, reason, run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    err = refused(capsys, *reported(run), f"--output_dir={tmp_path}/{name}")
    assert reason in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--help", "--help=task"], ids=["much", "little"])
def test_output_that_cannot_be_written_is_named(flag):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, ROOT / "main.py", flag], stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode == 2
    assert result.stderr == b"error: standard output: no space left on device\n"
