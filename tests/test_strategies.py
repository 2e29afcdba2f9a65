"""Several devices and several processes against one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_resume import command

REPLICAS = pathlib.Path(__file__).with_name("replicas.py")
WORKERS = 2


def workers(commands):
    """Starts a process for each command, as the workers of one cluster on this machine."""
    sockets = [socket.socket() for _ in commands]
    for s in sockets:
        s.bind(("localhost", 0))
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for index, arguments in enumerate(commands):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                arguments,
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def losses(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def start(kind):
    return subprocess.Popen(
        [sys.executable, REPLICAS, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def one_device():
    return losses(start("one"))


def test_two_devices_train_like_one(one_device):
    np.testing.assert_allclose(losses(start("mirrored")), one_device, rtol=0, atol=1e-8)
    assert len(one_device) == 10
    assert np.std(one_device) > 1e-3


def test_two_processes_train_like_one(one_device):
    for process in workers([[sys.executable, REPLICAS, "worker"]] * WORKERS):
        np.testing.assert_allclose(losses(process), one_device, rtol=0, atol=1e-8)


def job(run, data_dir, *flags):
    arguments = command(
        run,
        data_dir,
        "--strategy=multi_worker",
        "--sync_batch_norm",
        "--checkpoint_steps=3",
        *flags,
    )
    return workers([arguments] * WORKERS)


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_worker_ends_the_others_and_the_job_resumes(victim, tmp_path):
    run, data_dir = tmp_path / "run", tmp_path / "data"  # both workers find no data there
    flags = ("--loss=cross_entropy", "--epochs=40")
    processes = job(run, data_dir, *flags)
    while not list(run.glob("checkpoints/0*.npz")):
        assert processes[0].stdout.readline()
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    survivor = processes[1 - victim]
    _, err = survivor.communicate(timeout=60)
    assert time.perf_counter() - killed < 60
    assert survivor.returncode not in (0, -signal.SIGKILL)
    assert "another worker stopped" in err, err
    processes = job(run, data_dir, *flags)
    assert processes[0].stdout.readline().startswith("resuming after")
    for process in processes:
        process.kill()
        process.communicate()


def test_job_of_two_workers_ends_like_the_one_process_run(data_dir, tmp_path):
    """In float32 flipped signs amplify rounding, so the comparison is of the first epoch."""
    flags = ("--loss=cross_entropy", "--order=real_valued", "--epochs=1")
    for process in job(tmp_path / "two", data_dir, *flags):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    single = subprocess.run(
        command(tmp_path / "one", data_dir, *flags), capture_output=True, text=True, timeout=300
    )
    assert single.returncode == 0, single.stderr
    rows = [
        (tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(float(rows[1][2]), float(rows[0][2]), rtol=1e-3)
    np.testing.assert_allclose(float(rows[1][3]), float(rows[0][3]), atol=0.01)
