"""Which data set a name stands for: its classes, its splits and their sources."""

import pathlib

from larq_adambnn.data import folder, idx, records, statistics
from larq_adambnn.data.sources import Source

__all__ = ["describe", "normalization", "open_source", "splits"]


def describe(name: str, data_dir: str = "") -> tuple[tuple[str, ...], int]:
    """(class names, channels) of a data set, without preparing it.

    Args:
        name: digits, image_folder, idx or a name in TFDS, the latter with :SPLIT if another
            split or part than train is to be trained on.
        data_dir: where the data set is or, for a name in TFDS, is prepared.

    Raises:
        UsageError: there is no such data set.
    """
    if name == "image_folder":
        return folder.class_names(_directory(data_dir)), 3
    if name == "idx":
        return idx.class_names(_directory(data_dir)), 1
    return records.describe(records.split_name(name)[0], data_dir)


def normalization(name: str, data_dir: str = "") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel, on 0..1 values, of a data set's images.

    Of IDX files they are measured on the training images; see `statistics.known` for the
    others.
    """
    if name == "idx":
        return idx.statistics(_directory(data_dir))
    return statistics.known(records.split_name(name)[0], describe(name, data_dir)[1])


def splits(name: str, data_dir: str = "") -> tuple[str, ...]:
    """The splits besides the training one; a TFDS data set is prepared on first use."""
    if name == "image_folder":
        found = folder.splits(_directory(data_dir))
    elif name == "idx":
        found = idx.splits(_directory(data_dir))
    else:
        found = records.splits(records.split_name(name)[0], data_dir)
    return tuple(split for split in found if split != "train")


def open_source(name: str, data_dir: str, split: str) -> Source:
    """A split; what is wrong with it before an image is read is among its problems.

    Raises:
        UsageError: there is no such data set or split, or nothing in it can be used.
    """
    if name == "image_folder":
        return folder.open_folder(_directory(data_dir), split)
    if name == "idx":
        return idx.open_idx(_directory(data_dir), split)
    name, training = records.split_name(name)
    return records.open_tfds(name, training if split == "train" else split, data_dir)


def _directory(data_dir: str) -> pathlib.Path:
    return pathlib.Path(data_dir).expanduser()
