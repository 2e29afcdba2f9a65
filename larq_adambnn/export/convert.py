"""Keras model -> .tflite, with Larq Compute Engine's converter."""

import contextlib
import logging
import os
import sys
import tempfile

import tensorflow as tf

__all__ = ["convert"]


def convert(model: tf.keras.Model) -> bytes:
    """Converts a float32 model of Larq layers to TFLite for 64-bit ARM.

    Args:
        model: a built model with a fixed input size.

    Returns:
        The .tflite file's bytes.

    Raises:
        ImportError: larq-compute-engine is not installed.
        ValueError: the model is not float32.
    """
    if model.dtype_policy.name != "float32":
        raise ValueError(f"Expected a float32 model. Received: {model.dtype_policy.name}")
    import larq_compute_engine as lce

    with _silence():
        return lce.convert_keras_model(model)


@contextlib.contextmanager
def _silence():
    """Keeps the converter's notes, some of them written by C++, off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
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
            logger.setLevel(level)
