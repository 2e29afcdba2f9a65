"""Training augmentation: pure functions of an image and a seed.

Images are float32 (H, W, C) in 0..1; a seed is an integer tensor of shape (2,), as
TensorFlow's stateless random operations take it.
"""

import tensorflow as tf

__all__ = ["lighting", "padded_crop", "random_flip", "resize"]

# Eigenvectors (columns) and eigenvalues of the RGB covariance of ImageNet's training
# images on 0..1 values (Krizhevsky et al., 2012, section 4.1, as published with Torch).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear resize to size x size with antialiasing."""
    if image.shape[0] == size and image.shape[1] == size:
        return image
    return tf.image.resize(image, (size, size), antialias=True)


def padded_crop(image: tf.Tensor, seed: tf.Tensor, padding: int) -> tf.Tensor:
    """Pads every side by a number of zero pixels and crops the old size at random."""
    shape = tf.shape(image)
    padded = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    top_left = tf.random.stateless_uniform((2,), seed, 0, 2 * padding + 1, tf.int32)
    crop = tf.slice(padded, [top_left[0], top_left[1], 0], shape)
    return tf.ensure_shape(crop, image.shape)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Reverses the columns with probability 1/2."""
    return tf.cond(
        tf.random.stateless_uniform((), seed) < 0.5, lambda: image[:, ::-1], lambda: image
    )


def lighting(image: tf.Tensor, seed: tf.Tensor, stddev: float) -> tf.Tensor:
    """Adds noise along the principal components of ImageNet's colours (RGB images only)."""
    if image.shape[-1] != 3 or stddev == 0:
        return image
    alpha = tf.random.stateless_normal((3,), seed, 0.0, stddev)
    return image + tf.linalg.matvec(tf.constant(_EIGENVECTORS), alpha * _EIGENVALUES)
