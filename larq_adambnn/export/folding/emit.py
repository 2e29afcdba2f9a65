"""Emitting: from records to a Keras model, in the form LCE converts whole."""

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.export.folding import records
from larq_adambnn.export.folding.read import quantizer
from larq_adambnn.export.walk import recall, unique
from larq_adambnn.layers import KERNELS, Shift

__all__ = ["Affine", "ConstantMinus", "emit"]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Affine(tf.keras.layers.Layer):
    """``scale * x + bias`` per channel; after a convolution LCE fuses it."""

    def build(self, input_shape):
        self.scale = self.add_weight("scale", shape=input_shape[-1:], initializer="ones")
        self.bias = self.add_weight("bias", shape=input_shape[-1:], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs):
        return inputs * self.scale + self.bias


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class ConstantMinus(tf.keras.layers.Layer):
    """``constant - x`` with a constant per pixel and channel.

    It is written as a difference because LCE fuses a sum into the convolution before it
    without looking at the constant's shape.
    """

    def build(self, input_shape):
        self.constant = self.add_weight("constant", shape=input_shape[1:], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs):
        return self.constant - inputs


def emit(found: list[records.Record], name: str) -> tuple[tf.keras.Model, list[str]]:
    """The model of records.

    A record's layer has the record's name.  What is new is named after what reads it, or
    what it is made of.

    Returns:
        The model; and the binary layers that pad images smaller than their kernel with zeros.
    """
    emitter = _Emitter(found)
    for record in found:
        emitter.add(record)
    outputs = emitter.outputs if len(emitter.outputs) > 1 else emitter.outputs[0]
    return tf.keras.Model(emitter.inputs, outputs, name=name), emitter.small_images


class _Emitter:
    """The layers of the records so far."""

    def __init__(self, found):
        self.inputs, self.outputs, self.small_images = [], [], []
        self._tensors = {}
        self._used = {r.name for r in found if not isinstance(r, records.Constant)}
        self._readers = {value: r.name for r in reversed(found) for value in r.inputs}

    def add(self, record):
        given = [self._tensors[value] for value in record.inputs]
        match record:
            case records.Input(tensor=tensor):
                made = tf.keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=record.name)
                self.inputs.append(made)
            case records.Output():
                self.outputs += given
                made = ()
            case records.Constant():
                name = self._name(f"{self._readers[record.outputs[0]]}_shift")
                made = _call(_like(Shift, given[0], name), given[0], record.values)
            case records.PReLU():
                axes = list(range(1, given[0].shape.rank - 1))
                prelu = _like(tf.keras.layers.PReLU, given[0], record.name, shared_axes=axes)
                made = _call(prelu, given[0], record.slope)
            case records.Affine():
                made = _affine(given[0], record.name, record.scale, record.bias)
            case records.Dense(layer=layer):
                dense = _like(tf.keras.layers.Dense, given[0], record.name, units=layer.units)
                made = _call(dense, given[0], record.kernel * record.scale, record.bias)
            case records.Convolution(binary=True):
                made = self._binary(record, *given)
            case records.Convolution():
                conv = _plain(record, activation=None, use_bias=True)
                made = _call(conv, given[0], record.kernel * record.scale, record.bias)
            case records.Passing():
                made = _copy(record)(given if len(given) > 1 else given[0])
            case records.Other(node=None):
                made = _copy(record)(*given)
            case records.Other():
                copy = _copy(record)
                made = recall(copy, record.node, given)
                with lq.context.quantized_scope(True):
                    copy.set_weights(record.layer.get_weights())
        self._tensors.update(zip(record.outputs, tf.nest.flatten(made), strict=True))

    def _name(self, name: str) -> str:
        return unique(name, self._used)

    def _binary(self, record, tensor):
        """A convolution with +1 and -1, and what is to be fused into it."""
        layer, scale, bias = record.layer, record.scale, record.bias
        correction = _correction(layer, record.kernel, tensor.shape)
        relu = record.relu and correction is None
        conv = _plain(
            record,
            activation="relu" if relu else None,
            use_bias=False,
            pad_values=layer.pad_values if correction is None else 1.0,
        )
        outputs = _call(conv, tensor, record.kernel)
        if correction is not None:
            self.small_images.append(record.name)
            inner = (1.0, 0.0) if record.relu else (scale, bias)
            name = self._name(f"{record.name}_minus")
            outputs = _affine(outputs, name, -inner[0], -inner[1])
            minus = _like(ConstantMinus, outputs, self._name(f"{record.name}_padding"))
            outputs = _call(minus, outputs, inner[0] * correction)
            if not record.relu:
                return outputs
            outputs = tf.keras.layers.Activation("relu", name=self._name(f"{record.name}_relu"))(
                outputs
            )
        if np.any(scale != 1) or np.any(bias):
            outputs = _affine(outputs, self._name(f"{record.name}_scale"), scale, bias)
        return outputs


def _call(layer, tensor, *weights: np.ndarray):
    """What a new layer gives, with weights that may be broadcast."""
    outputs = layer(tensor)
    pairs = zip(weights, layer.weights, strict=True)
    layer.set_weights([np.broadcast_to(values, weight.shape) for values, weight in pairs])
    return outputs


def _like(kind, tensor, name: str, **options):
    return kind(name=name, dtype=tensor.dtype.name, **options)


def _affine(tensor, name: str, scale, bias):
    return _call(_like(Affine, tensor, name), tensor, scale, bias)


def _copy(record):
    """A layer of the same configuration; binary kernels will be written as they are."""
    layer = record.layer
    config = layer.get_config() | {"name": record.name}
    config.update({name: None for name in KERNELS if name in config})
    if "input_quantizer" in config:
        config["input_quantizer"] = quantizer(layer, "input_quantizer")
    return type(layer).from_config(config)


def _plain(record, **changes) -> tf.keras.layers.Conv2D:
    """A convolution like a record's that takes its kernel as it is."""
    layer = record.layer
    kind = lq.layers.QuantConv2D if hasattr(layer, "input_quantizer") else type(layer)
    config = layer.get_config() | {"name": record.name, "kernel_initializer": "zeros"} | changes
    if kind is lq.layers.QuantConv2D:
        config["input_quantizer"] = quantizer(layer, "input_quantizer")
        config["kernel_quantizer"] = None
    for name in ("kernel_constraint", "kernel_regularizer", "activity_regularizer"):
        config[name] = None
    if layer.kernel_size == (1, 1):  # there is nothing to pad
        config["padding"] = "valid"
    return kind.from_config(config)


def _correction(layer, signs: np.ndarray, shape: tf.TensorShape) -> np.ndarray | None:
    """What to add to a convolution (H, W, C) that pads with ones where zeros are meant.

    None where LCE itself pads with zeros: it can for images that are not smaller than the
    kernel (its zero_padding_correction.h assumes that they are not).
    """
    sizes = shape[1:3]
    spans = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    if (
        layer.padding != "same"
        or getattr(layer, "pad_values", 0) != 0
        or None in sizes
        or all(size >= span for size, span in zip(sizes, spans, strict=True))
    ):
        return None
    paddings = [(0, 0)]
    for size, span, stride in zip(sizes, spans, layer.strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        paddings.append((total // 2, total - total // 2))
    ones = tf.pad(tf.zeros((1, *shape[1:]), signs.dtype), [*paddings, (0, 0)], constant_values=1)
    added = tf.nn.convolution(ones, signs, layer.strides, "VALID", dilations=layer.dilation_rate)
    return -added.numpy()[0]
