"""Winograd's convolution with 3 x 3 kernels: F(m x m, 3 x 3) of arXiv 1509.09308, m 2 to 5.

m x m outputs next to each other take (m + 2) x (m + 2) products a channel instead of 9 m x m.
Image, kernel and output are each multiplied by a small matrix (Cook and Toom's, of polynomials
evaluated at m + 2 points); between them the convolution is one product for each two points of
a matrix of tiles and channels with one of channels and filters.  The gradients, TensorFlow's
own of these steps, are products of the same sizes.
"""

import numpy as np
import tensorflow as tf

__all__ = ["SCOPE", "conv2d", "pays"]

SCOPE = "winograd"  # in the names of its operators
_TAPS = 3  # side of a kernel
_KEPT = 2**25  # values of transformed kernels that are kept for the gradients at most
_CHANNELS = 64  # from which on the products outweigh the transforms
# By the side of a tile of outputs the points of evaluation beside infinity.  Of those tried they
# have the smallest errors in float32: the convolution's own for 2 and 3, 2 and 4 times that for 4
# and 5.  The usual points for 4, which are 0, 1, -1, 2 and -2, have 4 times that error.
_POINTS = {
    2: (0.0, 1.0, -1.0),
    3: (0.25, -0.5, 1.0, -1.5),
    4: (0.0, 0.625, -0.625, 1.5, -1.5),
    5: (0.25, -0.25, 0.875, -0.875, 2.0, -2.0),
}


def pays(x: tf.Tensor, w: tf.Tensor, padding: str) -> bool:
    """Whether `conv2d` takes its arguments, and is faster on a CPU than `tf.nn.conv2d`.

    Args:
        x: images (B, H, W, C).
        w: kernels (rows, columns, C, K).
        padding: "SAME" or "VALID".
    """
    smallest = min(_POINTS) if padding == "SAME" else _TAPS
    return (
        x.dtype.size >= 4  # with 16 bits rounding would be too much
        and None not in x.shape[1:3]
        and min(x.shape[1:3]) >= smallest
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
    rows = _Axis(height, before)
    columns = _Axis(width, before)
    points = rows.points * columns.points

    def constant(matrix):
        return tf.constant(matrix, x.dtype)

    with tf.name_scope(SCOPE):
        # Tiles in the order (point of row, point of column, column, row, image): then each
        # transform is one matrix product, or one for each image or point.
        tiles = constant(rows.split) @ tf.reshape(x, [-1, height, width * channels])
        tiles = tf.reshape(tiles, [-1, rows.points, rows.tiles, width, channels])
        tiles = tf.reshape(tf.transpose(tiles, [1, 3, 2, 0, 4]), [rows.points, width, -1])
        tiles = tf.reshape(constant(columns.split) @ tiles, [points, -1, channels])
        taps = constant(np.kron(rows.taps, columns.taps))
        products = _products(tiles, tf.reshape(w, [_TAPS**2, channels, filters]), taps)
        join = constant(np.kron(rows.join, columns.join))
        y = join @ tf.reshape(products, [points, -1])
        y = tf.reshape(y, [rows.tile, columns.tile, columns.tiles, rows.tiles, -1, filters])
        y = tf.transpose(y, [4, 3, 0, 2, 1, 5])
        y = tf.reshape(y, [-1, rows.tiles * rows.tile, columns.tiles * columns.tile, filters])
        return tf.slice(y, [0, 0, 0, 0], [-1, rows.outputs, columns.outputs, -1])


def _products(tiles: tf.Tensor, w: tf.Tensor, taps: tf.Tensor) -> tf.Tensor:
    """The products of tiles with transformed kernels.  Large ones are not kept for the gradients.

    Large kernels are transformed in parts of the filters, one after the other and again for the
    gradients, so that memory holds one part.

    Args:
        tiles: (P, tiles, C).
        w: kernels (9, C, K).
        taps: matrix (P, 9) that transforms them.

    Returns:
        Tensor (P, tiles, K).
    """
    points, filters = taps.shape[0], w.shape[-1]

    def transformed(w):
        return tf.reshape(taps @ tf.reshape(w, [_TAPS**2, -1]), [points, *w.shape[1:]])

    parts = points * w.shape[1:].num_elements() // _KEPT + 1
    if parts == 1:
        return tiles @ transformed(w)
    sizes = [len(part) for part in np.array_split(range(filters), parts)]

    def split(tensor):
        return tf.split(tensor, sizes, axis=-1)

    @tf.custom_gradient
    def products(tiles, w):
        def grad(dy):
            d_tiles, dw = [], []
            with tf.name_scope(f"{SCOPE}/"):  # the same one
                for part, dy_part in zip(split(w), split(dy), strict=True):
                    kernels = transformed(_after([dy, *dw], part))
                    d_tiles.append(tf.matmul(dy_part, kernels, transpose_b=True))
                    d_kernels = tf.matmul(_after(d_tiles, tiles), dy_part, transpose_a=True)
                    d_kernels = tf.reshape(d_kernels, [points, -1])
                    d_part = tf.matmul(taps, d_kernels, transpose_a=True)
                    dw.append(tf.reshape(d_part, part.shape))
                return tf.add_n(d_tiles), tf.concat(dw, -1)

        y = []
        for part in split(w):
            y.append(tiles @ transformed(_after([tiles, *y], part)))
        return tf.concat(y, -1), grad

    return products(tiles, w)


def _after(tensors: list[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """x once others have been computed."""
    with tf.control_dependencies(tensors):
        return tf.identity(x)


class _Axis:
    """How one axis of an image is computed in tiles.

    Attributes:
        outputs: pixels of the output.
        tile, tiles: outputs in a tile, and the number of tiles.
        points: values of a transformed tile.
        split: matrix (points * tiles, size) from pixels to the transformed tiles.
        taps: matrix (points, 3) that transforms a kernel.
        join: matrix (tile, points) from products to the outputs of a tile.

    Args:
        size: pixels of the input.
        before: zeros added at each end.
    """

    def __init__(self, size: int, before: int):
        self.outputs = size + 2 * before - _TAPS + 1
        counts = {tile: -(-self.outputs // tile) for tile in _POINTS}
        self.tile = min(counts, key=lambda tile: counts[tile] * (tile + _TAPS - 1))
        self.tiles = counts[self.tile]
        self.points = self.tile + _TAPS - 1
        self.taps = _values(self.tile, _TAPS)
        self.join = _values(self.tile, self.tile).T
        transform = np.linalg.inv(_values(self.tile, self.points)).T
        split = np.zeros([self.points, self.tiles, self.tile * self.tiles + self.points])
        for number in range(self.tiles):
            split[:, number, number * self.tile :][:, : self.points] = transform
        self.split = split[:, :, before : before + size].reshape([-1, size])


def _values(tile: int, terms: int) -> np.ndarray:
    """Matrix (tile + 2, terms) from a polynomial's coefficients to its values at the points."""
    return np.vstack([np.vander(_POINTS[tile], terms, increasing=True), np.eye(terms)[-1]])
