"""The progress line of what may take long."""

import sys

import tqdm

__all__ = ["progress"]

_QUIET_SECONDS = 1.0  # what takes less shows nothing
_PIPED_SECONDS = 10.0  # between two states where the line cannot be overwritten


def progress(description: str, unit: str, total: int | None = None) -> tqdm.tqdm:
    """A bar (without a total: a count) on standard output; `update(n)` moves it."""
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
    )
