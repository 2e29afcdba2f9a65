"""The network of a config: built with its seeded weights, or loaded from a finished run."""

import pathlib

import tensorflow as tf

from larq_adambnn import backbone, layers, models, weights
from larq_adambnn.data import Dataset
from larq_adambnn.errors import UsageError
from larq_adambnn.names import is_own
from larq_adambnn.runs import datasets, provenance
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.directory import Run

__all__ = [
    "build",
    "build_student",
    "check_begin",
    "check_initial",
    "given_run",
    "initial_classes",
    "initial_student",
    "load_student",
]

# Of networks, that are flags too
_OPTIONS = ("width", "pad_values", "stem_stride", "activation_clip", "weight_clip")


def build(config: Config, channels: int, num_classes: int) -> tf.keras.Model:
    """The network of a config for images with so many channels and classes.

    Raises:
        UsageError: the network does not take what the config says, is larq-zoo's, which is not
            installed, or one of the user's own that cannot be built.
    """
    options = {
        name: getattr(config, name) for name in models.options(config.model) if name in _OPTIONS
    }
    if not config.stem_stride:  # the network's own choice
        options.pop("stem_stride", None)
    try:
        return models.build(
            config.model,
            input_shape=(config.image_size, config.image_size, channels),
            num_classes=num_classes,
            sync_batch_norm=config.sync_batch_norm,
            **options,
        )
    except (ImportError, ValueError) as error:
        raise UsageError(f"--model: {error}") from error


def build_student(config: Config, dataset: Dataset) -> tf.keras.Model:
    """The student of a config with its seeded initial weights."""
    tf.keras.utils.set_random_seed(config.seed)
    return build(config, dataset.preparation.channels, len(dataset.class_names))


def load_student(
    run: Run,
    config: Config,
    dataset: Dataset,
    step: int = 0,
    *,
    best: bool = False,
    into: tf.keras.Model | None = None,
) -> tf.keras.Model:
    """The trained student of a run at the end of a step, by default its last.

    Args:
        run, config, dataset: what was trained.
        step: 1 or 2; 0 is the last that is finished.
        best: that of its best epoch instead.
        into: a student of the config whose weights are not needed any more; building one
            takes seconds.

    Raises:
        UsageError: that step is not finished, or its file cannot be read.
    """
    last = run.last_step()
    path = run.weights(step or last, best=best)
    if not last:
        raise UsageError(f"--run: expected a run with a finished step; {run.directory} has none")
    if not path.is_file():
        flag, kind = ("best", "step with its best weights") if best else ("step", "finished step")
        raise UsageError(
            f"--{flag}: expected a {kind} of {run.directory}; received {step or last}, whose "
            f"weights ({path.name}) are not there"
        )
    student = into or build_student(config, dataset)
    _load_weights(student, path, "run")
    return layers.binarize(student, *config.steps[(step or last) - 1])


def check_begin(config: Config, dataset: Dataset) -> None:
    """Raises UsageError if a training cannot begin.

    That is where the user's own network cannot be built and trained, or the weights that
    another run or larq-zoo has for it cannot be had.
    """
    if config.weights or (config.init_from and not _from_own_teacher(config)):
        initial_student(config, dataset)
    if is_own(config.model):
        student = build_student(config, dataset)
        try:
            for step in config.steps:
                layers.binarize(student, *step)
        except ValueError as error:
            raise UsageError(f"--model: {error}") from error


def initial_student(config: Config, dataset: Dataset) -> tf.keras.Model:
    """The student that a training begins with: seeded, or with other weights.

    They are those of --init_from or --weights.  Of other classes that is the backbone; the
    classifier is the seeded one.  With --freeze_backbone only the classifier is trainable.

    Raises:
        UsageError: those weights cannot be read.
    """
    student = build_student(config, dataset)
    if config.init_from:
        run = Run(_initial_run(config))
        path = run.weights(run.last_step())
        classes = initial_classes(config, dataset)
        if classes == dataset.class_names:
            _load_weights(student, path, "init_from")
        else:
            source = build(config, dataset.preparation.channels, len(classes))
            _load_weights(source, path, "init_from")
            backbone.copy(source, student)
    if config.weights:
        _load_zoo(config.model, student, len(dataset.class_names))
    return backbone.freeze(student) if config.freeze_backbone else student


def _from_own_teacher(config: Config) -> bool:
    """Whether a training begins with the weights of a teacher that it trains itself before."""
    return config.init_from == "teacher" and config.teacher[0] == "self"


def _initial_run(config: Config) -> str:
    """The directory of the run that --init_from means, which may be trained before."""
    if _from_own_teacher(config):
        return str(Run(config.output_dir).teacher())
    return given_run(config)


def given_run(config: Config) -> str:
    """The directory of the run that --init_from gives; empty if there is none before."""
    if _from_own_teacher(config):
        return ""
    return config.teacher[0] if config.init_from == "teacher" else config.init_from


def initial_classes(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """The class names of the run that --init_from means, for a training on a data set."""
    if _from_own_teacher(config):
        return dataset.class_names
    run = _initial_run(config)
    return datasets.describe(load_run(run), provenance.read(Run(run)))[0]


def check_initial(config: Config, dataset: Dataset | None = None) -> None:
    """Raises UsageError if --init_from is no finished run of the same network.

    Its classes may be others.

    Args:
        config: of the training.
        dataset: by default the one that the config names, which need not be opened.
    """
    if not config.init_from or _from_own_teacher(config):
        return
    run = _initial_run(config)
    earlier = load_run(run)
    if Run(run).last_step() == 0:
        raise UsageError(f"--init_from: expected a run with a finished step; {run} has none")
    for name in ("model", "width"):
        own, theirs = getattr(config, name), getattr(earlier, name)
        if own != theirs:
            raise UsageError(f"--init_from: expected a run with --{name}={own}; {run} has {theirs}")
    own = dataset.preparation.channels if dataset else datasets.describe(config)[1]
    theirs = datasets.describe(earlier, provenance.read(Run(run)))[1]
    if own != theirs:
        raise UsageError(f"--init_from: expected a run with --channels={own}; {run} has {theirs}")


def _load_zoo(name: str, student: tf.keras.Model, num_classes: int) -> None:
    """Gives a network of larq-zoo the weights that larq-zoo has trained."""
    try:
        source = models.build(name, input_shape=(224, 224, 3), num_classes=1000, weights="imagenet")
        if num_classes == 1000:
            student.set_weights(source.get_weights())
        else:
            backbone.copy(source, student)
    except ValueError as error:
        raise UsageError(f"--weights: {error}") from error


def _load_weights(student: tf.keras.Model, path: pathlib.Path, flag: str) -> None:
    try:
        weights.load(student, path)
    except UsageError as error:
        raise UsageError(f"--{flag}: {error}") from None
