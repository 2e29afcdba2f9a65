"""The convolution of a layer, and its gradients."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn import kernels
from larq_adambnn.kernels import winograd
from larq_adambnn.padding import same_padding

__all__ = ["convolve", "kernel_gradient"]

# Weights of a kernel from which on `kernel_gradient` is the faster one: more than caches hold.
_LARGE_KERNEL = 2**22
_MANY_POSITIONS = 2**10  # of a map; of 16 bits with more of them oneDNN multiplies matrices slowly


def convolve(
    layer: tf.keras.layers.Conv2D, plain: Callable, inputs: tf.Tensor, kernel, *, training: bool
) -> tf.Tensor:
    """What a layer's `convolution_op` gives.

    Tuned, training uses Winograd's convolution or `kernel_gradient` where they are faster.
    Without training the output is always Keras's, whose sums are those of a .tflite.

    Args:
        layer: it has the strides, the padding and the other options.
        plain: Keras's own convolution of inputs and kernel for this layer.
        inputs: (B, H, W, C).
        kernel: tensor or variable (rows, columns, C, K).
        training: whether the call is one of a training.

    Returns:
        Tensor (B, H', W', K).
    """
    if (
        None in inputs.shape[1:3]
        or (layer.data_format, layer.dilation_rate, layer.groups) != ("channels_last", (1, 1), 1)
        or not kernels.tuned()
    ):
        return plain(inputs, kernel)
    kernel = tf.convert_to_tensor(kernel)
    padding = layer.padding.upper()
    if training and layer.strides == (1, 1) and winograd.pays(inputs, kernel, padding):
        return winograd.conv2d(inputs, kernel, padding)
    if layer.kernel_size == (1, 1):
        pays = training and layer.strides == (1, 1) and _single_product_pays(inputs)
    else:
        pays = kernel.shape.num_elements() >= _LARGE_KERNEL
    if not pays:
        return plain(inputs, kernel)

    @tf.custom_gradient
    def convolution(x, w):
        def grad(dy):
            options = {"strides": layer.strides, "padding": padding}
            dx = tf.nn.conv2d_transpose(dy, w, tf.shape(x), **options)
            return dx, kernel_gradient(x, dy, layer.kernel_size, **options)

        return plain(x, w), grad

    return convolution(inputs, kernel)


def _single_product_pays(x: tf.Tensor) -> bool:
    """Whether one matrix product is the faster gradient of a 1 x 1 kernel, for x (B, H, W, C)."""
    return x.dtype.size >= 4 or x.shape[1:3].num_elements() <= _MANY_POSITIONS


def kernel_gradient(
    x: tf.Tensor,
    dy: tf.Tensor,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> tf.Tensor:
    """Gradient of a 2D convolution's kernel as one matrix product for each of its positions.

    On a CPU faster than TensorFlow's for large kernels, of which its own adds up copies, and for
    those of 1 x 1.

    Args:
        x: input of the convolution, (B, H, W, C).
        dy: gradient of its output, (B, H', W', K).
        kernel_size, strides: (rows, columns).
        padding: "SAME" or "VALID".

    Returns:
        Tensor of shape (*kernel_size, C, K).
    """
    if (*kernel_size, *strides) == (1, 1, 1, 1):
        product = tf.matmul(*(tf.reshape(y, [-1, y.shape[-1]]) for y in (x, dy)), transpose_a=True)
        return tf.reshape(product, [1, 1, x.shape[-1], dy.shape[-1]])
    spans = [(size - 1) * stride + 1 for size, stride in zip(dy.shape[1:3], strides, strict=True)]
    if padding == "SAME":
        sizes = zip(x.shape[1:3], kernel_size, strides, strict=True)
        x = tf.pad(x, [(0, 0), *(same_padding(*axis) for axis in sizes), (0, 0)])
    shifted = [
        x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
        for i, j in np.ndindex(*kernel_size)
    ]
    rows = tf.reshape(tf.stack(shifted), [len(shifted), -1, x.shape[-1]])
    products = tf.matmul(rows, tf.reshape(dy, [1, -1, dy.shape[-1]]), transpose_a=True)
    return tf.reshape(products, [*kernel_size, x.shape[-1], dy.shape[-1]])
