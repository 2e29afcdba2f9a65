"""What a training leaves behind for its analyses: figures of each layer, and snapshots."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import api_pb2, summary

from larq_adambnn import callbacks
from larq_adambnn.arrays import write_arrays
from larq_adambnn.callbacks.measurements import binary_kernels
from larq_adambnn.data import Dataset
from larq_adambnn.errors import UsageError
from larq_adambnn.files import naming, read_rows, write_rows
from larq_adambnn.runs import strategies
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.usage import flag_text
from larq_adambnn.weights import check_finite

__all__ = [
    "LAYER_COLUMNS",
    "Curves",
    "Recorder",
    "Snapshot",
    "evaluated",
    "position",
    "read_layers",
    "snapshots",
]

# Columns of measurements.csv, one row a binary layer and epoch
LAYER_COLUMNS = (
    "step",
    "epoch",
    "layer",
    "ff_ratio",
    "c2i_ratio",
    "c2i_step_ratio",
    "saturation",
    "cam",
    "sdam",
    "dead_weights",
    "gradient_norm",
    "update_size",
)

# Columns of metrics.csv that TensorBoard's HParams shows beside a run's settings
_RESULTS = ("val_accuracy", "val_top5_accuracy", "val_loss", "accuracy", "loss")


class Curves:
    """TensorBoard's curves of a run and what its HParams shows, which the chief writes."""

    def __init__(self, run: Run):
        self.run = run
        with naming(run.tensorboard, tf.errors.OpError):
            self._writer = tf.summary.create_file_writer(str(run.tensorboard))

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Writes the points of many curves as one event; a `tf.summary.scalar` each is slower."""
        event = tf.compat.v1.Summary()
        for name, value in values.items():
            event.value.add(tag=name, simple_value=value)
        self._write(epoch, event)

    def begin(self, config: Config) -> None:
        """Writes the settings that make the run what it is; of a resumed run the first count."""
        settings = {name: getattr(config, name) for name in config.defining()}
        texts = {k: flag_text(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        names = [hparams.HParam(name) for name in settings]
        results = [hparams.Metric(name) for name in _RESULTS]
        self._write(0, hparams.hparams_config_pb(names, results), hparams.hparams_pb(texts))

    def end(self) -> None:
        """Writes that the training came to its end."""
        self._write(0, summary.session_end_pb(api_pb2.STATUS_SUCCESS))

    def _write(self, epoch: int, *events) -> None:
        self.run.check()
        with naming(self.run.tensorboard, tf.errors.OpError), self._writer.as_default(step=epoch):
            for event in events:
                tf.summary.experimental.write_raw_pb(event.SerializeToString())
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_layers(run: Run) -> list[dict[str, str]]:
    """The rows of measurements.csv.

    Raises:
        UsageError: the file holds something else.
    """
    rows = read_rows(run.measurements, required=LAYER_COLUMNS[:3], known=LAYER_COLUMNS)
    for row in rows:
        if not (row["step"].isdecimal() and row["epoch"].isdecimal()):
            raise UsageError(
                f"{run.measurements}: expected numbers of steps and epochs; received "
                f"{row['step']!r} and {row['epoch']!r}"
            )
    return rows


def position(epoch: int, epochs: Sequence[int]) -> tuple[int, int]:
    """(step, epoch in it), both from 1, of an epoch of the training, from 0.

    Args:
        epoch: number of whole epochs before it.
        epochs: those of each step.
    """
    step = 0
    while epoch >= epochs[step]:
        epoch -= epochs[step]
        step += 1
    return step + 1, epoch + 1


def evaluated(epochs: Sequence[int], every: int) -> list[int]:
    """The epochs of the training, from 1, that are followed by an evaluation.

    Args:
        epochs: those of each step.
        every: from one evaluation of a step to the next; the last epoch of each has one too.
    """
    return [
        epoch
        for epoch in range(1, sum(epochs) + 1)
        for step, in_step in [position(epoch - 1, epochs)]
        if in_step % every == 0 or in_step == epochs[step - 1]
    ]


class Recorder(tf.keras.callbacks.Callback):
    """Writes measurements.csv, each layer's curves for TensorBoard, and snapshots.

    A snapshot is ``checkpoints/snapshots/stepS_epochEEEE.npz``: the student's weights
    after an epoch, and the last update of its first binary layer.  There is one of the
    initial weights and, in each step, `Config.snapshots` evenly spaced ones from its
    first epoch to its last.

    Attributes:
        measurements: the callbacks whose figures it writes; they go before it.
    """

    def __init__(self, run: Run, config: Config, dataset: Dataset, epochs: Sequence[int]):
        super().__init__()
        self._supports_tf_logs = True  # as those of a `callbacks.state.Stateful`
        self.run, self.config, self.epochs = run, config, epochs
        self.measurements = [
            callbacks.FlipFlopRatio(),
            callbacks.CorrelationToInitialization(),
            callbacks.ActivationSaturation(dataset.probe()),
            callbacks.KernelMagnitude(),
            callbacks.Gradients(),
            callbacks.UpdateSize(),
        ]
        spaced = np.linspace(1, config.epochs, config.snapshots)
        self._snapshot_epochs = set(np.round(spaced).astype(int).tolist())

    def on_train_begin(self, logs=None):
        self._chief = strategies.is_chief(tf.distribute.get_strategy())
        self._curves = Curves(self.run) if self._chief else None
        self._rows: list[dict] | None = None
        self._kernel = next(iter(binary_kernels(self.model).values()), None)

    def on_epoch_begin(self, epoch, logs=None):
        step, in_step = position(epoch, self.epochs)
        if self._rows is None:  # rows after the checkpoint that was resumed are made again
            self._rows = [
                row
                for row in read_layers(self.run)
                if (int(row["step"]), int(row["epoch"])) < (step, in_step)
            ]
        self._update = self._before = None
        first = epoch == 0 and int(self.model.optimizer.iterations.numpy()) == 0
        if first and self.config.snapshots:
            self._save(step, 0)

    def on_train_batch_begin(self, batch, logs=None):
        if self._kernel is not None and batch == self.params["steps"] - 1:
            self._before = tf.identity(self._kernel)

    def on_train_batch_end(self, batch, logs=None):
        if self._before is not None:
            self._update = self._kernel - self._before

    def on_epoch_end(self, epoch, logs=None):
        step, in_step = position(epoch, self.epochs)
        if in_step in self._snapshot_epochs:
            self._save(step, in_step)
        columns = {k: v for m in self.measurements for k, v in m.by_layer.items()}
        if not self._chief or not any(columns.values()):
            return
        names = next(iter(columns.values()))
        for name in names:
            values = {column: by_layer.get(name, "") for column, by_layer in columns.items()}
            self._rows.append({"step": step, "epoch": in_step, "layer": name, **values})
        with self.run.replace(self.run.measurements) as path:
            write_rows(path, LAYER_COLUMNS, self._rows)
        self._curves.write(
            epoch,
            {f"{c}/{n}": v for c, by_layer in columns.items() for n, v in by_layer.items()},
        )

    def on_train_end(self, logs=None):
        if self._curves is not None:
            self._curves.close()

    def _save(self, step: int, epoch: int) -> None:
        # Every worker takes part in reading the variables; the chief writes.
        arrays = {f"weights/{i}": v for i, v in enumerate(self.model.student.get_weights())}
        if self._update is not None:
            arrays["update"] = self._update.numpy()
        if self._chief:
            path = self.run.snapshots / f"step{step}_epoch{epoch:04d}.npz"
            with self.run.replace(path) as temporary:
                write_arrays(temporary, arrays)


class Snapshot:
    """The weights of a run's student after an epoch.

    Attributes:
        step, epoch: when, from 1; the initial weights are those of step 1, epoch 0.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        step, epoch = path.stem.split("_")
        self.step, self.epoch = int(step.removeprefix("step")), int(epoch.removeprefix("epoch"))

    def __str__(self) -> str:
        return f"step {self.step}, epoch {self.epoch}" if self.epoch else "initial weights"

    def load(self, student: tf.keras.Model) -> None:
        """Sets the weights of the run's student.

        Raises:
            UsageError: the file cannot be read, is of another network or not finite.
        """
        weights = [self._read(f"weights/{index}") for index in range(len(student.weights))]
        try:
            student.set_weights(weights)
        except ValueError as error:
            raise UsageError(f"{self.path}: expected weights of {student.name}; {error}") from None
        check_finite(student, self.path)

    def update(self) -> np.ndarray:
        """The last update of the first binary layer's latent weights, (h, w, in, out)."""
        return self._read("update")

    def _read(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[name]
        except Exception as error:  # a damaged archive raises many kinds
            raise UsageError(f"{self.path}: expected a snapshot: {error}") from None


def snapshots(run: Run) -> list[Snapshot]:
    """The snapshots of a run in the order of the training."""
    paths = sorted(run.snapshots.glob("step[12]_epoch[0-9]*.npz"))
    return [Snapshot(path) for path in paths if path.is_file()]
