"""What a network is while it is folded: a list of records in the order of computation."""

import dataclasses

import numpy as np
import tensorflow as tf

__all__ = ["LINEAR", "PASSING", "Record"]

LINEAR = ("affine", "dense", "convolution", "binary")
PASSING = ("sum", "pool", "concatenation")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An operation on values, which are numbers: each the output of one record.

    ============= =====================================================================
    kind          what it computes of its inputs, with vectors of an entry per channel
    ============= =====================================================================
    input, output nothing
    constant      x + bias
    affine        scale * x + bias, which a batch norm is
    dense         scale * (x @ kernel) + bias
    convolution   scale * conv(x, kernel) + bias
    binary        the same with a kernel of +1 and -1; or scale * relu(conv(...)) + bias
    prelu         x where that is positive, else scale * x
    sum           their sum
    pool          a pooling of any kind, or the image reversed
    concatenation them in a row, along the channels
    other         a layer without a rule
    ============= =====================================================================

    Attributes:
        kind: see above.
        name: of the layer that is made of it.
        inputs, outputs: its values.
        layer: the original's that it was read from.
        node: for "other", Keras's record of the call, unless that has one tensor.
        scale, bias: float64 (channels,).
        kernel: as it is quantized, of the layer's own type and shape.
        widths: for "concatenation", the channels of each input.
        sink: whether a constant has to be added before it, as before a sign or a padding.
            Before any other record it can be added later instead, see `moved`.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: tf.keras.layers.Layer | None = None
    node: object = None
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    kernel: np.ndarray | None = None
    widths: tuple[int, ...] = ()
    sink: bool = False

    def moved(self, value: int, constant: np.ndarray) -> np.ndarray:
        """What to add to the output instead of adding a constant to an input."""
        if self.kind == "sum":
            return self.inputs.count(value) * constant
        if self.kind == "concatenation":
            pairs = zip(self.inputs, self.widths, strict=True)
            return np.concatenate([constant if v == value else np.zeros(w) for v, w in pairs])
        if self.kernel is not None:
            *window, _, _ = range(self.kernel.ndim)
            constant = constant @ self.kernel.sum(tuple(window), dtype=np.float64)
        return constant if self.scale is None else self.scale * constant

    def reading(self, old: int, new: int) -> "Record":
        """The same of one value instead of another."""
        inputs = tuple(new if value == old else value for value in self.inputs)
        return dataclasses.replace(self, inputs=inputs)
