"""Accuracy and classes by a network, which is a Keras model or the bytes of a .tflite."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import PATH, TEXT, expect, instance, names, several
from larq_adambnn.data import Dataset, Preparation, from_files
from larq_adambnn.data import images as image_formats
from larq_adambnn.data.dataset import explained
from larq_adambnn.errors import UsageError
from larq_adambnn.export import interpreter
from larq_adambnn.files import printable
from larq_adambnn.machine import cores
from larq_adambnn.progress import progress

__all__ = ["Accuracy", "Guess", "classify", "evaluate", "logits"]

_BATCH = 16  # images
_TOP = 5

Network = tf.keras.Model | bytes
_NETWORK = instance((tf.keras.Model, bytes), "a Keras model or the bytes of a .tflite")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often the right class is the first, and among the first five, from 0 to 1."""

    images: int
    top1: float
    top5: float


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class and its probability, from 0 to 1."""

    name: str
    probability: float


def logits(network: Network, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The logits (B, num_classes) of each batch of preprocessed images (B, H, W, C).

    Of a network with several outputs they are the first, in the order of `Model.outputs`.
    """
    if isinstance(network, bytes):
        several = interpreter.predictions(network, batches, processes=cores())
    else:
        several = (tf.nest.flatten(network.predict_on_batch(batch)) for batch in batches)
    for outputs in several:
        yield outputs[0]


def evaluate(network: Network, dataset: Dataset, split: str = "") -> Accuracy:
    """The accuracy of a network on a split; by default on the data set's `split`.

    Raises:
        ValueError: an argument is not what it should be, or the network's first output is none
            of a value a class.
        UsageError: there is no such split, or an image of it cannot be used.
    """
    expect("network", network, _NETWORK)
    expect("dataset", dataset, instance(Dataset, "a data.Dataset"))
    expect("split", split, TEXT)
    _check_input(network, dataset.preparation)
    split = dataset.split_name(split)
    labels: list[np.ndarray] = []

    def only_images():
        for images, of_batch in dataset.evaluation(split, batch_size=_BATCH).as_numpy_iterator():
            labels.append(of_batch)
            yield images

    images = top1 = top5 = 0
    source = dataset.source(split)
    with explained(), progress(f"evaluating on {split}", "images", len(source)) as bar:
        for of_batch in logits(network, only_images()):
            _check_outputs(of_batch, dataset.class_names)
            expected = labels.pop(0)
            ranking = np.argsort(-of_batch, axis=-1, kind="stable")
            top1 += int(np.sum(ranking[:, 0] == expected))
            top5 += int(np.sum(ranking[:, :_TOP] == expected[:, np.newaxis]))
            images += len(expected)
            bar.update(len(expected))
    return Accuracy(images, top1 / images, top5 / images)


def classify(
    network: Network,
    files: Sequence[str | os.PathLike],
    preparation: Preparation,
    class_names: Sequence[str],
) -> list[list[Guess]]:
    """The five most probable classes of each image file, the best first.

    Args:
        network: what computes the logits.
        files: images of any of the formats of `data.images`.
        preparation: how they become inputs, such as `Dataset.preparation`.
        class_names: by label.

    Raises:
        ValueError: an argument is not what it should be, or the network's first output is none
            of a value a class.
        UsageError: a file cannot be read, or is no image.
    """
    expect("network", network, _NETWORK)
    expect("files", files, several(PATH, "paths in a list or tuple, at least one"))
    expect("preparation", preparation, instance(Preparation, "a data.Preparation"))
    expect("class_names", class_names, names())
    _check_input(network, preparation)
    for file in files:
        if defect := image_formats.file_defect(file, preparation.channels):
            raise UsageError(f"images: {printable(file)} {defect}")
    dataset = from_files(files, preparation, class_names)
    batches = dataset.evaluation(batch_size=_BATCH).as_numpy_iterator()
    found = []
    for of_batch in logits(network, (images for images, _ in batches)):
        _check_outputs(of_batch, class_names)
        found.append(of_batch)
    probabilities = tf.nn.softmax(tf.constant(np.concatenate(found), tf.float64)).numpy()
    return [_best(row, class_names) for row in probabilities]


def _check_input(network: Network, preparation: Preparation) -> None:
    """Raises ValueError if a Keras model takes images of another size; LCE says so itself."""
    shape = getattr(network, "input_shape", None)
    known = tf.TensorShape(shape if isinstance(shape, tuple) else None)
    if not known.is_compatible_with([None, *preparation.input_shape]):
        raise ValueError(
            f"Expected a network of {preparation.input_shape} images, as they are prepared. "
            f"Received: {network.name}, which takes {tuple(known)[1:]}"
        )


def _check_outputs(of_batch: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises ValueError unless each logit of a batch has a name."""
    if of_batch.shape[1:] != (len(class_names),):
        raise ValueError(
            f"Expected as many class names as the network's first output has values. Received: "
            f"{len(class_names)}, and an output of shape {of_batch.shape[1:]}"
        )


def _best(probabilities: np.ndarray, class_names: Sequence[str]) -> list[Guess]:
    best = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [Guess(class_names[label], float(probabilities[label])) for label in best]
