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
from larq_adambnn.export.fold import Affine
from larq_adambnn.export.tflite import float_outputs
from larq_adambnn.layers import Rotate180, quantizer
from larq_adambnn.walk import nodes, recall, walk

__all__ = ["calibrate", "convert_int8", "fine_tune", "quantize"]

# Whose output has the scale of its input
_SAME_SCALE = (
    Rotate180,
    tf.keras.layers.AveragePooling2D,
    tf.keras.layers.Concatenate,
    tf.keras.layers.MaxPooling2D,
)
_SIGN_STEPS = 8  # finer than its input's is the scale of a sum that only a sign reads
_LEARNING_RATE = 1e-4


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


def calibrate(folded: tf.keras.Model, images: np.ndarray) -> dict[str, tuple[float, float]]:
    """The (smallest, largest) output of every layer of a folded model, and of its input.

    Args:
        folded: what `fold` gives.
        images: preprocessed calibration images (B, H, W, C).
    """
    ranges = {}

    def widen(name, tensor):
        low, high = float(tf.reduce_min(tensor)), float(tf.reduce_max(tensor))
        known = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(low, known[0]), max(high, known[1]))

    def call(node, tensors):
        outputs = tf.nest.flatten(recall(node.layer, node, tensors))
        widen(node.layer.name, outputs[0])
        return outputs

    for start in range(0, len(images), 8):
        batch = tf.constant(images[start : start + 8], tf.float32)
        widen("", batch)
        walk(folded, [batch], call)
    return ranges


def quantize(folded: tf.keras.Model, ranges: dict[str, tuple[float, float]]) -> tf.keras.Model:
    """A copy of a folded model with fake quantization between its layers."""
    ranges = _adjusted(folded, ranges)
    readers = _readers(folded)

    def call(node, tensors):
        layer = node.layer
        kind = {tf.keras.layers.Conv2D: _Conv2D, tf.keras.layers.Dense: _Dense}.get(
            type(layer), type(layer)
        )
        copy = kind.from_config(layer.get_config())
        copy.trainable = quantizer(layer, "input_quantizer") is None  # binary kernels stay
        outputs = recall(copy, node, tensors)
        copy.set_weights(layer.get_weights())
        following = readers[layer.name]
        fused = len(following) == 1 and isinstance(following[0], Affine)
        if not (fused or _is_sign(layer)):
            outputs = FakeQuant(*ranges[layer.name], name=f"{layer.name}_int8")(outputs)
        return tf.nest.flatten(outputs)

    (tensor,) = folded.inputs
    images = tf.keras.Input(tensor.shape[1:], name=tensor.node.layer.name)
    inputs = FakeQuant(*ranges[""], name="images_int8")(images)
    return tf.keras.Model(images, walk(folded, [inputs], call)[0], name=folded.name)


def _readers(folded: tf.keras.Model) -> dict[str, list[tf.keras.layers.Layer]]:
    """The layers that take each layer's output."""
    readers = collections.defaultdict(list)
    for node in nodes(folded):
        for tensor in node.keras_inputs:
            readers[tensor.node.layer.name].append(node.layer)
    return readers


def _is_sign(layer) -> bool:
    return getattr(getattr(layer, "activation", None), "precision", None) == 1


def _adjusted(folded: tf.keras.Model, ranges) -> dict[str, tuple[float, float]]:
    """Ranges that are equal where an operator has one scale, and fine where a sign reads."""
    ranges = {name: (low, max(high, low + 1e-6)) for name, (low, high) in ranges.items()}
    readers = _readers(folded)
    names = {tensor.node.layer.name for tensor in folded.inputs}

    def key(tensor):
        return "" if tensor.node.layer.name in names else tensor.node.layer.name

    for node in nodes(folded):
        following = readers[node.layer.name]
        if following and all(
            quantizer(layer, "input_quantizer") is not None for layer in following
        ):
            low, high = ranges[key(node.keras_inputs[0])]
            step = (high - low) / 255 / _SIGN_STEPS
            ranges[node.layer.name] = (-128 * step, 127 * step)
    changed = True
    while changed:
        changed = False
        for node in nodes(folded):
            if not isinstance(node.layer, _SAME_SCALE):
                continue
            group = [*map(key, node.keras_inputs), node.layer.name]
            union = (min(ranges[n][0] for n in group), max(ranges[n][1] for n in group))
            changed |= any(ranges[name] != union for name in group)
            ranges.update(dict.fromkeys(group, union))
    return ranges


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

    Raises:
        ValueError: a tensor of it has no range.
    """
    return float_outputs(convert_as_is(quantized, quantized=True, int8_io=int8_io))
