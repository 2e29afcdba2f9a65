"""Processes of their own: their core, their output, their errors."""

import os

import pytest

from larq_adambnn import processes
from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import parse


def test_a_pool_has_the_core_it_is_given_and_says_nothing(capfd):
    available = os.sched_getaffinity(0)
    with processes.pool(core=max(available)) as process:
        assert process.submit(os.sched_getaffinity, 0).result() == {max(available)}
    with processes.pool() as process:
        assert process.submit(os.sched_getaffinity, 0).result() == available
        with pytest.raises(UsageError, match=r"^--width: expected a number; received 'x'$"):
            process.submit(parse, ["--width=x"]).result()
    assert os.sched_getaffinity(0) == available
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_a_process_says_is_in_its_file_after_what_is_there(tmp_path, capfd):
    log = tmp_path / "logs/run.txt"
    for name, *arguments in (
        ("builtins:print", "first"),
        ("os:write", 2, b"second\n"),
        ("larq_adambnn.runs.config:parse", ["--width=x"]),
    ):
        process = processes.start(log, name, *arguments)
        process.join()
        assert process.exitcode == (name[0] == "l")
    lines = log.read_text().splitlines()
    assert lines[:2] == ["first", "second"]
    assert lines[-1].endswith("UsageError: --width: expected a number; received 'x'")
    assert tuple(capfd.readouterr()) == ("", "")
