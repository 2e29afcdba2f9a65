"""What the library says goes to Python's logger, by level; the command line prints it."""

import logging

import pytest

from larq_adambnn import progress


@pytest.fixture
def logger():
    """The library's logger, as a program has it that is not the command line."""
    progress.show(False)
    logger = logging.getLogger("larq_adambnn")
    yield logger
    logger.setLevel(logging.NOTSET)
    progress.show()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.NOTSET, ["careful"]),  # the root's level counts, which is WARNING
        (logging.INFO, ["done", "careful"]),
        (logging.WARNING, ["careful"]),
        (logging.ERROR, []),
    ],
)
def test_a_program_chooses_the_level(level, expected, logger, caplog, capsys):
    logger.setLevel(level)
    progress.say("done")
    progress.say("careful", logging.WARNING)
    assert [record.getMessage() for record in caplog.records] == expected
    assert {record.levelname for record in caplog.records} <= {"INFO", "WARNING"}
    assert capsys.readouterr().out == ""


def test_the_command_line_prints_the_lines_once(logger, caplog, capsys):
    progress.show()
    progress.say("done")
    progress.say("careful", logging.WARNING)
    assert capsys.readouterr().out == "done\ncareful\n"
    assert not caplog.records
