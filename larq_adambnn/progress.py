"""What work that takes long says meanwhile: lines and bars.

Both are silent until `show` is called, as the command line does.
"""

import sys

import tqdm

__all__ = ["progress", "say", "show"]

_QUIET_SECONDS = 1.0  # what takes less shows no bar
_PIPED_SECONDS = 10.0  # between two states where the line cannot be overwritten
_shown = False


def show(shown: bool = True) -> None:
    """Turns lines and bars on standard output on or off, for this process."""
    global _shown
    _shown = shown


def say(line: str) -> None:
    """Prints a line."""
    if _shown:
        print(line, flush=True)


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
