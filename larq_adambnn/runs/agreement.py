"""What the workers of a training have to have in common, for `strategies.agree` to compare."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import tensorflow as tf

import larq_adambnn
from larq_adambnn.data import Dataset
from larq_adambnn.data.sources import digest
from larq_adambnn.files import sha256
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.teachers import fingerprint
from larq_adambnn.runs.usage import flag_text

__all__ = ["data", "directory", "flags"]

# Flags of paths, which a machine may have elsewhere, and what changes nothing
_OWN = ("data_dir", "output_dir", "init_from", "teacher", "teacher_weights", "debug")
_DIGITS = 8  # of a checksum in a message

Facts = Mapping[str, Callable[[], str]]


def flags(config: Config) -> Facts:
    """The flags, and the versions that give them their meaning."""
    values = {
        "larq_adambnn": larq_adambnn.__version__,
        "TensorFlow": tf.__version__,
        **{
            f"--{name}": flag_text(value)
            for name, value in dataclasses.asdict(config).items()
            if name not in _OWN
        },
    }
    return {name: value.__str__ for name, value in values.items()}


def data(config: Config, dataset: Dataset) -> Facts:
    """The examples, what was left out of them, and the weights that the training begins with.

    Args:
        config, dataset: of the training.
    """
    found = {
        "classes": lambda: _short(repr(dataset.class_names)),
        "normalization": lambda: repr(dataset.preparation),
        "teacher": lambda: fingerprint(config)[:_DIGITS] or "none",
    }
    for split in ("train", dataset.split_name()):
        found[f"images left out of {split}"] = lambda split=split: _short(
            repr([(problem.index, problem.reason) for problem in dataset.left_out(split)])
        )
        found[f"examples of {split}"] = lambda split=split: _short(
            repr(dataset.source(split).fingerprint())
        )
    if config.init_from:
        initial = Run(config.init_from)
        found["weights of --init_from"] = lambda: _sum(initial.weights(initial.last_step()))
    return found


def directory(run: Run) -> Facts:
    """What is in the directory of a run before it goes on."""
    newest = max((path.name for path in run.checkpoints.glob("[0-9]*.npz")), default="none")
    files = [run.flags, run.data, run.left_out, run.metrics, run.best_weights]
    files += [run.weights(1), run.weights(2)]
    return {
        "newest checkpoint in --output_dir": lambda: newest,
        **{f"{path.name} in --output_dir": lambda path=path: _sum(path) for path in files},
    }


def _sum(path: pathlib.Path) -> str:
    return sha256(path)[:_DIGITS] if path.is_file() else "none"


def _short(text: str) -> str:
    return digest(text.encode())[:_DIGITS]
