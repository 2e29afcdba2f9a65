"""RandAugment (arXiv 1909.13719): operations of the Python Imaging Library, at random.

Each operation is a pure function of a uint8 image (H, W, C) and gives what Pillow does;
their strengths at a magnitude from 0 to 30 are torchvision's.
"""

import functools
import math

import tensorflow as tf

__all__ = ["OPERATIONS", "randaugment"]

_MAGNITUDES = 30
_LUMA = (19595, 38470, 7471)  # of R, G, B in 65536ths (ITU-R 601-2), as Pillow weighs them


def randaugment(image: tf.Tensor, seed: tf.Tensor, count: int, magnitude: int) -> tf.Tensor:
    """Applies `count` operations, each drawn from all, half of the signed ones negative.

    Args:
        image: uint8 (H, W, C).
        seed: integers (2,).
        count: number of operations.
        magnitude: their strength, 0 to 30.
    """
    shape = image.shape
    draws = tf.random.stateless_uniform((count, 2), seed, 0, len(OPERATIONS), tf.int32)
    for draw in tf.unstack(draws):
        sign = tf.where(draw[1] % 2 == 0, 1.0, -1.0)
        branches = [
            functools.partial(operation, image, strength(magnitude / _MAGNITUDES) * sign)
            for operation, strength in OPERATIONS.values()
        ]
        image = tf.ensure_shape(tf.switch_case(draw[0], branches), shape)
    return image


def _affine(image, a, b, c, d, e, f):
    """Pixel (x, y) becomes the one at (a x + b y + c, d x + e y + f); black outside.

    Coordinates are of pixel centres, half-integers, as Pillow's Image.transform has them.
    """
    coefficients = tf.cast(
        tf.stack(
            [a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0.0, 0.0],
        ),
        tf.float32,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=coefficients[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def shear_x(image, strength):
    return _affine(image, 1.0, strength, 0.0, 0.0, 1.0, 0.0)


def shear_y(image, strength):
    return _affine(image, 1.0, 0.0, 0.0, strength, 1.0, 0.0)


def translate_x(image, strength):
    """Strength: share of the width."""
    pixels = tf.round(strength * tf.cast(tf.shape(image)[1], tf.float32))
    return _affine(image, 1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def translate_y(image, strength):
    """Strength: share of the height."""
    pixels = tf.round(strength * tf.cast(tf.shape(image)[0], tf.float32))
    return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, pixels)


def rotate(image, strength):
    """Strength: degrees, counter-clockwise, about the centre."""
    cos, sin = tf.cos(strength * math.pi / 180), tf.sin(strength * math.pi / 180)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) / 2)
    # the output's centre maps to the input's
    return _affine(
        image,
        cos,
        -sin,
        width - cos * width + sin * height,
        sin,
        cos,
        height - sin * width - cos * height,
    )


def _blend(image, other, factor):
    """other + factor (image - other), as ImageEnhance does."""
    image, other = tf.cast(image, tf.float32), tf.cast(other, tf.float32)
    mixed = tf.clip_by_value(other + factor * (image - other), 0.0, 255.0)
    return tf.cast(mixed, tf.uint8)  # Pillow cuts the fraction off


def _grey(image):
    """Luma, (H, W, 1) int32."""
    if image.shape[-1] == 1:
        return tf.cast(image, tf.int32)
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * _LUMA, axis=-1, keepdims=True)
    return (weighted + 32768) // 65536


def brightness(image, strength):
    return _blend(image, tf.zeros_like(image), 1 + strength)


def color(image, strength):
    return _blend(image, _grey(image), 1 + strength)


def contrast(image, strength):
    grey = tf.cast(_grey(image), tf.float32)
    return _blend(image, tf.floor(tf.reduce_mean(grey) + 0.5), 1 + strength)


def sharpness(image, strength):
    return _blend(image, _smooth(image), 1 + strength)


def _smooth(image):
    """Pillow's SMOOTH filter; the border pixels stay as they are."""
    channels = image.shape[-1]
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = tf.tile(kernel[..., tf.newaxis, tf.newaxis], [1, 1, channels, 1])
    pixels = tf.cast(image, tf.float32)[tf.newaxis]
    inner = tf.nn.depthwise_conv2d(pixels, kernel, [1, 1, 1, 1], "VALID")[0]
    inner = tf.floor(inner + 0.5)
    height, width = tf.unstack(tf.shape(image)[:2])
    inner = tf.pad(inner, [[1, 1], [1, 1], [0, 0]])
    rows, columns = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
    border = (rows == 0) | (rows == height - 1) | (columns == 0) | (columns == width - 1)
    return tf.where(border, pixels[0], inner)


def posterize(image, strength):
    """Strength: number of low bits that are cleared; the sign does not matter."""
    bits = tf.cast(tf.round(tf.abs(strength)), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, bits), bits)


def solarize(image, strength):
    """Inverts pixels from 255 (1 - strength) on; the sign does not matter."""
    threshold = 255 * (1 - tf.abs(strength))
    return tf.where(tf.cast(image, tf.float32) >= threshold, 255 - image, image)


def autocontrast(image, strength):
    """Stretches each channel to 0..255."""
    del strength
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float64)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float64)
    flat = high <= low
    scale = 255 / tf.where(flat, tf.ones_like(high), high - low)
    stretched = tf.cast(image, tf.float64) * scale - low * scale
    stretched = tf.cast(tf.clip_by_value(stretched, 0, 255), tf.uint8)
    return tf.where(flat, image, stretched)


def equalize(image, strength):
    """Gives each channel a flat histogram."""
    del strength
    return tf.stack([_equalized(channel) for channel in tf.unstack(image, axis=-1)], axis=-1)


def _equalized(channel):
    counts = tf.math.bincount(tf.cast(tf.reshape(channel, [-1]), tf.int32), minlength=256)
    brightest = tf.cast(tf.reduce_max(channel), tf.int32)
    step = (tf.reduce_sum(counts) - counts[brightest]) // 255
    table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.cast(tf.minimum(table, 255), tf.uint8)
    return tf.where(step > 0, tf.gather(table, tf.cast(channel, tf.int32)), channel)


def identity(image, strength):
    del strength
    return image


# name: (operation, its strength at a magnitude from 0 to 1)
OPERATIONS = {
    "identity": (identity, lambda magnitude: 0.0),
    "shear_x": (shear_x, lambda magnitude: 0.3 * magnitude),
    "shear_y": (shear_y, lambda magnitude: 0.3 * magnitude),
    "translate_x": (translate_x, lambda magnitude: 150 / 331 * magnitude),
    "translate_y": (translate_y, lambda magnitude: 150 / 331 * magnitude),
    "rotate": (rotate, lambda magnitude: 30.0 * magnitude),
    "brightness": (brightness, lambda magnitude: 0.9 * magnitude),
    "color": (color, lambda magnitude: 0.9 * magnitude),
    "contrast": (contrast, lambda magnitude: 0.9 * magnitude),
    "sharpness": (sharpness, lambda magnitude: 0.9 * magnitude),
    "posterize": (posterize, lambda magnitude: 4.0 * magnitude),
    "solarize": (solarize, lambda magnitude: magnitude),
    "autocontrast": (autocontrast, lambda magnitude: 0.0),
    "equalize": (equalize, lambda magnitude: 0.0),
}
