"""What a replica computes of its part of a batch."""

from collections.abc import Callable

import tensorflow as tf

__all__ = ["outputs_of"]


def outputs_of(network: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """The outputs (B, ...) of a network for images (B, H, W, C), of which a replica may have none.

    That is so at the end of an evaluation; not every kernel of TensorFlow takes no image.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return network(images)
    count = tf.shape(images)[0]
    one = tf.zeros([1, *images.shape[1:]], images.dtype)
    some = tf.cond(count > 0, lambda: images, lambda: one)
    some.set_shape(images.shape)
    return network(some)[:count]
