"""The frozen teachers that --teacher names, as functions of images."""

import pathlib
import sys
from collections.abc import Callable

import tensorflow as tf

from larq_adambnn.attention import common, opened
from larq_adambnn.data import Dataset
from larq_adambnn.data.sources import digest
from larq_adambnn.data.statistics import IMAGENET
from larq_adambnn.errors import UsageError
from larq_adambnn.files import sha256
from larq_adambnn.names import APPLICATIONS
from larq_adambnn.runs import datasets, provenance
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import build, load_student
from larq_adambnn.weights import check_finite

__all__ = ["check", "check_attention", "fingerprint", "freeze", "load", "own_config"]


def check(config: Config) -> None:
    """Raises UsageError for a teacher that cannot teach this config, before any work."""
    for name in _runs(config):
        teacher = load_run(name)
        if Run(name).last_step() == 0:
            raise UsageError(f"--teacher: expected a finished run; {name} is not")
        if teacher.image_size != config.image_size:
            raise UsageError(
                f"--teacher: expected a teacher of images of {config.image_size} pixels; "
                f"{name} takes {teacher.image_size}"
            )


def _runs(config: Config) -> list[str]:
    """Those of --teacher that are run directories; none if the loss has no teacher."""
    if config.loss == "cross_entropy":
        return []
    return [name for name in config.teacher if name not in ("self", *config.named_teachers)]


def own_config(config: Config, directory: str, number: int = 1) -> Config:
    """The run of --teacher=self: the real-valued network of a config, trained on the labels.

    Its recipe is the plain one, whatever the student's is, so that recipes are compared with the
    same teacher.

    Args:
        config: the student's.
        directory: of the teacher's run.
        number: which self of --teacher it is, from 1 on; the first has the student's seed, the
            others those after it.
    """
    return config.replace(
        mode="train",
        study="",
        sweep="",
        rows=(),
        order="real_valued",
        loss="cross_entropy",
        init_from="",
        freeze_backbone=False,
        backbone_rate=1.0,
        mixup=0.0,
        cutmix=0.0,
        epochs=config.teacher_epochs or config.epochs,
        learning_rate=config.teacher_rate or config.learning_rate,
        weight_decay=(config.weight_decay[0],) * 2,
        schedule="linear",
        warmup=0.0,
        clip_norm=0.0,
        activation_clip=1.0,
        weight_clip=1.0,
        gradient_floor=0.0,
        silent_decay=0.0,
        label_weight=0.5,
        label_smoothing=0.0,
        ema=0.0,
        batch_norm_batches=0,
        step2_teacher="same",
        attention=0.0,
        reload_best=False,
        export=False,
        seed=(config.seed + number - 1) % 2**31,
        output_dir=directory,
    )


def fingerprint(config: Config) -> str:
    """SHA-256 of the weights of the teacher that a config gives; empty if it gives no file.

    Of several that have a file it is that of their sums one after the other.
    """
    runs, found = _runs(config), []
    for name in config.teacher if config.loss != "cross_entropy" else ():
        run = Run(name)
        path = run.weights(run.last_step()) if name in runs else config.named_teachers.get(name)
        if path and pathlib.Path(path).is_file():
            found.append(sha256(pathlib.Path(path)))
    return "".join(found) if len(found) < 2 else digest("".join(found).encode())


def check_attention(
    config: Config, dataset: Dataset, teacher: tf.keras.Model | None = None
) -> None:
    """Raises UsageError if --attention finds nothing to compare, before any work.

    Args:
        config, dataset: of the training.
        teacher: None for one of the student's own network, which has the same maps.
    """
    if not config.attention:
        return
    student = build(config, dataset.preparation.channels, len(dataset.class_names))
    try:
        maps = opened(student).output[1]
        if teacher is not None:
            common(maps, opened(teacher).output[1])
    except ValueError as error:
        raise UsageError(f"--attention: {error}") from None


def load(config: Config, dataset: Dataset, name: str) -> Callable:
    """One of the frozen teachers that a config names (all but `self`), as `freeze` gives it.

    Raises:
        UsageError: its weights cannot be read, it has other classes or channels than the
            data set, or no feature maps for --attention.
    """
    weights = config.named_teachers.get(name)
    if name == "resnet34":
        model, prepare = _resnet34(weights, dataset), _normalized(IMAGENET)
    elif name in APPLICATIONS:
        model, prepare = _build_application(name, weights, dataset)
    else:
        model, prepare = _load_run(name, dataset)
    check_attention(config, dataset, model)
    return freeze(config, model, dataset, prepare)


def _load_run(directory: str, dataset: Dataset):
    """The network of a run, which may be of another data set, and the normalization it has."""
    run, teacher = Run(directory), load_run(directory)
    theirs = datasets.without_images(teacher, provenance.read(run))
    for what, own, other in (
        ("classes", len(dataset.class_names), len(theirs.class_names)),
        ("channels", dataset.preparation.channels, theirs.preparation.channels),
    ):
        if own != other:
            raise UsageError(
                f"--teacher: expected a teacher of {own} {what}, as {dataset.name} has; "
                f"{directory} has {other}"
            )
    if theirs.class_names != dataset.class_names and set(theirs.class_names) == set(
        dataset.class_names
    ):
        raise UsageError(
            f"--teacher: expected a teacher of the classes of {dataset.name} in their order; "
            f"{directory} has them in another"
        )
    try:
        model = load_student(run, teacher, theirs)
    except UsageError as error:
        raise UsageError(str(error).replace("--run:", "--teacher:", 1)) from error
    return model, _normalized((theirs.preparation.mean, theirs.preparation.std))


def _unchanged(images, mean, std):
    return images


def freeze(
    config: Config, model: tf.keras.Model, dataset: Dataset, prepare: Callable = _unchanged
) -> Callable:
    """A frozen model as the function of a `Distiller`.

    It goes from the student's images to logits (B, num_classes), or with --attention to what
    `attention.opened` gives.

    Args:
        config: of the training.
        model: the teacher; it runs in inference mode.
        dataset: whose normalization the images have.
        prepare: (images, mean, std) -> the images as the teacher wants them.
    """
    model.trainable = False
    mean, std = dataset.preparation.mean, dataset.preparation.std
    network = opened(model) if config.attention else model

    def teach(images):
        return network(prepare(images, mean, std), training=False)

    return teach


def _normalized(wanted: tuple[tuple[float, ...], tuple[float, ...]]) -> Callable:
    """The conversion from a data set's normalization to another (mean, deviation)."""

    def normalize(images, mean, std):
        if (tuple(mean), tuple(std)) == wanted:
            return images
        return (images * std + mean - wanted[0]) / wanted[1]

    return normalize


def _resnet34(weights: str, dataset: Dataset) -> tf.keras.Model:
    from larq_adambnn import checkpoints, models

    model = models.resnet34(dataset.input_shape, len(dataset.class_names))
    try:
        return checkpoints.load_state_dict(model, checkpoints.load_torch(weights))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"--teacher_weights: {error}") from None


def _build_application(name: str, weights: str, dataset: Dataset):
    """A network of tf.keras.applications with its logits and its own preprocessing."""
    build = getattr(tf.keras.applications, name)
    try:
        model = build(
            weights=weights,
            input_shape=dataset.input_shape,
            classes=len(dataset.class_names),
            classifier_activation=None,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"--teacher_weights: expected weights of {name} for "
            f"{len(dataset.class_names)} classes; {weights!r}: {reason}"
        ) from error
    check_finite(model, weights)
    preprocess = sys.modules[build.__module__].preprocess_input

    def prepare(images, mean, std):
        return preprocess(255 * (images * std + mean))

    return model, prepare
