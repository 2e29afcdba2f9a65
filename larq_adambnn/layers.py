"""ReActNet's layers; what is binary in a model, and the switch between real and binary."""

import contextlib
import logging
import math
from collections.abc import Iterable

import larq as lq
import tensorflow as tf

from larq_adambnn.arguments import FLAG, expect, instance
from larq_adambnn.kernels import activations
from larq_adambnn.kernels.convolution import convolve
from larq_adambnn.quantizers import ApproxSign, ScaledSign, Switchable

__all__ = [
    "KERNELS",
    "QUANTIZERS",
    "BinaryConv2D",
    "RPReLU",
    "Rotate180",
    "Shift",
    "binarization",
    "binarize",
    "binary_quantizers",
    "clip",
    "is_binary",
    "quantizer",
    "retrace",
]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Rotate180(tf.keras.layers.Layer):
    """Reverses the two spatial axes of (B, H, W, C) images.

    PyTorch pads a stride-2 convolution of an even size on the low side, TensorFlow's
    "same" on the high side.  In a reversed image, with every kernel reversed too,
    "same" pads where PyTorch does.  The ReActNets reverse their input once, so they
    compute what the published networks compute.
    """

    def call(self, inputs):
        return tf.reverse(inputs, axis=[1, 2])


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Shift(tf.keras.layers.Layer):
    """Adds a learnable bias per channel; before a sign it makes the RSign of ReActNet."""

    def build(self, input_shape):
        self.shift = self.add_weight("shift", shape=input_shape[-1:], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs, training=None):
        bias = tf.convert_to_tensor(self.shift)
        return activations.shift(inputs, bias, training=training is True)


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class RPReLU(tf.keras.layers.Layer):
    """ReActNet's activation, per channel: ``PReLU(x + shift_in) + shift_out``.

    All three parameters are learnable vectors of C values; the slope of the
    negative side starts at 0.25 (ReActNet, equation 3; PyTorch's default slope).
    """

    def build(self, input_shape):
        def weight(name, initializer):
            return self.add_weight(name, shape=input_shape[-1:], initializer=initializer)

        self.shift_in = weight("shift_in", "zeros")
        self.slope = weight("slope", tf.keras.initializers.Constant(0.25))
        self.shift_out = weight("shift_out", "zeros")
        super().build(input_shape)

    def call(self, inputs, training=None):
        parameters = map(tf.convert_to_tensor, (self.shift_in, self.slope, self.shift_out))
        return activations.rprelu(inputs, *parameters, training=training is True)


@contextlib.contextmanager
def _without_constraint_warning():
    """Larq advises a kernel constraint for binary kernels; the paper trains without one."""
    logger = logging.getLogger("larq.layers_base")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class BinaryConv2D(lq.layers.QuantConv2D):
    """Larq's QuantConv2D whose input sign and kernel sign can be switched on and off.

    Forward with both on: ``conv(sign(x), s * sign(w))``, see `scaled_sign`; the
    sign's gradient is ``2 - 2|x|`` inside [-1, 1] and 0 outside (Bi-Real Net).
    No bias; takes what `larq.layers.QuantConv2D` takes.

    PyTorch's sign(0) is 0, Larq's is +1; exact zeros do not survive the first update.
    """

    def __init__(
        self,
        filters: int,
        kernel_size,
        *,
        input_quantizer=None,
        kernel_quantizer=None,
        **kwargs,
    ):
        options = {"padding": "same", "use_bias": False, **kwargs}
        if input_quantizer is None:
            input_quantizer = Switchable(ApproxSign())
        if kernel_quantizer is None:
            kernel_quantizer = Switchable(ScaledSign())
        with _without_constraint_warning():
            super().__init__(
                filters,
                kernel_size,
                input_quantizer=input_quantizer,
                kernel_quantizer=kernel_quantizer,
                **options,
            )
        self._training = False  # in the call that is running

    def call(self, inputs, training=None):
        self._training = training is True
        quantized = lq.context.should_quantize()
        try:
            return super().call(inputs)
        finally:  # Larq's would stay on after an error or Ctrl-C, and kernels be read as signs
            lq.context.quantized_scope(quantized).__enter__()

    def convolution_op(self, inputs, kernel):
        return convolve(self, super().convolution_op, inputs, kernel, training=self._training)


# The kernel that each quantizer attribute of Larq's layers acts on.
KERNELS = {
    "kernel_quantizer": "kernel",
    "depthwise_quantizer": "depthwise_kernel",
    "pointwise_quantizer": "pointwise_kernel",
}
QUANTIZERS = ("input_quantizer", *KERNELS)


def quantizer(layer, attribute: str):
    """The quantizer that a layer uses now, out of its switch; None where none is or it is off.

    Args:
        layer: any layer.
        attribute: one of `QUANTIZERS`.
    """
    found = getattr(layer, attribute, None)
    if isinstance(found, Switchable):
        return found.quantizer if found.on else None
    return found


def is_binary(layer, attribute: str) -> bool:
    """Whether the quantizer that a layer uses now makes 1-bit values."""
    return getattr(quantizer(layer, attribute), "precision", None) == 1


def clip(layer, attribute: str) -> float:
    """The absolute value from which on a layer's sign has no gradient.

    It is that of the quantizer in a switch too, on or off; infinite where there is none, and 1
    where a quantizer does not say.

    Args:
        layer: a layer with such a quantizer.
        attribute: one of `QUANTIZERS`.
    """
    found = getattr(layer, attribute)
    if isinstance(found, Switchable):
        found = found.quantizer
    if isinstance(found, lq.quantizers.SwishSign | lq.quantizers.NoOp):
        return math.inf
    value = getattr(found, "clip", getattr(found, "clip_value", 1.0))
    return math.inf if value is None else value


def binary_quantizers(
    model: tf.Module, attributes: Iterable[str] = QUANTIZERS
) -> list[tuple[tf.keras.layers.Layer, str]]:
    """The quantizers in a model that make 1-bit values, or can be switched to.

    Args:
        model: it may contain others.
        attributes: which of `QUANTIZERS`.

    Returns:
        (layer, attribute) of each, in the network's order.
    """
    attributes = tuple(attributes)
    # Keras lists the layers in order, but not those in a tf.Module that is no layer.
    layers = dict.fromkeys([*model._flatten_layers(), *model.submodules])
    return [
        (layer, attribute)
        for layer in layers
        for attribute in attributes
        if isinstance(getattr(layer, attribute, None), Switchable) or is_binary(layer, attribute)
    ]


def _switch(layer, attribute: str, on: bool) -> bool:
    """Turns a layer's quantizer on or off; one of Larq's own is put into a switch first.

    Returns:
        Whether it was the other way before.
    """
    switch = getattr(layer, attribute)
    kernel = getattr(layer, KERNELS.get(attribute, ""), None)
    if not isinstance(switch, Switchable):
        switch = Switchable(switch)
        setattr(layer, attribute, switch)
        if kernel is not None:
            kernel.quantizer = switch
    changed, switch.on = switch.on != on, on
    if kernel is not None:
        kernel.precision = switch.precision
    return changed


_MODEL = instance(tf.keras.Model, "a Keras model")


def binarize(
    model: tf.keras.Model, activations: bool = True, weights: bool = True
) -> tf.keras.Model:
    """Sets what is binary in a model, in place; every weight stays as it is.

    Step 1 of the paper is ``(True, False)``, step 2 ``(True, True)``, the
    real-valued network ``(False, False)``.  Works on any model of Larq layers, also
    inside a running `fit` (from a callback): pass the model that is being fitted.
    If that changes anything, the next batch retraces once.

    Args:
        model: a built model; it may contain others.
        activations: binarize the inputs of the quantized layers.
        weights: binarize their kernels.

    Returns:
        The same model.

    Raises:
        ValueError: an argument is not what it should be, or something is to be binary in a
            model without binary layers, or only activations or only weights in one that does
            not have both.
    """
    expect("model", model, _MODEL)
    expect("activations", activations, FLAG)
    expect("weights", weights, FLAG)
    found = binary_quantizers(model)
    if (activations or weights) and not found:
        raise ValueError(f"Expected a model with binary Larq layers. Received: {model.name}")
    kinds = {attribute in KERNELS for _, attribute in found}
    if bool(activations) != bool(weights) and len(kinds) == 1:
        other = "activations" if True in kinds else "weights"
        raise ValueError(
            f"Expected a model with binary activations and weights, for steps in which only one "
            f"of them is binary. Received: {model.name}, whose {other} are never of 1 bit"
        )
    changes = [
        _switch(layer, attribute, bool(weights if attribute in KERNELS else activations))
        for layer, attribute in found
    ]
    if any(changes):
        for compiled in (model, *getattr(model, "_fitted_by", ())):
            retrace(compiled)
    return model


def binarization(model: tf.keras.Model) -> tuple[bool, bool]:
    """What is binary in a model now, as ``(activations, weights)``."""
    expect("model", model, _MODEL)
    on = [
        attribute in KERNELS
        for layer, attribute in binary_quantizers(model)
        if quantizer(layer, attribute) is not None
    ]
    return False in on, True in on


def retrace(model: tf.keras.Model) -> None:
    """Drops a model's traced functions; a running fit goes on with the new ones."""
    model.test_function = None
    model.predict_function = None
    if model.train_function is not None:
        model.make_train_function(force=True)
