"""Checkpoints of a whole training: weights, optimizer, metrics and callbacks after an iteration."""

import pathlib
import re
import signal
import sys
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from larq_adambnn.arrays import write_arrays
from larq_adambnn.errors import UsageError
from larq_adambnn.files import sha256
from larq_adambnn.runs import strategies
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.recording import read_layers

__all__ = ["Checkpoint"]

_KEEP = 2  # newest checkpoints that stay on disk
_DIGITS = 32  # of the checksum in a name
_NAME = re.compile(rf"(\d{{9,}})-([0-9a-f]{{{_DIGITS}}})\.npz", re.ASCII)


class Checkpoint(tf.keras.callbacks.Callback):
    """Saves the training at each epoch, every so many iterations, and when told to stop.

    A checkpoint is one file, ``ITERATION-CHECKSUM.npz``: the student's and the optimizer's
    variables, the metrics so far in the epoch and the state of the other callbacks
    (those with `get_state` and `set_state`).  It is written under another name, renamed,
    and read only if its SHA-256 is the one in its name and it holds what this training
    saves.  Weights that are not finite are not saved: they end the training.

    Put it last in the list of callbacks: it saves what they leave behind.  SIGTERM and
    SIGINT end the training after a checkpoint at the next iteration, with exit status 143 or
    130; a second one, or one with several workers, ends it at once.

    Args:
        run: whose checkpoints they are.
        iterations_per_epoch: iterations in an epoch.
        callbacks: the others whose state belongs to the checkpoint.
        every: iterations between checkpoints inside an epoch; 0 for none.
    """

    def __init__(
        self,
        run: Run,
        iterations_per_epoch: int,
        callbacks: list[tf.keras.callbacks.Callback],
        *,
        every: int = 0,
    ):
        super().__init__()
        self._supports_tf_logs = True  # as those of a `callbacks.state.Stateful`
        self.run = run
        self.iterations_per_epoch = iterations_per_epoch
        self.callbacks = [c for c in callbacks if hasattr(c, "get_state")]
        self.every = every
        self.iteration = 0
        self._restored: dict[str, np.ndarray] | None = None
        self._stopped_by: int | None = None

    # Restoring, before fit

    def restore(self, model: tf.keras.Model) -> int:
        """Loads the newest good checkpoint into a compiled Distiller.

        Returns:
            The number of iterations done; 0 without a checkpoint.
        """
        strategy = tf.distribute.get_strategy()
        found = self._newest_first()
        if not found:
            return 0
        expected = self._expected(model)
        path = state = None
        with strategies.together(strategy):
            if strategies.is_chief(strategy):
                path, state = self._newest_good(found, expected)
        name = strategies.from_chief(strategy, path.name if path else "")
        if not name:
            return 0
        with strategies.together(strategy):
            if path is None:  # the chief's, for another worker
                path = self.run.checkpoints / name
                try:
                    state = _read(path, expected)
                except (OSError, ValueError) as error:
                    raise UsageError(
                        f"--output_dir: expected the checkpoint {name} that the chief resumes "
                        f"from; here it {error}"
                    ) from error
        for name, variable in _variables(model).items():
            variable.assign(state[name])
        self.iteration = _iteration(path)
        self._restored = state
        return self.iteration

    def _newest_good(self, found, expected) -> tuple[pathlib.Path | None, dict | None]:
        """The first of some checkpoints that is good, and what it holds; else (None, None).

        Raises:
            UsageError: the tables beside them have fewer epochs than all of them.
        """
        tables = {self.run.metrics: len(self.run.read_metrics())}
        if self.run.measurements.is_file():  # a real-valued network has none
            rows = read_layers(self.run)
            tables[self.run.measurements] = len({(row["step"], row["epoch"]) for row in rows})
        table, lacking = min(tables, key=tables.get), ""
        for path in found:
            epochs = _iteration(path) // self.iterations_per_epoch
            if tables[table] < epochs:  # of a copy that was made while it trained
                lacking = (
                    f"{table}: expected a row of each of the {epochs} epochs before checkpoint "
                    f"{path.name}; it has {tables[table]}"
                )
                continue
            try:
                state = _read(path, expected)
                if lacking:
                    print(f"{lacking}; using the one before", file=sys.stderr)
                return path, state
            except ValueError as error:
                print(f"checkpoint {path.name} {error}; using the one before", file=sys.stderr)
                self.run.check()
                path.rename(path.with_suffix(".damaged"))
        if lacking:
            raise UsageError(lacking)
        print("there is none before; the training begins anew", file=sys.stderr)
        return None, None

    def last(self) -> str:
        """One sentence on where the newest checkpoint is."""
        for path in self._newest_first():
            return f"The last good checkpoint is at iteration {_iteration(path)}."
        return "There is no checkpoint yet."

    def _newest_first(self) -> list[pathlib.Path]:
        """The checkpoints; a file of any other name is none of ours."""
        found = self.run.checkpoints.glob("*.npz")
        found = [path for path in found if _NAME.fullmatch(path.name) and path.is_file()]
        return sorted(found, key=_iteration, reverse=True)

    def _expected(self, model: tf.keras.Model) -> dict[str, np.ndarray]:
        """What a checkpoint has to hold, with other values."""
        expected = {name: v.numpy() for name, v in _all_variables(model).items()}
        for index, callback in enumerate(self.callbacks):
            callback.set_model(model)
            callback.on_train_begin()
            state = callback.get_state()
            state.pop("epoch", None)  # which checkpoints of version 1.0 have not
            expected |= _prefixed(index, state)
            callback.on_train_end()
        return expected

    # During fit

    def on_train_begin(self, logs=None):
        strategy = tf.distribute.get_strategy()
        self._chief = strategies.is_chief(strategy)
        self._several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.model._training_state = _Position(divmod(self.iteration, self.iterations_per_epoch))
        self._handlers = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        if self._restored is not None:  # there may be no epoch left
            self._set_states(self._restored)

    def on_train_end(self, logs=None):
        self._restore_handlers()

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        self._set_states(state)
        if self.iteration % self.iterations_per_epoch > 0:
            for name, variable in _metric_variables(self.model).items():
                variable.assign(state[name])
            return
        for callback in self.callbacks:  # what it counts in an epoch begins anew
            callback.on_epoch_begin(epoch, logs)

    def _set_states(self, state: Mapping[str, np.ndarray]) -> None:
        for index, callback in enumerate(self.callbacks):
            prefix = f"callback/{index}/"
            callback.set_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def on_train_batch_end(self, batch, logs=None):
        self.iteration += 1
        if self.iteration % self.iterations_per_epoch == 0:
            return  # on_epoch_end follows
        if self._stopped_by or (self.every and self.iteration % self.every == 0):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def _save(self) -> None:
        # Every worker takes part in reading the variables; the chief writes.
        state = {name: v.numpy() for name, v in _all_variables(self.model).items()}
        if _not_finite(state):
            raise UsageError(
                f"training: expected a finite loss; received weights that are not finite after "
                f"iteration {self.iteration}. {self.last()} A lower --learning_rate may help"
            )
        if not self._chief:
            return
        for index, callback in enumerate(self.callbacks):
            state |= _prefixed(index, callback.get_state())
        _write(self.run, self.iteration, state)
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


def _all_variables(model) -> dict[str, tf.Variable]:
    return {**_variables(model), **_metric_variables(model)}


def _prefixed(index: int, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of a callback under its names in a checkpoint."""
    return {f"callback/{index}/{key}": np.asarray(value) for key, value in state.items()}


def _not_finite(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a weight or a variable of the optimizer is NaN or infinite."""
    return any(
        name.startswith(("model/", "optimizer/")) and not np.isfinite(array).all()
        for name, array in state.items()
    )


def _iteration(path: pathlib.Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _write(run: Run, iteration: int, state: Mapping[str, np.ndarray]) -> None:
    def name(path):
        return f"{iteration:09d}-{sha256(path)[:_DIGITS]}.npz"

    with run.replace(run.checkpoints / f"{iteration:09d}.npz", name=name) as path:
        write_arrays(path, state)


def _read(path: pathlib.Path, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint.

    Raises:
        ValueError: it is not what was written, or not of this training; in words that
            follow its name.
    """
    if sha256(path)[:_DIGITS] != _NAME.fullmatch(path.name)[2]:
        raise ValueError("is damaged")
    try:
        with np.load(path, allow_pickle=False) as file:
            state = dict(file)
    except Exception as error:  # what is no such archive raises many kinds
        raise ValueError("is damaged") from error
    for name, array in expected.items():
        found = state.get(name)
        if found is None or (found.shape, found.dtype) != (array.shape, array.dtype):
            raise ValueError(f"is of another training ({name})")
    if _not_finite(state):
        raise ValueError("has weights that are not finite")
    return state
