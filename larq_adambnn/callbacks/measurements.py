"""The paper's measurements as Keras callbacks, for any `model.fit`.

Each adds its figures to the logs of the epoch.  Those that a resumed epoch needs more
from have `get_state` and `set_state`, dictionaries of arrays.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from larq_adambnn import layers

__all__ = ["CorrelationToInitialization", "FlipFlopRatio"]


def _binary_kernels(model) -> list[tf.Variable]:
    """The latent weights of every binary layer."""
    return [kernel for _, kernel in layers.switches(model, layers.KERNELS)]


def _latent_signs(kernels) -> list[tf.Tensor]:
    """Whether each latent weight is 0 or more, which is the sign of its binary weight."""
    return [tf.greater_equal(kernel, 0) for kernel in kernels]


def _count(kernels) -> int:
    return sum(kernel.shape.num_elements() for kernel in kernels)


class FlipFlopRatio(tf.keras.callbacks.Callback):
    """Logs `ff_ratio`: the share of binary weights that change sign in an iteration.

    ``sum |sign(w_t+1) - sign(w_t)| / 2`` over all binary weights, divided by their
    number and averaged over the iterations of the epoch (AdamBNN, equation 5).
    It reads the latent weights, so scaled signs count like plain ones and step 1 is
    measured too.
    """

    def on_train_begin(self, logs=None):
        self._kernels = _binary_kernels(self.model)
        self._signs = [tf.Variable(sign, trainable=False) for sign in _latent_signs(self._kernels)]
        self._flips = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._iterations = 0

        @tf.function
        def update():
            flips = tf.constant(0, tf.int64)
            for sign, new in zip(self._signs, _latent_signs(self._kernels), strict=True):
                flips += tf.math.count_nonzero(tf.not_equal(sign, new))
                sign.assign(new)
            self._flips.assign_add(flips)

        self._update = update

    def on_epoch_begin(self, epoch, logs=None):
        for sign, new in zip(self._signs, _latent_signs(self._kernels), strict=True):
            sign.assign(new)
        self._flips.assign(0)
        self._iterations = 0

    def on_train_batch_end(self, batch, logs=None):
        self._update()
        self._iterations += 1

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            weights = max(1, _count(self._kernels) * self._iterations)
            logs["ff_ratio"] = int(self._flips.numpy()) / weights

    def get_state(self) -> dict[str, np.ndarray]:
        """What a resumed epoch needs to go on."""
        return {"flips": self._flips.numpy(), "iterations": np.int64(self._iterations)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._flips.assign(state["flips"])
        self._iterations = int(state["iterations"])


class CorrelationToInitialization(tf.keras.callbacks.Callback):
    """Logs `c2i_ratio`: the share of binary weights with the sign they started with.

    ``1 - sum |sign(w) - sign(w_init)| / 2`` over the number of binary weights, against
    the weights at the start of the training (AdamBNN, equation 6; the factor 1/2 that
    the paper prints contradicts its own table and is left out).
    """

    def on_train_begin(self, logs=None):
        self._kernels = _binary_kernels(self.model)
        self._initial = self._bits()

    def _bits(self) -> np.ndarray:
        signs = [sign.numpy().ravel() for sign in _latent_signs(self._kernels)]
        return np.packbits(np.concatenate(signs)) if signs else np.zeros(0, np.uint8)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            changed = np.unpackbits(self._bits() ^ self._initial).sum(dtype=np.int64)
            logs["c2i_ratio"] = 1 - int(changed) / max(1, _count(self._kernels))

    def get_state(self) -> dict[str, np.ndarray]:
        """The signs at the start of the training, as bits."""
        return {"initial": self._initial}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._initial = state["initial"]
