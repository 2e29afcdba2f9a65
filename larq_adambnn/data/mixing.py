"""mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of the two images of a pair.

The teacher sees the mixed images and says what they show, so no labels are mixed: an
image keeps its own, for the training accuracy alone.
"""

import tensorflow as tf

__all__ = ["mix", "share"]


def mix(images: tf.Tensor, seed: tf.Tensor, *, mixup: float, cutmix: float) -> tf.Tensor:
    """Mixes the two images of a pair with each other.

    Args:
        images: float32 (2, H, W, C).
        seed: int64 (2,).
        mixup, cutmix: as in `share`.

    Returns:
        Tensor of the images' shape.
    """
    first, second = images[0], images[1]
    height, width, channels = first.shape
    stays = share(height, width, seed, mixup=mixup, cutmix=cutmix)
    stays = tf.repeat(stays, channels, axis=-1)  # products that broadcast take 5 times as long
    goes = 1 - stays
    return tf.stack([stays * first + goes * second, stays * second + goes * first])


def share(height: int, width: int, seed: tf.Tensor, *, mixup: float, cutmix: float) -> tf.Tensor:
    """How much of an image stays at each place of a mixture, float32 (height, width, 1).

    mixup: a number from Beta(mixup, mixup) everywhere.  cutmix: nothing in a box, all
    outside; the box has one minus a number from Beta(cutmix, cutmix) of the area before
    the image's border cuts it off, and any pixel as its centre.  0 turns one of them off;
    with both on, each comes half of the time.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    cut = tf.constant(cutmix > 0)
    if mixup and cutmix:
        cut = tf.random.stateless_uniform((), seeds[0]) < 0.5
    gamma = tf.random.stateless_gamma((2,), seeds[1], tf.where(cut, cutmix, mixup))
    stays = tf.math.divide_no_nan(gamma[0], gamma[0] + gamma[1])
    sides = tf.constant([height, width], tf.float32)
    center = tf.floor(tf.random.stateless_uniform((2,), seeds[2]) * sides)
    box = tf.floor(sides * tf.sqrt(1 - stays))
    start = center - tf.floor(box / 2)

    def inside(axis, length):
        pixel = tf.range(length, dtype=tf.float32)
        return (pixel >= start[axis]) & (pixel < start[axis] + box[axis])

    in_box = inside(0, height)[:, tf.newaxis] & inside(1, width)
    result = tf.where(cut, 1 - tf.cast(in_box, tf.float32), stays)
    return result[..., tf.newaxis]
