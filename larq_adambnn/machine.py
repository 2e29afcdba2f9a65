"""The machine that this runs on: its cores, cards and memory; libraries kept off the terminal."""

import contextlib
import ctypes
import glob
import importlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

__all__ = [
    "cores",
    "give_back",
    "has_nvidia_card",
    "import_tensorflow",
    "notes_aside",
    "processor",
    "quiet",
]

# Keeps the last of what it reads, and tells it unless it ends with a zero
_KEEPER = """
import os
kept = b""
while block := os.read(0, 2**16):
    kept = (kept + block)[-2**16:]
if kept[-1:] != b"\\0":
    os.write(2, kept)
"""
_KEEPER_SECONDS = 5.0  # that it may take to end
_SMI_SECONDS = 10.0  # that nvidia-smi may take, which waits for a card that hangs
_UNITS = {  # of a processor, by what Linux calls them
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "bf16": "bfloat16",
}
_of_python = None  # its standard error, while C's is kept aside


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor(cpuinfo: str = "/proc/cpuinfo") -> str:
    """What the processor is called, and its units that multiply many numbers at once."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            pairs = (line.partition(":") for line in file if ":" in line)
            found = {name.strip(): value.strip() for name, _, value in pairs}
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    flags = found.get("flags", found.get("Features", "")).split()
    units = [name for flag, name in _UNITS.items() if flag in flags]
    return ", ".join([found.get("model name", platform.machine()), *units])


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
    with tempfile.TemporaryFile("w+") as notes, contextlib.ExitStack() as stack:
        if sys.stderr is _of_python:
            stack.enter_context(contextlib.redirect_stderr(notes))
        os.dup2(notes.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def import_tensorflow() -> None:
    """Imports TensorFlow without what it and CUDA say then; later it tells errors alone."""
    with quiet():
        importlib.import_module("tensorflow").get_logger().setLevel("ERROR")


@contextlib.contextmanager
def notes_aside() -> Iterator[None]:
    """Keeps what C code writes to standard error, and tells it only if the process ends meanwhile.

    Such as libjpeg's notes about damaged images, which do not name the file.  A process of its
    own keeps them, so that the last words before a crash are not lost.  What Python writes is
    shown at once.  Nothing is kept aside where Python's standard error is another than C's.
    """
    global _of_python
    if not _is_shared(sys.stderr):
        yield
        return
    python, shown = sys.stderr, os.dup(2)
    python.flush()
    keeper = subprocess.Popen(
        [sys.executable, "-ISc", _KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # so that an interrupt of the terminal does not end it
    )
    os.dup2(keeper.stdin.fileno(), 2)
    keeper.stdin.close()
    with open(shown, "w", 1, python.encoding, python.errors) as _of_python:
        sys.stderr = _of_python
        try:
            yield
        finally:
            os.write(2, b"\0")
            os.dup2(shown, 2)
            sys.stderr = python
            with contextlib.suppress(subprocess.TimeoutExpired):  # another process has it open
                keeper.wait(_KEEPER_SECONDS)


def _is_shared(stream) -> bool:
    """Whether a stream of Python writes where C's standard error does."""
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        return False
