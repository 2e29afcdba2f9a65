"""Accuracy and classes by a network, which is a Keras model or a .tflite."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import PATH, TEXT, expect, instance, names, several, whole
from larq_adambnn.data import Dataset, Preparation, from_files
from larq_adambnn.data import images as image_formats
from larq_adambnn.data.dataset import explained
from larq_adambnn.errors import UsageError
from larq_adambnn.export import interpreter
from larq_adambnn.export.workers import Worker
from larq_adambnn.files import printable
from larq_adambnn.machine import cores
from larq_adambnn.progress import progress
from larq_adambnn.replicas import outputs_of

__all__ = ["Accuracy", "Guess", "classify", "evaluate", "logits"]

_BATCH = 16  # images of a .tflite, or to be classified
_TOP = 5

Network = tf.keras.Model | bytes | Worker  # the last is a .tflite that is loaded
_NETWORK = instance((tf.keras.Model, bytes, Worker), "a Keras model or the bytes of a .tflite")


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
    if isinstance(network, tf.keras.Model):
        batches = iter(batches)
        first = next(batches)
        signature = [tf.TensorSpec([None, *first.shape[1:]], first.dtype)]
        first_output = _first_output(network, signature)
        for batch in itertools.chain([first], batches):
            yield first_output(batch).numpy()
    else:
        for outputs in interpreter.predictions(network, batches, processes=cores()):
            yield outputs[0]


def evaluate(
    network: Network, dataset: Dataset, split: str = "", *, batch_size: int = 64
) -> Accuracy:
    """The accuracy of a network on a split; by default on the data set's `split`.

    A Keras model that was built in the scope of a tf.distribute.Strategy is evaluated on all
    its devices.

    Args:
        network: what computes the logits.
        dataset: with the images.
        split: of the data set.
        batch_size: images that a Keras model takes at a time, over all devices.

    Raises:
        ValueError: an argument is not what it should be, or the network's first output is none
            of a value a class.
        UsageError: there is no such split, or an image of it cannot be used.
    """
    expect("network", network, _NETWORK)
    expect("dataset", dataset, instance(Dataset, "a data.Dataset"))
    expect("split", split, TEXT)
    expect("batch_size", batch_size, whole(1))
    _check_input(network, dataset.preparation)
    split = dataset.split_name(split)
    of_batches = _hits_of_model if isinstance(network, tf.keras.Model) else _hits_of_file
    total, done = np.zeros(3, np.int64), 0
    size = len(dataset.source(split))
    with explained(), progress(f"evaluating on {split}", "images", size) as bar:
        for hits in of_batches(network, dataset, split, batch_size):
            total += hits
            bar.update(int(total[0]) - done)
            done = int(total[0])
    images, top1, top5 = total.tolist()
    return Accuracy(images, top1 / images, top5 / images)


def _hits_of_model(
    network: tf.keras.Model, dataset: Dataset, split: str, batch_size: int
) -> Iterator[np.ndarray]:
    """`_hits` of batches by a model, summed over the devices of its strategy."""
    strategy = network.distribute_strategy
    replicas = strategy.num_replicas_in_sync

    def batches(context):
        shard = context.input_pipeline_id, context.num_input_pipelines
        return dataset.evaluation(split, batch_size=-(-batch_size // replicas), shard=shard)

    if replicas == 1:
        batches = dataset.evaluation(split, batch_size=batch_size)
    else:
        batches = strategy.distribute_datasets_from_function(batches)
    first_output = _first_output(network)

    def hits(images, labels):
        outputs = outputs_of(first_output, images)
        _check_outputs(outputs, dataset.class_names)
        return _hits(outputs, labels)

    @tf.function(input_signature=batches.element_spec, autograph=False)
    def total(images, labels):
        return strategy.reduce("sum", strategy.run(hits, (images, labels)), axis=None)

    for batch in batches:
        yield total(*batch).numpy()


def _hits_of_file(
    network: bytes | Worker, dataset: Dataset, split: str, batch_size: int
) -> Iterator[np.ndarray]:
    """`_hits` of batches by a .tflite, which takes an image at a time."""
    del batch_size
    labels: list[np.ndarray] = []

    def only_images():
        for images, of_batch in dataset.evaluation(split, batch_size=_BATCH).as_numpy_iterator():
            labels.append(of_batch)
            yield images

    for outputs in logits(network, only_images()):
        _check_outputs(outputs, dataset.class_names)
        _check_numbers(outputs)
        yield _hits(outputs, labels.pop(0)).numpy()


def _first_output(network: tf.keras.Model, signature: Sequence[tf.TensorSpec] | None = None):
    """The function from images to the first of a model's outputs.

    AutoGraph takes a third of a second, and is needed only where a layer branches on tensors.
    """

    def first_output(images):
        return tf.nest.flatten(network(images, training=False))[0]

    forms = [tf.function(first_output, signature, autograph=on) for on in (True, False)]

    def call(images):
        try:
            return forms[-1](images)
        except TypeError:  # what a branch gives there, from TensorFlow or wrapped by Keras
            if len(forms) == 1:
                raise
            forms.pop()
            return call(images)

    return call


def _hits(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """[images, right ones, those whose label is among the first five], int64.

    Of equal outputs the first is before the others, and NaN before all.

    Args:
        outputs: (B, num_classes).
        labels: int64 (B,).
    """
    own = tf.gather(outputs, labels, batch_dims=1)[:, tf.newaxis]
    earlier = tf.range(outputs.shape[1], dtype=labels.dtype) < labels[:, tf.newaxis]
    before = tf.where(outputs == own, earlier, ~(outputs < own))
    rank = tf.math.count_nonzero(before, axis=1)
    right = [tf.math.count_nonzero(rank < first) for first in (1, _TOP)]
    return tf.stack([tf.shape(labels, tf.int64)[0], *right])


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
        _check_numbers(of_batch)
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


def _check_numbers(of_batch: np.ndarray) -> None:
    """Raises ValueError if a logit of a batch is NaN, of which no class can be told."""
    if np.isnan(of_batch).any():
        raise ValueError("Expected numbers as the network's outputs. Received: NaN")


def _best(probabilities: np.ndarray, class_names: Sequence[str]) -> list[Guess]:
    best = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [Guess(class_names[label], float(probabilities[label])) for label in best]
