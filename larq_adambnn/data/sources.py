"""What every kind of data set gives: examples in any order, not decoded yet."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.data import images
from larq_adambnn.errors import UsageError
from larq_adambnn.files import printable

__all__ = ["Problem", "Source", "array_source", "dataset_source", "digest", "file_source", "sample"]

_LOOKED_AT = 8  # images of a data set
_LABELS = 1024  # and labels
_COMPARED = 256  # examples whose contents tell a data set from another
_ROUNDING = 0.01  # that a resampled image may go beyond its range


@dataclasses.dataclass(frozen=True)
class Problem:
    """An example, file or folder that cannot be used, and why.

    Attributes:
        name: what it is called.
        reason: why, so that "name reason" is a sentence.
        index: of an example that the source holds; None for what it does not.
    """

    name: str
    reason: str
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        size: number of examples.
        class_names: one name a label.
        channels: channels of the images: 1 or 3.
        lookup: from int64 indices (B,) to (images (B, ...), labels (B,)); cheap, since it is
            not run in parallel inside a batch.
        load: from one image of `lookup` to its encoded bytes or its uint8 or float32
            (H, W, C) pixels, float32 on 0..1.
        name: what an error calls the example at an index.
        unreadable: why `lookup` gives nothing that can be loaded of the example at an index,
            in one line; "" if it does.
        problems: what was wrong when the source was opened and is not among its examples.
        stream: instead of `lookup`, all (image, label) in one order.
        shuffle: number of examples that a training epoch of `stream` is shuffled over.
        fingerprint: gives what tells the examples, before any were left out, from others: by
            name their number, versions and checksums, which are the same wherever they are.
    """

    size: int
    class_names: tuple[str, ...]
    channels: int
    lookup: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None
    name: Callable[[int], str]
    load: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    unreadable: Callable[[int], str] = lambda index: ""
    problems: tuple[Problem, ...] = ()
    stream: tf.data.Dataset | None = None
    shuffle: int = 0
    fingerprint: Callable[[], dict[str, int | str]] = dict

    def __len__(self) -> int:
        return self.size

    def defect(self, index: int) -> str:
        """Why the example at an index cannot be used, in one line; "" if it can."""
        if reason := self.unreadable(index):
            return reason
        try:
            if self.stream is not None:
                image, label = self.stream.skip(index).take(1).get_single_element()
            else:
                image, label = (values[0] for values in self.lookup(tf.constant([index])))
            label, image = int(label), self.load(image).numpy()
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message)
            return f"cannot be read: {' '.join(reason.split()).rpartition('; ')[2]}"
        if not 0 <= label < len(self.class_names):
            return f"has label {label}; expected 0 to {len(self.class_names) - 1}"
        return images.defect(image, self.channels) if isinstance(image, bytes) else ""

    def without(self, indices: Sequence[int]) -> "Source":
        """The source without some of its examples."""
        if len(indices) == 0:
            return self
        return self.only(np.delete(np.arange(self.size), indices))

    def only(self, kept: np.ndarray) -> "Source":
        """The source with some of its examples alone, in the order of their indices."""
        in_graph = tf.constant(kept)
        return dataclasses.replace(
            self,
            size=len(kept),
            lookup=lambda chosen: self.lookup(tf.gather(in_graph, chosen)),
            name=lambda index: self.name(int(kept[index])),
            unreadable=lambda index: self.unreadable(int(kept[index])),
        )


def array_source(
    pixels: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], name: str
) -> Source:
    """A source of uint8 images (N, H, W, C) in memory."""

    @functools.cache
    def fingerprint():
        return {
            "examples": len(labels),
            "images": digest(str(pixels.shape).encode(), pixels.numpy()),
            "labels": digest(labels.numpy()),
        }

    pixels, labels = tf.constant(pixels), tf.constant(labels, tf.int64)
    return Source(
        size=len(labels),
        class_names=class_names,
        channels=pixels.shape[-1],
        lookup=lambda indices: (tf.gather(pixels, indices), tf.gather(labels, indices)),
        name=lambda index: f"{name} image {index}",
        fingerprint=fingerprint,
    )


def sample(size: int) -> np.ndarray:
    """At most 256 evenly spaced indices of so many examples, which tell them from others."""
    count = min(size, _COMPARED)
    return np.arange(count) * size // max(count, 1)


def digest(*parts: bytes | np.ndarray) -> str:
    """The SHA-256 of bytes and of arrays' values, in hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
    return found.hexdigest()


def file_source(files: Sequence[str], class_names: tuple[str, ...], channels: int) -> Source:
    """A source of image files, as `images.manageable` makes them, whose labels are all 0."""

    def load(name):
        return tf.numpy_function(
            lambda name: images.manageable(np.asarray(name, object).item(), channels),
            [name],
            tf.string,
            stateful=False,
        )

    names = tf.constant(list(map(os.fsencode, files)))
    return Source(
        size=len(files),
        class_names=class_names,
        channels=channels,
        lookup=lambda indices: (tf.gather(names, indices), tf.zeros_like(indices)),
        name=lambda index: printable(files[index]),
        load=lambda name: tf.ensure_shape(load(name), ()),
    )


def dataset_source(
    dataset: tf.data.Dataset, class_names: tuple[str, ...], name: str, shuffle: int
) -> Source:
    """A source of a tf.data.Dataset of single (image, label) examples.

    Its fingerprint is that of the first examples, unless the dataset gives others each time.

    Raises:
        ValueError: its elements are something else, or their number is unknown.
        UsageError: one of its first labels has no class.
    """
    spec = dataset.element_spec
    image = spec[0] if isinstance(spec, tuple) and len(spec) == 2 else None
    encoded = image is not None and image.dtype == tf.string and image.shape.rank == 0
    pixels = image is not None and image.dtype in (tf.uint8, tf.float32) and image.shape.rank == 3
    if not (encoded or pixels) or spec[1].shape.rank != 0 or not spec[1].dtype.is_integer:
        raise ValueError(
            "Expected a tf.data.Dataset of (image, label): an encoded string or uint8 or float32 "
            f"(H, W, C) pixels, and an integer. Received: {spec}"
        )
    channels = 3 if encoded else image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"Expected images of 1 or 3 channels. Received: {image}")
    _check_range(dataset, image)
    size = int(dataset.cardinality())
    if size < 1:
        raise ValueError(
            "Expected a tf.data.Dataset of a known number of examples, at least one (see "
            f"tf.data.experimental.assert_cardinality). Received cardinality: {size}"
        )

    @functools.cache
    def fingerprint():
        first, again = _first_examples(dataset), _first_examples(dataset)
        found = {"examples": size, "form": f"{image.dtype.name} {image.shape}"}
        return {**found, "first examples": first} if first == again else found

    stream = dataset.map(lambda image, label: (image, tf.cast(label, tf.int64)))
    _check_labels(stream, class_names, name)
    return Source(
        size=size,
        class_names=class_names,
        channels=channels,
        lookup=None,
        name=lambda index: f"{name} example {index}",
        stream=stream,
        shuffle=shuffle,
        fingerprint=fingerprint,
    )


def _first_examples(dataset: tf.data.Dataset) -> str:
    """A checksum of the first examples of a dataset."""
    parts = []
    for image, label in dataset.take(_COMPARED).as_numpy_iterator():
        parts += [image, np.int64(label).tobytes()]
    return digest(*parts)


def _check_range(dataset: tf.data.Dataset, spec: tf.TensorSpec) -> None:
    """Raises ValueError if the first pixels are real numbers that are not on 0..1."""
    if spec.dtype != tf.float32:
        return
    for image, _ in dataset.take(_LOOKED_AT).as_numpy_iterator():
        low, high = float(image.min(initial=0)), float(image.max(initial=0))
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:  # NaN is not either
            raise ValueError(
                f"Expected float32 pixels on 0..1 (divide by 255, or give uint8). Received: "
                f"{low:g} to {high:g}"
            )


def _check_labels(stream: tf.data.Dataset, class_names: tuple[str, ...], name: str) -> None:
    """Raises UsageError if one of the first labels has no class; reading meets the others."""
    labels = stream.take(_LABELS).map(lambda image, label: label).batch(_LABELS)
    for found in labels.as_numpy_iterator():
        (wrong,) = np.nonzero((found < 0) | (found >= len(class_names)))
        if len(wrong):
            raise UsageError(
                f"{name} example {wrong[0]} has label {found[wrong[0]]}; expected 0 to "
                f"{len(class_names) - 1}"
            )
