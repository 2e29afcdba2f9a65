"""What a trained network makes of its test images, kept in a run for its report."""

import base64
import dataclasses
import heapq
import io
import json

import numpy as np
import PIL.Image
import tensorflow as tf

from larq_adambnn.callbacks.measurements import binary_kernels
from larq_adambnn.data import Dataset, Preparation
from larq_adambnn.data.dataset import explained
from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_json, sha256
from larq_adambnn.inference import Guess, logits
from larq_adambnn.progress import progress
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import load_student

__all__ = ["Confusion", "Examination", "Example", "examine", "read"]

# Images that are looked at: fewer large ones, which take some hundred times as long
_SMALL_IMAGE, _SMALL_COUNT, _LARGE_COUNT = 64, 10_000, 1_000
_EXAMPLES, _GUESSES = 24, 3
_SIDE = 96  # pixels of an example, at most


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How many images of a class the network takes for a class, which may be the same."""

    label: int
    predicted: int
    images: int


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with what the network takes it for.

    Attributes:
        name: of the file, or its place in the data set.
        label, predicted: its class, and the one that the network takes it for.
        probability: that the network gives to its class, from 0 to 1.
        guesses: the most probable classes, the best first.
        png: the image as the network saw it, in base64.
    """

    name: str
    label: int
    predicted: int
    probability: float
    guesses: list[Guess]
    png: str


@dataclasses.dataclass(frozen=True)
class Examination:
    """What examination.json holds.

    Attributes:
        weights_sha256: of the file with the network's weights.
        split: that was looked at.
        images: how many of it, from the first on.
        of: how many it has.
        class_names: by label.
        confusions: every pair of classes with an image.
        examples: the worst mistakes first, then the right ones that it is least sure of.
        binary_weights: number of binary weights by layer.
    """

    weights_sha256: str
    split: str
    images: int
    of: int
    class_names: list[str]
    confusions: list[Confusion]
    examples: list[Example]
    binary_weights: dict[str, int]


def examine(run: Run, config: Config, dataset: Dataset) -> None:
    """Writes examination.json, unless it is there already and of the run's last weights.

    Raises:
        UsageError: there are no weights or no images, or they cannot be read.
        OSError: the file cannot be written.
    """
    digest = sha256(run.weights(run.last_step()))
    try:
        if read(run).weights_sha256 == digest:
            return
    except UsageError:
        pass  # it is made (again)
    student = load_student(run, config, dataset)
    split = dataset.split_name()
    of = len(dataset.source(split))
    limit = _SMALL_COUNT if config.image_size <= _SMALL_IMAGE else _LARGE_COUNT
    images = min(of, limit)
    counts: dict[tuple[int, int], int] = {}
    worst: list[tuple] = []  # (whether it is right, probability, index, ...) of each
    waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def batches():
        left = images
        for pixels, labels in dataset.evaluation().as_numpy_iterator():
            waiting.append((pixels[:left], labels[:left]))
            yield pixels[:left]
            left -= len(pixels)
            if left <= 0:
                return

    index = 0
    with explained(), progress(f"looking at {split} images", "images", images) as bar:
        for of_batch in logits(student, batches()):
            pixels, labels = waiting.pop(0)
            probabilities = tf.nn.softmax(tf.constant(of_batch, tf.float64)).numpy()
            predicted = of_batch.argmax(-1)
            for row, label in enumerate(labels.tolist()):
                pair = (label, int(predicted[row]))
                counts[pair] = counts.get(pair, 0) + 1
                key = (pair[0] == pair[1], probabilities[row, label], index + row)
                worst.append((*key, *pair, probabilities[row], pixels[row]))
            worst = heapq.nsmallest(_EXAMPLES, worst, key=lambda example: example[:3])
            index += len(labels)
            bar.update(len(labels))
    source, names = dataset.source(split), dataset.class_names
    examples = [
        Example(
            name=source.name(index),
            label=label,
            predicted=predicted,
            probability=float(probability),
            guesses=_guesses(of_image, names),
            png=_png(pixels, dataset.preparation),
        )
        for _, probability, index, label, predicted, of_image, pixels in worst
    ]
    found = Examination(
        weights_sha256=digest,
        split=split,
        images=images,
        of=of,
        class_names=list(names),
        confusions=[Confusion(*pair, count) for pair, count in sorted(counts.items())],
        examples=examples,
        binary_weights={
            name: kernel.shape.num_elements() for name, kernel in binary_kernels(student).items()
        },
    )
    with run.replace(run.examination) as path:
        path.write_text(json.dumps(dataclasses.asdict(found)) + "\n", encoding="utf-8")


def read(run: Run) -> Examination:
    """What `examine` wrote.

    Raises:
        UsageError: there is none, or it holds something else.
    """
    found = read_json(run.examination, Examination, "what a training wrote")
    classes = range(len(found.class_names))
    for pair in (*found.confusions, *found.examples):
        if pair.label not in classes or pair.predicted not in classes:
            raise UsageError(
                f"{run.examination}: expected labels below {len(classes)}; received "
                f"{pair.label} and {pair.predicted}"
            )
    return found


def _guesses(probabilities: np.ndarray, class_names: tuple[str, ...]) -> list[Guess]:
    best = np.argsort(-probabilities, kind="stable")[:_GUESSES]
    return [Guess(class_names[label], float(probabilities[label])) for label in best]


def _png(pixels: np.ndarray, preparation: Preparation) -> str:
    """An input of the network as a picture, in base64."""
    values = pixels * np.array(preparation.std) + np.array(preparation.mean)
    values = np.clip(np.round(255 * values), 0, 255).astype(np.uint8)
    picture = PIL.Image.fromarray(values.squeeze(-1) if preparation.channels == 1 else values)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
