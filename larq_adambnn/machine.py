"""The machine that this runs on: its cores, cards and memory; libraries kept off the terminal."""

import contextlib
import ctypes
import glob
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

__all__ = ["cores", "give_back", "has_nvidia_card", "quiet"]

_SMI_SECONDS = 10.0  # that nvidia-smi may take, which waits for a card that hangs


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_nvidia_card(
    nodes: str = "/dev/nvidia[0-9]*", command: Sequence[str] = ("nvidia-smi", "-L")
) -> bool:
    """Whether the machine has an NVIDIA card, whatever TensorFlow sees.

    Args:
        nodes: pattern of the files that are there for each card.
        command: lists the cards where there are no such files, as in WSL.
    """
    if glob.glob(nodes):
        return True
    try:
        listed = subprocess.run(command, capture_output=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.stdout.startswith(b"GPU ")


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
