"""Data sets as endless, seeded training streams and ordered evaluation batches."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import (
    PATH,
    TEXT,
    Kind,
    expect,
    instance,
    names,
    number,
    one_of,
    optional,
    several,
    whole,
)
from larq_adambnn.data import catalog, check, statistics
from larq_adambnn.data.catalog import Description, describe, splits
from larq_adambnn.data.dataset import Dataset, bad_example
from larq_adambnn.data.preparation import Preparation
from larq_adambnn.data.settings import Settings, settings_of
from larq_adambnn.data.sources import Problem, Source, dataset_source, file_source
from larq_adambnn.errors import UsageError
from larq_adambnn.names import BAD_IMAGES
from larq_adambnn.progress import say

__all__ = [
    "Dataset",
    "Description",
    "Preparation",
    "Problem",
    "Settings",
    "bad_example",
    "describe",
    "from_datasets",
    "from_files",
    "load",
    "splits",
]

_HELD_OUT = "held_out"


def load(
    name: str,
    data_dir: str | os.PathLike = "",
    *,
    split: str = "test",
    train_images: int = 0,
    held_out: int = 0,
    bad_images: str = "error",
    left_out: Mapping[str, Sequence[Problem]] | None = None,
    description: Description | None = None,
    settings: Settings | None = None,
    **changes,
) -> Dataset:
    """The data set of a name, as a training stream and evaluation batches.

    ``load("image_folder", "flowers", image_size=96, batch_size=64)`` reads
    ``flowers/train/CLASS/*`` and ``flowers/val/CLASS/*``.

    Args:
        name: digits, image_folder (SPLIT/CLASS/*), idx (MNIST's files), or a name in TFDS,
            with :SPLIT if another split or part than train is to be trained on.
        data_dir: where the data set is or, for a name in TFDS, is prepared.
        split: what `Dataset.evaluation` gives by default; where there is no test split,
            `test` is the validation split.
        train_images: training images to use, evenly spaced in the data set; 0: all.
        held_out: training images, evenly spaced, that are not trained on but are the split
            `held_out`, by which rates and recipes are chosen; `train_images` are of the rest.
        bad_images: "error" stops at an image that cannot be used; "skip" reads everything
            once and leaves such images out.
        left_out: what was left out of each split before, so that nothing need be read.
        description: of what a network was trained on, so that its images are labelled and
            normalized as then and the training ones need not be there; by default the data
            set's own.
        settings: image size, augmentation, batch size and seed.
        **changes: settings by name that replace those.

    Raises:
        UsageError: it does not exist, is empty, has other classes than the description, or has
            what cannot be used.
        ValueError: an argument is out of range.
    """
    expect("name", name, TEXT)
    expect("data_dir", data_dir, PATH)
    expect("split", split, TEXT)
    expect("train_images", train_images, whole(0))
    expect("held_out", held_out, whole(0))
    expect("bad_images", bad_images, one_of(*BAD_IMAGES))
    expect("left_out", left_out, optional(instance(Mapping, "a dictionary")))
    settings, data_dir = settings_of(settings, changes), os.fspath(data_dir)
    left_out = left_out or {}
    known = description or describe(name, data_dir, settings.channels)
    others = splits(name, data_dir)
    if held_out:
        others += (_HELD_OUT,)

    @functools.cache
    def open_whole(split):
        source, problems = catalog.open_source(name, data_dir, split, known.class_names), ()
        if bad_images == "skip":
            source, problems = check.leave_out(source, split, left_out.get(split))
            say(f"bad_images=skip: {len(problems):,} left out of {split}", logging.WARNING)
        elif source.problems:
            raise UsageError(
                f"{source.problems[0]} ({len(source.problems):,} such problems; mode=check_data "
                "lists them, bad_images=skip leaves out what cannot be used)"
            )
        return source, problems

    @functools.cache
    def open_split(split):
        source, problems = open_whole("train" if split == _HELD_OUT else split)
        if split == _HELD_OUT:
            source = source.only(_spaced(source, "held_out", held_out))
        elif split == "train" and held_out:
            source = source.without(_spaced(source, "held_out", held_out))
        if split == "train" and train_images:
            source = source.only(_spaced(source, "train_images", train_images))
        return source, problems

    dataset = Dataset(
        name=name,
        settings=settings,
        class_names=known.class_names,
        preparation=_preparation(settings, known.channels, known.mean, known.std),
        splits=others,
        open_split=open_split,
        split=split,
    )
    found = dataset.split_name()
    if found != split:
        say(f"split={split}: {name} has none; taking {found}", logging.WARNING)
    return dataset


def from_datasets(
    train: tf.data.Dataset,
    test: tf.data.Dataset,
    class_names: Sequence[str],
    *,
    name: str = "",
    shuffle: int = 1024,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    settings: Settings | None = None,
    **changes,
) -> Dataset:
    """A data set of your own, which trains, evaluates and exports as a named one does.

    A training that is resumed reads `train` again up to where it was (without augmenting
    that part), and sees the same images if `train` itself gives the same ones each time.

    Args:
        train, test: single (image, label) examples of known number; images are uint8 or,
            on 0..1, float32 (H, W, C) pixels, or encoded strings, which give 3 channels
            unless `channels` is 1.
        class_names: one name a label.
        name: what messages call it; a name known to TFDS also gives its mean and deviation.
        shuffle: training examples that are shuffled at a time, each epoch in another way;
            they are held in memory.  0 keeps the order.
        mean, std: per channel, on 0..1 values; by default see `statistics.known`.
        settings: image size, augmentation, batch size and seed.
        **changes: settings by name that replace those.

    Raises:
        ValueError: the elements are something else, or an argument is out of range.
        UsageError: too few examples.
    """
    for split, given in (("train", train), ("test", test)):
        expect(split, given, instance(tf.data.Dataset, "a tf.data.Dataset"))
    expect("class_names", class_names, names(distinct=True))
    expect("name", name, TEXT)
    expect("shuffle", shuffle, whole(0))
    settings, class_names = settings_of(settings, changes), tuple(class_names)
    sources = {
        "train": dataset_source(train, class_names, "training", shuffle),
        "test": dataset_source(test, class_names, "test", 0),
    }
    channels = {source.channels for source in sources.values()}
    if len(channels) > 1:
        raise ValueError(f"Expected images of as many channels in both. Received: {channels}")
    channels = settings.channels or channels.pop()
    usual_mean, usual_std = statistics.known(name, channels)
    mean = usual_mean if mean is None else _by_channel("mean", mean, number(), channels)
    std = usual_std if std is None else _by_channel("std", std, number(above=0), channels)
    dataset = Dataset(
        name=name or "own data",
        settings=settings,
        class_names=class_names,
        preparation=_preparation(settings, channels, mean, std),
        splits=("test",),
        open_split=lambda split: (sources[split], ()),
    )
    dataset.check_batch()
    return dataset


def from_files(
    files: Sequence[str | os.PathLike], preparation: Preparation, class_names: Sequence[str]
) -> Dataset:
    """Image files without labels, prepared as for evaluation: the split `test`."""
    source = file_source(list(map(os.fspath, files)), tuple(class_names), preparation.channels)
    return Dataset(
        name="files",
        settings=Settings(image_size=preparation.image_size, crop=preparation.crop),
        class_names=tuple(class_names),
        preparation=preparation,
        splits=("test",),
        open_split=lambda split: (source, ()),
    )


def _by_channel(name: str, values, kind: Kind, channels: int) -> tuple[float, ...]:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    text = f"{channels} values, each {kind.expected}"
    expect(name, values, several(kind, text, length=channels))
    return tuple(map(float, values))


def _preparation(settings: Settings, channels: int, mean, std) -> Preparation:
    return Preparation(settings.image_size, settings.crop, channels, mean, std)


def _spaced(source: Source, flag: str, count: int) -> np.ndarray:
    """So many evenly spaced indices, which of a sorted data set show every class."""
    if count > len(source):
        raise UsageError(
            f"{flag}: expected at most {len(source):,}, all there are; received {count:,}"
        )
    return np.arange(count) * len(source) // count
