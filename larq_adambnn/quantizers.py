"""Binary quantizers: pure functions, and the registered classes that wrap them."""

import larq as lq
import tensorflow as tf

from larq_adambnn.kernels.arithmetic import select, sums_by_channel

__all__ = ["ApproxSign", "ScaledSign", "Switchable", "approx_sign", "scaled_sign"]


@tf.custom_gradient
def approx_sign(x: tf.Tensor) -> tf.Tensor:
    """Binary activations with Bi-Real Net's gradient (arXiv 1808.00278, section 3.3).

    Forward: ``sign(x)`` with ``sign(0) = +1`` (PyTorch: 0).  Gradient: ``(2 - 2|x|) dy``
    inside [-1, 1], 0 outside.

    Args:
        x: any shape.

    Returns:
        Tensor of x's shape and dtype.
    """

    def grad(dy):
        return tf.nn.relu(2 - 2 * tf.abs(x)) * dy

    return lq.math.sign(x), grad


@tf.custom_gradient
def scaled_sign(w: tf.Tensor) -> tf.Tensor:
    """Binary weights with one scale per output channel (ReActNet, section 3; XNOR-Net).

    Forward: ``s * sign(w)`` with ``s`` the mean of ``|w|`` over all axes but the
    last, and ``sign(0) = +1`` (PyTorch: 0).  Gradient: ``dy`` where ``|w| <= 1``, else 0; none
    flows through ``s``.  (``larq.quantizers.MagnitudeAwareSign`` has the same
    forward pass but multiplies the gradient by ``s``.)

    Args:
        w: latent weights, output channels on the last axis.

    Returns:
        Tensor of w's shape and dtype.
    """

    magnitude = tf.abs(w)
    (scale,) = sums_by_channel(magnitude)
    scale /= w.shape[:-1].num_elements()
    inside = magnitude <= 1  # what the gradient keeps, a byte for each weight

    def grad(dy):
        return select(inside, dy, tf.zeros([], dy.dtype))

    return select(w >= 0, scale, -scale), grad


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class ApproxSign(lq.quantizers.ApproxSign):
    """Input quantizer of ReActNet: `approx_sign`, Larq's with fewer passes over memory."""

    def call(self, inputs):
        return approx_sign(inputs)


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class ScaledSign(lq.quantizers.Quantizer):
    """Kernel quantizer of ReActNet: `scaled_sign`."""

    precision = 1

    def call(self, inputs):
        return scaled_sign(inputs)


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Switchable(lq.quantizers.Quantizer):
    """A quantizer that can be turned off, which leaves its input as it is.

    Use `larq_adambnn.binarize` to switch a whole model: compiled functions keep
    the form they were traced in.

    Args:
        quantizer: a Larq quantizer, its name or its configuration.
        on: whether to quantize.
    """

    def __init__(self, quantizer, *, on: bool = True, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.quantizer = lq.quantizers.get(quantizer)
        self.quantizer._autocast = False  # a quantizer keeps the precision of its input
        self.on = bool(on)

    @property
    def precision(self) -> int:
        """Bits of the output: the quantizer's when on, else 32."""
        return self.quantizer.precision if self.on else 32

    def call(self, inputs):
        return self.quantizer(inputs) if self.on else inputs

    def get_config(self):
        return {
            **super().get_config(),
            "quantizer": lq.quantizers.serialize(self.quantizer),
            "on": self.on,
        }
