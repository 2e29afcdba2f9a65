"""Sums and selections."""

import tensorflow as tf

from larq_adambnn import kernels

__all__ = ["add_scaled", "select", "sums_by_channel"]

_LARGE = 2**16  # values from which on a branch costs less than an addition


def add_scaled(x: tf.Tensor, factor: tf.Tensor, y: tf.Tensor | tf.Variable) -> tf.Tensor:
    """``x + factor * y``.

    Tuned, large tensors are left as they are where the factor is 0: it is x, and y is not read.

    Args:
        x: any shape.
        factor: scalar of x's dtype.
        y: of x's shape and dtype.

    Returns:
        Tensor of x's shape and dtype.
    """
    if not kernels.tuned() or (x.shape.num_elements() or 0) < _LARGE:
        return x + factor * y
    return tf.cond(factor != 0, lambda: x + factor * y, lambda: x)


def sums_by_channel(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Sums tensors of one shape (..., C) to (C,).

    Tuned, as products with a row of ones.
    """
    if not kernels.tuned():
        return [tf.reduce_sum(x, axis=range(x.shape.rank - 1)) for x in tensors]
    shape, flat = tf.constant([-1, tensors[0].shape[-1]]), tf.constant([-1])
    matrices = [tf.reshape(x, shape) for x in tensors]
    count = matrices[0].shape[0] or tf.shape(matrices[0])[0]
    ones = tf.ones([1, count], tensors[0].dtype)
    return [tf.reshape(tf.matmul(ones, matrix), flat) for matrix in matrices]


def select(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`tf.where`.

    Tuned, floats of 16 bits go by way of 32, which TensorFlow selects several times faster.

    Args:
        condition: booleans.
        x, y: floats of one dtype; all three broadcast.

    Returns:
        Tensor of x's dtype.
    """
    if not kernels.tuned():
        return tf.where(condition, x, y)
    wide = tf.float32 if x.dtype.size < 4 else x.dtype
    return tf.cast(tf.where(condition, tf.cast(x, wide), tf.cast(y, wide)), x.dtype)
