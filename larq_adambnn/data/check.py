"""Reading everything once to find what cannot be used."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.data import images
from larq_adambnn.data.sources import Problem, Source
from larq_adambnn.errors import UsageError
from larq_adambnn.machine import cores
from larq_adambnn.progress import progress

__all__ = ["defects", "leave_out"]

_BATCH = 256  # examples between two updates of the bar
_HEAD = 4096  # bytes of a file in which cameras note the rotation


def defects(source: Source, split: str) -> tuple[list[Problem], list[str]]:
    """Reads and decodes all examples once.

    Returns:
        The problems, by index, and the names of images with a rotation in EXIF.
    """
    read = np.zeros(len(source), bool)
    rotated = []
    bar = progress(f"checking {split}", "images", len(source))
    for indices, labels, heads in _decoded(source).as_numpy_iterator():
        read[indices[(labels >= 0) & (labels < len(source.class_names))]] = True
        rotated += [
            source.name(int(index))
            for index, head in zip(indices, heads, strict=True)
            if b"Exif\0\0" in head and _is_rotated(source, index)
        ]
        bar.update(len(indices))
    bar.close()
    problems = []
    for index in map(int, np.flatnonzero(~read)):
        if reason := source.defect(index):  # read again, alone
            problems.append(Problem(source.name(index), reason, index))
    return problems, rotated


def _decoded(source: Source) -> tf.data.Dataset:
    """Batches (indices, labels, heads of the encoded images) of what can be read."""

    def example(index, image, label):
        image = source.load(image)
        if image.dtype != tf.string:
            return index, label, ""
        pixels, _ = images.decode(
            image, source.channels, lambda height, width: tf.stack([0, 0, height, width])
        )
        with tf.control_dependencies([pixels]):
            return index, label, tf.strings.substr(image, 0, _HEAD)

    indices = tf.data.Dataset.range(len(source)).batch(_BATCH)
    return (
        indices.map(lambda chosen: (chosen, *source.lookup(chosen)), cores())
        .unbatch()
        .map(example, cores())
        .ignore_errors()
        .batch(_BATCH)
        .prefetch(1)
    )


def _is_rotated(source: Source, index: int) -> bool:
    image, _ = source.lookup(tf.constant([index]))
    return images.rotation(source.load(image[0]).numpy()) > 1


def leave_out(
    source: Source, split: str, known: Sequence[Problem] | None
) -> tuple[Source, tuple[Problem, ...]]:
    """The source without what cannot be used, and what that was.

    Args:
        source: the split.
        split: its name.
        known: what the run left out when it began; None reads everything.

    Raises:
        UsageError: nothing is left, or the known ones are not there.
    """
    bad = defects(source, split)[0] if known is None else known
    left_out = [problem for problem in bad if problem.index is not None]
    for problem in left_out:
        if problem.index >= len(source) or source.name(problem.index) != problem.name:
            raise UsageError(
                f"data_dir: expected the files that the run began with; {problem.name} is not "
                "among them where it was"
            )
    if len(left_out) == len(source):
        raise UsageError(f"dataset: expected images in {split}; none of them can be used")
    indices = [problem.index for problem in left_out]
    return source.without(indices), (*source.problems, *left_out)
