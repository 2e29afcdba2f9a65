"""8 bits for what stays real: fake quantization of a folded network, from measured ranges.

The converter takes an operator to int8 if what goes in and out has a range.  So every
tensor between layers gets one, from calibration images; its own rules give kernels
symmetric ranges (per channel for convolutions), which is what the interpreter wants.
"""

import collections

import numpy as np
import tensorflow as tf

from larq_adambnn import callbacks, losses, optimizers
from larq_adambnn.export.convert import convert_as_is
from larq_adambnn.export.equalize import equalized, factors, rebuilt
from larq_adambnn.export.fold import Affine, Folding, lowered
from larq_adambnn.export.tflite import float_outputs
from larq_adambnn.layers import Shift, is_binary, quantizer
from larq_adambnn.walk import nodes, recall, unique, walk

__all__ = ["calibrate", "convert_int8", "fine_tune", "quantize"]

# TensorFlow's operations whose int8 form has one scale for all that goes in and out
_ONE_SCALE = {
    *("AvgPool", "ConcatV2", "DepthToSpace", "ExpandDims", "GatherV2", "Max", "MaxPool", "Maximum"),
    *("Min", "Minimum", "MirrorPad", "Pack", "Pad", "PadV2", "Reshape", "ResizeBilinear"),
    *("ResizeNearestNeighbor", "ReverseV2", "Slice", "SpaceToDepth", "Split", "SplitV", "Squeeze"),
    *("StridedSlice", "Tile", "Transpose", "Unpack"),
}
_FIXED_RANGE = {"Sigmoid", "Softmax", "Tanh"}  # operations with one scale for all that they give
_STEPS = 16  # of 256, which a channel of a concatenation should have
_SIGN_STEPS = 8  # so much finer is the scale of what only a sign reads, which may saturate
_FEW = 256  # values of a channel, which say little of how far others are
_DEVIATIONS = 4.0  # from the mean, where a normal distribution has few values
_LEARNING_RATE = 1e-4

Extremes = dict[str, tuple[np.ndarray, np.ndarray]]
Ranges = dict[str, tuple[float, float]]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class FakeQuant(tf.keras.layers.Layer):
    """Rounds to the 256 values that int8 has between two numbers; gradient 1 inside."""

    def __init__(self, low: float, high: float, **kwargs):
        super().__init__(**kwargs)
        self.low, self.high = float(low), float(high)

    def call(self, inputs):
        return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

    def get_config(self):
        return {**super().get_config(), "low": self.low, "high": self.high}


class _Conv2D(tf.keras.layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        high = tf.reduce_max(tf.abs(kernel), axis=(0, 1, 2)) + tf.keras.backend.epsilon()
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -high, high, narrow_range=True
        )
        return super().convolution_op(inputs, kernel)


class _Dense(tf.keras.layers.Dense):
    def call(self, inputs):
        high = tf.reduce_max(tf.abs(self.kernel)) + tf.keras.backend.epsilon()
        kernel = tf.quantization.fake_quant_with_min_max_vars(
            self.kernel, -high, high, narrow_range=True
        )
        outputs = tf.matmul(inputs, kernel)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


_QUANTIZED = {tf.keras.layers.Conv2D: _Conv2D, tf.keras.layers.Dense: _Dense}


def calibrate(folded: tf.keras.Model, images: np.ndarray) -> Extremes:
    """The smallest and the largest values of every channel of every tensor of a folded model.

    Where a channel has few values, such as a dense layer's for few images, others will be farther
    from 0: there is room for `_DEVIATIONS` standard deviations from the mean, on a side on which
    the tensor has values.

    Args:
        folded: what `fold` gives.
        images: preprocessed calibration images (B, H, W, C).

    Returns:
        (lows, highs), each (C,), by the name of the tensor, see `_names`; none above or below 0.
    """
    names, extremes, sums = _names(folded), {}, {}

    def widen(name, tensor):
        values = tensor.numpy().reshape(-1, tensor.shape[-1] if tensor.shape.rank > 1 else 1)
        low, high = extremes.get(name, (0.0, 0.0))
        extremes[name] = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        values = values.astype(np.float64)
        sums[name] = sums.get(name, 0) + np.stack(
            [np.full(values.shape[1], len(values)), values.sum(0), np.square(values).sum(0)]
        )

    def call(node, tensors):
        outputs = tf.nest.flatten(recall(node.layer, node, tensors))
        for tensor, output in zip(tf.nest.flatten(node.outputs), outputs, strict=True):
            widen(names[id(tensor)], output)
        return outputs

    for start in range(0, len(images), 8):
        batch = tf.constant(images[start : start + 8], tf.float32)
        widen("", batch)
        walk(folded, [batch], call)
    fixed = set()
    for node in nodes(folded):
        outputs = {names[id(tensor)] for tensor in tf.nest.flatten(node.outputs)}
        few = {name for name in outputs if sums[name][0][0] < _FEW}
        if few and _has_fixed_range(node, [names[id(x)] in fixed for x in node.keras_inputs]):
            fixed |= few
        else:
            extremes |= {name: _with_room(*extremes[name], *sums[name]) for name in few}
    return extremes


def _with_room(low, high, count, total, squares) -> tuple[np.ndarray, np.ndarray]:
    """The extremes of channels, with room for other values than these few."""
    mean = total / count
    room = _DEVIATIONS * np.sqrt(np.maximum(squares / count - mean**2, 0))
    return (
        np.minimum(low, mean - room) if low.any() else low,
        np.maximum(high, mean + room) if high.any() else high,
    )


def _has_fixed_range(node, of_inputs: list[bool]) -> bool:
    """Whether the range of a layer's output follows from its operation, or from its inputs'."""
    activation = getattr(getattr(node.layer, "activation", None), "__name__", "")
    kinds = {activation.capitalize(), *_operations(node)}
    return bool(kinds & _FIXED_RANGE) or (any(of_inputs) and kinds <= {"", *_ONE_SCALE})


def quantize(folding: Folding, images: np.ndarray) -> tf.keras.Model:
    """The network of a folding, equalized, with fake quantization between its layers.

    Rounding gives 0 to what is less than half a step below it, whose sign then changes.  So
    what signs read is half a step lower where that is free: -0.4, 0.4 and 0.6 steps become
    -0.9, -0.1 and 0.1 and are rounded to -1, 0 and 0.

    Args:
        folding: what `fold` gives.
        images: preprocessed calibration images (B, H, W, C).
    """
    folded, extremes = folding.model, calibrate(folding.model, images)
    lower = lowered(folding, _half_steps(folded, extremes))
    if lower is not folded:
        folded, extremes = lower, calibrate(lower, images)
    found = factors(folded, _widths(folded, extremes))
    return _with_rounding(equalized(folded, found), _ranges(folded, extremes, found))


def _with_rounding(model: tf.keras.Model, ranges: Ranges) -> tf.keras.Model:
    """A copy of a folded model with fake quantization of what has a range."""
    names, readers = _names(model), _readers(model)

    def call(node, tensors):
        layer = node.layer
        copy = _QUANTIZED.get(type(layer), type(layer)).from_config(layer.get_config())
        copy.trainable = quantizer(layer, "input_quantizer") is None  # binary kernels stay
        outputs = tf.nest.flatten(recall(copy, node, tensors))
        given = ranges.get(names[id(node.keras_inputs[0])])
        first = tf.nest.flatten(node.outputs)[0]
        if given and isinstance(layer, Shift) and _only_signs(readers[id(first)]):
            copy.set_weights(_near(layer, *given))
        else:
            copy.set_weights(_lifted(layer, given))
        return [
            output
            if name not in ranges or _stays_float(layer, tensor, readers[id(tensor)])
            else FakeQuant(*ranges[name], name=f"{name}_int8")(output)
            for tensor, output in zip(tf.nest.flatten(node.outputs), outputs, strict=True)
            for name in [names[id(tensor)]]
        ]

    return rebuilt(model, call, lambda images: FakeQuant(*ranges[""], name="images_int8")(images))


def _widths(folded: tf.keras.Model, extremes: Extremes) -> dict[int, np.ndarray]:
    """How large the channels of the tensors are that share one scale; see `factors`.

    What a shift adds before a sign may be far from all values.
    """
    names, readers = _names(folded), _readers(folded)
    return {
        id(tensor): np.subtract(*extremes[names[id(tensor)]][::-1])
        for node in nodes(folded)
        for tensor in tf.nest.flatten(node.outputs)
        if not _stays_float(node.layer, tensor, readers[id(tensor)])
        and not (isinstance(node.layer, Shift) and _only_signs(readers[id(tensor)]))
    }


def _ranges(folded: tf.keras.Model, extremes: Extremes, found: dict[int, np.ndarray]) -> Ranges:
    """The range of each tensor of a folded model whose channels are larger by factors.

    A concatenation of which a quarter of the channels would have less than `_STEPS` of the 256
    values that its widest channels need has none: it stays float.
    """
    names, ranges = _names(folded), {}
    for tensor, name in names.items():
        lows, highs = extremes[name]
        ranges[name] = float((lows * found[tensor]).min()), float((highs * found[tensor]).max())
    for node in nodes(folded):
        if "ConcatV2" in _operations(node):
            tensor = id(tf.nest.flatten(node.outputs)[0])
            name = names[tensor]
            widths = np.subtract(*extremes[name][::-1]) * found[tensor]
            if (
                widths.any()
                and np.quantile(widths[widths > 0], 0.25) < np.ptp(ranges[name]) * _STEPS / 256
            ):
                del ranges[name]
    return _adjusted(folded, names, _readers(folded), ranges)


def _half_steps(folded: tf.keras.Model, extremes: Extremes) -> dict[str, np.ndarray]:
    """Half a step of each channel of what signs read, by the name of the layer that takes them."""
    readers, names = _readers(folded), _names(folded)
    found = factors(folded, _widths(folded, extremes))
    ranges = _ranges(folded, extremes, found)
    return {
        reader.name: (high - low) / 255 / 2 / found[id(tensor)]
        for node in nodes(folded)
        for tensor in tf.nest.flatten(node.outputs)
        if names[id(tensor)] in ranges
        and not isinstance(node.layer, Shift)
        and not _stays_float(node.layer, tensor, readers[id(tensor)])
        for low, high in [ranges[names[id(tensor)]]]
        for reader in readers[id(tensor)]
        if _takes_signs(reader)
    }


def _names(folded: tf.keras.Model) -> dict[int, str]:
    """A name of each tensor of a folded model, by its id: its layer's, "" of the input."""
    names = {id(tensor): "" for tensor in folded.inputs}
    used = {layer.name for layer in folded.layers}
    for node in nodes(folded):
        first, *others = tf.nest.flatten(node.outputs)
        names[id(first)] = node.layer.name
        names |= {id(tensor): unique(node.layer.name, used) for tensor in others}
    return names


def _readers(folded: tf.keras.Model) -> dict[int, list[tf.keras.layers.Layer]]:
    """The layers that take each tensor, by its id."""
    readers = collections.defaultdict(list)
    for node in nodes(folded):
        for tensor in node.keras_inputs:
            readers[id(tensor)].append(node.layer)
    return readers


def _near(layer: Shift, low: float, high: float) -> list[np.ndarray]:
    """The weights of a shift that signs read, a step beyond its input at most.

    So no sign changes, and the one scale of all shifts is not that of the farthest.
    """
    step = (high - low) / 255
    return [np.clip(layer.get_weights()[0], -high - step, -low + step)]


def _lifted(layer, range_of_input: tuple[float, float] | None) -> list[np.ndarray]:
    """The weights of a layer, in which every bias has a place in 32 bits.

    A bias is a multiple of its input's scale times its kernel's, which is that of the channel
    (of all, in a dense layer).  Where the kernel is near zero, as after a batch norm with a
    gamma near zero, its largest weight becomes so large that the bias is below 2**30 of these
    steps.  That changes the output by less than the bias divided by 30,000.
    """
    weights = layer.get_weights()
    if range_of_input is None or not getattr(layer, "use_bias", False) or len(weights) != 2:
        return weights
    kernel, bias = weights[0].copy(), np.abs(weights[1])
    if isinstance(layer, tf.keras.layers.Dense):
        rows, bias = kernel.reshape(-1, 1), bias.max(keepdims=True)
    else:
        rows = kernel.reshape(-1, len(bias))
    low, high = range_of_input
    least = 127 * bias / ((high - low) / 255 * 2**30)
    largest = np.abs(rows).argmax(0), np.arange(len(bias))
    rows[largest] = np.copysign(np.maximum(np.abs(rows[largest]), least), rows[largest])
    return [kernel, weights[1]]


def _stays_float(layer, tensor, following) -> bool:
    """Whether the output of a layer is not rounded to 8 bits.

    That are signs, what a binary convolution gives to other signs, and what is one operator
    with the layer that follows.
    """
    binary = isinstance(layer, Affine) or quantizer(layer, "input_quantizer") is not None
    return (
        tensor.dtype != tf.float32
        or _is_sign(layer)
        or (len(following) == 1 and isinstance(following[0], Affine))
        or (binary and _only_signs(following))
    )


def _takes_signs(layer) -> bool:
    return is_binary(layer, "input_quantizer") or _is_sign(layer)


def _is_sign(layer) -> bool:
    return getattr(getattr(layer, "activation", None), "precision", None) == 1


def _only_signs(layers) -> bool:
    return bool(layers) and all(map(_takes_signs, layers))


def _adjusted(folded: tf.keras.Model, names, readers, ranges: Ranges) -> Ranges:
    """Ranges that are equal where an operator has one scale, and fine where a sign reads."""
    ranges = {name: (low, max(high, low + 1e-6)) for name, (low, high) in ranges.items()}
    groups, moved = [], set()
    for node in nodes(folded):
        outputs = tf.nest.flatten(node.outputs)
        kinds = _operations(node)
        after_pool = id(node.keras_inputs[0]) in moved
        one_with_pool = kinds <= {"Relu", "Relu6"} and after_pool
        if not node.layer.weights and (kinds <= _ONE_SCALE or one_with_pool):
            groups.append([names[id(tensor)] for tensor in (*node.keras_inputs, *outputs)])
            if kinds or after_pool:  # not what only passes its input on
                moved.update(map(id, outputs))
    _spread(groups, ranges)
    for node in nodes(folded):
        before = [ranges.get(names[id(tensor)]) for tensor in node.keras_inputs]
        for tensor in tf.nest.flatten(node.outputs):
            name, signs = names[id(tensor)], _only_signs(readers[id(tensor)])
            if None in before and (signs or not node.layer.weights):
                ranges.pop(name, None)  # what computes with floats is not rounded after it
            elif signs and name in ranges and id(tensor) not in moved:
                # What a shift adds may be far from all values
                low, high = before[0] if isinstance(node.layer, Shift) else ranges[name]
                step = (high - low) / 255 / _SIGN_STEPS
                ranges[name] = (-128 * step, 127 * step)
    _spread(groups, ranges)
    return ranges


def _spread(groups: list[list[str]], ranges: Ranges) -> None:
    """Gives all of a group the range that covers theirs, or none if one of them has none."""
    changed = True
    while changed:
        before = dict(ranges)
        for group in groups:
            if all(name in ranges for name in group):
                lows, highs = zip(*(ranges[name] for name in group), strict=True)
                ranges.update(dict.fromkeys(group, (min(lows), max(highs))))
            else:
                for name in group:
                    ranges.pop(name, None)
        changed = ranges != before


def _operations(node) -> set[str]:
    """TensorFlow's operations that compute numbers in a layer without weights."""
    if node.layer.weights:
        return set()
    specs = [tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in node.keras_inputs]
    traced = tf.function(lambda *tensors: recall(node.layer, node, tensors))
    kinds = {
        operation.type
        for operation in traced.get_concrete_function(*specs).graph.get_operations()
        if any(output.dtype == tf.float32 for output in operation.outputs)
    }
    return kinds - {"Const", "Identity", "Placeholder"}


def fine_tune(
    quantized: tf.keras.Model,
    folded: tf.keras.Model,
    batches: tf.data.Dataset,
    *,
    epochs: int,
    iterations_per_epoch: int,
) -> None:
    """Trains what is real in a quantized model to give what the folded one gives.

    Args:
        quantized: what `quantize` gives; it is changed.
        folded: its teacher, what it was made of.
        batches: endless (images, labels); the labels are not used.
        epochs, iterations_per_epoch: how long; the learning rate falls to 0 meanwhile.
    """
    quantized.compile(optimizers.Adam(_LEARNING_RATE), losses.DistributionLoss())
    teacher = tf.function(lambda images: folded(images, training=False))
    quantized.fit(
        batches.map(lambda images, labels: (images, teacher(images))),
        epochs=epochs,
        steps_per_epoch=iterations_per_epoch,
        callbacks=[callbacks.LinearDecay(_LEARNING_RATE, (epochs,))],
        verbose=0,
    )


def convert_int8(quantized: tf.keras.Model, *, int8_io: bool) -> tuple[bytes, list[str]]:
    """Converts a quantized model.

    Returns:
        The .tflite file's bytes, and the names of the binary convolutions that stay float32
        because they pad with zeros.
    """
    return float_outputs(convert_as_is(quantized, int8_io=int8_io))
