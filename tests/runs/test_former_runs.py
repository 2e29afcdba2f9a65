"""A run that version 1.0 of the package made still opens: evaluate, predict, export, resume.

`former_run.tar.xz` holds a ReActNet-18 of a 64th of the width with its own teacher, trained on
256 digits for 2 epochs a step, as its flags.cfg says; without its logs, snapshots and plots.
"""

import json
import pathlib
import shutil
import tarfile

import h5py
import numpy as np
import PIL.Image
import pytest

import main
from larq_adambnn.runs import exporting
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run, locked, open_run

ARCHIVE = pathlib.Path(__file__).with_name("former_run.tar.xz")
LAST = "000000016-0f9732618b6d0ff71ba8582fdc18df63.npz"  # its last checkpoint


@pytest.fixture
def run(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def command(capsys, *flags):
    assert main.main(list(map(str, flags))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def weights(path):
    """All arrays of a weights file by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def test_evaluate(run, data_dir, capsys):
    out = command(capsys, "--mode=evaluate", f"--run={run}", f"--data_dir={data_dir}")
    assert "test top-1 10.28 %" in out  # as in its metrics.csv
    flag = f"--tflite={run}/model.tflite"
    out = command(capsys, "--mode=evaluate", f"--run={run}", f"--data_dir={data_dir}", flag)
    assert "test top-1 10.28 %" in out


def test_predict(run, data_dir, tmp_path, capsys):
    """With the run, and with its .tflite and its export.json alone."""
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    flags = ("--mode=predict", "--json", f"--images={tmp_path}/x.png")
    by_run = command(capsys, *flags, f"--run={run}", f"--data_dir={data_dir}")
    by_file = command(capsys, *flags, f"--tflite={run}/model.tflite")
    for one, other in zip(json.loads(by_run), json.loads(by_file), strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["class"] == b["class"]
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)


def test_a_moved_run_resumes_and_is_exported_again(run, data_dir, capsys, eager):
    """Interrupted in the middle of its last epoch, it ends with the weights that it had.

    Its flags.cfg says runs/former; its .tflite is for a while that of step 1.  What is exported
    then is the same network as before, and the report is written from it.
    """
    former = json.loads((run / "export.json").read_text())
    expected = shutil.move(run / "checkpoints" / "step2.weights.h5", run.parent / "expected.h5")
    flags = (f"--run={run}", f"--data_dir={data_dir}", "--allow_float_fallback")
    command(capsys, "--mode=export", *flags)
    step1 = json.loads((run / "export.json").read_text())
    assert step1["step"] == 1 and step1["binary_convolutions"]["converted"] == 0

    (run / "checkpoints" / LAST).unlink()
    again = (f"--flagfile={run}/flags.cfg", f"--data_dir={data_dir}")
    out = command(capsys, *again)
    assert "resuming after 3 of 4 epochs (iteration 15)" in out
    assert "teacher" in out and "real-valued  epoch" not in out  # which is finished
    expected = weights(expected)
    received = weights(run / "checkpoints" / "step2.weights.h5")
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(received[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    now = json.loads((run / "export.json").read_text())
    assert (now["step"], now["binary_convolutions"]["converted"]) == (2, 16)
    sums = {"selftest_sha256", "weights_sha256"}
    assert now.keys() - former.keys() == {"step", "complexity", "estimates", *sums}
    for key in ("operators", "input", "output", "preprocessing", "class_names", "accuracy"):
        assert now[key] == former[key], key
    assert "## model.tflite" in (run / "report.md").read_text()
    assert "16 of 16 binary layers are LceBconv2d" in (run / "report.md").read_text()

    tflite = run / "model.tflite"
    time = tflite.stat().st_mtime_ns
    command(capsys, *again)
    assert tflite.stat().st_mtime_ns == time  # it is current
    content = bytearray(tflite.read_bytes())
    content[5000] ^= 1  # one bit
    tflite.write_bytes(content)
    assert not exporting.is_current(Run(run))


def test_a_start_that_was_killed_before_its_flags_were_written(run, data_dir, tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    for name in (".lock", ".flags.cfg"):
        (new / name).touch()
    flags = ("--mode=import", "--source=nothing.pth", f"--output_dir={new}")
    assert main.main(list(flags)) == 2
    assert "--source" in capsys.readouterr().err
    with open_run(load_run(run, output_dir=str(new))):
        assert (new / "flags.cfg").is_file()


def test_export_and_analyze_take_the_lock(run, data_dir, capsys):
    for mode in ("export", "analyze"):
        with locked(Run(run)):
            assert main.main([f"--mode={mode}", f"--run={run}", f"--data_dir={data_dir}"]) == 2
        assert "another process is working on" in capsys.readouterr().err
