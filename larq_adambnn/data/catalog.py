"""Which data set a name stands for: its classes, its splits and their sources."""

import dataclasses
import pathlib
from collections.abc import Sequence

from larq_adambnn.data import folder, idx, records, statistics
from larq_adambnn.data.sources import Source
from larq_adambnn.errors import UsageError

__all__ = ["Description", "class_changes", "describe", "open_source", "splits"]

_NAMED = 3  # classes in a message


@dataclasses.dataclass(frozen=True)
class Description:
    """What a network has to know of its data set, which need not be there then.

    Attributes:
        class_names: one name a label.
        channels: of the images, 1 or 3.
        mean, std: per channel, on 0..1 values, that the images are normalized with.
    """

    class_names: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe(name: str, data_dir: str = "", channels: int = 0) -> Description:
    """The description of a data set, without preparing it.

    The normalization of IDX files is measured on the training images; see
    `statistics.known` for the others.

    Args:
        name: digits, image_folder, idx or a name in TFDS, the latter with :SPLIT if another
            split or part than train is to be trained on.
        data_dir: where the data set is or, for a name in TFDS, is prepared.
        channels: to which its images are converted; 0 leaves them.

    Raises:
        UsageError: there is no such data set.
    """
    if name == "idx":
        directory, channels = _directory(data_dir), channels or 1
        mean, std = idx.statistics(directory)
        return Description(idx.class_names(directory), channels, mean * channels, std * channels)
    if name == "image_folder":
        class_names, own = folder.class_names(_directory(data_dir)), 3
    else:
        class_names, own = records.describe(records.split_name(name)[0], data_dir)
    channels = channels or own
    return Description(class_names, channels, *statistics.known(name, channels))


def splits(name: str, data_dir: str = "") -> tuple[str, ...]:
    """The splits besides the training one; a TFDS data set is prepared on first use.

    Raises:
        UsageError: there is no such data set.
    """
    if name == "image_folder":
        found = folder.splits(_directory(data_dir))
    elif name == "idx":
        found = idx.splits(_directory(data_dir))
    else:
        found = records.splits(records.split_name(name)[0], data_dir)
    if not found:
        raise UsageError(f"data_dir: expected a split of {name} in {data_dir!r}; there is none")
    return tuple(split for split in found if split != "train")


def open_source(name: str, data_dir: str, split: str, class_names: Sequence[str]) -> Source:
    """A split; what is wrong with it before an image is read is among its problems.

    Args:
        name, data_dir: as for `describe`.
        split: train, or one of `splits`.
        class_names: the classes in the order of their labels, by which images are labelled.

    Raises:
        UsageError: there is no such data set or split, it has other classes, or nothing in it
            can be used.
    """
    if name == "image_folder":
        return folder.open_folder(_directory(data_dir), split, class_names)
    if name == "idx":
        return idx.open_idx(_directory(data_dir), split, class_names)
    dataset, training = records.split_name(name)
    source = records.open_tfds(dataset, training if split == "train" else split, data_dir)
    if changes := class_changes(class_names, source.class_names):
        raise UsageError(
            f"dataset: expected the {len(class_names)} classes that the network knows; "
            f"{name} is {changes}"
        )
    return source


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """How class names differ from others, such as "without 'cat', with 'dog'"; "" if not at all."""
    parts = []
    for word, some, others in (("without", before, now), ("with", now, before)):
        changed = sorted(set(some) - set(others))
        if changed:
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            parts.append(f"{word} {', '.join(map(repr, changed[:_NAMED]))}{more}")
    if not parts and tuple(before) != tuple(now):
        parts.append("with the same classes in another order")
    return ", ".join(parts)


def _directory(data_dir: str) -> pathlib.Path:
    if not data_dir:
        raise UsageError("data_dir: expected the directory of the images; received none")
    return pathlib.Path(data_dir).expanduser()
