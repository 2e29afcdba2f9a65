"""Element-wise functions that XLA compiles to one pass over memory."""

import functools
from collections.abc import Callable

import tensorflow as tf

from larq_adambnn import kernels

__all__ = ["fused", "pays"]


_LARGE = 2**15  # values an image from which on what is saved outweighs the calls of XLA


def pays(x: tf.Tensor, *, training: bool) -> bool:
    """Whether to use the form that `fused` gives for x (B, ...).

    Without training it is always the plain one: a .tflite is made of it, and rounds as it does.
    """
    large = (x.shape[1:].num_elements() or 0) >= _LARGE
    return training and large and tf.test.is_built_with_xla() and kernels.tuned()


@functools.cache
def fused(function: Callable) -> Callable:
    """The form of an element-wise function of tensors of one dtype that XLA compiles.

    Floats of 16 bits are computed in 32: rounding each step would take several times as long.
    """

    def compiled(*arguments):
        dtype = tf.nest.flatten(arguments)[0].dtype
        wide = tf.float32 if dtype.size < 4 else dtype
        outputs = function(*tf.nest.map_structure(lambda x: tf.cast(x, wide), arguments))
        return tf.nest.map_structure(lambda y: tf.cast(y, dtype), outputs)

    return tf.function(compiled, jit_compile=True, autograph=False)
