"""What a training's settings will not give, told before it begins."""

import math

import tensorflow as tf

from larq_adambnn.data import Dataset
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import students
from larq_adambnn.runs.config import Config

__all__ = ["notes"]

_OLD_SHARE = 0.05  # of what the last weights of a step count in the average, for its first
_LEFT_OUT = 1 / 3  # of the training images in each epoch
_FEW_VALUES = 2  # of two values batch norm keeps which is the larger


def notes(config: Config, dataset: Dataset, replicas: int = 1) -> list[str]:
    """What is likely to make a training bad, a line each.

    Args:
        config: its settings.
        dataset: what it is to learn.
        replicas: that share a batch.

    Raises:
        UsageError: there is nothing to learn.
    """
    classes, images = len(dataset.class_names), len(dataset.train_source)
    if classes < 2:
        raise UsageError(
            f"--dataset: expected two classes or more to learn; {dataset.name} has "
            f"{dataset.class_names[0]!r} only"
        )
    found = []
    if config.init_from and students.initial_classes(config, dataset) != dataset.class_names:
        found.append(
            f"--init_from: {config.init_from} has other classes than {dataset.name}, so its "
            "backbone is taken and the classifier is new"
        )
    if config.freeze_backbone and not config.init_from:
        found.append(
            "--freeze_backbone: expected --init_from with it; the backbone stays as it was drawn"
        )
    if images < classes:
        found.append(
            f"--train_images: expected as many training images as classes or more; {images:,} of "
            f"{classes:,} classes leave some without one"
        )
    left_out = images % config.batch_size
    if left_out >= _LEFT_OUT * images:
        found.append(
            f"--batch_size: an epoch leaves out its last, incomplete batch, here {left_out:,} of "
            f"{images:,} images; expected a smaller batch or more images"
        )
    iterations = config.epochs * dataset.iterations_per_epoch
    if config.ema**iterations > _OLD_SHARE:
        highest = math.floor(1000 * _OLD_SHARE ** (1 / iterations)) / 1000
        found.append(
            f"--ema: expected at most {highest:g} for the {iterations:,} iterations of a step; "
            f"with {config.ema:g} its first weights count {100 * config.ema**iterations:.1f} % as "
            "much in the average as its last"
        )
    images = config.batch_size // (config.microbatches * replicas)
    if config.sync_batch_norm:
        images = config.batch_size
    if images <= _FEW_VALUES and not config.freeze_backbone:
        model = students.build(config, dataset.preparation.channels, classes)
        found += _batch_norm_notes(model, images)
    return found


def _batch_norm_notes(model: tf.keras.Model, images: int) -> list[str]:
    """One line if a batch norm has too few values of a channel in so many images."""
    norms = [x for x in model.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
    values = [images * math.prod(norm.input_shape[1:-1]) for norm in norms]
    few = [count for count in values if count <= _FEW_VALUES]
    if not few:
        return []
    return [
        f"--microbatches: batch norm has {min(few)} {'value' if min(few) == 1 else 'values'} of a "
        f"channel to normalize in {len(few)} of {len(norms)} layers, of which nothing is left; "
        f"expected more images at a time than {images}, or a larger --image_size"
    ]
