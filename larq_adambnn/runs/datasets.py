"""The data set of a run: opened as its flags say, without what was left out of it before."""

import dataclasses
import json

from larq_adambnn import data
from larq_adambnn.data import Dataset, Problem
from larq_adambnn.errors import SplitError, UsageError
from larq_adambnn.files import replace_file
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run

__all__ = ["describe", "load", "settings", "without_images", "write_left_out"]


def settings(config: Config) -> data.Settings:
    """The part of a config that its data set is prepared by."""
    names = {field.name for field in dataclasses.fields(data.Settings)} - {"augment"}
    return data.Settings(**{name: getattr(config, name) for name in names})


def describe(config: Config) -> tuple[tuple[str, ...], int]:
    """(class names, channels) of the data set that a config names, without preparing it.

    Raises:
        UsageError: there is no such data set, or it has another number of classes.
    """
    class_names, channels = data.describe(config.dataset, config.data_dir)
    if config.num_classes not in (0, len(class_names)):
        raise UsageError(
            f"--num_classes: expected {len(class_names)}, the classes of {config.dataset}; "
            f"received {config.num_classes}"
        )
    return class_names, channels


def without_images(config: Config) -> Dataset:
    """What a config's network has to know of its images, as a data set that has none.

    Raises:
        UsageError: there is no such data set.
    """
    class_names, channels = describe(config)
    mean, std = data.normalization(config.dataset, config.data_dir)
    return Dataset(
        name=config.dataset,
        settings=settings(config),
        class_names=class_names,
        preparation=data.Preparation(config.image_size, config.crop, channels, mean, std),
        splits=(),
        open_split=_no_split,
    )


def _no_split(split: str):
    raise SplitError(f"--split: expected a data set with images; there is none to read {split} of")


def load(config: Config) -> Dataset:
    """The data set that a config names.

    Raises:
        UsageError: it does not exist, is empty, has what cannot be used (unless that is to
            be left out), or does not fit the config.
    """
    if config.num_classes:  # it lists a folder's classes; data.load does so too
        describe(config)
    dataset = data.load(
        config.dataset,
        config.data_dir,
        split=config.split,
        train_images=config.train_images,
        bad_images=config.bad_images,
        left_out=_read_left_out(config),
        settings=settings(config),
    )
    if config.mode == "train":
        dataset.check_batch()
        dataset.source()
    return dataset


def write_left_out(dataset: Dataset, config: Config, run: Run) -> None:
    """Notes in a run what --bad_images=skip left out, for its report and for resuming it."""
    if config.bad_images != "skip" or run.left_out.is_file():
        return
    left_out = {}
    for split in ("train", dataset.split_name()):
        problems = dataset.left_out(split)
        left_out[split] = [dataclasses.asdict(problem) for problem in problems]
    with replace_file(run.left_out) as path:
        path.write_text(json.dumps(left_out, indent=1) + "\n", encoding="utf-8")


def _read_left_out(config: Config) -> dict[str, list[Problem]]:
    """What a config's run noted, of each split."""
    path = Run(config.output_dir).left_out
    if config.bad_images != "skip" or not config.output_dir or not path.is_file():
        return {}
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return {
            split: [Problem(**problem) for problem in problems] for split, problems in noted.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"--output_dir: cannot read {path}: {error}") from None
