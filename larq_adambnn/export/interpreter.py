"""Running .tflite files in LCE's interpreter, which takes one image at a time."""

import collections
import concurrent.futures
import queue
import time
from collections.abc import Iterable, Iterator

import numpy as np

from larq_adambnn.export.workers import Worker

__all__ = ["KERNELS", "load", "predict", "predictions", "run", "with_kernels"]

_ALONE_SECONDS = 1.0  # of work, before further processes are worth their start
_MOST_PROCESSES = 8

# Options of LCE's interpreter by the kernels that they choose
KERNELS = {
    "TFLite's kernels": {},
    "XNNPACK": {"use_xnnpack": True},
    "indirect BGEMM": {"use_indirect_bgemm": True},
}


def load(tflite: bytes | Worker, **kernels: bool) -> Worker:
    """LCE's interpreter of a file that takes one image, in a process of its own.

    Args:
        tflite: the file's bytes; the image is (1, H, W, C) or of another rank.  One that is
            loaded is given back, so that it goes from one use to the next.
        **kernels: options of LCE's interpreter, as in `KERNELS`.

    Raises:
        ImportError: larq-compute-engine is not installed.
        ValueError: the file is no TFLite model, a damaged or another one, or LCE refuses it.
    """
    if isinstance(tflite, Worker):
        return tflite
    worker = Worker(tflite, **kernels)
    shapes = [tuple(map(int, shape)) for shape in worker.input_shapes]
    if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][0] != 1 or not worker.output_shapes:
        raise ValueError(
            "Expected a .tflite that takes one image at a time, (1, height, width, channels). "
            f"Received: inputs {shapes}"
        )
    _check_types("input", worker.input_types, worker.input_scales)
    _check_types("output", worker.output_types, worker.output_scales)
    return worker


def with_kernels(tflite: bytes | Worker) -> Iterator[tuple[str, Worker]]:
    """The name of each of `KERNELS`, and LCE's interpreter of a file with them; see `load`.

    It is one process, which opens the file with one after the other.
    """
    interpreter = load(tflite)
    for name, kernels in KERNELS.items():
        if kernels != interpreter.kernels:
            interpreter.open(interpreter.tflite, **kernels)
        yield name, interpreter


def _check_types(name: str, kinds: list, scales: list) -> None:
    """Raises ValueError unless the first tensor has real values, and int8 is of one scale."""
    for kind, scale in zip(kinds, scales, strict=True):
        if kind == np.int8 and not (isinstance(scale, float) and scale > 0):
            raise ValueError(f"Expected one scale for an int8 {name}. Received: {scale}")
    if kinds[0] not in (np.float32, np.int8):
        raise ValueError(
            f"Expected an {name} of float32 or int8. Received: {np.dtype(kinds[0]).name}"
        )


def run(interpreter, images: np.ndarray) -> list[np.ndarray]:
    """The outputs for images (B, H, W, C); int8 inputs and outputs are converted.

    Raises:
        ValueError: the images have another size.
    """
    expected = tuple(interpreter.input_shapes[0][1:])
    if images.shape[1:] != expected:
        raise ValueError(
            f"Expected images of {' x '.join(map(str, expected))} (height, width, channels). "
            f"Received: {' x '.join(map(str, images.shape[1:]))}"
        )
    images = np.asarray(images, np.float32)
    if interpreter.input_types[0] == np.int8:
        scale, zero = interpreter.input_scales[0], interpreter.input_zero_points[0]
        images = np.clip(np.round(images / scale) + zero, -128, 127).astype(np.int8)
    outputs = interpreter.predict(images)
    for place, kind in enumerate(interpreter.output_types):
        if kind == np.int8:
            scale, zero = interpreter.output_scales[place], interpreter.output_zero_points[place]
            outputs[place] = np.float32(scale) * (outputs[place].astype(np.float32) - zero)
    return outputs


def predict(tflite: bytes | Worker, images: np.ndarray) -> np.ndarray:
    """The first output, such as logits (B, num_classes), for float32 images (B, H, W, C)."""
    return run(load(tflite), images)[0]


def predictions(
    tflite: bytes | Worker, batches: Iterable[np.ndarray], *, processes: int = 1, **kernels: bool
) -> Iterator[list[np.ndarray]]:
    """The outputs for each batch, in order.

    Args:
        tflite, **kernels: see `load`.
        batches: float32 images (B, H, W, C).
        processes: how many may work once it takes longer than they take to start, of which
            at most 8 do.
    """
    interpreter = load(tflite, **kernels)
    processes = min(processes, _MOST_PROCESSES)
    batches, seconds = iter(batches), 0.0
    while processes == 1 or seconds < _ALONE_SECONDS:
        batch = next(batches, None)
        if batch is None:
            return
        start = time.perf_counter()
        outputs = run(interpreter, batch)
        seconds += time.perf_counter() - start  # not what happens to them meanwhile
        yield outputs
    free: queue.SimpleQueue = queue.SimpleQueue()
    free.put(interpreter)

    def start():
        free.put(load(interpreter.tflite, **interpreter.kernels))

    def run_free(batch):
        worker = free.get()
        try:
            return run(worker, batch)
        finally:
            free.put(worker)

    with concurrent.futures.ThreadPoolExecutor(processes) as threads:
        # They start side by side, while the first one goes on.
        starts = [threads.submit(start) for _ in range(processes - 1)]
        waiting = collections.deque()
        for batch in batches:
            waiting.append(threads.submit(run_free, batch))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        for started in starts:
            started.result()  # raises what kept one from it
