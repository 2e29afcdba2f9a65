"""The machine that this runs on: its cores and memory, and libraries kept off the terminal."""

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["cores", "give_back", "quiet"]


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def give_back() -> None:
    """Gives the system the memory that is free, which the C library keeps in pieces."""
    with contextlib.suppress(AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)


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
