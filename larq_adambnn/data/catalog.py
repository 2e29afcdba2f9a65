"""Which data set a config names: its classes, its splits and their sources."""

import pathlib

from larq_adambnn.config import Config, UsageError
from larq_adambnn.data import folder, idx, records
from larq_adambnn.data.sources import Source

__all__ = ["describe", "directory", "open_source", "splits"]


def describe(config: Config) -> tuple[tuple[str, ...], int]:
    """(class names, channels) of the data set that a config names, without preparing it.

    Raises:
        UsageError: there is no such data set, or it has another number of classes.
    """
    class_names, channels = _describe(config)
    if config.num_classes not in (0, len(class_names)):
        raise UsageError(
            f"--num_classes: expected {len(class_names)}, the classes of {config.dataset}; "
            f"received {config.num_classes}"
        )
    return class_names, channels


def _describe(config: Config) -> tuple[tuple[str, ...], int]:
    if config.dataset == "image_folder":
        return folder.class_names(directory(config)), 3
    if config.dataset == "idx":
        return idx.class_names(directory(config)), 1
    return records.describe(records.split_name(config.dataset)[0], config.data_dir)


def splits(config: Config) -> tuple[str, ...]:
    """The splits besides the training one; a TFDS data set is prepared on first use."""
    if config.dataset == "image_folder":
        found = folder.splits(directory(config))
    elif config.dataset == "idx":
        found = idx.splits(directory(config))
    else:
        found = records.splits(records.split_name(config.dataset)[0], config.data_dir)
    return tuple(split for split in found if split != "train")


def open_source(config: Config, split: str) -> Source:
    """A split; what is wrong with it before an image is read is among its problems.

    Raises:
        UsageError: there is no such data set or split, or nothing in it can be used.
    """
    if config.dataset == "image_folder":
        return folder.open_folder(directory(config), split)
    if config.dataset == "idx":
        return idx.open_idx(directory(config), split)
    name, training = records.split_name(config.dataset)
    return records.open_tfds(name, training if split == "train" else split, config.data_dir)


def directory(config: Config) -> pathlib.Path:
    """Where the files of --data_dir are."""
    return pathlib.Path(config.data_dir).expanduser()
