"""--mode=study: trains the runs of one of the paper's experiments, and sums them up."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tqdm import tqdm

from larq_adambnn import processes, progress
from larq_adambnn.commands.study import matrices
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import strategies, teachers, training
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run, open_run

__all__ = ["check", "main", "train"]

_POLL_SECONDS = 0.5
_DIVERGED = "expected a finite loss"  # what a run says whose loss became infinite


def main(config: Config) -> None:
    """Runs what is left of a study, and writes study.csv, study.md, report.html and plots/*.png.

    They have the rows that `--rows` names, and all others whose runs have ended before.

    Raises:
        UsageError: the settings do not fit the study, or one of its runs failed.
    """
    rows = matrices.rows(config)
    seeds = range(config.seed, config.seed + config.seeds)
    asked = [row.config(config, seed, ()) for seed in seeds for row in rows]
    # In a process of its own, since TensorFlow keeps the memory of a GPU until its process ends.
    with processes.pool() as process:
        process.submit(check, asked[: len(rows)]).result()
    with open_run(config) as directory:
        logs = directory.directory / "logs"
        count = max(row.teacher(config).count("self") for row in rows)
        own = [
            teachers.own_config(config, str(directory.teacher(number)), number)
            for number in range(1, count + 1 if config.loss != "cross_entropy" else 1)
        ]
        _train_all(own, logs, 1)
        own = [teacher.output_dir for teacher in own]
        runs = {row.name: [row.config(config, seed, own) for seed in seeds] for row in rows}
        # All rows with the first seed, then with the second: an early look shows every row.
        _train_all(
            [run for of_seed in zip(*runs.values(), strict=True) for run in of_seed],
            logs,
            config.jobs,
        )
        every = [row for row in matrices.matrix(config) if row.changes["learning_rate"] is not None]
        for row in every:
            if row.name not in runs:
                of_row = [row.config(config, seed, own) for seed in seeds]
                if all(_finished(run) or _diverged(_log(run, logs)) for run in of_row):
                    runs[row.name] = of_row
        rows = [row for row in every if row.name in runs]
        from larq_adambnn.commands.study import tables

        tables.write(config, rows, {row.name: runs[row.name] for row in rows})


def check(configs: Sequence[Config]) -> None:
    """Raises UsageError if one of some runs with the same data cannot begin, all of one seed."""
    dataset = None
    strategy = strategies.build(configs[0])
    for config in configs:
        dataset = training.check(config, strategy, dataset)
        with strategy.scope():
            training.given_teachers(config, dataset)


def _train_all(configs: Sequence[Config], logs: pathlib.Path, jobs: int) -> None:
    """Trains runs that are not finished, some at a time, each in its own process.

    Raises:
        UsageError: a run failed; others that were under way are stopped and can resume.
    """
    waiting = [config for config in configs if not _finished(config)]
    running: dict[Config, multiprocessing.Process] = {}
    epochs = {config: _epochs_done(config) for config in configs}
    total = sum(map(_epochs, configs))
    start, before = time.monotonic(), sum(epochs.values())
    with (
        _stopped_at_the_end(running),
        tqdm(total=total, initial=before, unit="epoch", disable=None) as bar,
    ):
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.pop(0)
                running[config] = _start(config, _log(config, logs), jobs)
            time.sleep(_POLL_SECONDS)
            for config, process in list(running.items()):
                epochs[config] = _epochs_done(config)
                if process.is_alive():
                    continue
                del running[config]
                if process.exitcode:
                    _check_failure(config, _log(config, logs))
                epochs[config] = _epochs(config)
                done = sum(epochs.values())
                left = (time.monotonic() - start) * (total - done) / max(1, done - before)
                bar.write(
                    f"{config.output_dir}: {_result(config)}, {done} of {total} epochs, "
                    f"{left / 60:.0f} min left",
                    file=sys.stdout,
                )
                sys.stdout.flush()
            bar.update(sum(epochs.values()) - bar.n)


@contextlib.contextmanager
def _stopped_at_the_end(running: dict) -> Iterator[None]:
    """Ends the processes that still run when the block is left, also by SIGTERM."""
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
        signal.signal(signal.SIGTERM, handler)


def _start(config: Config, log: pathlib.Path, jobs: int) -> multiprocessing.Process:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return processes.start(log, f"{__name__}:train", config, threads)


def train(config: Config, threads: int) -> None:
    """Trains a run in a process of its own, which ends with the process that began it.

    Args:
        config: of the run.
        threads: of TensorFlow, of each kind.
    """
    os.setpgrp()  # an interrupt of the terminal comes as SIGTERM through the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    progress.show()
    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    try:
        training.train(config)
    except UsageError as error:
        sys.exit(f"error: {error}")


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _log(config: Config, logs: pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(config.output_dir)
    return logs / f"{path.parent.name}_{path.name}.txt"


def _check_failure(config: Config, log: pathlib.Path) -> None:
    """Raises UsageError for a run that failed, unless its loss became infinite."""
    if not _diverged(log):
        raise UsageError(
            f"--study: expected {config.output_dir} to finish; its last line is "
            f"{_last_line(log)[:300]!r}, and {log} shows more"
        )


def _diverged(log: pathlib.Path) -> bool:
    return _DIVERGED in _last_line(log)


def _last_line(log: pathlib.Path) -> str:
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def _epochs(config: Config) -> int:
    return config.epochs * len(config.steps)


def _epochs_done(config: Config) -> int:
    return len(Run(config.output_dir).read_metrics())


def _finished(config: Config) -> bool:
    return Run(config.output_dir).weights(len(config.steps)).is_file()


def _result(config: Config) -> str:
    if not _finished(config):
        return "diverged"
    rows = Run(config.output_dir).evaluated(len(config.steps))
    return f"validation accuracy {100 * rows[-1]['val_accuracy']:.2f} %" if rows else "finished"
