"""The frozen teacher that --teacher names, as a function from images to logits."""

import sys
from collections.abc import Callable

import tensorflow as tf

from larq_adambnn.data import Dataset
from larq_adambnn.data.statistics import IMAGENET
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import load_student

__all__ = ["check", "freeze", "load", "own_config"]


def check(config: Config) -> None:
    """Raises UsageError for a teacher that cannot teach this config, before any work."""
    if config.loss == "cross_entropy" or config.teacher in ("self", "resnet34"):
        return
    if _application(config.teacher):
        return
    teacher = load_run(config.teacher)
    if Run(config.teacher).last_step() == 0:
        raise UsageError(f"--teacher: expected a finished run; {config.teacher} is not")
    own, theirs = len(datasets.describe(config)[0]), len(datasets.describe(teacher)[0])
    if own != theirs:
        raise UsageError(
            f"--teacher: expected a teacher of the {own} classes of {config.dataset}; "
            f"{config.teacher} has {theirs}"
        )
    if teacher.image_size != config.image_size:
        raise UsageError(
            f"--teacher: expected a teacher of images of {config.image_size} pixels; "
            f"{config.teacher} takes {teacher.image_size}"
        )


def own_config(config: Config, directory: str) -> Config:
    """The run of --teacher=self: the real-valued network of a config, trained on the labels."""
    return config.replace(
        mode="train",
        study="",
        sweep="",
        order="real_valued",
        loss="cross_entropy",
        init_from="",
        mixup=0.0,
        cutmix=0.0,
        epochs=config.teacher_epochs or config.epochs,
        weight_decay=(config.weight_decay[0],) * 2,
        reload_best=False,
        export=False,
        output_dir=directory,
    )


def load(config: Config, dataset: Dataset) -> Callable[[tf.Tensor], tf.Tensor]:
    """The frozen teacher that a config names (all but `self`), as `freeze` gives it.

    Raises:
        UsageError: its weights are missing, or it has other classes than the data set.
    """
    if config.teacher == "resnet34":
        model, prepare = _resnet34(config, dataset), _normalize_imagenet
    elif _application(config.teacher):
        model, prepare = _build_application(config, dataset)
    else:
        model = load_student(Run(config.teacher), load_run(config.teacher), dataset)
        prepare = _unchanged
    if model.output_shape[-1] != len(dataset.class_names):
        raise UsageError(
            f"--teacher: expected a teacher of the {len(dataset.class_names)} classes of "
            f"{config.dataset}; {config.teacher} has {model.output_shape[-1]}"
        )
    return freeze(model, dataset, prepare)


def _unchanged(images, mean, std):
    return images


def freeze(
    model: tf.keras.Model, dataset: Dataset, prepare: Callable = _unchanged
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A frozen model as a function from the student's images to logits (B, num_classes).

    Args:
        model: the teacher; it runs in inference mode.
        dataset: whose normalization the images have.
        prepare: (images, mean, std) -> the images as the teacher wants them.
    """
    model.trainable = False
    mean, std = dataset.preparation.mean, dataset.preparation.std

    def teach(images):
        return model(prepare(images, mean, std), training=False)

    return teach


def _normalize_imagenet(images, mean, std):
    """From the data set's normalization to ImageNet's."""
    if (tuple(mean), tuple(std)) == IMAGENET:
        return images
    return (images * std + mean - IMAGENET[0]) / IMAGENET[1]


def _resnet34(config: Config, dataset: Dataset) -> tf.keras.Model:
    from larq_adambnn import checkpoints, models

    model = models.resnet34(dataset.input_shape, len(dataset.class_names))
    try:
        return checkpoints.load_state_dict(model, checkpoints.load_torch(config.teacher_weights))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"--teacher_weights: {error}") from None


def _application(name: str):
    """The constructor in tf.keras.applications of a name, or None."""
    return getattr(tf.keras.applications, name, None) if name[:1].isupper() else None


def _build_application(config: Config, dataset: Dataset):
    """A network of tf.keras.applications with its logits and its own preprocessing."""
    build = _application(config.teacher)
    try:
        model = build(
            weights=config.teacher_weights,
            input_shape=dataset.input_shape,
            classes=len(dataset.class_names),
            classifier_activation=None,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"--teacher_weights: expected weights of {config.teacher} for "
            f"{len(dataset.class_names)} classes; {config.teacher_weights!r}: {reason}"
        ) from error
    preprocess = sys.modules[build.__module__].preprocess_input

    def prepare(images, mean, std):
        return preprocess(255 * (images * std + mean))

    return model, prepare
