"""The directory of a run: its files, its lock, and what may go into it."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

import filelock

from larq_adambnn.errors import UsageError
from larq_adambnn.files import (
    check_regular,
    is_temporary,
    naming,
    read_rows,
    replace_file,
    write_rows,
)
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.usage import flag_text

__all__ = ["COLUMNS", "Run", "locked", "open_run", "wait_for"]

_LOCK = ".lock"
_SEEN_SECONDS = 90.0  # that NFS may take to show a new file on another machine
_LOOKS_SECONDS = 0.5  # between two looks for it

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
# What every row has, and what it has of an epoch that was followed by an evaluation
_REQUIRED = ("step", "epoch", "loss", "accuracy", "seconds")
_EVALUATION = ("val_loss", "val_accuracy")


class Run:
    """Paths and small files of a run directory, and the one way to write to it.

    Within `open_run` and `locked` it is this process's: then `check` and `replace` raise
    UsageError once the lock or flags.cfg in the directory is another than was taken.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        self.flags = self.directory / "flags.cfg"
        self.data = self.directory / "data.json"
        self.metrics = self.directory / "metrics.csv"
        self.tensorboard = self.directory / "tensorboard"
        self.checkpoints = self.directory / "checkpoints"
        self.tflite = self.directory / "model.tflite"
        self.export = self.directory / "export.json"
        self.tflite_int8 = self.directory / "model_int8.tflite"
        self.export_int8 = self.directory / "export_int8.json"
        self.report = self.directory / "report.md"
        self.page = self.directory / "report.html"
        self.examination = self.directory / "examination.json"
        self.compared = self.directory / "compared.json"
        self.plots = self.directory / "plots"
        self.measurements = self.directory / "measurements.csv"
        self.snapshots = self.checkpoints / "snapshots"
        self.analysis = self.directory / "analysis.json"
        self.left_out = self.directory / "left_out.json"
        self.devices = self.directory / "devices.txt"
        self._taken: tuple | None = None  # what `_identity` was when this process took it

    def teacher(self, number: int = 1) -> pathlib.Path:
        """The directory of a teacher that is trained for this run, the first or another."""
        return self.directory / f"teacher{number if number > 1 else ''}"

    def weights(self, step: int, *, best: bool = False) -> pathlib.Path:
        """The student's weights at the end of a step (1 or 2), or its best, in Keras's HDF5."""
        return self.checkpoints / f"step{step}{'.best' if best else ''}.weights.h5"

    def exported(self, step: int, *, best: bool = False, int8: bool = False) -> pathlib.Path:
        """The .tflite of a step: model.tflite of the last one, and model_int8.tflite."""
        parts = {
            f"_step{step}": step not in (0, self.last_step()),
            "_best": best,
            "_int8": int8,
        }
        return self.directory / f"model{''.join(p for p, has in parts.items() if has)}.tflite"

    def last_step(self) -> int:
        """The last finished step: 2, 1, or 0 when there is none."""
        return max((step for step in (1, 2) if self.weights(step).is_file()), default=0)

    def read_devices(self) -> list[str]:
        """The devices that trained it, one after the other; none of a run made before 1.1."""
        check_regular(self.devices)
        if not self.devices.exists():
            return []
        with naming(self.devices):
            return self.devices.read_text(encoding="utf-8", errors="replace").splitlines()

    def add_devices(self, line: str) -> None:
        """Adds a line to devices.txt, unless it says so already."""
        lines = self.read_devices()
        if lines[-1:] != [line]:
            with self.replace(self.devices) as path:
                path.write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; empty cells are left out.

        Raises:
            UsageError: the file holds something else.
        """
        rows = read_rows(self.metrics, required=_REQUIRED, known=COLUMNS)
        for number, row in enumerate(rows, start=1):
            if len({bool(row.get(column)) for column in _EVALUATION}) > 1:
                raise UsageError(
                    f"{self.metrics}: expected {' and '.join(_EVALUATION)}, or neither; row "
                    f"{number} has one of them"
                )
        try:
            return [{key: float(value) for key, value in row.items() if value} for row in rows]
        except ValueError as error:
            raise UsageError(f"{self.metrics}: expected numbers: {error}") from None

    def evaluated(self, step: int) -> list[dict[str, float]]:
        """The rows of metrics.csv of a step's epochs that were followed by an evaluation.

        Raises:
            UsageError: as `read_metrics`.
        """
        rows = self.read_metrics()
        return [row for row in rows if row["step"] == step and "val_accuracy" in row]

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Replaces metrics.csv, whole or not at all."""
        integers = ("step", "epoch")
        rows = [{**row, **{name: int(row[name]) for name in integers}} for row in rows]
        with self.replace(self.metrics) as path:
            write_rows(path, COLUMNS, rows)

    @contextlib.contextmanager
    def replace(self, path: pathlib.Path, **options) -> Iterator[pathlib.Path]:
        """`replace_file` for a file of this run.

        Raises:
            UsageError: the directory is no longer the run that was taken.
            OSError: the file cannot be written.
        """
        self.check()
        try:
            with replace_file(path, **options) as temporary:
                yield temporary
                self.check()
        except OSError:
            self.check()  # which is the reason if the directory has gone meanwhile
            raise

    def check(self) -> None:
        """Raises UsageError if the directory is no longer the run that was taken."""
        if self._taken is None:
            return
        try:
            same = self._identity() == self._taken
        except OSError:
            same = False
        if not same:
            raise UsageError(
                f"--output_dir: expected {self.directory} to stay the run that it was; it was "
                "moved, removed or begun anew meanwhile. What was saved last is where it is now, "
                "and --flagfile=THERE/flags.cfg resumes it"
            )

    @contextlib.contextmanager
    def _take(self) -> Iterator[None]:
        """Makes a locked run this process's; what killed processes were writing goes."""
        for folder in (self.directory, self.checkpoints, self.snapshots, self.plots):
            for path in folder.glob(".*"):
                if is_temporary(path.name):
                    path.unlink()
        self._taken = self._identity()
        try:
            yield
        finally:
            self._taken = None

    def _identity(self) -> tuple[int, int, bytes]:
        """What is another in another run in this place; no inode is given away while locked."""
        lock = (self.directory / _LOCK).stat()
        return lock.st_dev, lock.st_ino, self.flags.read_bytes()


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Takes the output directory for this process and writes flags.cfg, or resumes it.

    Raises:
        UsageError: the directory holds something else, a run with other settings, or
            another process works on it.
        OSError: it cannot be written to.
    """
    run = Run(config.output_dir)
    if run.flags.is_file():
        _check_same(config, run)
    elif run.directory.exists() and not _is_new(run.directory):
        raise UsageError(
            f"--output_dir: expected a new or empty directory, or that of the same run; "
            f"{run.directory} holds something else"
        )
    run.directory.mkdir(parents=True, exist_ok=True)
    with _lock(run.directory):
        if run.flags.is_file():  # another process may have begun it meanwhile
            _check_same(config, run)
        else:
            with replace_file(run.flags) as path:
                path.write_text("\n".join(config.lines()) + "\n", encoding="utf-8")
        with run._take():
            yield run


def wait_for(run: Run) -> None:
    """Returns when this process sees a run that another one has taken.

    Raises:
        UsageError: it does not.
    """
    end = time.monotonic() + _SEEN_SECONDS
    while not run.flags.is_file():
        if time.monotonic() > end:
            raise UsageError(
                f"--output_dir: expected a directory on a disk that every worker sees; the chief's "
                f"{run.flags} is not there"
            )
        time.sleep(_LOOKS_SECONDS)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Takes an existing run for this process, so that no other changes it meanwhile.

    Raises:
        UsageError: another process works on it.
        OSError: it cannot be written to.
    """
    with _lock(run.directory), run._take():
        yield


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
    lock = filelock.FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UsageError(
            f"--output_dir: another process is working on {directory}; expected a free one"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _is_new(directory: pathlib.Path) -> bool:
    """Whether a directory has nothing but what a run has before its flags.cfg is there."""
    return directory.is_dir() and all(
        entry.name in (_LOCK, ".flags.cfg") or is_temporary(entry.name)
        for entry in directory.iterdir()
    )


def _check_same(config: Config, run: Run) -> None:
    earlier = load_run(run.directory)
    differences = [
        name for name in config.defining() if getattr(config, name) != getattr(earlier, name)
    ]
    if differences:
        name = differences[0]
        had, received = (flag_text(getattr(each, name)) for each in (earlier, config))
        raise UsageError(
            f"--output_dir: {run.directory} holds a run with --{name}={had}; expected the same to "
            f"resume it, or another directory; received --{name}={received}"
        )
