"""Winograd's convolution with 3 x 3 kernels, F(4 x 4, 3 x 3) of arXiv 1509.09308.

16 outputs next to each other take 36 products a channel instead of 144.  Image, kernel and
output are each multiplied by a small matrix (Cook and Toom's, of polynomials evaluated at six
points); between them the convolution is 36 products of a matrix of tiles and channels with one
of channels and filters.  The gradients, TensorFlow's own of these steps, are products of the
same sizes.
"""

import numpy as np
import tensorflow as tf

__all__ = ["SCOPE", "conv2d", "pays"]

SCOPE = "winograd"  # in the names of its operators
_TAPS, _TILE = 3, 4  # sides of a kernel and of a tile of outputs
_SIZE = _TILE + _TAPS - 1  # side of a tile of inputs
# With infinity the points of evaluation.  Of the sets tried these gave the smallest error in
# float32: twice the convolution's own, where the usual (0, 1, -1, 2, -2) gives four times.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_CHANNELS = 128  # from which on the products outweigh the transforms


def pays(x: tf.Tensor, w: tf.Tensor) -> bool:
    """Whether `conv2d` takes x and w, and is faster on a CPU than `tf.nn.conv2d`.

    Args:
        x: images (B, H, W, C).
        w: kernels (rows, columns, C, K).
    """
    return (
        x.dtype.size >= 4  # its rounding is too much for 16 bits
        and None not in x.shape[1:3]
        and min(x.shape[1:3]) >= _TILE
        and w.shape[:2] == (_TAPS, _TAPS)
        and min(w.shape[2:]) >= _CHANNELS
    )


@tf.function(autograph=False)  # layers of one shape share a trace
def conv2d(x: tf.Tensor, w: tf.Tensor, padding: str) -> tf.Tensor:
    """`tf.nn.conv2d` of stride 1 but for rounding, for 3 x 3 kernels.

    Args:
        x: images (B, H, W, C), with H and W known.
        w: kernels (3, 3, C, K), of x's dtype.
        padding: "SAME" or "VALID".

    Returns:
        Tensor (B, H, W, K), or (B, H - 2, W - 2, K) of "VALID".
    """
    before = (_TAPS - 1) // 2 if padding == "SAME" else 0
    height, width, channels = x.shape[1:]
    filters = w.shape[-1]
    outputs = [side + 2 * before - _TAPS + 1 for side in (height, width)]
    rows, columns = (-(-side // _TILE) for side in outputs)  # of tiles
    split_rows, split_columns = _tiles(height, rows, before), _tiles(width, columns, before)
    taps, tile = _evaluate(_TAPS), _evaluate(_TILE).T

    def constant(matrix):
        return tf.constant(matrix, x.dtype)

    with tf.name_scope(SCOPE):
        # Tiles in the order (point of row, point of column, column, row, image): then each
        # transform is one matrix product, or one for each image or point.
        tiles = constant(split_rows) @ tf.reshape(x, [-1, height, width * channels])
        tiles = tf.reshape(tiles, [-1, _SIZE, rows, width, channels])
        tiles = tf.reshape(tf.transpose(tiles, [1, 3, 2, 0, 4]), [_SIZE, width, -1])
        tiles = tf.reshape(constant(split_columns) @ tiles, [_SIZE**2, -1, channels])
        kernels = constant(np.kron(taps, taps)) @ tf.reshape(w, [_TAPS**2, -1])
        products = tiles @ tf.reshape(kernels, [_SIZE**2, channels, filters])
        y = constant(np.kron(tile, tile)) @ tf.reshape(products, [_SIZE**2, -1])
        y = tf.reshape(y, [_TILE, _TILE, columns, rows, -1, filters])
        y = tf.transpose(y, [4, 3, 0, 2, 1, 5])
        y = tf.reshape(y, [-1, rows * _TILE, columns * _TILE, filters])
        return tf.slice(y, [0, 0, 0, 0], [-1, *outputs, -1])


def _evaluate(terms: int) -> np.ndarray:
    """Matrix (6, terms) from a polynomial's coefficients to its values at the points."""
    return np.vstack([np.vander(_POINTS, terms, increasing=True), np.eye(terms)[-1]])


def _tiles(size: int, count: int, before: int) -> np.ndarray:
    """Matrix (6 * count, size) from a row of pixels to its transformed tiles, by point and tile."""
    transform = np.linalg.inv(_evaluate(_SIZE)).T
    padded = np.zeros([_SIZE, count, _TILE * count + _SIZE])
    for tile in range(count):
        padded[:, tile, _TILE * tile :][:, :_SIZE] = transform
    return padded[:, :, before : before + size].reshape([_SIZE * count, size])
