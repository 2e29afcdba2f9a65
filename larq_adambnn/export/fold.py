"""Lossless folding: the same network with fewer operators, in the form LCE converts whole.

PReLU and the shifts of a ReActNet do not fuse into a binary convolution, but a constant per
channel may be added later or earlier than it is written: batch norms, real convolutions, the
classifier and the next sign take it in, while sums, pools and concatenations pass it on.
What remains of a block is one addition before each sign and one for each shortcut.

A model is read into a list of records, rules rewrite it until none applies, and a model is
made of what is left.  A block of ReActNet-18 and most of the next one, as they are read
(numbers are values, letters vectors):

    1 = constant(0)           + a, the shift before the sign
    2 = binary(1)             * s, the sign and the convolution with +1 and -1
    3 = affine(2)             * g + b, the batch norm
    4 = sum(3, 0)             the shortcut
    5 = constant(4)           + c, the shift into the PReLU
    6 = prelu(5)
    7 = constant(6)           + d, the shift out of it
    8 = constant(7)           + a'
    9 = binary(8)             * s'
    10 = affine(9)            * g' + b'
    11 = sum(10, 7)
    12 = constant(11)         + c'
    13 = prelu(12)

The affines become part of the convolutions.  d falls into a', and past the sum 11 into c'.
The convolutions take back what then stands before the PReLUs:

    1 = constant(0)           + a
    2 = binary(1)             * g s + (b + c)
    4 = sum(2, 0)
    6 = prelu(4)
    8 = constant(6)           + (a' + d)
    9 = binary(8)             * g' s' + (b' + c' + d)
    11 = sum(9, 6)
    13 = prelu(11)

Binary kernels become exactly +1 and -1, and their scales a part of the multiplier after
them.  That may be zero: a channel with the scale 0, for which LCE would keep the whole layer
real, becomes the constant that it is.
"""

import dataclasses
from collections import Counter

import numpy as np
import tensorflow as tf

from larq_adambnn.export.folding.emit import Affine, ConstantMinus, emit
from larq_adambnn.export.folding.read import read, signs_and_scales
from larq_adambnn.export.folding.records import Record
from larq_adambnn.export.folding.rules import rewrite
from larq_adambnn.walk import nodes

__all__ = ["Affine", "ConstantMinus", "Folding", "fold", "lowered", "signs_and_scales"]


@dataclasses.dataclass(frozen=True)
class Folding:
    """A folded network and what was done to get it.

    Attributes:
        model: computes what the original computes; a layer made of an original one has its
            name, or from its second call on its name with _2, _3 and so on.
        batch_norms, batch_norms_left: number in the original, and of those that are not part
            of a convolution now.
        shifts, shifts_left: number of constants per channel that the original's shifts and
            RPReLUs add, and of additions of such constants now.
        zero_scales: number of output channels with the scale 0, by binary layer.
        small_images: binary layers that pad images smaller than their kernel with zeros.
            There LCE pads with ones instead; so they do that here too, and a constant
            corrects it.
        records: what the model was made of.
    """

    model: tf.keras.Model
    batch_norms: int
    batch_norms_left: int
    shifts: int
    shifts_left: int
    zero_scales: dict[str, int]
    small_images: list[str]
    records: list[Record]


def fold(model: tf.keras.Model) -> Folding:
    """Folds the inference of a model; the model itself stays as it is.

    A layer without a rule here, such as another activation, is copied, and a constant that
    reaches it is added before it.

    Args:
        model: a functional or sequential model of Larq and Keras layers.

    Raises:
        ValueError: it is neither, or not built.
    """
    nodes(model)
    before, zero_scales = read(model)
    after = rewrite(before)
    folded, small_images = emit(after, model.name)

    counts = [Counter(record.kind for record in records) for records in (before, after)]
    return Folding(
        folded,
        *(count["affine"] for count in counts),
        *(count["constant"] for count in counts),
        zero_scales,
        small_images,
        after,
    )


def lowered(folding: Folding, amounts: dict[str, np.ndarray]) -> tf.keras.Model:
    """A folded model in which less is given to layers that take signs, for no operator more.

    Args:
        folding: what `fold` gives.
        amounts: what to subtract, (C,), by the name of the layer.  It is left out where it would
            have to be subtracted by an operator that is not there now.
    """
    names = [record.name for record in folding.records if record.name in amounts]
    found = _lowered(folding, amounts, names)
    if found is None:  # they are tried one by one
        kept = []
        for name in names:
            tried = _lowered(folding, amounts, [*kept, name])
            if tried is not None:
                found = tried
                kept.append(name)
    return folding.model if found is None else emit(found, folding.model.name)[0]


def _lowered(folding: Folding, amounts, names: list[str]) -> list[Record] | None:
    new = 1 + max(value for record in folding.records for value in record.outputs)
    records = []
    for record in folding.records:
        if record.name in names:
            (value,) = record.inputs
            bias = -np.asarray(amounts[record.name], np.float64)
            records.append(Record("constant", record.name, (value,), (new,), bias=bias))
            record = record.reading(value, new)
            new += 1
        records.append(record)
    found = rewrite(records)
    left = sum(record.kind == "constant" for record in found)
    return found if left <= folding.shifts_left else None
