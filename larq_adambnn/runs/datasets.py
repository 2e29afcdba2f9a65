"""The data set of a run: opened as its flags say, without what was left out of it before."""

import dataclasses
import json

from larq_adambnn import data
from larq_adambnn.data import Dataset, Description, Problem
from larq_adambnn.errors import SplitError, UsageError
from larq_adambnn.files import read_json
from larq_adambnn.runs import provenance
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run

__all__ = ["check_same", "describe", "load", "remember", "settings", "without_images"]


def settings(config: Config) -> data.Settings:
    """The part of a config that its data set is prepared by."""
    names = {field.name for field in dataclasses.fields(data.Settings)} - {"augment"}
    return data.Settings(**{name: getattr(config, name) for name in names})


def describe(config: Config, known: Description | None = None) -> tuple[tuple[str, ...], int]:
    """(class names, channels) of the data set that a config names, without preparing it.

    Args:
        config: names the data set.
        known: what is known of it (see `provenance.read`), so that it need not be there.

    Raises:
        UsageError: there is no such data set, or it has another number of classes.
    """
    found = _description(config, known)
    return found.class_names, found.channels


def _description(config: Config, known: Description | None) -> Description:
    found = known or data.describe(config.dataset, config.data_dir, config.channels)
    if config.num_classes not in (0, len(found.class_names)):
        raise UsageError(
            f"--num_classes: expected {len(found.class_names)}, the classes of {config.dataset}; "
            f"received {config.num_classes}"
        )
    return found


def without_images(config: Config, known: Description | None = None) -> Dataset:
    """What a config's network has to know of its images, as a data set that has none.

    Args:
        config, known: as for `describe`.

    Raises:
        UsageError: there is no such data set.
    """
    found = _description(config, known)
    return Dataset(
        name=config.dataset,
        settings=settings(config),
        class_names=found.class_names,
        preparation=data.Preparation(
            config.image_size, config.crop, found.channels, found.mean, found.std
        ),
        splits=(),
        open_split=_no_split,
    )


def _no_split(split: str):
    raise SplitError(f"--split: expected a data set with images; there is none to read {split} of")


def load(config: Config, known: Description | None = None) -> Dataset:
    """The data set that a config names.

    Args:
        config: names the data set.
        known: the classes, by whose names the images are labelled, and the normalization of a
            network that was trained before (see `provenance.read`).

    Raises:
        UsageError: it does not exist, is empty, has what cannot be used (unless that is to
            be left out), or does not fit the config or what is known.
    """
    description = _description(config, known)
    if config.mode == "train":
        _check_classes(config, description)
    dataset = data.load(
        config.dataset,
        config.data_dir,
        split=config.split,
        train_images=config.train_images,
        held_out=config.held_out,
        bad_images=config.bad_images,
        left_out=_read_left_out(config),
        description=description,
        settings=settings(config),
    )
    if config.mode == "train":
        dataset.check_batch()
        dataset.source()
    return dataset


def _check_classes(config: Config, now: Description) -> None:
    """Raises UsageError if the run of a config has begun with other classes of its data set.

    Before it is read, since images of other classes are a problem of their own.
    """
    run = Run(config.output_dir)
    before = provenance.read(run)
    if before is not None and before.dataset == config.dataset:
        same_but = dataclasses.replace(before, class_names=now.class_names)
        provenance.check_same(run, before, same_but)


def remember(dataset: Dataset, config: Config, run: Run, teacher: str = "") -> None:
    """Writes into a run what it is trained on and what was left out, before it begins.

    Args:
        dataset, config, run: of the training.
        teacher: see `Provenance`.

    Raises:
        UsageError: the run has begun with other data, or with another teacher.
    """
    if check_same(dataset, run, teacher) is None:
        provenance.write(run, provenance.of(dataset, teacher=teacher))
    _write_left_out(dataset, config, run)


def check_same(dataset: Dataset, run: Run, teacher: str = "") -> provenance.Provenance | None:
    """What a run remembers.

    Raises:
        UsageError: that is not this data set, or not this teacher.
    """
    before = provenance.read(run)
    if before is not None:
        provenance.check_same(run, before, provenance.of(dataset, teacher=teacher))
    return before


def _write_left_out(dataset: Dataset, config: Config, run: Run) -> None:
    """Notes in a run what --bad_images=skip left out, for its report and for resuming it."""
    if config.bad_images != "skip" or run.left_out.is_file():
        return
    left_out = {}
    for split in ("train", dataset.split_name()):
        problems = dataset.left_out(split)
        left_out[split] = [dataclasses.asdict(problem) for problem in problems]
    with run.replace(run.left_out) as path:
        path.write_text(json.dumps(left_out, indent=1) + "\n", encoding="utf-8")


def _read_left_out(config: Config) -> dict[str, list[Problem]]:
    """What a config's run noted, of each split."""
    path = Run(config.output_dir).left_out
    if config.bad_images != "skip" or not config.output_dir or not path.is_file():
        return {}
    return read_json(path, dict[str, list[Problem]], "what --bad_images=skip left out")
