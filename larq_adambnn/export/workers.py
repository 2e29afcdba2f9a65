"""Processes that run a .tflite beside the main one: ``python -m larq_adambnn.export.worker``.

They are no children of `multiprocessing`, which would run the caller's main module again.
What goes to and fro is pickled; both ends are this package.
"""

import contextlib
import os
import pathlib
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["Workers", "workers"]

_PROGRAM = "larq_adambnn.export.worker"


class Workers:
    """Processes that are ready to run a network.

    Args:
        processes: what `workers` started.
    """

    def __init__(self, processes: list[subprocess.Popen]):
        self._free: queue.Queue = queue.Queue()
        for process in processes:
            self._free.put(process)

    def run(self, images) -> list:
        """The outputs for images (B, H, W, C), from a process that is free or will be."""
        process = self._free.get()
        try:
            pickle.dump(images, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, OSError) as error:
            raise RuntimeError(
                f"a process that ran the .tflite ended with status {process.poll()}"
            ) from error
        finally:
            self._free.put(process)


@contextlib.contextmanager
def workers(tflite: bytes, count: int) -> Iterator[Workers]:
    """Starts processes for a file's network, and ends them."""
    package = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    processes = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            processes.append(process)
            pickle.dump(tflite, process.stdin)
            process.stdin.flush()
        yield Workers(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
