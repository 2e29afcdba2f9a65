"""Emitting: from records to a Keras model, in the form LCE converts whole."""

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.export.folding.read import has_relu
from larq_adambnn.export.folding.records import Record
from larq_adambnn.layers import KERNELS, Shift, quantizer
from larq_adambnn.padding import same_padding
from larq_adambnn.walk import recall, unique

__all__ = ["Affine", "ConstantMinus", "emit"]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Affine(tf.keras.layers.Layer):
    """``scale * x + bias`` per channel; after a binary convolution LCE fuses it."""

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


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Unpacked(lq.quantizers.Quantizer):
    """A sign whose convolution LCE leaves real.

    Its converter takes groups of a multiple of 32 channels, which its kernel refuses.
    """

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = lq.quantizers.get(quantizer)
        self.precision = getattr(self.quantizer, "precision", None)

    def call(self, inputs):
        return tf.maximum(self.quantizer(inputs), inputs.dtype.min)  # which changes nothing

    def get_config(self):
        return {**super().get_config(), "quantizer": lq.quantizers.serialize(self.quantizer)}


def emit(records: list[Record], name: str) -> tuple[tf.keras.Model, list[str]]:
    """The model of records.

    A layer has its record's name; a further one is named after what it belongs to.  The
    model's outputs have their records' names.

    Returns:
        The model; and the binary layers that pad images smaller than their kernel with zeros.
    """
    emitter = _Emitter(records)
    for record in records:
        emitter.add(record)
    outputs = emitter.outputs if len(emitter.outputs) > 1 else emitter.outputs[0]
    model = tf.keras.Model(emitter.inputs, outputs, name=name)
    model.output_names = [record.name for record in records if record.kind == "output"]
    return model, emitter.small_images


class _Emitter:
    """Builds the layers of records one after the other."""

    def __init__(self, records):
        self.inputs, self.outputs, self.small_images = [], [], []
        self._tensors = {}
        self._used = {record.name for record in records if record.kind != "constant"}
        self._readers = {value: r.name for r in reversed(records) for value in r.inputs}

    def add(self, record: Record) -> None:
        given = [self._tensors[value] for value in record.inputs]
        made = getattr(self, f"_{record.kind}")(record, *given)
        self._tensors.update(zip(record.outputs, tf.nest.flatten(made), strict=True))

    def _input(self, record):
        tensor = record.layer.output
        self.inputs.append(tf.keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=record.name))
        return self.inputs[-1]

    def _output(self, record, tensor):
        self.outputs.append(tensor)
        return []

    def _constant(self, record, tensor):
        name = self._further(self._readers[record.outputs[0]], "shift")
        return _call(Shift, name, tensor, record.bias)

    def _affine(self, record, tensor):
        """One operator, which has a form for 8 bits: a convolution of each channel by itself."""
        if tensor.shape.rank != 4:
            return _call(Affine, record.name, tensor, record.scale, record.bias)
        weights = record.scale[:, np.newaxis], record.bias
        kind = tf.keras.layers.DepthwiseConv2D
        return _call(kind, record.name, tensor, *weights, kernel_size=1)

    def _prelu(self, record, tensor):
        options = {
            "shared_axes": list(range(1, tensor.shape.rank - 1)),
            "dtype": record.layer.dtype,
        }
        return _call(tf.keras.layers.PReLU, record.name, tensor, record.scale, **options)

    def _dense(self, record, tensor):
        weights = record.kernel * record.scale, record.bias
        options = {"units": record.layer.units, "dtype": record.layer.dtype}
        return _call(tf.keras.layers.Dense, record.name, tensor, *weights, **options)

    def _convolution(self, record, tensor):
        weights = record.kernel * record.scale, record.bias
        return _plain(record, tensor, *weights, activation=None, use_bias=True)

    def _binary(self, record, tensor):
        """The convolution, and what LCE fuses into it."""
        scale, bias = record.scale, record.bias
        correction, relu = _correction(record, tensor.shape), has_relu(record.layer)
        options = {"use_bias": False, "activation": "relu" if relu else None}
        if correction is not None:
            options |= {"pad_values": 1.0, "activation": None}
        tensor = _plain(record, tensor, record.kernel, **options)
        if correction is not None:
            self.small_images.append(record.name)
            inner = (1.0, 0.0) if relu else (scale, bias)
            name = self._further(record.name, "minus")
            tensor = _call(Affine, name, tensor, -inner[0], -inner[1])
            name = self._further(record.name, "padding")
            tensor = _call(ConstantMinus, name, tensor, inner[0] * correction)
            if not relu:
                return tensor
            tensor = _call(tf.keras.layers.ReLU, self._further(record.name, "relu"), tensor)
        if np.all(scale == 1) and not np.any(bias):
            return tensor
        return _call(Affine, self._further(record.name, "scale"), tensor, scale, bias)

    def _pool(self, record, tensor):
        return _copy(record)(tensor)

    def _sum(self, record, *tensors):
        return _copy(record)(tensors)

    _concatenation = _sum

    def _other(self, record, *tensors):
        copy = _copy(record)
        if record.node is None:
            return copy(*tensors)
        outputs = recall(copy, record.node, tensors)
        with lq.context.quantized_scope(True):
            copy.set_weights(record.layer.get_weights())
        return outputs

    def _further(self, name: str, part: str) -> str:
        return unique(f"{name}_{part}", self._used)


def _call(kind, name: str, tensor, *weights: np.ndarray, **options):
    """What a new layer gives, with weights that are broadcast to their shapes."""
    options = {"name": name, "dtype": tensor.dtype.name} | options
    return _with(kind(**options), tensor, weights)


def _with(layer, tensor, weights):
    outputs = layer(tensor)
    pairs = zip(weights, layer.weights, strict=True)
    layer.set_weights([np.broadcast_to(values, weight.shape) for values, weight in pairs])
    return outputs


def _copy(record):
    """A layer of the same configuration; binary kernels will be written as they are."""
    layer = record.layer
    config = layer.get_config() | {"name": record.name}
    config.update({name: None for name in KERNELS if name in config})
    if "input_quantizer" in config:
        config["input_quantizer"] = quantizer(layer, "input_quantizer")
    return type(layer).from_config(config)


def _plain(record, tensor, *weights: np.ndarray, **changes):
    """What a convolution like a record's gives that takes its kernel as it is."""
    layer = record.layer
    kind = lq.layers.QuantConv2D if hasattr(layer, "input_quantizer") else type(layer)
    config = layer.get_config() | {"name": record.name, "kernel_initializer": "zeros"} | changes
    if kind is lq.layers.QuantConv2D:
        sign = quantizer(layer, "input_quantizer")
        grouped = sign is not None and layer.groups > 1
        config["input_quantizer"] = Unpacked(sign) if grouped else sign
        config["kernel_quantizer"] = None
    for name in ("kernel_constraint", "kernel_regularizer", "activity_regularizer"):
        config[name] = None
    if layer.kernel_size == (1, 1):  # there is nothing to pad
        config["padding"] = "valid"
    return _with(kind.from_config(config), tensor, weights)


def _correction(record, shape: tf.TensorShape) -> np.ndarray | None:
    """What to add to a convolution (H, W, C) that pads with ones where zeros are meant.

    None where LCE itself pads with zeros: it can for images that are not smaller than the
    kernel (its zero_padding_correction.h assumes that they are not).
    """
    layer, signs = record.layer, record.kernel
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
    paddings += map(same_padding, sizes, spans, layer.strides)
    ones = tf.pad(tf.zeros((1, *shape[1:]), signs.dtype), [*paddings, (0, 0)], constant_values=1)
    added = tf.nn.convolution(ones, signs, layer.strides, "VALID", dilations=layer.dilation_rate)
    return -added.numpy()[0]
