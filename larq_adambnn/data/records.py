"""TFDS's data sets, read from their TFRecord files in any order."""

import contextlib
import logging
import os
import pathlib
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import filelock
import numpy as np
import tensorflow as tf

from larq_adambnn.data.sources import Source, digest
from larq_adambnn.errors import SplitError, UsageError

__all__ = ["describe", "open_tfds", "split_name", "splits"]

# A record: its length (8 bytes), that one's checksum (4), the data, its checksum (4)
_HEADER, _FOOTER = 12, 4
_THREADS = 16  # that look for the records; the time goes into waiting for the disk
# name[:version][:split]; a version is three numbers or stars
_NAME = re.compile(r"(?P<name>[^:]*(:[\d*]+(\.[\d*]+){2})?)(:(?P<split>.+))?")


def split_name(dataset: str) -> tuple[str, str]:
    """(name in TFDS, split to train on) of `name[:split]`; the name may have a version."""
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise UsageError(f"dataset: expected NAME or NAME:SPLIT; received {dataset!r}")
    return match["name"], match["split"] or "train"


def describe(name: str, data_dir: str = "") -> tuple[tuple[str, ...], int]:
    """(class names, channels) of a TFDS data set, which need not be prepared."""
    builder = _builder(name, data_dir)
    image, label = _keys(builder)
    features = builder.info.features
    return tuple(features[label].names), features[image].shape[-1]


def splits(name: str, data_dir: str = "") -> tuple[str, ...]:
    """The splits of a TFDS data set that can be learnt from, prepared on first use.

    A split without labels (ImageNet's test images) is left out.
    """
    builder = _prepared(name, data_dir)
    return tuple(split for split in builder.info.splits if _has_labels(builder, split))


def _has_labels(builder, split: str) -> bool:
    info = builder.info.splits[split]
    if not info.num_examples:
        return False
    (first,) = _Records(info.file_instructions[:1]).read(np.array([0]))
    _, label = _parse(builder, tf.constant([first]))
    return int(label[0]) >= 0


def open_tfds(name: str, split: str, data_dir: str = "") -> Source:
    """A split, or a part of one such as train[:80%], of a TFDS image-classification data set.

    The records stay in their files: only where each begins is in memory.

    Raises:
        UsageError: no such data set or split, no image and label in it, its preparation
            failed (no network, files to be downloaded by hand), or damaged files.
    """
    builder = _prepared(name, data_dir)
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        names = ", ".join(builder.info.splits)
        raise SplitError(
            f"split: expected one of {names} of {name}, or a part such as train[:80%]; "
            f"received {split!r}"
        ) from None
    records = _Records(instructions)
    if not len(records):
        raise SplitError(f"split: expected examples in {split} of {name}; there are none")
    class_names, channels = describe(name, data_dir)

    def lookup(indices):
        serialized = tf.numpy_function(records.read, [indices], tf.string, stateful=False)
        return _parse(builder, tf.ensure_shape(serialized, indices.shape))

    def fingerprint():
        files = [
            (os.path.basename(i.filename), os.path.getsize(i.filename), i.skip, i.take)
            for i in instructions
        ]
        return {
            "examples": len(records),
            "version": builder.info.full_name,
            "record files": digest(repr(files).encode()),
        }

    return Source(
        size=len(records),
        class_names=class_names,
        channels=channels,
        lookup=lookup,
        name=lambda index: f"{name} {split} example {index}",
        fingerprint=fingerprint,
    )


class _Records:
    """The records of TFRecord files, by number."""

    def __init__(self, instructions):
        self._paths = [instruction.filename for instruction in instructions]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(_record_starts, instructions))
        self._starts = np.concatenate([[], *found]).astype(np.int64)
        self._files = np.repeat(np.arange(len(found)), [len(starts) for starts in found])

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The serialized examples at indices (B,), as an object array of bytes."""
        return np.array([self._read(index) for index in indices], object)

    def _read(self, index: int) -> bytes:
        file = os.open(self._paths[self._files[index]], os.O_RDONLY)
        try:
            start = int(self._starts[index])
            (length,) = struct.unpack("<Q", os.pread(file, 8, start))
            return os.pread(file, length, start + _HEADER)
        finally:
            os.close(file)


def _record_starts(instruction) -> np.ndarray:
    """Where each record that an instruction takes begins in its file."""
    path = instruction.filename
    starts, position = [], 0
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            while position + _HEADER <= end:
                starts.append(position)
                (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, position))
                position += _HEADER + length + _FOOTER
    except OSError as error:
        raise UsageError(f"dataset: cannot read {path}: {error.strerror}") from None
    if position != end or len(starts) != instruction.examples_in_shard:
        raise UsageError(
            f"dataset: expected a TFRecord file of {instruction.examples_in_shard:,} examples; "
            f"{path} is damaged"
        )
    first = instruction.skip
    return np.array(starts[first : first + instruction.take], np.int64)


def _keys(builder) -> tuple[str, str]:
    """Names of the image and of the label among a builder's features."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    image, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    if (
        not isinstance(features, tfds.features.FeaturesDict)
        or not {image, label} <= set(features)
        or not isinstance(features[image], tfds.features.Image)
        or not isinstance(features[label], tfds.features.ClassLabel)
    ):
        raise UsageError(
            f"dataset: expected images with one class each; {builder.name} has "
            f"{' '.join(str(features).split())}"
        )
    return image, label


def _parse(builder, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded images, labels) of serialized examples."""
    image, label = _keys(builder)
    features = {
        image: tf.io.FixedLenFeature((), tf.string),
        label: tf.io.FixedLenFeature((), tf.int64),
    }
    parsed = tf.io.parse_example(serialized, features)
    return parsed[image], parsed[label]


def _builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    from larq_adambnn.data import digits  # noqa: F401  (registers its builder)

    tfds.disable_progress_bar()
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"dataset: expected digits, image_folder, idx or a name in TFDS; {reason}"
        ) from error
    _keys(builder)
    return builder


def _prepared(name: str, data_dir: str):
    """The TFDS builder of a data set, downloaded and prepared."""
    builder = _builder(name, data_dir)
    by_hand = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    by_hand = by_hand.replace("manual_dir", "data_dir")
    if by_hand and not builder.data_path.exists() and not _manual_files(data_dir):
        raise UsageError(
            f"data_dir: expected {name}, prepared or as downloaded by hand, in "
            f"{data_dir or builder.data_dir!r}; there are no files. {by_hand}"
        )
    if not builder.data_path.exists():
        lock = pathlib.Path(builder.data_dir).parent.with_suffix(".lock")
        try:
            with _quiet(), filelock.FileLock(lock):
                builder = _builder(name, data_dir)  # another process may have prepared it
                builder.download_and_prepare(download_config=_download_config(data_dir))
        except Exception as error:
            reason = " ".join(str(error).split())[:500]
            raise UsageError(
                f"dataset: {name} could not be prepared: {reason} {by_hand}"
            ) from error
    if builder.info.file_format is not None and builder.info.file_format.value != "tfrecord":
        raise UsageError(
            f"dataset: expected {name} prepared as tfrecord files; "
            f"{builder.data_dir} holds {builder.info.file_format.value}"
        )
    return builder


def _download_config(data_dir: str):
    """Files downloaded by hand may be in data_dir itself, or where TFDS looks for them."""
    import tensorflow_datasets as tfds

    directory = _manual_dir(data_dir)
    return tfds.download.DownloadConfig(manual_dir=directory)


def _manual_dir(data_dir: str) -> pathlib.Path:
    directory = pathlib.Path(data_dir or "~/tensorflow_datasets").expanduser()
    manual = directory / "downloads" / "manual"
    return directory if data_dir and not manual.is_dir() else manual


def _manual_files(data_dir: str) -> bool:
    directory = _manual_dir(data_dir)
    return directory.is_dir() and any(path.is_file() for path in directory.iterdir())


@contextlib.contextmanager
def _quiet():
    """Keeps absl's and TFDS's notes about preparation off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
