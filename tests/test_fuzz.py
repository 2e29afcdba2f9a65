"""A few of the mutants of `fuzz`, which is a program of its own."""

import random

import fuzz
import pytest


def test_a_few_of_every_kind(server):
    process = server.start("--mutants=24", "--seed=1", program=fuzz.__file__)
    status, out, err = process.finish(timeout=900)
    assert status == 0, out + err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert set(rows) == {*fuzz.KINDS, "all"}
    assert int(rows["all"][0]) >= len(fuzz.KINDS)
    assert rows["all"][3:] == ["0"] * 4
    assert int(rows["all"][1]) > 0 and int(rows["all"][2]) > 0  # some work, some are refused


def test_mutants_are_functions_of_the_seed_and_differ():
    data = bytes(range(256)) * 8
    for change in (fuzz.flip, fuzz.overwrite, fuzz.number, fuzz.cut, fuzz.remove, fuzz.insert):
        made = [change(data, random.Random(seed)) for seed in (0, 0, 1)]
        assert made[0] == made[1]
        assert made[0] != data != made[2] != made[0]


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        (0, "", "ok"),
        (2, "error: a.png is empty\n", "refused"),
        (2, "error: an image is empty\n", "raw"),  # which?
        (1, "error: ValueError: a.png\n", "raw"),
        (2, "error: a.png\nis empty\n", "raw"),
        (2, f"error: a.png {'x' * 700}\n", "raw"),
    ],
)
def test_what_counts_as_a_refusal(status, text, outcome):
    assert fuzz.judge(status, text, "a.png")[0] == outcome


def kill(path):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def fill(path):
    bytearray(2**30)[::4096] = b"x" * 2**18
    return 0, ""


@pytest.mark.parametrize(("use", "outcome"), [(kill, "crash"), (fill, "memory")])
def test_what_ends_the_process_or_fills_the_memory_is_counted(use, outcome, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/image.png").write_bytes(b"data")
    (tmp_path / "image.png").write_bytes(b"")
    kind = fuzz.Kind(1, "images/image.png", fuzz.flip, use)
    monkeypatch.setitem(fuzz.KINDS, "png", kind)
    found = list(fuzz.tried("png", [0, 1], 0, tmp_path))
    assert [number for number, _ in found] == [0, 1]
    assert [answer[0] for _, answer in found] == [outcome] * 2
