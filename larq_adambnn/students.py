"""The network of a config: built with its seeded weights, or loaded from a finished run."""

import tensorflow as tf

from larq_adambnn import layers, models
from larq_adambnn.config import Config, UsageError
from larq_adambnn.data import Dataset
from larq_adambnn.runs import Run

__all__ = ["build_student", "load_student"]


def build_student(config: Config, dataset: Dataset) -> tf.keras.Model:
    """The student of a config with its seeded initial weights."""
    tf.keras.utils.set_random_seed(config.seed)
    return models.build(
        config.model,
        input_shape=dataset.input_shape,
        num_classes=len(dataset.class_names),
        width=config.width,
        pad_values=config.pad_values,
        sync_batch_norm=config.sync_batch_norm,
    )


def load_student(run: Run, config: Config, dataset: Dataset, step: int = 0) -> tf.keras.Model:
    """The trained student of a run at the end of a step, by default its last.

    Raises:
        UsageError: that step is not finished, or its file cannot be read.
    """
    step = step or run.last_step()
    path = run.weights(step)
    if not path.is_file():
        raise UsageError(f"--run: expected a run with a finished step; {run.directory} has none")
    student = build_student(config, dataset)
    try:
        student.load_weights(str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--run: cannot read {path}: {reason}") from error
    return layers.binarize(student, *config.steps[step - 1])
