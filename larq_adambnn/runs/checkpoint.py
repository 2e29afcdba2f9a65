"""Checkpoints of a whole training: weights, optimizer, metrics and callbacks after an iteration."""

import os
import pathlib
import signal
import sys
import zipfile

import numpy as np
import tensorflow as tf

from larq_adambnn.files import sha256
from larq_adambnn.runs import strategies

__all__ = ["Checkpoint"]

_KEEP = 2  # newest checkpoints that stay on disk
_DIGITS = 32  # of the checksum in a name


class Checkpoint(tf.keras.callbacks.Callback):
    """Saves the training at each epoch, every so many iterations, and when told to stop.

    A checkpoint is one file, ``ITERATION-CHECKSUM.npz``: the student's and the optimizer's
    variables, the metrics so far in the epoch and the state of the other callbacks
    (those with `get_state` and `set_state`).  It is written under another name,
    renamed, and read only if its SHA-256 is the one in its name.

    Put it last in the list of callbacks: it saves what they leave behind.  SIGTERM and
    SIGINT end the training after a checkpoint at the next iteration, with exit status 143 or
    130; a second one, or one with several workers, ends it at once.

    Args:
        directory: where the checkpoints are.
        iterations_per_epoch: iterations in an epoch.
        callbacks: the others whose state belongs to the checkpoint.
        every: iterations between checkpoints inside an epoch; 0 for none.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        iterations_per_epoch: int,
        callbacks: list[tf.keras.callbacks.Callback],
        *,
        every: int = 0,
    ):
        super().__init__()
        self.directory = directory
        self.iterations_per_epoch = iterations_per_epoch
        self.callbacks = [c for c in callbacks if hasattr(c, "get_state")]
        self.every = every
        self.iteration = 0
        self._restored: dict[str, np.ndarray] | None = None
        self._stopped_by: int | None = None

    # Restoring, before fit

    def restore(self, model: tf.keras.Model) -> int:
        """Loads the newest intact checkpoint into a compiled Distiller.

        Returns:
            The number of iterations done; 0 without a checkpoint.
        """
        for path in self._newest_first():
            state = _read(path)
            if state is None:
                print(f"checkpoint {path.name} is damaged; using the one before", file=sys.stderr)
                if strategies.is_chief(tf.distribute.get_strategy()):
                    path.rename(path.with_suffix(".damaged"))
                continue
            for name, variable in _variables(model).items():
                variable.assign(state[name])
            self.iteration = int(path.name.split("-")[0])
            self._restored = state
            break
        return self.iteration

    def last(self) -> str:
        """One sentence on where the newest checkpoint is."""
        for path in self._newest_first():
            return f"The last good checkpoint is at iteration {int(path.name.split('-')[0])}."
        return "There is no checkpoint yet."

    def _newest_first(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob("[0-9]*-*.npz"), reverse=True)

    # During fit

    def on_train_begin(self, logs=None):
        strategy = tf.distribute.get_strategy()
        self._chief = strategies.is_chief(strategy)
        self._several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.model._training_state = _Position(divmod(self.iteration, self.iterations_per_epoch))
        self._handlers = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def on_train_end(self, logs=None):
        self._restore_handlers()

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        inside = self.iteration % self.iterations_per_epoch > 0
        for index, callback in enumerate(self.callbacks):
            prefix = f"callback/{index}/"
            callback.set_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
            if not inside:  # what it counts in an epoch begins anew
                callback.on_epoch_begin(epoch, logs)
        if inside:
            for name, variable in _metric_variables(self.model).items():
                variable.assign(state[name])

    def on_train_batch_end(self, batch, logs=None):
        self.iteration += 1
        if self.iteration % self.iterations_per_epoch == 0:
            return  # on_epoch_end follows
        if self._stopped_by or (self.every and self.iteration % self.every == 0):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def _save(self) -> None:
        state = {**_variables(self.model), **_metric_variables(self.model)}
        # Every worker takes part in reading the variables; the chief writes.
        state = {name: variable.numpy() for name, variable in state.items()}
        if not self._chief:
            return
        for index, callback in enumerate(self.callbacks):
            for key, value in callback.get_state().items():
                state[f"callback/{index}/{key}"] = value
        _write(self.directory, self.iteration, state)
        for path in self._newest_first()[_KEEP:]:
            path.unlink()
        if self._stopped_by:
            self._restore_handlers()
            print(
                f"stopped at iteration {self.iteration}; give the same command again to resume",
                file=sys.stderr,
            )
            sys.exit(128 + self._stopped_by)

    def _stop(self, number, frame):
        del frame
        if self._stopped_by or self._several:
            self._restore_handlers()
            sys.exit(128 + number)
        self._stopped_by = number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class _Position:
    """Tells Keras's fit where in the training to begin, as its own BackupAndRestore does."""

    def __init__(self, position: tuple[int, int]):
        self.position = position

    def maybe_load_initial_counters_from_ckpt(self, *args, **kwargs) -> tuple[int, int]:
        return self.position


def _variables(model) -> dict[str, tf.Variable]:
    optimizer = model.optimizer
    scale = getattr(optimizer, "_loss_scale", None)  # of float16's LossScaleOptimizer
    return {
        **{f"model/{i}": v for i, v in enumerate(model.student.weights)},
        **{f"optimizer/{i}": v for i, v in enumerate(optimizer.variables)},
        **({} if scale is None else {"scale": scale.current_loss_scale, "good": scale.counter}),
    }


def _metric_variables(model) -> dict[str, tf.Variable]:
    variables = [v for metric in model.metrics for v in metric.variables]
    return {f"metric/{i}": v for i, v in enumerate(variables)}


def _write(directory: pathlib.Path, iteration: int, state: dict[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".checkpoint.npz"
    try:
        with temporary.open("wb") as file:
            # What np.savez writes; its own archive is not closed when the disk is full.
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in state.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / f"{iteration:09d}-{sha256(temporary)[:_DIGITS]}.npz")
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays of a checkpoint, or None if it is not what was written."""
    if sha256(path)[:_DIGITS] != path.stem.split("-")[1]:
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
