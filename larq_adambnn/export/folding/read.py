"""Reading: from a Keras model to records."""

import itertools

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.export.folding.records import Record
from larq_adambnn.layers import BinaryConv2D, Rotate180, RPReLU, Shift, quantizer
from larq_adambnn.walk import named_nodes, walk

__all__ = ["has_relu", "read", "signs_and_scales"]

_POOLS = (
    Rotate180,
    tf.keras.layers.AveragePooling2D,
    tf.keras.layers.GlobalAveragePooling2D,
    tf.keras.layers.GlobalMaxPooling2D,
    tf.keras.layers.MaxPooling2D,
)
_CONVOLUTIONS = (BinaryConv2D, lq.layers.QuantConv2D, tf.keras.layers.Conv2D)
_IDENTITIES = (tf.keras.layers.Dropout, tf.keras.layers.SpatialDropout2D)


def read(model: tf.keras.Model) -> tuple[list[Record], dict[str, int]]:
    """The records of a model's inference, each with a name of its own.

    Models in it are read as if their layers stood in their place; a layer that is called
    twice gives two records.

    Args:
        model: a functional model.

    Returns:
        The records; and the number of output channels with the scale 0, by binary layer.
    """
    reader = _Reader(model)
    return reader.records, reader.zero_scales


def signs_and_scales(layer) -> tuple[np.ndarray, np.ndarray] | None:
    """The quantized kernel of a layer as (+1 and -1, a scale per output channel).

    No scale is negative; a channel of zeros has the scale 0 and its latent weights' signs.
    None if the layer has no kernel quantizer or its kernel is not of that form.
    """
    if quantizer(layer, "kernel_quantizer") is None:
        return None
    latent = layer.kernel.numpy()
    with lq.context.quantized_scope(True):
        kernel = layer.kernel.numpy()
    scales = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    signs = np.where(np.where(scales > 0, kernel, latent) >= 0, 1, -1).astype(kernel.dtype)
    return (signs, scales) if np.array_equal(signs * scales, kernel) else None


def has_relu(layer) -> bool:
    """Whether a binary layer's activation can come before its scale, which LCE fuses."""
    return layer.activation is tf.keras.activations.relu and not layer.use_bias


class _Reader:
    """Goes through a model and adds a record, or a few, for each call of a layer."""

    def __init__(self, model):
        self.records, self.zero_scales = [], {}
        self._values = itertools.count()
        names = (name for name, _ in named_nodes(model))  # in the order of `walk`
        inputs = []
        for tensor in model.inputs:
            inputs += self._add("input", tensor.node.layer.name, (), layer=tensor.node.layer)
        outputs = walk(model, inputs, lambda node, given: self._read(node, next(names), given))
        for value, name in zip(outputs, model.output_names, strict=True):
            self._add("output", name, [value], 0, sink=True)

    def _add(self, kind: str, name: str, inputs, count: int = 1, **fields) -> list[int]:
        """The outputs of a new record."""
        outputs = list(itertools.islice(self._values, count))
        self.records.append(Record(kind, name, tuple(inputs), tuple(outputs), **fields))
        return outputs

    def _read(self, node, name: str, given: list[int]) -> list[int]:
        """What stands for the outputs of a call, given its name and what does for its inputs."""
        layer, kind = node.layer, type(node.layer)
        widths = tuple(tensor.shape[-1] for tensor in node.keras_inputs)
        if getattr(layer, "data_format", "channels_last") == "channels_last":
            if kind in _IDENTITIES or (kind is tf.keras.layers.Activation and _is_linear(layer)):
                return given
            if kind is Shift:
                return self._add("constant", name, given, bias=_vector(layer.shift))
            if kind is RPReLU:
                given = self._add("constant", name, given, bias=_vector(layer.shift_in))
                slope = _vector(layer.slope)
                given = self._add("prelu", name, given, layer=layer, scale=slope, sink=True)
                return self._add("constant", name, given, bias=_vector(layer.shift_out))
            if kind is tf.keras.layers.BatchNormalization and _on_channels(node, layer.axis):
                return self._add("affine", name, given, **_scale_and_bias(layer))
            if kind in _POOLS:
                return self._add("pool", name, given, layer=layer)
            if kind in _CONVOLUTIONS:
                return self._convolution(layer, name, given)
            if kind is tf.keras.layers.Dense and _is_linear(layer):
                weights = {"kernel": layer.kernel.numpy(), "scale": np.ones(layer.units)}
                return self._add("dense", name, given, layer=layer, bias=_bias(layer), **weights)
            if kind is tf.keras.layers.Add and len(set(widths)) == 1:
                return self._add("sum", name, given, layer=layer)
            if _is_plus(node):
                return self._add("sum", name, given, layer=tf.keras.layers.Add(dtype=layer.dtype))
            if kind is tf.keras.layers.Concatenate and _on_channels(node, layer.axis):
                return self._add("concatenation", name, given, layer=layer, widths=widths)
        count = len(tf.nest.flatten(node.outputs))
        return self._add("other", name, given, count, layer=layer, node=node, sink=True)

    def _convolution(self, layer, name: str, given: list[int]) -> list[int]:
        form = signs_and_scales(layer)
        if form is None:
            with lq.context.quantized_scope(True):
                kernel, scale = layer.kernel.numpy(), np.ones(layer.filters)
        else:
            kernel, scale = form
            if not scale.all():
                self.zero_scales[name] = int(np.sum(scale == 0))
        binary = form is not None and layer.groups == 1
        relu = binary and has_relu(layer)
        unpadded = layer.padding == "valid" or layer.kernel_size == (1, 1)
        signed = quantizer(layer, "input_quantizer") is not None
        given = self._add(
            "binary" if binary else "convolution",
            name,
            given,
            layer=layer,
            kernel=kernel,
            scale=scale.astype(np.float64),
            bias=_bias(layer),
            sink=signed or relu or layer.groups > 1 or not unpadded,
        )
        if relu or _is_linear(layer):
            return given
        activation = tf.keras.layers.Activation(layer.activation, dtype=layer.dtype)
        return self._add("other", f"{name}_activation", given, layer=activation, sink=True)


def _scale_and_bias(batch_norm) -> dict[str, np.ndarray]:
    scale = 1 / np.sqrt(_vector(batch_norm.moving_variance) + batch_norm.epsilon)
    scale *= _vector(batch_norm.gamma) if batch_norm.scale else 1
    beta = _vector(batch_norm.beta) if batch_norm.center else 0
    return {"scale": scale, "bias": beta - scale * _vector(batch_norm.moving_mean)}


def _bias(layer) -> np.ndarray:
    return _vector(layer.bias) if layer.use_bias else np.zeros(layer.kernel.shape[-1])


def _vector(variable) -> np.ndarray:
    return variable.numpy().astype(np.float64)


def _is_linear(layer) -> bool:
    return layer.activation in (None, tf.keras.activations.linear)


def _is_plus(node) -> bool:
    """Whether a call is ``x + y`` of two tensors of one size."""
    if getattr(node.layer, "symbol", "") != "__operators__.add":
        return False
    return len({tuple(tensor.shape) for tensor in node.keras_inputs}) == 1 < len(node.keras_inputs)


def _on_channels(node, axis) -> bool:
    rank = tf.nest.flatten(node.outputs)[0].shape.rank
    return axis in (-1, rank - 1, [rank - 1])
