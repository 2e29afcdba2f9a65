"""Files of a model's weights: Keras's HDF5 with a sum at its end, and finite."""

import contextlib
import gc
import os
import pathlib
import sys

import h5py
import numpy as np
import tensorflow as tf

from larq_adambnn.errors import UsageError
from larq_adambnn.files import add_sum, has_right_sum

__all__ = ["about", "check", "check_finite", "is_whole", "load", "save"]


def save(model: tf.keras.Model, path: pathlib.Path, **about: float) -> None:
    """Writes NAME.weights.h5; `load` and any reader of Keras's format take it.

    Args:
        model: any.
        path: of the file.
        **about: what the file says of itself, as attributes of HDF5; see `about`.

    Raises:
        UsageError: a weight is not finite.
    """
    check_finite(model, path)
    with _without_notes_of_h5py():
        model.save_weights(str(path), save_format="h5")
        if about:
            with h5py.File(path, "r+") as file:
                file.attrs.update(about)
    add_sum(path)


def about(path: pathlib.Path) -> dict[str, float]:
    """What a file of `save` says of itself; nothing where there is no whole one."""
    if not is_whole(path):
        return {}
    with h5py.File(path) as file:
        return {k: v.item() for k, v in file.attrs.items() if isinstance(v, np.number)}


@contextlib.contextmanager
def _without_notes_of_h5py():
    """What cannot be written raises once; h5py prints it again for each object of the file."""
    hooks, failed = (sys.excepthook, sys.unraisablehook), None
    sys.excepthook = sys.unraisablehook = lambda *note: None
    try:
        yield
    except OSError as error:
        failed = error.with_traceback(None)  # whose frames hold those objects
        failed.__context__ = failed.__cause__ = None
        gc.collect()
    finally:
        sys.excepthook, sys.unraisablehook = hooks
    if failed is not None:
        raise failed


def load(model: tf.keras.Model, path: str | os.PathLike) -> None:
    """Sets a model's weights to those of a file, which need not be one of `save`.

    Raises:
        UsageError: the file is damaged, is of another network or has weights that are not finite.
        FileNotFoundError: there is none.
    """
    if pathlib.Path(path).is_file():  # a checkpoint of TensorFlow is several files
        check(pathlib.Path(path))
    try:
        model.load_weights(str(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # h5py raises the last
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: cannot read weights of {model.name}: {reason}") from error
    check_finite(model, path)


def check(path: pathlib.Path) -> None:
    """Raises UsageError if a file has another sum than it was written with."""
    if not has_right_sum(path):
        raise UsageError(f"{path}: cannot read weights: the file is damaged, its SHA-256 is wrong")


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file is there and has the right sum or, written without one, can be opened."""
    try:
        if not has_right_sum(path):
            return False
        with h5py.File(path):
            return True
    except OSError:
        return False


def check_finite(model: tf.keras.Model, origin: str | os.PathLike) -> None:
    """Raises UsageError if a weight of a model is NaN or infinite, with its name.

    Args:
        model: any.
        origin: where the weights are from or go to, for the message.
    """
    for weight in model.weights:
        if not np.isfinite(weight.numpy()).all():
            raise UsageError(
                f"{origin}: expected finite weights; {weight.name} has NaN or infinity"
            )
