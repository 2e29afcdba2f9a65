"""What the workers of a training have to have in common, for `strategies.agree` to compare."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import tensorflow as tf

import larq_adambnn
from larq_adambnn.data import Dataset
from larq_adambnn.data.sources import digest
from larq_adambnn.files import sha256
from larq_adambnn.names import APPLICATIONS
from larq_adambnn.runs import datasets, provenance
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import given_run
from larq_adambnn.runs.teachers import fingerprint
from larq_adambnn.runs.usage import flag_text

__all__ = ["data", "directory", "evaluation", "flags"]

# Flags of paths, which a machine may have elsewhere, and what changes nothing
_OWN = ("run", "data_dir", "output_dir", "debug")
# Those whose paths are only said to be some, unless it is one of these names
_NAMED = {
    "init_from": ("", "teacher"),
    "teacher": ("self", "resnet34", *APPLICATIONS),
    "teacher_weights": ("", "imagenet"),
}
_DIGITS = 8  # of a checksum in a message

Facts = Mapping[str, Callable[[], str]]


def flags(config: Config) -> Facts:
    """The flags, and the versions that give them their meaning."""
    values = {"larq_adambnn": larq_adambnn.__version__, "TensorFlow": tf.__version__}
    for name, value in dataclasses.asdict(config).items():
        if name not in _OWN:
            several = value if isinstance(value, tuple) else (value,)
            known = _NAMED.get(name, several)
            shown = tuple(item if item in known else "a path" for item in several)
            values[f"--{name}"] = flag_text(shown)
    return {name: value.__str__ for name, value in values.items()}


def data(config: Config, dataset: Dataset) -> Facts:
    """The examples, what was left out of them, and the weights that the training begins with.

    Args:
        config, dataset: of the training.
    """
    found = {
        **_examples(dataset, "train", dataset.split_name()),
        "teacher": lambda: fingerprint(config)[:_DIGITS] or "none",
    }
    runs = [] if config.loss == "cross_entropy" else config.teacher
    runs = [name for name in runs if name not in _NAMED["teacher"]]
    if runs:
        found["network of --teacher"] = lambda: ", ".join(map(_network, runs))
    if initial := given_run(config):
        found["network of --init_from"] = lambda: _network(initial)
    return found


def evaluation(config: Config, directory: str, dataset: Dataset, split: str) -> Facts:
    """The flags, the network and the examples of an evaluation.

    Args:
        config: of the command.
        directory: of the run.
        dataset, split: that it is evaluated on.
    """
    network = {"network of --run": lambda: _network(directory, config.step, config.best)}
    return {**flags(config), **network, **_examples(dataset, split)}


def _examples(dataset: Dataset, *splits: str) -> Facts:
    """The classes and the examples of some splits, with what was left out of them."""
    found = {
        "classes": lambda: _short(repr(dataset.class_names)),
        "normalization": lambda: repr(dataset.preparation),
    }
    for split in splits:
        found[f"images left out of {split}"] = lambda split=split: _short(
            repr([(problem.index, problem.reason) for problem in dataset.left_out(split)])
        )
        found[f"examples of {split}"] = lambda split=split: _short(
            repr(dataset.source(split).fingerprint())
        )
    return found


def _network(directory: str, step: int = 0, best: bool = False) -> str:
    """What is read of a finished run: the flags and the data of its network, and its weights."""
    run, config = Run(directory), load_run(directory)
    data = datasets.without_images(config, provenance.read(run))
    settings = [fact() for fact in flags(config).values()]
    weights = _sum(run.weights(step or run.last_step(), best=best))
    return _short(repr([settings, data.class_names, data.preparation, weights]))


def directory(run: Run) -> Facts:
    """What is in the directory of a run before it goes on."""
    newest = max((path.name for path in run.checkpoints.glob("[0-9]*.npz")), default="none")
    files = [run.flags, run.data, run.left_out, run.metrics]
    files += [run.weights(step, best=best) for step in (1, 2) for best in (False, True)]
    return {
        "newest checkpoint in --output_dir": lambda: newest,
        **{f"{path.name} in --output_dir": lambda path=path: _sum(path) for path in files},
    }


def _sum(path: pathlib.Path) -> str:
    return sha256(path)[:_DIGITS] if path.is_file() else "none"


def _short(text: str) -> str:
    return digest(text.encode())[:_DIGITS]
