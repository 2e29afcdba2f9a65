"""RPReLU and RSign.

In the training of large images XLA compiles each to one pass over memory, and the gradients keep
RPReLU's input alone: what follows it, up to the sign, they compute again within their own pass.
"""

import functools
from collections.abc import Callable

import larq as lq
import tensorflow as tf

from larq_adambnn.kernels.arithmetic import select, sums_by_channel
from larq_adambnn.kernels.fusion import fused, pays

__all__ = ["rprelu", "shift", "sign"]

_TERMS = 8  # that a pass adds up at most
_RECIPE = "larq_adambnn_recipe"  # attribute of a tensor: the function and arguments that give it


def _remember(y: tf.Tensor, function: Callable, *arguments: tf.Tensor) -> tf.Tensor:
    """y, with what it is: ``function(*arguments)``."""
    setattr(y, _RECIPE, (function, arguments))
    return y


def _recipe(x: tf.Tensor) -> tuple[Callable, tuple[tf.Tensor, ...]]:
    return getattr(x, _RECIPE, (_identity, (x,)))


def _identity(x):
    return x


def shift(x: tf.Tensor, bias: tf.Tensor, *, training: bool = False) -> tf.Tensor:
    """`tf.nn.bias_add`; a `sign` of it takes both in one pass.

    Args:
        x: (..., C).
        bias: (C,), of x's dtype.
        training: whether the call is one of a training.

    Returns:
        Tensor of x's shape and dtype.
    """
    y = _shift(x, bias)
    return _remember(y, _add, x, bias) if pays(x, training=training) else y


@tf.autograph.experimental.do_not_convert
@tf.custom_gradient
def _shift(x, bias):
    def grad(dy):
        return dy, *sums_by_channel(dy)

    return tf.nn.bias_add(x, bias), grad


def _add(x, bias):
    return x + bias


def rprelu(
    x: tf.Tensor,
    shift_in: tf.Tensor,
    slope: tf.Tensor,
    shift_out: tf.Tensor,
    *,
    training: bool = False,
) -> tf.Tensor:
    """``PReLU(x + shift_in) + shift_out`` with few passes over memory, forward and backward.

    Args:
        x: (..., C).
        shift_in, slope, shift_out: (C,), of x's dtype.
        training: whether the call is one of a training.

    Returns:
        Tensor of x's shape and dtype.
    """
    parameters = shift_in, slope, shift_out
    if not pays(x, training=training):
        return _plain_rprelu(x, *parameters)
    return _remember(_fused_rprelu(x, *parameters), _rprelu, x, *parameters)


@tf.autograph.experimental.do_not_convert
@tf.custom_gradient
def _plain_rprelu(x, shift_in, slope, shift_out):
    x = tf.nn.bias_add(x, shift_in)
    factor = select(x > 0, tf.ones([], x.dtype), slope)

    def grad(dy):
        dx = dy * factor
        negative = dy * tf.minimum(x, tf.zeros([], x.dtype))
        return dx, *sums_by_channel(dx, negative, dy)

    return tf.nn.bias_add(x * factor, shift_out), grad


@tf.autograph.experimental.do_not_convert
@tf.custom_gradient
def _fused_rprelu(x, shift_in, slope, shift_out):
    def grad(dy):
        dx, negative = fused(_rprelu_gradients)(x, shift_in, slope, dy)
        d_in, d_out = sums_by_channel(dx, dy)
        return dx, d_in, *sums_by_channel(negative), d_out

    return fused(_rprelu)(x, shift_in, slope, shift_out), grad


def _rprelu(x, shift_in, slope, shift_out):
    x = x + shift_in
    return x * tf.where(x > 0, tf.ones([], x.dtype), slope) + shift_out


def _rprelu_gradients(x, shift_in, slope, dy):
    """The input's gradient, and sums (rows, C) of a few terms each of the slope's."""
    x = x + shift_in
    dx = dy * tf.where(x > 0, tf.ones([], x.dtype), slope)
    positions = x.shape[1:-1].num_elements()
    terms = max(number for number in range(1, _TERMS + 1) if positions % number == 0)
    x, dy = (tf.unstack(tf.reshape(y, [-1, terms, y.shape[-1]]), axis=1) for y in (x, dy))
    negative = [dy * tf.minimum(x, tf.zeros([], x.dtype)) for x, dy in zip(x, dy, strict=True)]
    return dx, tf.add_n(negative)


@tf.autograph.experimental.do_not_convert  # there is nothing to convert, and it takes long
def sign(x: tf.Tensor, clip: float, *, training: bool = False) -> tf.Tensor:
    """``sign(x)`` with ``sign(0) = +1`` and the gradient ``2 / clip * (1 - |x| / clip) dy``.

    Args:
        x: any shape; images are (B, ..., C).
        clip: how far from 0 the gradient reaches; beyond it is 0.
        training: whether the call is one of a training.

    Returns:
        Tensor of x's shape and dtype.
    """
    form, bias = _identity, ()
    function, arguments = _identity, (x,)
    if pays(x, training=training):
        form = fused
        function, arguments = _recipe(x)
        if function is _add:
            x, *bias = arguments
            function, arguments = _recipe(x)

    @tf.custom_gradient
    def binary(x, *bias):
        def grad(dy):
            dx = form(_sign_gradient(function, clip))(arguments, bias, dy)
            return dx, *(sums_by_channel(dx) if bias else ())

        return form(_sign)(x, *bias), grad

    return binary(x, *bias)


def _sign(x, *bias):
    return lq.math.sign(sum(bias, start=x))


@functools.cache
def _sign_gradient(function, clip):
    """The gradient of the sign of ``function(*arguments)`` and a bias."""

    def gradient(arguments, bias, dy):
        x = sum(bias, start=function(*arguments))
        return tf.nn.relu(2 / clip - 2 / clip**2 * tf.abs(x)) * dy

    return gradient
