"""ReActNet's layers, and the switch between real and binary."""

import contextlib
import logging

import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn.kernels import winograd
from larq_adambnn.quantizers import ApproxSign, ScaledSign, Switchable, select, sums_by_channel

__all__ = ["BinaryConv2D", "RPReLU", "Rotate180", "Shift", "binarization", "binarize"]


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

    def call(self, inputs):
        return shift(inputs, tf.convert_to_tensor(self.shift))


@tf.custom_gradient
def shift(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`tf.nn.bias_add` of x (..., C) and bias (C,), whose gradient sums faster."""

    def grad(dy):
        return dy, *sums_by_channel(dy)

    return tf.nn.bias_add(x, bias), grad


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

    def call(self, inputs):
        parameters = (self.shift_in, self.slope, self.shift_out)
        return rprelu(inputs, *map(tf.convert_to_tensor, parameters))


@tf.custom_gradient
def rprelu(x: tf.Tensor, shift_in: tf.Tensor, slope: tf.Tensor, shift_out: tf.Tensor) -> tf.Tensor:
    """``PReLU(x + shift_in) + shift_out`` with few passes over memory, forward and backward.

    Args:
        x: (..., C).
        shift_in, slope, shift_out: (C,), of x's dtype.

    Returns:
        Tensor of x's shape and dtype.
    """
    x = tf.nn.bias_add(x, shift_in)
    factor = select(x > 0, tf.ones([], x.dtype), slope)

    def grad(dy):
        dx = dy * factor
        negative = dy * tf.minimum(x, tf.zeros([], x.dtype))
        return dx, *sums_by_channel(dx, negative, dy)

    return tf.nn.bias_add(x * factor, shift_out), grad


# Weights of a kernel from which on `kernel_gradient` is the faster one: more than caches hold.
_LARGE_KERNEL = 2**22


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
        with _without_constraint_warning():
            super().__init__(
                filters,
                kernel_size,
                input_quantizer=input_quantizer or Switchable(ApproxSign()),
                kernel_quantizer=kernel_quantizer or Switchable(ScaledSign()),
                **options,
            )
        self._training = False  # in the call that is running

    def call(self, inputs, training=None):
        self._training = training is True
        return super().call(inputs)

    def convolution_op(self, inputs, kernel):
        """Keras's, or what trains faster on a CPU; evaluation keeps the sums of a .tflite."""
        convolve = super().convolution_op
        if (
            None in inputs.shape[1:3]
            or self.kernel_size == (1, 1)
            or (self.data_format, self.dilation_rate, self.groups) != ("channels_last", (1, 1), 1)
            or any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        ):
            return convolve(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        padding = self.padding.upper()
        if self._training and self.strides == (1, 1) and winograd.pays(inputs, kernel):
            return winograd.conv2d(inputs, kernel, padding)
        if kernel.shape.num_elements() < _LARGE_KERNEL:
            return convolve(inputs, kernel)

        @tf.custom_gradient
        def convolution(x, w):
            def grad(dy):
                options = {"strides": self.strides, "padding": padding}
                dx = tf.nn.conv2d_transpose(dy, w, tf.shape(x), **options)
                return dx, kernel_gradient(x, dy, self.kernel_size, **options)

            return convolve(x, w), grad

        return convolution(inputs, kernel)


def kernel_gradient(x, dy, kernel_size, strides, padding: str) -> tf.Tensor:
    """Gradient of a 2D convolution's kernel as one matrix product for each of its positions.

    On a CPU faster than TensorFlow's for large kernels, of which its own adds up copies.

    Args:
        x: input of the convolution, (B, H, W, C).
        dy: gradient of its output, (B, H', W', K).
        kernel_size, strides: (rows, columns).
        padding: "SAME" or "VALID".

    Returns:
        Tensor of shape (*kernel_size, C, K).
    """
    spans = [(size - 1) * stride + 1 for size, stride in zip(dy.shape[1:3], strides, strict=True)]
    if padding == "SAME":
        missing = [
            max(span + taps - 1 - size, 0)
            for span, taps, size in zip(spans, kernel_size, x.shape[1:3], strict=True)
        ]
        x = tf.pad(x, [[0, 0], *([n // 2, n - n // 2] for n in missing), [0, 0]])
    shifted = [
        x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
        for i, j in np.ndindex(*kernel_size)
    ]
    rows = tf.reshape(tf.stack(shifted), [len(shifted), -1, x.shape[-1]])
    products = tf.matmul(rows, tf.reshape(dy, [1, -1, dy.shape[-1]]), transpose_a=True)
    return tf.reshape(products, [*kernel_size, x.shape[-1], dy.shape[-1]])


# The quantizer attributes of Larq's layers, with the variable each one acts on.
KERNELS = {
    "kernel_quantizer": "kernel",
    "depthwise_quantizer": "depthwise_kernel",
    "pointwise_quantizer": "pointwise_kernel",
}


def switches(model, attributes) -> list[tuple[Switchable, tf.Variable | None]]:
    """Every Switchable in the given quantizer attributes with the kernel it quantizes.

    Larq's plain binary quantizers are put into a Switchable here.
    """
    found = []
    for layer in model.submodules:
        for attribute in attributes:
            quantizer = getattr(layer, attribute, None)
            kernel = getattr(layer, KERNELS.get(attribute, ""), None)
            if not isinstance(quantizer, Switchable):
                if getattr(quantizer, "precision", None) != 1:
                    continue
                quantizer = Switchable(quantizer)
                setattr(layer, attribute, quantizer)
                if kernel is not None:
                    kernel.quantizer = quantizer
            found.append((quantizer, kernel))
    return found


def binarize(
    model: tf.keras.Model, activations: bool = True, weights: bool = True
) -> tf.keras.Model:
    """Sets what is binary in a model, in place; every weight stays as it is.

    Step 1 of the paper is ``(True, False)``, step 2 ``(True, True)``, the
    real-valued network ``(False, False)``.  Works on any model of Larq layers, also
    inside a running `fit` (from a callback): pass the model that is being fitted.
    The next batch retraces once.

    Args:
        model: a built model; it may contain others.
        activations: binarize the inputs of the quantized layers.
        weights: binarize their kernels.

    Returns:
        The same model.

    Raises:
        ValueError: something is to be binary in a model without binary layers.
    """
    inputs, kernels = switches(model, ["input_quantizer"]), switches(model, KERNELS)
    if (activations or weights) and not inputs and not kernels:
        raise ValueError(f"Expected a model with binary Larq layers. Received: {model.name}")
    for found, on in ((inputs, activations), (kernels, weights)):
        for switch, kernel in found:
            switch.on = bool(on)
            if kernel is not None:
                kernel.precision = switch.precision
    for compiled in (model, *getattr(model, "_fitted_by", ())):
        retrace(compiled)
    return model


def binarization(model: tf.keras.Model) -> tuple[bool, bool]:
    """What is binary in a model now, as ``(activations, weights)``."""
    return (
        any(switch.on for switch, _ in switches(model, ["input_quantizer"])),
        any(switch.on for switch, _ in switches(model, KERNELS)),
    )


def retrace(model: tf.keras.Model) -> None:
    """Drops a model's traced functions; a running fit goes on with the new ones."""
    model.test_function = None
    model.predict_function = None
    if model.train_function is not None:
        model.make_train_function(force=True)
