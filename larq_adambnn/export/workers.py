"""LCE's interpreter in a process of its own, which a damaged .tflite may end, but not this one.

What goes to and fro is pickled; both ends are this package.
"""

import contextlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import weakref

import numpy as np

from larq_adambnn.export import worker

__all__ = ["FileError", "Worker"]

# OpenBLAS would take address space for each core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class FileError(ValueError):
    """A .tflite that cannot be run."""


class Worker:
    """A process that runs a file, and has the attributes of LCE's Interpreter.

    A file is tried on an image of zeros when it is opened.  It may take 60 seconds for an
    image, and 768 MiB and four times its own size (on Linux).

    Args:
        tflite: the file's bytes.
        **kernels: options of LCE's Interpreter, such as use_xnnpack=True.

    Attributes:
        tflite, kernels: of the file that is open.

    Raises:
        ImportError: larq-compute-engine is not installed.
        FileError: the file cannot be run: it is damaged, LCE refuses it, or it takes too much
            time or memory.  The methods raise it too, and then the process has ended.
    """

    def __init__(self, tflite: bytes, **kernels: bool):
        if importlib.util.find_spec("larq_compute_engine") is None:
            raise ImportError("Expected larq-compute-engine. Received: it is not installed")
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__],
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._end = weakref.finalize(self, _end, self._process)
        self.open(tflite, **kernels)

    def open(self, tflite: bytes, **kernels: bool) -> None:
        """Opens another file instead."""
        self.tflite, self.kernels = tflite, kernels
        vars(self).update(self._ask("open", tflite, kernels))

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs, as the file gives them, for images (B, H, W, C) as it takes them."""
        return self._ask("predict", images)

    def seconds(self, inputs: list[np.ndarray]) -> float:
        """How long the file takes for its inputs."""
        return self._ask("seconds", inputs)

    def _ask(self, *request):
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            well, answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            well, answer = False, _reason(self._process.wait())
        if not well:
            self._end()
            raise FileError(
                f"Expected a TFLite model that LCE's interpreter can run. Received: "
                f"{len(self.tflite):,} bytes, {answer}"
            )
        return answer


def _reason(status: int) -> str:
    """Why a process ended."""
    if status == -signal.SIGALRM:
        return f"which take more than {worker.SECONDS} s for an image"
    end = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"truncated or damaged: the process that ran them ended with {end}"


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # of what was still to be sent
            pipe.close()
