"""How far a training is: a bar, or lines within its epochs where no bar can be shown."""

import time
from collections.abc import Sequence

import tensorflow as tf

from larq_adambnn.runs.recording import position

__all__ = ["Bar", "Pace"]

_SECONDS = 300.0  # between two lines
_BAR_SECONDS = 1.0  # between two states of a bar


class Bar(tf.keras.callbacks.ProgbarLogger):
    """Keras's bar, which waits for the device once a second and not at each iteration."""

    def __init__(self):
        super().__init__(count_mode="steps")
        self._shown = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if now - self._shown >= _BAR_SECONDS:
            self._shown = now
            super().on_train_batch_end(batch, logs)


class Pace(tf.keras.callbacks.Callback):
    """Prints a line every five minutes: iterations, images a second and the time that is left.

    The time that is left is that of the iterations; evaluation comes on top of it.

    Args:
        epochs: those of each step.
        batch_size: images in an iteration.
    """

    def __init__(self, epochs: Sequence[int], batch_size: int):
        super().__init__()
        self._supports_tf_logs = True  # the metrics need not come from the device
        self.epochs, self.batch_size = epochs, batch_size

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._first = epoch, None

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if self._first is None:  # what was traced is not to be counted
            self._first = self._last = batch, now
        if now - self._last[1] < _SECONDS:
            return
        self._last = batch, now
        rate = (batch - self._first[0]) / (now - self._first[1])  # iterations a second
        of_epoch = self.params["steps"]
        in_epoch = of_epoch - batch - 1
        in_all = in_epoch + (sum(self.epochs) - self._epoch - 1) * of_epoch
        step, number = position(self._epoch, self.epochs)
        print(
            f"step {step}  epoch {number}/{self.epochs[step - 1]}  "
            f"iteration {batch + 1:,}/{of_epoch:,}  {rate * self.batch_size:.1f} images/s  "
            f"{_duration(in_epoch / rate)} left of the epoch, {_duration(in_all / rate)} of all",
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
