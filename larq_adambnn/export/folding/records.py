"""What a network is while it is folded: a list of records, each of one operation.

The list is in the order of computation.  A value is a number: the output of one record, and
an input of any later ones.  Vectors have an entry for each channel.

A constant (C,) that is added to a value can be added later instead where nothing but a
linear function comes between: `Record.moved` says how.  A record where it can not is a sink.
"""

import dataclasses

import numpy as np
import tensorflow as tf

__all__ = [
    "Affine",
    "Concatenation",
    "Constant",
    "Convolution",
    "Dense",
    "Input",
    "Linear",
    "Other",
    "Output",
    "PReLU",
    "Passing",
    "Pool",
    "Record",
    "Sum",
]

_record = dataclasses.dataclass(frozen=True, eq=False)


@_record
class Record:
    """One operation, from values to values."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    sink = True

    def moved(self, value: int, constant: np.ndarray) -> np.ndarray:
        """What to add to the output of a record that is no sink, instead of to an input."""
        raise NotImplementedError


@_record
class Input(Record):
    tensor: tf.Tensor


@_record
class Output(Record):
    pass


@_record
class Constant(Record):
    """``x + values``."""

    values: np.ndarray
    sink = False


@_record
class PReLU(Record):
    """``x`` where it is positive, else ``slope * x``."""

    slope: np.ndarray


@_record
class Other(Record):
    """A layer without a rule, and Keras's record of its call (None: it takes one tensor)."""

    layer: tf.keras.layers.Layer
    node: object = None


@_record
class Linear(Record):
    """``scale * f(x) + bias``, so that affines and constants after it can become part of it."""

    scale: np.ndarray
    bias: np.ndarray


@_record
class Affine(Linear):
    """``scale * x + bias``: a batch norm."""

    sink = False

    def moved(self, value, constant):
        return self.scale * constant


@_record
class Dense(Linear):
    """``scale * (x @ kernel) + bias``."""

    kernel: np.ndarray
    layer: tf.keras.layers.Layer
    sink = False

    def moved(self, value, constant):
        return self.scale * (constant @ self.kernel.astype(np.float64))


@_record
class Convolution(Linear):
    """``scale * conv(x, kernel) + bias``, or of the convolution's ReLU.

    Of a binary one the kernel is +1 and -1.  Padding makes it a sink, or a sign before it.
    """

    kernel: np.ndarray
    layer: tf.keras.layers.Layer
    binary: bool = False
    relu: bool = False
    sink: bool = True

    def moved(self, value, constant):
        return self.scale * (constant @ self.kernel.sum((0, 1), dtype=np.float64))


@_record
class Passing(Record):
    """What gives constants on as they are."""

    layer: tf.keras.layers.Layer
    sink = False


@_record
class Pool(Passing):
    """A pooling of any kind, or a reversed image."""

    def moved(self, value, constant):
        return constant


@_record
class Sum(Passing):
    def moved(self, value, constant):
        return self.inputs.count(value) * constant


@_record
class Concatenation(Passing):
    """Along the channels: `widths` of them from each input."""

    widths: tuple[int, ...]

    def moved(self, value, constant):
        pairs = zip(self.inputs, self.widths, strict=True)
        return np.concatenate([constant if v == value else np.zeros(w) for v, w in pairs])
