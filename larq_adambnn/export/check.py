"""The proof that a .tflite computes what the Keras model computes."""

import dataclasses

import numpy as np
import tensorflow as tf

__all__ = ["Check", "check", "predict"]


@dataclasses.dataclass(frozen=True)
class Check:
    """Keras against .tflite on the same images.

    Attributes:
        images: number of images compared.
        largest_difference, mean_difference: of the logits, absolute.
        agreement: share of images with the same top-1 class.
    """

    images: int
    largest_difference: float
    mean_difference: float
    agreement: float


def predict(tflite: bytes, images: np.ndarray) -> np.ndarray:
    """Logits (B, num_classes) of float32 images (B, H, W, C) in LCE's interpreter."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    return Interpreter(tflite, num_threads=_threads()).predict(np.asarray(images, np.float32))


def _threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


def check(model: tf.keras.Model, tflite: bytes, images: np.ndarray) -> Check:
    """Compares the logits of a model and its .tflite on images (B, H, W, C)."""
    expected = model.predict(images, verbose=0)
    received = predict(tflite, images)
    difference = np.abs(expected - received)
    return Check(
        images=len(images),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=float(np.mean(expected.argmax(-1) == received.argmax(-1))),
    )
