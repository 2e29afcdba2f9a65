"""Callbacks whose state belongs to a checkpoint of the training."""

import io
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

__all__ = ["Stateful", "check_each_iteration"]


def check_each_iteration(callback: tf.keras.callbacks.Callback) -> None:
    """Raises ValueError where a callback does not see each iteration by itself."""
    at_once = int(callback.model._steps_per_execution.numpy())
    if at_once != 1:
        raise ValueError(
            f"Expected compile(steps_per_execution=1), as {type(callback).__name__} works at each "
            f"iteration. Received: steps_per_execution={at_once}"
        )


class Stateful(tf.keras.callbacks.Callback):
    """A callback that goes on where it was when a training is resumed.

    Its state is what `get_state` gives and `set_state` takes, dictionaries of arrays.
    During a `fit` the model's tf.train.Checkpoint holds it too, so that
    `tf.keras.callbacks.BackupAndRestore` keeps it, wherever in the list of callbacks that
    one is.  A subclass calls this class's methods in its own `on_train_begin` (last) and
    `on_epoch_begin` (first).  The logs of a batch that it gets are tensors.

    Raises:
        ValueError: at the start of `fit`, when it has two callbacks of one such class.
    """

    def __init__(self):
        super().__init__()
        # Keras would read the logs from the device after each iteration for it.
        self._supports_tf_logs = True

    def on_train_begin(self, logs=None):
        self._epoch: int | None = None  # that the state is of
        name = self._attribute()
        left = getattr(self.model, name, None)  # by an interrupted fit, and restored since
        other = None if left is None else left.state.callback
        if other not in (None, self) and other.params is self.params:
            raise ValueError(f"Expected one {type(self).__name__} in a fit. Received: two")
        self._saved = _Saved(self, None if left is None else left.state.restored)
        setattr(self.model, name, _InCheckpoints(state=self._saved))
        self.reset()

    def on_train_end(self, logs=None):
        delattr(self.model, self._attribute())

    def on_epoch_begin(self, epoch, logs=None):
        if self._saved.restored is not None:
            self.set_state(np.load(io.BytesIO(self._saved.restored), allow_pickle=False))
            self._saved.restored = None
        if epoch != self._epoch:
            self._epoch = epoch
            self.reset()

    def _attribute(self) -> str:
        return f"state_of_{type(self).__name__}"

    def reset(self) -> None:
        """Forgets what it counts in an epoch, before the next."""

    def settle(self) -> None:
        """Counts the last iteration, if it has ended and `on_train_batch_end` is still to come."""

    def get_state(self) -> dict[str, np.ndarray]:
        return {"epoch": np.int64(-1 if self._epoch is None else self._epoch)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        if "epoch" in state:  # which checkpoints of version 1.0 have not
            self._epoch = int(state["epoch"])


class _InCheckpoints(tf.train.Checkpoint):
    """What a tf.train.Checkpoint holds of a callback, and a SavedModel does not."""

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        if save_type == "savedmodel":
            return {}
        return super()._trackable_children(save_type, **kwargs)


class _Saved(tf.train.experimental.PythonState):
    """A callback's state as bytes."""

    def __init__(self, callback: Stateful, restored: bytes | None):
        self.callback = callback
        self.restored = restored  # until an epoch begins

    def serialize(self) -> bytes:
        self.callback.settle()
        buffer = io.BytesIO()
        np.savez(buffer, **self.callback.get_state())
        return buffer.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        self.restored = string_value
