"""The process of a `workers.Worker`: runs .tflite files and answers on standard output.

It imports no TensorFlow, so that it starts in a fraction of a second, and is run by its path.
"""

import contextlib
import importlib.util
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import time
import types

import numpy as np

MEMORY = 3 * 2**28  # bytes that a file may take, besides four times its own
SECONDS = 60  # that an image may take
_SIGNATURE = [
    f"{tensor}_{part}"
    for tensor in ("input", "output")
    for part in ("shapes", "types", "scales", "zero_points")
]


def serve() -> None:
    """Answers (whether it went well, the result or why not) to each request until there are none.

    A request is one of these with its arguments: open, the bytes of a file and options of the
    interpreter; predict, images (B, H, W, C); seconds, the inputs.
    """
    answers = os.fdopen(os.dup(1), "wb")
    network = _Network()
    with contextlib.suppress(EOFError), tempfile.TemporaryFile() as notes:
        for descriptor in (1, 2):
            os.dup2(notes.fileno(), descriptor)
        while True:
            name, *arguments = pickle.load(sys.stdin.buffer)
            notes.seek(0)
            notes.truncate()
            try:
                answer = True, getattr(network, name)(*arguments)
            except MemoryError:
                answer = False, "which take too much memory"
            except Exception as error:  # LCE raises several kinds, and TFLite writes why
                notes.seek(0)
                written = notes.read().decode(errors="replace")
                reasons = re.findall(r"^ERROR: (.*)", written, re.MULTILINE) or [str(error)]
                reason = re.sub(r"[^!-~]+", " ", " ".join(reasons))  # parts of the file are in it
                answer = False, f"which are refused: {reason.strip()[:200]}"
            signal.alarm(0)
            pickle.dump(answer, answers)
            answers.flush()


class _Network:
    """LCE's interpreter of the last file that was opened."""

    def open(self, tflite: bytes, kernels: dict[str, bool]) -> dict[str, list]:
        """Tries a file on an image of zeros, and returns its signature."""
        _limit_memory(MEMORY + 4 * len(tflite))
        signal.alarm(SECONDS)
        self._run = None  # frees the memory of the file before
        interpreter = _interpreter(tflite, **kernels)
        self._run = interpreter.predict
        signature = {name: getattr(interpreter, name) for name in _SIGNATURE}
        shapes, types = signature["input_shapes"], signature["input_types"]
        outputs = self._run([np.zeros(*spec) for spec in zip(shapes, types, strict=True)])
        received = [output.shape for output in outputs]
        if received != list(map(tuple, signature["output_shapes"])):
            raise ValueError(f"its outputs are not of the shapes that it says, but {received}")
        return signature

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for images (B, H, W, C), one after the other."""
        outputs = []
        for image in images:
            signal.alarm(SECONDS)
            outputs.append(self._run([_native(image[np.newaxis])]))
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def seconds(self, inputs: list[np.ndarray]) -> float:
        """How long the file takes for its inputs."""
        inputs = list(map(_native, inputs))
        signal.alarm(SECONDS)
        start = time.perf_counter()
        self._run(inputs)
        return time.perf_counter() - start


def _native(array: np.ndarray) -> np.ndarray:
    """The array with NumPy's own object as its type, which LCE compares; pickling copies it."""
    return np.asarray(array, array.dtype.type)


def _interpreter(tflite: bytes, *, use_indirect_bgemm: bool = False, use_xnnpack: bool = False):
    """What LCE's Interpreter wraps, without its package, which would import TensorFlow."""
    if "larq_compute_engine" not in sys.modules:
        package = types.ModuleType("larq_compute_engine")
        spec = importlib.util.find_spec("larq_compute_engine")
        package.__path__ = spec.submodule_search_locations
        sys.modules["larq_compute_engine"] = package
    from larq_compute_engine.tflite.python.interpreter_wrapper_lite import LiteInterpreter

    threads, reference = 1, False
    return LiteInterpreter(tflite, threads, reference, use_indirect_bgemm, use_xnnpack)


def _limit_memory(size: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve()
