"""Data sets as endless, seeded training streams and ordered evaluation batches."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.config import Config, UsageError
from larq_adambnn.data import catalog, check, idx, records
from larq_adambnn.data.catalog import describe
from larq_adambnn.data.check import write_left_out
from larq_adambnn.data.dataset import Dataset, bad_example
from larq_adambnn.data.sources import Source, dataset_source

__all__ = [
    "Dataset",
    "bad_example",
    "describe",
    "from_datasets",
    "load",
    "normalization",
    "write_left_out",
]

# (mean, standard deviation) of the training images on 0..1 values
_STATISTICS = {
    "digits": ((0.3055,), (0.3235,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load(config: Config) -> Dataset:
    """The data set that a config names.

    Raises:
        UsageError: it does not exist, is empty, has what cannot be used (unless that is to
            be left out), or does not fit the config.
    """
    class_names, channels = describe(config)
    splits = catalog.splits(config)
    known = check.read_left_out(config)

    @functools.cache
    def open_split(split):
        source, problems = catalog.open_source(config, split), ()
        if config.bad_images == "skip":
            source, problems = check.leave_out(source, split, known.get(split))
            print(f"--bad_images=skip: {len(problems):,} left out of {split}", flush=True)
        elif source.problems:
            raise UsageError(
                f"{source.problems[0]} ({len(source.problems):,} such problems; --mode=check_data "
                "lists them, --bad_images=skip leaves out what cannot be used)"
            )
        if split == "train" and config.train_images:
            source = _spaced(source, config.train_images)
        return source, problems

    mean, std = normalization(config)
    dataset = Dataset(config, class_names, channels, mean, std, splits, open_split)
    name = dataset.split_name()
    if name != config.split:
        print(f"--split={config.split}: {config.dataset} has none; taking {name}", flush=True)
    if config.mode == "train":
        _check_batch(dataset)
        dataset.source()
    return dataset


def from_datasets(
    config: Config,
    train: tf.data.Dataset,
    test: tf.data.Dataset,
    class_names: Sequence[str],
    *,
    shuffle: int = 1024,
) -> Dataset:
    """A data set of your own, for `training.train(config, dataset)` or as batches.

    A training that is resumed reads `train` again up to where it was (without augmenting
    that part), and sees the same images if `train` itself gives the same ones each time.

    Args:
        config: input size, augmentation, batch size and seed; its --dataset is but a name.
        train, test: single (image, label) examples of known number; images are uint8 or,
            on 0..1, float32 (H, W, C) pixels, or encoded strings, which give 3 channels.
        class_names: one name a label.
        shuffle: training examples that are shuffled at a time, each epoch in another way;
            they are held in memory.  0 keeps the order.

    Raises:
        ValueError: the elements are something else.
        UsageError: too few examples.
    """
    class_names = tuple(class_names)
    sources = {
        "train": dataset_source(train, class_names, "training", shuffle),
        "test": dataset_source(test, class_names, "test", 0),
    }
    channels = {source.channels for source in sources.values()}
    if len(channels) > 1:
        raise ValueError(f"Expected images of as many channels in both. Received: {channels}")
    (channels,) = channels
    mean, std = _statistics(config.dataset, channels)
    dataset = Dataset(
        config, class_names, channels, mean, std, ("test",), lambda split: (sources[split], ())
    )
    _check_batch(dataset)
    return dataset


def normalization(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel, on 0..1 values, of a config's images.

    Of IDX files they are measured on the training images.  Known data sets have their
    published ones, others ImageNet's or, if grey, 0.5 and 0.25.
    """
    if config.dataset == "idx":
        return idx.statistics(catalog.directory(config))
    return _statistics(records.split_name(config.dataset)[0], describe(config)[1])


def _statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    key = "imagenet" if name.startswith("imagenet") else name.split("/")[0].split(":")[0]
    mean, std = _STATISTICS.get(key, _STATISTICS["imagenet"])
    return (mean, std) if len(mean) == channels else ((0.5,) * channels, (0.25,) * channels)


def _spaced(source: Source, count: int) -> Source:
    """So many evenly spaced examples, which of a sorted data set show every class."""
    if count > len(source):
        raise UsageError(
            f"--train_images: expected at most {len(source):,}, all there are; received {count:,}"
        )
    kept = np.arange(count) * len(source) // count
    return source.without(np.delete(np.arange(len(source)), kept))


def _check_batch(dataset: Dataset) -> None:
    if dataset.steps_per_epoch == 0:
        raise UsageError(
            f"--batch_size: expected at most the {len(dataset.train_source)} training images of "
            f"{dataset.config.dataset}; received {dataset.config.batch_size}"
        )
