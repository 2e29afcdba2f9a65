"""A few inputs and what a .tflite gives for them, so that a device can check what it computes.

A file of this kind has no gaps; its numbers are little-endian, as ARM and x86 have them:

    8 bytes   LCETEST1
    int32     number of images
    int32     inputs: number of values of an image
    int32     outputs: number of values of all outputs, one output after the other
    float32   scale of the inputs
    float32   [outputs]          how far each may be from what is expected
    float32   [images][outputs]  what is expected
    int8      [images][inputs]   an input is this times the scale

Inputs have 8 bits only to keep the file small; they and the outputs stand for real numbers
also where the network itself takes or gives int8.
"""

import dataclasses
import pathlib
import struct

import numpy as np

from larq_adambnn.export import interpreter
from larq_adambnn.export.workers import Worker

__all__ = ["SelfTest", "failure", "make", "path", "read"]

_MARK = b"LCETEST1"
_HEADER = struct.Struct("<8siiif")
_MOST_IMAGES, _MOST_BYTES = 8, 2**18  # of the inputs, but at least one image
_CANDIDATES = 4  # for each image that is taken
# Of an output's deviation.  Rounding that flips a few signs changes it by less, on images that
# are chosen for it; another network's differs by about one deviation.
_TOLERANCE = 0.25
_LEAST_TOLERANCE = 0.01  # of the largest value


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """The content of a file.

    Attributes:
        images: float32 (images, inputs).
        expected: float32 (images, outputs).
        tolerance: float32 (outputs,).
    """

    images: np.ndarray
    expected: np.ndarray
    tolerance: np.ndarray


def path(tflite: pathlib.Path) -> pathlib.Path:
    """Where the self-test of a .tflite is: model.selftest.bin beside model.tflite."""
    return tflite.with_suffix(".selftest.bin")


def make(tflite: bytes | Worker, images: np.ndarray) -> bytes:
    """The content of a file, from those of some images where rounding changes least.

    Args:
        tflite: the network, see `interpreter.load`.
        images: preprocessed, (B, H, W, C); at most the first 32 are looked at.
    """
    size = int(np.prod(images.shape[1:]))
    count = max(1, min(_MOST_IMAGES, len(images), _MOST_BYTES // size))
    images = images[: _CANDIDATES * count].astype(np.float32)
    scale = np.float32(max(np.abs(images).max(), 1e-6) / 127)
    images = np.round(images / scale).astype(np.int8)
    with_kernels = [
        interpreter.run(network, scale * images.astype(np.float32))
        for _, network in interpreter.with_kernels(tflite)
    ]
    tolerance = np.concatenate(
        [np.full(o[0].size, _tolerance(o), np.float32) for o in with_kernels[0]]
    )
    outputs = [np.concatenate([_flat(o) for o in of_all], axis=1) for of_all in with_kernels]
    spread = np.ptp(outputs, axis=0)  # by kernels, (images, outputs)
    chosen = np.sort(np.argsort((spread / tolerance).max(axis=1), kind="stable")[:count])
    expected = outputs[0][chosen]
    tolerance = np.maximum(tolerance, 2 * spread[chosen].max(axis=0))
    header = _HEADER.pack(_MARK, count, size, expected.shape[1], scale)
    reals = np.concatenate([tolerance[np.newaxis], expected]).astype("<f4")
    return header + reals.tobytes() + images[chosen].tobytes()


def read(content: bytes) -> SelfTest:
    """What a file holds.

    Raises:
        ValueError: it is none, or damaged.
    """
    expected = f"Expected a self-test, which begins with {_MARK.decode()}. Received:"
    if len(content) < _HEADER.size or content[: len(_MARK)] != _MARK:
        raise ValueError(f"{expected} {len(content)} bytes without that")
    _, count, inputs, outputs, scale = _HEADER.unpack_from(content)
    size = _HEADER.size + 4 * outputs * (1 + count) + count * inputs
    if min(count, inputs, outputs) < 1 or len(content) != size:
        raise ValueError(f"{expected} {len(content)} bytes, truncated or damaged")
    reals = np.frombuffer(content, "<f4", outputs * (1 + count), _HEADER.size)
    tolerance, expected = reals[:outputs], reals[outputs:].reshape(count, outputs)
    images = np.frombuffer(content, np.int8, offset=size - count * inputs)
    return SelfTest(
        np.float32(scale) * images.reshape(count, inputs).astype(np.float32), expected, tolerance
    )


def failure(tflite: bytes | Worker, content: bytes) -> str:
    """What a .tflite computes otherwise here than its self-test expects; "" if nothing.

    Raises:
        ValueError: one of the two is damaged.
    """
    test = read(content)
    network = interpreter.load(tflite)
    shape = network.input_shapes[0][1:]
    if int(np.prod(shape)) != test.images.shape[1]:
        return f"it is for images of {test.images.shape[1]} values, not {int(np.prod(shape))}"
    found = interpreter.run(network, test.images.reshape(-1, *shape))
    outputs = np.concatenate([_flat(output) for output in found], axis=1)
    if outputs.shape != test.expected.shape:
        return f"it is for {test.expected.shape[1]} output values, not {outputs.shape[1]}"
    difference = np.abs(outputs - test.expected)
    if (difference <= test.tolerance).all():
        return ""
    image, value = np.unravel_index(np.argmax(difference - test.tolerance), difference.shape)
    return (
        f"output {value} of image {image} is {outputs[image, value]:.4g}; expected "
        f"{test.expected[image, value]:.4g}, within {test.tolerance[value]:.2g}"
    )


def _tolerance(output: np.ndarray) -> float:
    return max(_TOLERANCE * output.std(), _LEAST_TOLERANCE * np.abs(output).max(), 1e-6)


def _flat(output: np.ndarray) -> np.ndarray:
    return output.reshape(len(output), -1)
