"""Runs that are killed, stopped, damaged or crowded out, as real processes."""

import contextlib
import csv
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small

SMALL = pathlib.Path(__file__).with_name("small.py")
KILLS = 20


def command(output_dir, data_dir, *flags):
    return [
        sys.executable,
        str(SMALL),
        *small.FLAGS,
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
        *flags,
    ]


def start(*args, **kwargs):
    return subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def finish(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


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
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    code, _, err = finish(start(run, data_dir, "--teacher=self", "--checkpoint_steps=3"))
    assert code == 0, err
    return run


@pytest.fixture(scope="module")
def server():
    """Starts runs without the time of their imports; see small.serve."""
    process = subprocess.Popen(
        [sys.executable, SMALL, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait()


def ask(server, *words):
    server.stdin.write(" ".join(map(str, words)) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def test_killed_at_random_moments_ends_like_the_undisturbed_run(server, data_dir, tmp_path):
    def begin(run, name):
        flags = command(run, data_dir, "--teacher=self", "--checkpoint_steps=3", "--epochs=4")[2:]
        return ask(server, "run", tmp_path / f"{name}.out", tmp_path / f"{name}.err", *flags)

    began = time.perf_counter()
    assert ask(server, "wait", begin(tmp_path / "reference", "reference")) == 0
    seconds = time.perf_counter() - began
    moments, killed, run = random.Random(0), 0, tmp_path / "run"
    while killed < KILLS:
        number = begin(run, "killed")
        # Enough to come past the start of a process, little enough to need many.
        time.sleep(moments.uniform(0.1, 0.4) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        status = ask(server, "wait", number)
        if status == 0:
            assert_same_end(run, tmp_path / "reference")
            run = tmp_path / f"run{killed}"
        else:
            assert status == -signal.SIGKILL, (tmp_path / "killed.err").read_text()
            killed += 1
    assert ask(server, "wait", begin(run, "last")) == 0
    assert_same_end(run, tmp_path / "reference")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_saves_says_how_to_resume_and_resumes(
    number, status, data_dir, tmp_path
):
    flags = ("--loss=cross_entropy", "--epochs=200")
    run = tmp_path / "run"
    process = start(run, data_dir, *flags)
    process.stdout.readline()  # the first epoch is over
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == status
    assert err.startswith("stopped at step ")
    assert err.rstrip().endswith("give the same command again to resume")
    assert err.count("\n") == 1
    step = int(err.split()[3].rstrip(";"))
    assert int(newest_checkpoint(run).name.split("-")[0]) == step

    process = start(run, data_dir, *flags)
    assert process.stdout.readline().rstrip().endswith(f"(step {step})")
    process.kill()
    process.communicate()


def test_damaged_checkpoint_is_reported_and_the_one_before_is_used(reference, data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "step2.weights.h5").unlink()  # as if killed just before its end
    newest = newest_checkpoint(run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, out, err = finish(start(run, data_dir, "--teacher=self", "--checkpoint_steps=3"))
    assert code == 0, err
    assert err.strip() == f"checkpoint {newest.name} is damaged; using the one before"
    assert "resuming after 3 of 4 epochs" in out
    assert_same_end(run, reference)


def test_truncated_checkpoint_is_damaged(reference, data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "step2.weights.h5").unlink()
    newest = newest_checkpoint(run)
    newest.write_bytes(newest.read_bytes()[:1000])
    code, _, err = finish(start(run, data_dir, "--teacher=self", "--checkpoint_steps=3"))
    assert code == 0, err
    assert "is damaged" in err
    assert_same_end(run, reference)


def test_finished_run_is_only_reported_again(reference, data_dir):
    before = rows(reference)
    code, out, err = finish(start(reference, data_dir, "--teacher=self"))
    assert code == 0, err
    assert "epoch" not in out
    assert "step 2 (binary)" in out
    assert rows(reference) == before


def test_flags_file_of_a_run_is_the_same_run(reference, data_dir, tmp_path):
    flags = (reference / "flags.cfg").read_text()
    assert f"--output_dir={reference}" in flags
    run = tmp_path / "again"
    process = subprocess.run(
        [sys.executable, SMALL, f"--flagfile={reference}/flags.cfg", f"--output_dir={run}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert_same_end(run, reference)


def test_other_settings_in_the_same_directory_are_refused(reference, data_dir):
    before = (reference / "flags.cfg").read_bytes()
    code, _, err = finish(start(reference, data_dir, "--teacher=self", "--epochs=3"))
    assert code == 2
    assert "--epochs" in err
    assert err.count("\n") == 1
    assert (reference / "flags.cfg").read_bytes() == before


def test_directory_with_something_else_is_refused(data_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = finish(start(tmp_path, data_dir, "--loss=cross_entropy"))
    assert code == 2
    assert "--output_dir" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_process_on_a_run_is_refused_until_the_first_is_dead(data_dir, tmp_path):
    flags = ("--loss=cross_entropy", "--epochs=200")
    first = start(tmp_path / "run", data_dir, *flags)
    first.stdout.readline()
    code, _, err = finish(start(tmp_path / "run", data_dir, *flags))
    assert code == 2
    assert "another process is working on" in err
    first.kill()
    first.communicate()
    third = start(tmp_path / "run", data_dir, *flags)
    assert third.stdout.readline().startswith("resuming after")
    third.kill()
    third.communicate()


def test_full_disk_stops_the_run_with_the_last_good_checkpoint(data_dir, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", disk])
    assert mounted.returncode == 0, "this test mounts a small tmpfs and needs the right to"
    try:
        run = disk / "run"
        flags = ("--loss=cross_entropy", "--epochs=3")
        code, _, err = finish(start(run, data_dir, *flags))
        assert code == 2
        assert "no space left" in err
        assert err.count("\n") == 1
        kept = sorted((run / "checkpoints").glob("[0-9]*.npz"))
        assert kept, err
        assert f"The last good checkpoint is at step {int(kept[-1].name.split('-')[0])}." in err
        roomy = tmp_path / "roomy"
        shutil.copytree(run, roomy)
    finally:
        subprocess.run(["umount", disk], check=True)
    code, out, err = finish(start(roomy, data_dir, *flags))
    assert code == 0, err
    assert "resuming after" in out
    assert "damaged" not in err


def test_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    run = tmp_path / "run"
    flags = ("--loss=cross_entropy", "--optimizer=sgd", "--learning_rate=1e30")
    code, _, err = finish(start(run, data_dir, *flags, "--checkpoint_steps=1"))
    assert code == 2
    assert err.count("\n") == 1
    assert "expected a finite loss; received another at step " in err
    step = int(err.split("at step ")[1].split(".")[0])
    assert f"The last good checkpoint is at step {step - 1}." in err or "no checkpoint" in err
    for path in (run / "checkpoints").glob("[0-9]*.npz"):
        with np.load(path) as file:
            assert np.isfinite(file["metric/0"])
