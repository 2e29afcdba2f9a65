"""Lossless folding: the same network with fewer operators, in the form LCE converts whole.

PReLU and the shifts of a ReActNet do not fuse into a binary convolution, but a constant per
channel may be added later or earlier than it is written: batch norms, real convolutions, the
classifier and the next sign take it in, while sums, pools and concatenations pass it on.
What remains of a block is one addition before each sign and one for each shortcut.

Binary kernels become exactly +1 and -1, and their scales a part of the multiplier after
them.  That may be zero: a channel with the scale 0, for which LCE would keep the whole layer
real, becomes the constant that it is.
"""

import collections
import dataclasses
from collections.abc import Callable

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.export.walk import count_uses, nodes, recall, walk
from larq_adambnn.layers import KERNELS, BinaryConv2D, Rotate180, RPReLU, Shift
from larq_adambnn.quantizers import Switchable

__all__ = ["Affine", "Folding", "fold", "quantizer", "signs_and_scales"]

# Layers that give the same constant per channel that is added to their input
_PASSING = (
    Rotate180,
    tf.keras.layers.AveragePooling2D,
    tf.keras.layers.GlobalAveragePooling2D,
    tf.keras.layers.GlobalMaxPooling2D,
    tf.keras.layers.MaxPooling2D,
)
_CONVOLUTIONS = (BinaryConv2D, lq.layers.QuantConv2D, tf.keras.layers.Conv2D)
_IDENTITIES = (tf.keras.layers.Dropout, tf.keras.layers.SpatialDropout2D)


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


@dataclasses.dataclass(frozen=True)
class Folding:
    """A folded network and what was done to get it.

    Attributes:
        model: computes what the original computes; a layer made of an original one has its
            name.
        batch_norms, batch_norms_left: number in the original, and of those that are not part
            of a convolution now.
        shifts, shifts_left: number of constants per channel that the original's shifts and
            RPReLUs add, and of additions of such constants now.
        zero_scales: number of output channels with the scale 0, by binary layer.
        small_images: binary layers that pad images smaller than their kernel with zeros.
            There LCE pads with ones instead; so they do that here too, and a constant
            corrects it.
    """

    model: tf.keras.Model
    batch_norms: int
    batch_norms_left: int
    shifts: int
    shifts_left: int
    zero_scales: dict[str, int]
    small_images: list[str]


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
    folder = _Folder()
    inputs = [
        tf.keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.node.layer.name)
        for tensor in model.inputs
    ]
    outputs = folder.run(model, [_built(tensor) for tensor in inputs])
    outputs = [
        folder.exact(value, f"{name}_shift")
        for value, name in zip(outputs, model.output_names, strict=True)
    ]
    folded = tf.keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    return Folding(
        folded,
        folder.batch_norms,
        folder.batch_norms_left,
        folder.shifts,
        folder.shifts_left,
        folder.zero_scales,
        folder.small_images,
    )


def quantizer(layer, attribute: str):
    """A layer's quantizer out of its switch; None where there is none or it is off."""
    found = getattr(layer, attribute, None)
    if isinstance(found, Switchable):
        return found.quantizer if found.on else None
    return found


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


class _Value:
    """A tensor of the original network, built in the folded one on its first demand.

    Once built, original = tensor + offset, with an offset per channel (or one for all).

    Args:
        build: takes a shift that it may add to the tensor, and returns (tensor, offset).
        free: whether `build` adds the shift without a further operator; it must then.
        linear: for ``scale * y + bias``: (a function of name, scale and bias that builds
            it, scale, bias), so that a batch norm can become part of it.
    """

    def __init__(self, build: Callable, free: Callable[[], bool], linear: tuple | None = None):
        self._build, self._free, self._linear = build, free, linear
        self._result = None

    @property
    def free(self) -> bool:
        return self._result is None and self._free()

    @property
    def linear(self) -> tuple | None:
        return self._linear if self._result is None else None

    def built(self, shift=0.0) -> tuple[tf.Tensor, np.ndarray | float]:
        """(tensor, offset); the offset is minus the shift if that costs nothing."""
        if self._result is None:
            self._result = self._build(shift if self._free() else 0.0)
        return self._result


def _built(tensor, offset=0.0) -> _Value:
    return _Value(lambda shift: (tensor, offset), lambda: False)


def _linear(name: str, build: Callable, scale, bias) -> _Value:
    return _Value(
        lambda shift: (build(name, scale, bias + shift), -shift),
        lambda: True,
        (build, scale, bias),
    )


class _Folder:
    """Walks through a model in its order and builds the folded one."""

    def __init__(self):
        self.batch_norms = self.batch_norms_left = 0
        self.shifts = self.shifts_left = 0
        self.zero_scales = {}
        self.small_images = []
        self._copies = {}
        self._shifted = {}

    def run(self, model, inputs: list[_Value]) -> list[_Value]:
        """The outputs of a functional model, given its inputs."""
        uses = count_uses(model)
        for part in model._flatten_layers(include_self=False):
            if hasattr(part, "_nodes_by_depth"):  # whose inputs may be used outside too
                uses += count_uses(part) + collections.Counter(map(id, part.inputs))

        def call(node, given):
            alone = all(uses[id(tensor)] == 1 for tensor in node.keras_inputs)
            return self._layer(node, given, alone)

        return walk(model, inputs, call)

    def exact(self, value: _Value, name: str) -> tf.Tensor:
        """The tensor of a value itself, with an addition where its offset is not 0."""
        tensor, offset = value.built()
        if not np.any(offset):
            return tensor
        key = (id(tensor), np.asarray(offset).tobytes())
        if key not in self._shifted:
            layer = Shift(name=name, dtype=tensor.dtype.name)
            self._shifted[key] = (layer(tensor), tensor)  # which keeps the id taken
            layer.set_weights([np.broadcast_to(offset, layer.shift.shape)])
            self.shifts_left += 1
        return self._shifted[key][0]

    def _layer(self, node, given: list[_Value], alone: bool) -> list[_Value]:
        """The values of a layer's outputs.

        Args:
            node: the layer's call in the original model.
            given: its inputs.
            alone: whether it is the only one to use them.
        """
        layer, kind = node.layer, type(node.layer)
        if getattr(layer, "data_format", "channels_last") == "channels_last":
            if kind in _IDENTITIES or (kind is tf.keras.layers.Activation and _is_linear(layer)):
                return given
            if kind is Shift:
                self.shifts += 1
                return [_plus(given[0], layer.shift.numpy())]
            if kind is RPReLU:
                return [self._rprelu(layer, *given)]
            if kind is tf.keras.layers.BatchNormalization and _on_channels(node, layer.axis):
                return [self._batch_norm(layer, *given, alone)]
            if kind in _PASSING:
                return [self._pass(layer, *given)]
            if kind in _CONVOLUTIONS:
                return [self._convolution(layer, *given)]
            if kind is tf.keras.layers.Dense and _is_linear(layer):
                return [self._dense(layer, *given)]
            if kind is tf.keras.layers.Add:
                return [self._add(layer, given)]
            if kind is tf.keras.layers.Concatenate and _on_channels(node, layer.axis):
                return [self._concatenate(layer, given, node)]
        return self._other(node, given)

    def _rprelu(self, layer, value: _Value) -> _Value:
        self.shifts += 2
        value = _plus(value, layer.shift_in.numpy())
        tensor = self.exact(value, f"{layer.name}_shift")
        prelu = tf.keras.layers.PReLU(
            shared_axes=list(range(1, tensor.shape.rank - 1)), name=layer.name, dtype=layer.dtype
        )
        tensor = prelu(tensor)
        prelu.set_weights([layer.slope.numpy().reshape(prelu.alpha.shape)])
        return _built(tensor, layer.shift_out.numpy())

    def _batch_norm(self, layer, value: _Value, alone: bool) -> _Value:
        variance = layer.moving_variance.numpy().astype(np.float64)
        scale = 1 / np.sqrt(variance + layer.epsilon)
        scale *= layer.gamma.numpy() if layer.scale else 1
        bias = (layer.beta.numpy() if layer.center else 0) - scale * layer.moving_mean.numpy()
        self.batch_norms += 1
        if value.linear and alone:
            build, inner_scale, inner_bias = value.linear
            return _linear(layer.name, build, scale * inner_scale, scale * inner_bias + bias)
        self.batch_norms_left += 1

        def build(name, scale, bias):
            tensor, offset = value.built()
            return _affine(tensor, name, scale, bias + scale * offset)

        return _linear(layer.name, build, scale, bias)

    def _pass(self, layer, value: _Value) -> _Value:
        def build(shift):
            tensor, offset = value.built(shift)
            return self._copy(layer)(tensor), offset

        return _Value(build, lambda: value.free)

    def _add(self, layer, given: list[_Value]) -> _Value:
        def taker() -> _Value | None:
            """The summand that takes in a shift."""
            return next((v for v in given if v.free and given.count(v) == 1), None)

        def build(shift):
            taking = taker()
            offset = sum(value.built()[1] for value in given if value is not taking)
            if taking is not None:
                taking.built(shift + offset)
                offset = -shift
            return self._copy(layer)([value.built()[0] for value in given]), offset

        return _Value(build, lambda: taker() is not None)

    def _concatenate(self, layer, given: list[_Value], node) -> _Value:
        widths = [tensor.shape[-1] for tensor in node.keras_inputs]

        def build(shift):
            shifts = np.split(np.broadcast_to(shift, sum(widths)), np.cumsum(widths)[:-1])
            results = [v.built(part) for v, part in zip(given, shifts, strict=True)]
            offsets = [np.broadcast_to(o, w) for (_, o), w in zip(results, widths, strict=True)]
            return self._copy(layer)([tensor for tensor, _ in results]), np.concatenate(offsets)

        return _Value(build, lambda: all(value.free for value in given))

    def _dense(self, layer, value: _Value) -> _Value:
        tensor, offset = value.built()
        kernel = layer.kernel.numpy()
        bias = layer.bias.numpy() if layer.use_bias else 0.0
        bias = bias + np.broadcast_to(offset, len(kernel)) @ kernel.astype(np.float64)

        def build(name, scale, bias):
            dense = tf.keras.layers.Dense(layer.units, name=layer.name, dtype=layer.dtype)
            outputs = dense(tensor)
            dense.set_weights([kernel * scale, np.broadcast_to(bias, layer.units)])
            return outputs

        return _linear(layer.name, build, np.ones(layer.units), bias)

    def _convolution(self, layer, value: _Value) -> _Value:
        form = signs_and_scales(layer)
        if form is None:
            return self._real_convolution(layer, value)
        signs, scales = form
        if not scales.all():
            self.zero_scales[layer.name] = int(np.sum(scales == 0))
        tensor = self.exact(value, f"{layer.name}_shift")
        correction = _correction(layer, signs, tensor.shape)
        if correction is not None:
            self.small_images.append(layer.name)
        relu = (
            layer.activation is tf.keras.activations.relu
            and not layer.use_bias
            and correction is None
        )
        conv = self._plain(
            layer,
            activation="relu" if relu else None,
            use_bias=False,
            pad_values=layer.pad_values if correction is None else 1.0,
        )

        def build(name, scale, bias):
            outputs = conv(tensor)
            conv.set_weights([signs])
            if correction is not None:
                outputs = _affine(outputs, name, -scale, -bias)
                constant = ConstantMinus(name=f"{name}_padding", dtype=outputs.dtype.name)
                outputs = constant(outputs)
                constant.set_weights([scale * correction])
            elif np.any(scale != 1) or np.any(bias):
                outputs = _affine(outputs, name, scale, bias)
            return outputs

        bias = layer.bias.numpy() if layer.use_bias else np.zeros(layer.filters)
        result = _linear(f"{layer.name}_scale", build, scales.astype(np.float64), bias)
        return result if relu else self._activated(layer, result)

    def _real_convolution(self, layer, value: _Value) -> _Value:
        """A convolution whose kernel takes in the scale after it, and whose bias the rest."""
        with lq.context.quantized_scope(True):
            kernel = layer.kernel.numpy()
        bias = layer.bias.numpy() if layer.use_bias else 0.0
        unpadded = layer.padding == "valid" or layer.kernel_size == (1, 1)
        if unpadded and layer.groups == 1 and quantizer(layer, "input_quantizer") is None:
            tensor, offset = value.built()
            taken = np.broadcast_to(offset, kernel.shape[2]).astype(np.float64)
            bias = bias + np.einsum("hwio,i->o", kernel, taken)
        else:
            tensor = self.exact(value, f"{layer.name}_shift")

        def build(name, scale, bias):
            conv = self._plain(layer, activation=None, use_bias=True)
            outputs = conv(tensor)
            conv.set_weights([kernel * scale, np.broadcast_to(bias, layer.filters)])
            return outputs

        result = _linear(layer.name, build, np.ones(layer.filters), bias)
        return self._activated(layer, result)

    def _activated(self, layer, value: _Value) -> _Value:
        """The activation of a convolution's own."""
        if _is_linear(layer):
            return value
        activation = tf.keras.layers.Activation(
            layer.activation, name=f"{layer.name}_activation", dtype=layer.dtype
        )
        return _built(activation(self.exact(value, f"{layer.name}_shift")))

    def _other(self, node, given: list[_Value]) -> list[_Value]:
        """A layer without a rule: its copy, on its inputs themselves."""
        layer = node.layer
        tensors = [
            self.exact(value, f"{layer.name}_shift{index or ''}")
            for index, value in enumerate(given)
        ]
        copy = self._copy(layer)
        outputs = recall(copy, node, tensors)
        with lq.context.quantized_scope(True):
            copy.set_weights(layer.get_weights())
        return [_built(tensor) for tensor in tf.nest.flatten(outputs)]

    def _copy(self, layer):
        """A layer of the same configuration; binary kernels will be written as they are."""
        if id(layer) not in self._copies:
            config = layer.get_config()
            config.update({name: None for name in KERNELS if name in config})
            if "input_quantizer" in config:
                config["input_quantizer"] = quantizer(layer, "input_quantizer")
            self._copies[id(layer)] = type(layer).from_config(config)
        return self._copies[id(layer)]

    def _plain(self, layer, **changes) -> tf.keras.layers.Conv2D:
        """A convolution like another that takes its kernel as it is."""
        kind = lq.layers.QuantConv2D if hasattr(layer, "input_quantizer") else type(layer)
        config = layer.get_config() | changes
        config["kernel_initializer"] = "zeros"
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


def _plus(value: _Value, constant: np.ndarray) -> _Value:
    def build(shift):
        tensor, offset = value.built(constant + shift)
        return tensor, offset + constant

    return _Value(build, lambda: value.free)


def _affine(tensor, name: str, scale, bias) -> tf.Tensor:
    layer = Affine(name=name, dtype=tensor.dtype.name)
    tensor = layer(tensor)
    layer.set_weights([np.broadcast_to(values, layer.scale.shape) for values in (scale, bias)])
    return tensor


def _is_linear(layer) -> bool:
    return layer.activation in (None, tf.keras.activations.linear)


def _on_channels(node, axis) -> bool:
    rank = tf.nest.flatten(node.outputs)[0].shape.rank
    return axis in (-1, rank - 1, [rank - 1])
