"""Running .tflite files in LCE's interpreter, which takes one image at a time."""

import collections
import concurrent.futures
import time
from collections.abc import Iterable, Iterator

import numpy as np

from larq_adambnn.export import workers
from larq_adambnn.export.convert import silence
from larq_adambnn.export.tflite import Graph, operators

__all__ = ["load", "predict", "predictions", "run", "start"]

_ALONE_SECONDS = 10.0  # of work, before further processes are worth their start


def load(tflite: bytes):
    """LCE's interpreter of a file that takes one image (1, H, W, C) and gives one output.

    Raises:
        ImportError: larq-compute-engine is not installed.
        ValueError: the file is no TFLite model, a damaged or another one, or LCE refuses it.
    """
    graph = Graph(tflite)
    shapes = [graph.shape(tensor) for tensor in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][0] != 1 or not graph.outputs:
        raise ValueError(
            "Expected a .tflite that takes one image at a time, (1, height, width, channels). "
            f"Received: inputs {shapes}"
        )
    return start(tflite)


def start(tflite: bytes):
    """LCE's interpreter of a file of any inputs and outputs; raises as `load` does."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    try:
        with silence():
            return Interpreter(tflite)
    except RuntimeError as error:
        kinds = ", ".join(operators(tflite))
        raise ValueError(
            f"Expected a .tflite that LCE's interpreter can run. Received: one with {kinds}"
        ) from error


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
    outputs = outputs if isinstance(outputs, list) else [outputs]
    if interpreter.output_types[0] == np.int8:
        scale, zero = interpreter.output_scales[0], interpreter.output_zero_points[0]
        outputs[0] = np.float32(scale) * (outputs[0].astype(np.float32) - zero)
    return outputs


def predict(tflite: bytes, images: np.ndarray) -> np.ndarray:
    """Logits (B, num_classes) of preprocessed float32 images (B, H, W, C)."""
    return run(load(tflite), images)[0]


def predictions(
    tflite: bytes, batches: Iterable[np.ndarray], *, processes: int = 1
) -> Iterator[list[np.ndarray]]:
    """The outputs for each batch, in order.

    Args:
        tflite: the file's bytes.
        batches: float32 images (B, H, W, C).
        processes: how many may work once it takes longer than they take to start; LCE's
            interpreter keeps threads of one process from working at the same time.
    """
    interpreter = load(tflite)
    batches, seconds = iter(batches), 0.0
    while processes == 1 or seconds < _ALONE_SECONDS:
        batch = next(batches, None)
        if batch is None:
            return
        start = time.perf_counter()
        outputs = run(interpreter, batch)
        seconds += time.perf_counter() - start  # not what happens to them meanwhile
        yield outputs
    with (
        workers.workers(tflite, processes) as others,
        concurrent.futures.ThreadPoolExecutor(processes) as threads,
    ):
        waiting = collections.deque()
        for batch in batches:
            waiting.append(threads.submit(others.run, batch))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
