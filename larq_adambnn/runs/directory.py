"""The directory of a run: its files, its lock, and what may go into it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import filelock

from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows, replace_file, write_rows
from larq_adambnn.runs.config import Config, load_run

__all__ = ["COLUMNS", "Run", "locked", "open_run"]

_LOCK = ".lock"

# Columns of metrics.csv, one row an epoch
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "val_top5_accuracy",
    "learning_rate",
    "weight_decay",
    "ff_ratio",
    "c2i_ratio",
    "seconds",
    "images_per_second",
    "c2i_step_ratio",
    "saturation",
    "cam",
    "sdam",
    "dead_weights",
    "gradient_norm",
    "update_size",
)


class Run:
    """Paths and small files of a run directory."""

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        self.flags = self.directory / "flags.cfg"
        self.data = self.directory / "data.json"
        self.metrics = self.directory / "metrics.csv"
        self.tensorboard = self.directory / "tensorboard"
        self.checkpoints = self.directory / "checkpoints"
        self.best_weights = self.checkpoints / "step1.best.weights.h5"
        self.tflite = self.directory / "model.tflite"
        self.export = self.directory / "export.json"
        self.report = self.directory / "report.md"
        self.plots = self.directory / "plots"
        self.measurements = self.directory / "measurements.csv"
        self.snapshots = self.checkpoints / "snapshots"
        self.analysis = self.directory / "analysis.json"
        self.left_out = self.directory / "left_out.json"

    def weights(self, step: int) -> pathlib.Path:
        """The student's weights at the end of a step (1 or 2), in Keras's HDF5 format."""
        return self.checkpoints / f"step{step}.weights.h5"

    def last_step(self) -> int:
        """The last finished step: 2, 1, or 0 when there is none."""
        return max((step for step in (1, 2) if self.weights(step).is_file()), default=0)

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; empty cells are left out."""
        rows = read_rows(self.metrics)
        return [{key: float(value) for key, value in row.items() if value} for row in rows]

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Replaces metrics.csv, whole or not at all."""
        integers = ("step", "epoch")
        rows = [{**row, **{name: int(row[name]) for name in integers}} for row in rows]
        write_rows(self.metrics, COLUMNS, rows)


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Takes the output directory for this process and writes flags.cfg, or resumes it.

    Raises:
        UsageError: the directory holds something else, a run with other settings, or
            another process works on it.
    """
    run = Run(config.output_dir)
    if run.flags.is_file():
        _check_same(config, run)
    elif run.directory.exists() and not _is_new(run.directory):
        raise UsageError(
            f"--output_dir: expected a new or empty directory, or that of the same run; "
            f"{run.directory} holds something else"
        )
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise UsageError(f"--output_dir: cannot write to {run.directory}: {error}") from None
    with locked(run):
        if not run.flags.is_file():
            with replace_file(run.flags) as path:
                path.write_text("\n".join(config.lines()) + "\n", encoding="utf-8")
        yield run


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Keeps other processes from changing a run meanwhile.

    Raises:
        UsageError: another process works on it, or it cannot be written to.
    """
    try:
        with filelock.FileLock(run.directory / _LOCK, blocking=False):
            yield
    except filelock.Timeout:
        raise UsageError(
            f"--output_dir: another process is working on {run.directory}; expected a free one"
        ) from None
    except PermissionError as error:
        raise UsageError(f"--output_dir: cannot write to {run.directory}: {error}") from None


def _is_new(directory: pathlib.Path) -> bool:
    """Whether a directory has nothing but what a run has before its flags.cfg is there."""
    if not directory.is_dir():
        return False
    return {entry.name for entry in directory.iterdir()} <= {_LOCK, ".flags.cfg"}


def _check_same(config: Config, run: Run) -> None:
    earlier = load_run(run.directory)
    differences = [
        name for name in config.defining() if getattr(config, name) != getattr(earlier, name)
    ]
    if differences:
        name = differences[0]
        raise UsageError(
            f"--output_dir: {run.directory} holds a run with --{name}={getattr(earlier, name)}; "
            f"expected the same to resume it, or another directory; received "
            f"--{name}={getattr(config, name)}"
        )
