"""The machine that this runs on: its cores, and libraries kept off the terminal."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["cores", "quiet"]


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is written to standard error meanwhile, also by C++ code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
