"""Runs that are killed, stopped, damaged or crowded out, as real processes."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import SMALL
from small import flags_of

KILLS = 20


@pytest.fixture
def start(server):
    """Starts a run: start(output_dir, data_dir, *flags)."""
    return lambda *args: server.start(*flags_of(*args))


def rows(run):
    """metrics.csv without its two columns of time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def newest_checkpoint(run):
    return max((run / "checkpoints").glob("[0-9]*.npz"))


def state(run):
    """All arrays of the newest checkpoint but the time of the epoch."""
    with np.load(newest_checkpoint(run)) as file:
        return {name: file[name] for name in file if not name.endswith("/seconds")}


def assert_same_end(run, reference):
    assert rows(run) == rows(reference)
    received, expected = state(run), state(reference)
    assert received.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(received[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, data_dir):
    """A run that nothing disturbed, from a command line."""
    run = tmp_path_factory.mktemp("reference") / "run"
    flags = flags_of(run, data_dir, "--teacher=self", "--checkpoint_iterations=3")
    process = subprocess.run([sys.executable, SMALL, *flags], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return run


def test_killed_at_random_moments_ends_like_the_undisturbed_run(
    start, reference, data_dir, tmp_path
):
    def begin(run):
        return start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3")

    # From the first file to the last: without the imports, which `start` has behind it.
    begun, ended = ((reference / name).stat().st_mtime for name in ("flags.cfg", "report.md"))
    seconds = ended - begun
    moments, killed, run = random.Random(0), 0, tmp_path / "run"
    while killed < KILLS:
        process = begin(run)
        # Enough to come past the start of a process, little enough to need many.
        time.sleep(moments.uniform(0.1, 0.4) * seconds)
        process.kill()
        if process.status == 0:
            assert_same_end(run, reference)
            run = tmp_path / f"run{killed}"
        else:
            assert process.status == -signal.SIGKILL, process.err
            killed += 1
    status, _, err = begin(run).finish()
    assert status == 0, err
    assert_same_end(run, reference)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_saves_says_how_to_resume_and_resumes(
    start, number, status, data_dir, tmp_path
):
    flags = ("--loss=cross_entropy", "--epochs=200")
    run = tmp_path / "run"
    process = start(run, data_dir, *flags)
    process.wait_for("epoch 1/")
    process.send_signal(number)
    code, _, err = process.finish()
    assert code == status
    assert err.startswith("stopped at iteration ")
    assert err.rstrip().endswith("give the same command again to resume")
    assert err.count("\n") == 1
    step = int(err.split()[3].rstrip(";"))
    assert int(newest_checkpoint(run).name.split("-")[0]) == step

    process = start(run, data_dir, *flags)
    assert process.wait_for("resuming after").endswith(f"(iteration {step})")
    process.kill()


def test_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    start, reference, data_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "step2.weights.h5").unlink()  # as if killed just before its end
    newest = newest_checkpoint(run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, out, err = start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3").finish()
    assert code == 0, err
    assert err.strip() == f"checkpoint {newest.name} is damaged; using the one before"
    assert "resuming after 3 of 4 epochs" in out
    assert_same_end(run, reference)


def test_truncated_checkpoint_is_damaged(start, reference, data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "step2.weights.h5").unlink()
    newest = newest_checkpoint(run)
    newest.write_bytes(newest.read_bytes()[:1000])
    code, _, err = start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3").finish()
    assert code == 0, err
    assert "is damaged" in err
    assert_same_end(run, reference)


def test_finished_run_is_only_reported_again(start, reference, data_dir):
    before = rows(reference)
    code, out, err = start(reference, data_dir, "--teacher=self").finish()
    assert code == 0, err
    assert "epoch" not in out
    assert "step 2 (binary)" in out
    assert rows(reference) == before


def test_flags_file_of_a_run_is_the_same_run(server, reference, tmp_path):
    flags = (reference / "flags.cfg").read_text()
    assert f"--output_dir={reference}" in flags
    run = tmp_path / "again"
    process = server.start(f"--flagfile={reference}/flags.cfg", f"--output_dir={run}")
    status, _, err = process.finish()
    assert status == 0, err
    assert_same_end(run, reference)


def test_other_settings_in_the_same_directory_are_refused(start, reference, data_dir):
    before = (reference / "flags.cfg").read_bytes()
    code, _, err = start(reference, data_dir, "--teacher=self", "--epochs=3").finish()
    assert code == 2
    assert "--epochs" in err
    assert err.count("\n") == 1
    assert (reference / "flags.cfg").read_bytes() == before


def test_directory_with_something_else_is_refused(start, data_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = start(tmp_path, data_dir, "--loss=cross_entropy").finish()
    assert code == 2
    assert "--output_dir" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_process_on_a_run_is_refused_until_the_first_is_dead(start, data_dir, tmp_path):
    flags = ("--loss=cross_entropy", "--epochs=200")
    first = start(tmp_path / "run", data_dir, *flags)
    first.wait_for("epoch 1/")
    code, _, err = start(tmp_path / "run", data_dir, *flags).finish()
    assert code == 2
    assert "another process is working on" in err
    first.kill()
    third = start(tmp_path / "run", data_dir, *flags)
    third.wait_for("resuming after")
    third.kill()


def test_full_disk_stops_the_run_with_the_last_good_checkpoint(start, data_dir, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=154k", "tmpfs", disk])
    assert mounted.returncode == 0, "this test mounts a small tmpfs and needs the right to"
    try:
        run = disk / "run"
        flags = ("--loss=cross_entropy", "--epochs=3")
        code, _, err = start(run, data_dir, *flags).finish()
        assert code == 2
        assert "no space left" in err
        assert err.count("\n") == 1
        kept = sorted((run / "checkpoints").glob("[0-9]*.npz"))
        assert kept, err
        assert (
            f"The last good checkpoint is at iteration {int(kept[-1].name.split('-')[0])}." in err
        )
        roomy = tmp_path / "roomy"
        shutil.copytree(run, roomy)
    finally:
        subprocess.run(["umount", disk], check=True)
    code, out, err = start(roomy, data_dir, *flags).finish()
    assert code == 0, err
    assert "resuming after" in out
    assert "damaged" not in err


def test_loss_that_is_not_finite_stops_the_run(start, data_dir, tmp_path):
    run = tmp_path / "run"
    flags = ("--loss=cross_entropy", "--optimizer=sgd", "--learning_rate=1e30")
    code, _, err = start(run, data_dir, *flags, "--checkpoint_iterations=1").finish()
    assert code == 2
    assert err.count("\n") == 1
    assert "expected a finite loss; received another at iteration " in err
    step = int(err.split("at iteration ")[1].split(".")[0])
    assert f"The last good checkpoint is at iteration {step - 1}." in err or "no checkpoint" in err
    for path in (run / "checkpoints").glob("[0-9]*.npz"):
        with np.load(path) as file:
            assert np.isfinite(file["metric/0"])
