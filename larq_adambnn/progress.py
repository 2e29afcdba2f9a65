"""What work that takes long says meanwhile: lines and bars.

Lines go to Python's logger "larq_adambnn", where a program of your own may show or keep them. Until
`show` is called, as the command line does, nothing is printed.
"""

import logging
import sys

import tqdm

__all__ = ["progress", "say", "show"]

_QUIET_SECONDS = 1.0  # what takes less shows no bar
_PIPED_SECONDS = 10.0  # between two states where the line cannot be overwritten
_shown = False
_logger = logging.getLogger("larq_adambnn")


class _Printer(logging.Handler):
    """Prints every line on standard output, whatever that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


_printer = _Printer()
_logger.addHandler(logging.NullHandler())  # where nobody listens nothing is printed


def show(shown: bool = True) -> None:
    """Turns lines and bars on standard output on or off, for this process."""
    global _shown
    _shown = shown
    _logger.propagate = not shown  # absl and Keras may have handlers above, which would repeat it
    if shown:
        _logger.addHandler(_printer)
        _logger.setLevel(logging.INFO)
    else:
        _logger.removeHandler(_printer)
        _logger.setLevel(logging.NOTSET)


def say(line: str, level: int = logging.INFO) -> None:
    """Logs a line.

    Args:
        line: what is said.
        level: of Python's logging; WARNING for what is not as it was asked for.
    """
    _logger.log(level, line)


def progress(description: str, unit: str, total: int | None = None) -> tqdm.tqdm:
    """A bar (without a total: a count); `update(n)` moves it."""
    terminal = sys.stdout.isatty()
    return tqdm.tqdm(
        desc=description,
        total=total,
        unit=f" {unit}",
        delay=_QUIET_SECONDS,
        mininterval=0.1 if terminal else _PIPED_SECONDS,
        maxinterval=_PIPED_SECONDS,
        leave=not terminal,
        file=sys.stdout,
        dynamic_ncols=terminal,
        disable=not _shown,
    )
