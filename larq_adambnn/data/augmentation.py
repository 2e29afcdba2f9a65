"""Geometry and augmentation: pure functions of an image and a seed.

A seed is an integer tensor of shape (2,), as TensorFlow's stateless random operations
take it.  A window is int32 (top, left, height, width) in whole pixels; a box is the same
in float32, where pixel i covers i to i + 1.
"""

import math

import numpy as np
import tensorflow as tf

__all__ = [
    "center_box",
    "crop_window",
    "flip",
    "lighting",
    "padded_crop",
    "resample",
    "support",
]

# Of the paper's training crop: area of the image, width / height
_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_FARTHEST = np.array([[1 / _RATIO[0]], [_RATIO[1]]], np.float32)  # height / width, width / height
_JUST_BELOW_HALF = np.full((2, 1), np.nextafter(np.float32(0.5), np.float32(0)))
_RESIZE_RATIO = 256 / 224  # evaluation: shorter side to the crop's side

# Eigenvectors (columns) and eigenvalues of the RGB covariance of ImageNet's training
# images on 0..1 values (Krizhevsky et al., 2012, section 4.1, as published with Torch).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def crop_window(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Window of a random resized crop, sampled as torchvision's RandomResizedCrop does.

    Ten tries of an area (8 to 100 % of the image, uniform) and an aspect ratio (3/4 to
    4/3, log-uniform); the first that fits is placed uniformly.  If none fits, the centre
    with the ratio nearest to the image's.
    """
    draws = tf.random.stateless_uniform((4, _TRIES), seed)
    limits = tf.cast(tf.stack([height, width]), tf.float32)[:, tf.newaxis]
    area = tf.reduce_prod(limits) * (_SCALE[0] + draws[0] * (_SCALE[1] - _SCALE[0]))
    low, high = (math.log(ratio) for ratio in _RATIO)
    ratio = tf.exp(low + draws[1] * (high - low))
    sides = tf.round(tf.sqrt(area * tf.stack([1 / ratio, ratio])))
    # What remains when none fits; only one side is ever too long for the ratio.
    centre = tf.minimum(tf.round(limits[::-1] * _FARTHEST), limits)
    sides = tf.concat([sides, centre], 1)
    places = tf.concat([draws[2:], _JUST_BELOW_HALF], 1)
    first = tf.argmax(tf.reduce_all((sides > 0) & (sides <= limits), axis=0))
    size, place = sides[:, first], places[:, first]
    free = limits[:, 0] - size
    # A number below 1 times n is below n, but not always in float32.
    corner = tf.minimum(tf.floor(place * (free + 1)), free)
    return tf.cast(tf.concat([corner, size], 0), tf.int32)


def center_box(height: tf.Tensor, width: tf.Tensor, size: int) -> tf.Tensor:
    """Box of the central size x size after the shorter side was resized to 256/224 of it."""
    sides = tf.cast(tf.stack([height, width]), tf.float64)
    shorter = round(size * _RESIZE_RATIO)
    resized = tf.floor(shorter * sides / tf.reduce_min(sides))  # as torchvision rounds it
    scale = sides / resized
    corner = tf.round((resized - size) / 2)
    return tf.cast(tf.concat([corner * scale, size * scale], 0), tf.float32)


def support(box: tf.Tensor, size: int, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Window of the pixels that `resample` looks at for a box of a height x width image.

    It has two more on each side, since the colours of a JPEG are interpolated.
    """
    limits = tf.stack([height, width])
    margin = tf.maximum(box[2:] / size, 1.0) + 2
    start = tf.maximum(tf.cast(tf.floor(box[:2] - margin), tf.int32), 0)
    end = tf.minimum(tf.cast(tf.math.ceil(box[:2] + box[2:] + margin), tf.int32), limits)
    return tf.concat([start, end - start], 0)


def resample(
    image: tf.Tensor, size: int, box: tf.Tensor, *, flip: tf.Tensor | bool = False
) -> tf.Tensor:
    """Bilinear, antialiased resize of a box of an image, as Pillow's `resize(box=...)`.

    Two products with sparse matrices, one an axis: several times as fast as
    `tf.image.resize(antialias=True)`, and a flip and a crop cost nothing more.

    Args:
        image: (H, W, C), any numeric type.
        size: side of the result.
        box: float32 (top, left, height, width), inside the image but for rounding.
        flip: whether to reverse the columns.

    Returns:
        float32 (size, size, C), in the image's range, not rounded.
    """
    channels = image.shape[-1]
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    rows, columns = _taps(tf.stack([height, width]), size, box, flip)
    image = tf.reshape(tf.cast(image, tf.float32), [height, width * channels])
    image = _multiply(rows, size, height, image)
    image = tf.transpose(tf.reshape(image, [size, width, channels]), [1, 0, 2])
    image = tf.reshape(image, [width, size * channels])
    image = _multiply(columns, size, width, image)
    return tf.transpose(tf.reshape(image, [size, size, channels]), [1, 0, 2])


def _taps(limits, size, box, flip):
    """(indices, values) of the sparse matrices (size, length) of both axes.

    Row i holds a triangle around the centre of the i-th of `size` parts of the box; it is
    two parts wide, or two pixels if those are larger, and cut off at the image's borders.
    """
    start, scale = tf.unstack(tf.reshape(box, [2, 2, 1, 1]))
    scale /= size
    radius = tf.maximum(scale, 1.0)
    parts = np.arange(size, dtype=np.float32)[:, np.newaxis]
    centre = (start - 0.5) + (parts + 0.5) * scale  # pixel i has its centre at i
    pixel = tf.floor(centre - radius) + tf.range(1.0, tf.math.ceil(2 * tf.reduce_max(radius)) + 1)
    last = tf.reshape(tf.cast(limits - 1, tf.float32), [2, 1, 1])
    inside = tf.clip_by_value(pixel, 0.0, last)
    weight = tf.nn.relu(radius - tf.abs(pixel - centre)) * tf.cast(pixel == inside, tf.float32)
    weight /= tf.reduce_sum(weight, axis=-1, keepdims=True)
    rows = np.array([[parts, parts], [parts, parts[::-1]]])  # without and with a flip
    row = tf.broadcast_to(tf.gather(rows, tf.cast(flip, tf.int32)), tf.shape(inside))
    indices = tf.cast(tf.stack([row, inside], axis=-1), tf.int64)
    indices = tf.unstack(tf.reshape(indices, [2, -1, 2]))
    return zip(indices, tf.unstack(tf.reshape(weight, [2, -1])), strict=True)


def _multiply(taps, size, length, dense):
    indices, values = taps
    shape = tf.stack([tf.constant(size, tf.int64), tf.cast(length, tf.int64)])
    return tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=indices, a_values=values, a_shape=shape, b=dense
    )


def padded_crop(image: tf.Tensor, seed: tf.Tensor, padding: int) -> tf.Tensor:
    """Pads every side by a number of zero pixels and crops the old size at random."""
    shape = tf.shape(image)
    padded = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    top_left = tf.random.stateless_uniform((2,), seed, 0, 2 * padding + 1, tf.int32)
    crop = tf.slice(padded, [top_left[0], top_left[1], 0], shape)
    return tf.ensure_shape(crop, image.shape)


def flip(seed: tf.Tensor) -> tf.Tensor:
    """True with probability 1/2."""
    return tf.random.stateless_uniform((), seed) < 0.5


def lighting(seed: tf.Tensor, stddev: float) -> tf.Tensor:
    """What to add to (R, G, B): noise along the principal components of ImageNet's colours.

    It fits 0..1 values.  The published code adds it to 0..255 values.
    """
    alpha = tf.random.stateless_normal((3,), seed, 0.0, stddev)
    return tf.linalg.matvec(tf.constant(_EIGENVECTORS), alpha * _EIGENVALUES)
