"""Several devices and several processes against one."""

import contextlib
import json
import pathlib
import signal
import socket
import sys

import numpy as np
import pytest
import tensorflow as tf
from photographs import write_folder
from small import flags_of

from larq_adambnn.errors import UsageError
from larq_adambnn.runs import config, strategies

REPLICAS = pathlib.Path(__file__).parents[1] / "replicas.py"
WORKERS = 2
VALIDATION = ("val_loss", "val_accuracy", "val_top5_accuracy")
ACCURACY = ("images", "top1", "top5")


A100 = {"GPU:0": "NVIDIA A100", "GPU:1": "NVIDIA A100"}


@pytest.mark.parametrize(
    "names, cards, workers, expected",
    [
        (["GPU:0"], A100, 1, "GPU:0 (NVIDIA A100)"),
        (["GPU:0", "GPU:1"], A100, 2, "GPU:0 (NVIDIA A100), GPU:1 (NVIDIA A100) on each of 2 work"),
        (["CPU"], {}, 1, "CPU (4 cores)"),
        (["CPU:0", "CPU:1"], A100, 1, "CPU:0, CPU:1 (4 cores)"),
    ],
)
def test_devices_are_described(monkeypatch, names, cards, workers, expected):
    monkeypatch.setattr(strategies, "cores", lambda: 4)
    assert strategies.described(names, cards, workers).startswith(expected)


@pytest.mark.parametrize(
    "cards, in_machine, environment, expected",
    [
        (["GPU:0"], True, {}, None),
        ([], False, {}, None),
        ([], True, {}, "pip install -r requirements-gpu.txt"),
        ([], True, {"CUDA_VISIBLE_DEVICES": "0"}, "pip install -r requirements-gpu.txt"),
        ([], True, {"CUDA_VISIBLE_DEVICES": ""}, None),
        ([], True, {"CUDA_VISIBLE_DEVICES": "-1"}, None),
        (["GPU:0", "GPU:1"], True, {}, "one uses GPU:0 of 2 GPUs"),
    ],
)
def test_unused_cards_get_a_line(cards, in_machine, environment, expected):
    notes = strategies.card_notes("one", cards, lambda: in_machine, environment)
    assert len(notes) == (expected is not None)
    assert not expected or expected in notes[0]


def test_devices_are_said_apart_from_what_is_to_be_read(monkeypatch, capsys):
    flags = []
    monkeypatch.setattr(strategies, "card_notes", lambda flag: flags.append(flag) or ["a card"])
    strategies.say_devices(tf.distribute.get_strategy(), "one")
    out, err = capsys.readouterr()
    assert out.startswith("devices: CPU (") and err == "note: a card\n"
    strategies.say_devices(tf.distribute.get_strategy(), file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[1:] == ["note: a card"]
    assert flags == ["one", ""]


def test_all_cards_are_used_by_mirrored():
    assert strategies.card_notes("mirrored", list(A100), lambda: True, {}) == []


@pytest.mark.parametrize("tf32", [False, True])
def test_cards_are_shared_and_tf32_is_as_asked_for(monkeypatch, tf32):
    """The cards are fakes; one of them is in use already."""
    grown, settings = [], tf.config.experimental

    def grow(card, enable):
        if card == "used":
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        grown.append((card, enable))

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["used", "free"])
    monkeypatch.setattr(settings, "set_memory_growth", grow)
    before = settings.tensor_float_32_execution_enabled()
    try:
        strategies.prepare(config.parse([f"--tf32={tf32}", "--mode=summary"]))
        assert settings.tensor_float_32_execution_enabled() is tf32
    finally:
        settings.enable_tensor_float_32_execution(before)
    assert grown == [("free", True)]


def clusters(first="worker"):
    """TF_CONFIG of each worker of a cluster on this machine, the first of which may be a chief."""
    sockets = [socket.socket() for _ in range(WORKERS)]
    for s in sockets:
        s.bind(("localhost", 0))
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    tasks = [("worker", index) for index in range(WORKERS)]
    if first == "chief":
        tasks = [("chief", 0), *tasks[:-1]]
    cluster = {}
    for (kind, _), address in zip(tasks, addresses, strict=True):
        cluster.setdefault(kind, []).append(address)
    for kind, index in tasks:
        task = {"type": kind, "index": index}
        yield {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def result(process):
    status, out, err = process.finish()
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def compare(received, expected):
    """Losses, validation columns and accuracies are those of one device."""
    np.testing.assert_allclose(received["losses"], expected["losses"], rtol=0, atol=1e-8)
    assert received.keys() == expected.keys()
    for name in VALIDATION:
        assert received[name] == pytest.approx(expected[name], rel=0, abs=1e-6)
    assert [received[name] for name in ACCURACY] == [expected[name] for name in ACCURACY]
    np.testing.assert_allclose(received["float32"], expected["float32"], rtol=1e-5)


@pytest.fixture(scope="module")
def one_device(server):
    expected = result(server.start("one", program=REPLICAS))
    assert len(expected["losses"]) == 10
    assert np.std(expected["losses"]) > 1e-3
    assert expected["images"] == 37
    for name, same in {"val_accuracy": "top1", "val_top5_accuracy": "top5"}.items():
        assert 0 < expected[name] < 1
        assert expected[name] == pytest.approx(expected[same], abs=1e-6)
    return expected


def test_two_devices_train_like_one(one_device, server):
    compare(result(server.start("mirrored", program=REPLICAS)), one_device)


def test_two_processes_train_like_one(one_device, server):
    workers = [
        server.start("worker", program=REPLICAS, environment=environment)
        for environment in clusters()
    ]
    for process in workers:
        compare(result(process), one_device)


def job(server, run, data_dir, *flags, first="worker", last_flags=(), seen_seconds="90"):
    """The processes of a job; the flags of its last worker may be others.

    It looks for so long for the directory that the first one makes.
    """
    flags = ("--strategy=multi_worker", "--sync_batch_norm", "--checkpoint_iterations=3", *flags)
    arguments = flags_of(run, data_dir, *flags)
    *others, last = clusters(first)
    return [
        *(server.start(*arguments, environment=environment) for environment in others),
        server.start(*arguments, *last_flags, environment=last | {"SEEN_SECONDS": seen_seconds}),
    ]


def test_killed_worker_ends_the_others_and_the_job_resumes(server, tmp_path):
    """Whichever it is, the chief or the other one."""
    run, data_dir = tmp_path / "run", tmp_path / "data"  # both workers find no data there
    flags = ("--loss=cross_entropy", "--epochs=40")
    processes = job(server, run, data_dir, *flags)
    for victim in (0, 1):
        before = set(run.glob("checkpoints/0*.npz"))
        processes[0].wait_until(lambda: set(run.glob("checkpoints/0*.npz")) - before)  # noqa: B023
        assert processes[0].running(), processes[0].err
        processes[victim].kill()
        status, _, err = processes[1 - victim].finish()
        assert status not in (0, -signal.SIGKILL)
        assert "another worker stopped" in err, err
        processes = job(server, run, data_dir, *flags)
        processes[0].wait_for("resuming after")
    for process in processes:
        process.kill()


DIFFERENCES = {
    "a flag": ("--learning_rate=0.5", "expected the chief's --learning_rate on every worker"),
    "images": ("--data_dir={other_data}", "expected the chief's examples of train on every"),
    "no data": ("--data_dir={nothing}", "worker 1 stopped: data_dir"),
    "a directory": ("--output_dir={stale}", "newest checkpoint in --output_dir on every worker"),
    "a disk": ("--output_dir={nothing}", "worker 1 stopped: --output_dir: expected a directory on"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_workers_that_differ_stop_with_one_line(name, server, tmp_path):
    flag, line = DIFFERENCES[name]
    places = {place: tmp_path / place for place in ("data", "other_data", "nothing", "stale")}
    write_folder(places["data"], train=8, val=1)
    write_folder(places["other_data"], train=9, val=1)
    (places["stale"] / "checkpoints").mkdir(parents=True)
    (places["stale"] / "checkpoints" / f"000000003-{'0' * 32}.npz").touch()
    flags = ("--loss=cross_entropy", "--dataset=image_folder", "--train_images=0", "--batch_size=8")
    processes = job(
        server,
        tmp_path / "run",
        places["data"],
        *flags,
        last_flags=[flag.format(**places)],
        seen_seconds="0",
    )
    for process in processes:
        status, _, err = process.finish()
        assert status == 2
        assert err.count("error: ") == 1
        assert err.splitlines()[-1].startswith("error: ")  # gRPC may log before it
    assert line in processes[0].err
    left = [path.name for path in (tmp_path / "run").glob("[!.]*")]
    assert left == (["flags.cfg"] if name == "a disk" else [])


@pytest.mark.parametrize(
    ("cluster", "task", "valid"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 0), True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 2), False),
        ({"worker": ["a:1", "b:1"]}, ("chief", 0), False),
        ({"chief": ["a:1", "b:1"]}, ("chief", 0), False),
        ({"worker": ["a:1"], "ps": ["b:1"]}, ("worker", 0), False),
        ({"worker": "a:1"}, ("worker", 0), False),
        ({"worker": [1, 2]}, ("worker", 0), False),
        ({"worker": ["a:1"]}, ("evaluator", 0), False),
        ([], ("worker", 0), False),
    ],
)
def test_tf_config(cluster, task, valid, monkeypatch):
    task = dict(zip(("type", "index"), task, strict=True))
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    expected = contextlib.nullcontext() if valid else pytest.raises(UsageError, match="TF_CONFIG")
    with expected:
        strategies._check_tf_config()


def test_job_of_two_workers_ends_like_the_one_process_run(server, data_dir, tmp_path):
    """In float32 flipped signs amplify rounding, so the comparison is of the first epoch.

    The first worker is a task of its own, the chief.
    """
    flags = ("--loss=cross_entropy", "--order=one_step", "--epochs=1")
    export = ("--export", "--check_images=16", "--allow_float_fallback")
    runs = job(server, tmp_path / "two", data_dir, *flags, *export, first="chief")
    runs.append(server.start(*flags_of(tmp_path / "one", data_dir, *flags)))
    for process in runs:
        status, _, err = process.finish()
        assert status == 0, err
    rows = [
        (tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(float(rows[1][2]), float(rows[0][2]), rtol=1e-3)
    np.testing.assert_allclose(float(rows[1][3]), float(rows[0][3]), atol=0.01)
    assert (tmp_path / "two" / "model.tflite").is_file()
    assert json.loads((tmp_path / "two" / "export.json").read_text())["check"]["passed"]
