"""Binary quantizers: pure functions, and the registered classes that wrap them.

Keras finds classes in .keras files and SavedModels by the name of the package, and in
.h5 files, where Larq's layers are their parents, only by their own, as Larq's quantizers.
"""

from collections.abc import Callable

import larq as lq
import tensorflow as tf

from larq_adambnn.arguments import FLAG, Kind, expect, number
from larq_adambnn.kernels import activations
from larq_adambnn.kernels.arithmetic import select, sums_by_channel

__all__ = ["ApproxSign", "ScaledSign", "Switchable", "approx_sign", "scaled_sign"]


def approx_sign(x: tf.Tensor, clip: float = 1.0, *, training: bool = False) -> tf.Tensor:
    """Binary activations with Bi-Real Net's gradient (arXiv 1808.00278, section 3.3).

    Forward: ``sign(x)`` with ``sign(0) = +1`` (PyTorch: 0).  Gradient: ``(2 - 2|x|) dy``
    inside [-1, 1], 0 outside.  A clip of c widens that triangle to [-c, c] and keeps its area:
    ``2 / c * (1 - |x| / c) dy``.  (That the bound matters is from PokeBNN, arXiv 2112.00133.)

    Args:
        x: any shape.
        clip: how far from 0 the gradient reaches.
        training: whether the call is one of a training, where another form may be the faster one.

    Returns:
        Tensor of x's shape and dtype.
    """
    return activations.sign(x, clip, training=training)


@tf.autograph.experimental.do_not_convert
def scaled_sign(w: tf.Tensor, clip: float = 1.0, temperature: tf.Tensor | None = None) -> tf.Tensor:
    """Binary weights with one scale per output channel (ReActNet, section 3; XNOR-Net).

    Forward: ``s * sign(w)`` with ``s`` the mean of ``|w|`` over all axes but the
    last, and ``sign(0) = +1`` (PyTorch: 0).  Gradient: ``dy`` where ``|w| <= clip``, else 0; none
    flows through ``s``.  (``larq.quantizers.MagnitudeAwareSign`` has the same
    forward pass but multiplies the gradient by ``s``.)

    With a temperature T above 0 the forward pass is the sign's soft form, ``w / T`` clipped to
    [-s, s], and the gradient is the same.  (BNext, arXiv 2211.12933, has T without the unit s.)

    Args:
        w: latent weights, output channels on the last axis.
        clip: from which size on a weight has no gradient.
        temperature: scalar; 0, like None, is the sign.

    Returns:
        Tensor of w's shape and dtype.
    """

    @tf.custom_gradient
    def sign(w):
        magnitude = tf.abs(w)
        (scale,) = sums_by_channel(magnitude)
        scale /= w.shape[:-1].num_elements()
        inside = magnitude <= clip  # what the gradient keeps, a byte for each weight

        def grad(dy):
            return select(inside, dy, tf.zeros([], dy.dtype))

        binary = select(w >= 0, scale, -scale)
        if temperature is None:
            return binary, grad
        warm = temperature > 0
        divisor = tf.cast(tf.where(warm, temperature, 1.0), w.dtype)
        soft = tf.minimum(tf.maximum(w / divisor, -scale), scale)
        return select(warm, soft, binary), grad

    return sign(tf.convert_to_tensor(w))


class _Clipped:
    """Adds the bound of the sign's gradient to a quantizer.

    Args:
        clip: how far from 0 the gradient reaches; 1 as published.

    Raises:
        ValueError: the clip is not above 0.
    """

    def __init__(self, clip: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        expect("clip", clip, number(above=0))
        self.clip = float(clip)

    def get_config(self):
        config = super().get_config()
        return config if self.clip == 1 else {**config, "clip": self.clip}


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class ApproxSign(_Clipped, lq.quantizers.ApproxSign):
    """Input quantizer of ReActNet: `approx_sign`, Larq's with fewer passes over memory.

    One that a layer has without a `Switchable` comes back from an .h5 file as Larq's, which has
    no other clip than 1.
    """

    def call(self, inputs, training=None):
        return approx_sign(inputs, self.clip, training=training is True)


@lq.utils.register_keras_custom_object
@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class ScaledSign(_Clipped, lq.quantizers.Quantizer):
    """Kernel quantizer of ReActNet: `scaled_sign`.

    Attributes:
        temperature: function that gives it, which is no part of what is saved; None for 0.
    """

    precision = 1
    temperature: Callable[[], tf.Tensor] | None = None

    def call(self, inputs):
        temperature = None if self.temperature is None else self.temperature()
        return scaled_sign(inputs, self.clip, temperature)


_QUANTIZER = Kind("a Larq quantizer, its name or its configuration", callable)


@lq.utils.register_keras_custom_object
@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Switchable(lq.quantizers.Quantizer):
    """A quantizer that can be turned off, which leaves its input as it is.

    Use `larq_adambnn.binarize` to switch a whole model: compiled functions keep
    the form they were traced in.

    Args:
        quantizer: a Larq quantizer, its name or its configuration.
        on: whether to quantize.

    Raises:
        ValueError: an argument is not what it should be, or (when it is saved) the quantizer
            is a function without a name.
    """

    def __init__(self, quantizer, *, on: bool = True, **kwargs):
        super().__init__(autocast=False, **kwargs)
        expect("on", on, FLAG)
        self.quantizer = lq.quantizers.get(quantizer)
        expect("quantizer", self.quantizer, _QUANTIZER)
        self.quantizer._autocast = False  # a quantizer keeps the precision of its input
        self.on = bool(on)

    @property
    def precision(self) -> int:
        """Bits of the output: the quantizer's when on, else 32."""
        return getattr(self.quantizer, "precision", None) if self.on else 32

    def call(self, inputs, training=None):  # Keras gives it to the quantizer, if that takes it
        return self.quantizer(inputs) if self.on else inputs

    def get_config(self):
        if getattr(self.quantizer, "__name__", "") == "<lambda>":
            raise ValueError(
                "Expected a Larq quantizer or a registered function, which a saved network finds "
                f"again. Received: quantizer={self.quantizer!r}"
            )
        return {
            **super().get_config(),
            # The older format, which has the package's name and which every file can hold
            "quantizer": lq.quantizers.serialize(self.quantizer, use_legacy_format=True),
            "on": self.on,
        }
