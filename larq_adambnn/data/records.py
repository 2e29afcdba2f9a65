"""TFDS's data sets, read from their TFRecord files in any order."""

import contextlib
import functools
import logging
import os
import pathlib
import re
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import filelock
import numpy as np
import tensorflow as tf
from tensorflow.python.lib.io.tf_record import tf_record_random_reader

from larq_adambnn.arrays import write_arrays
from larq_adambnn.data.sources import Source, digest, sample
from larq_adambnn.errors import SplitError, UsageError
from larq_adambnn.files import check_regular, replace_file
from larq_adambnn.progress import progress

__all__ = ["describe", "open_tfds", "split_name", "splits"]

# A record: its length (8 bytes), that one's checksum (4), the data, its checksum (4)
_HEADER, _FOOTER = 12, 4
_THREADS = 16  # that look for the records; the time goes into waiting for the disk
_INDEXED = 10_000  # records or more whose places are kept; finding those of ImageNet takes minutes
_LOOKS_SECONDS = 2.0  # between two looks at a data set that is being prepared
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
    return _described(_builder(name, data_dir))


def _described(builder) -> tuple[tuple[str, ...], int]:
    image, label = _keys(builder)
    features = builder.info.features
    return tuple(features[label].names), features[image].shape[-1]


def splits(name: str, data_dir: str = "") -> tuple[str, ...]:
    """The splits of a TFDS data set that can be learnt from, prepared on first use.

    A split without labels (ImageNet's test images) is left out.
    """
    builder = _prepared(name, data_dir)
    if not builder.info.splits:  # so tensorflow-datasets 4.9 takes a description it cannot read
        path = builder.data_path / "dataset_info.json"
        _check_prepared(name, data_dir, ValueError(f"{path} names no split"))
    try:
        return tuple(split for split in builder.info.splits if _has_labels(builder, split))
    except (LookupError, ValueError, AssertionError) as error:
        _check_prepared(name, data_dir, error)
        raise


def _has_labels(builder, split: str) -> bool:
    info = builder.info.splits[split]
    if not info.num_examples:
        return False
    records = _Records(builder, info.file_instructions[:1])
    readable = (index for index in range(len(records)) if not records.defect(index))
    _, labels = records.read(np.array([next(readable, 0)]))
    return int(labels[0]) >= 0


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
    records = _Records(builder, instructions)
    if not len(records):
        raise SplitError(f"split: expected examples in {split} of {name}; there are none")
    class_names, channels = _described(builder)

    def lookup(indices):
        found = tf.numpy_function(records.read, [indices], (tf.string, tf.int64), stateful=False)
        return tuple(tf.ensure_shape(values, indices.shape) for values in found)

    @functools.cache
    def fingerprint():
        files = [
            (os.path.basename(i.filename), os.path.getsize(i.filename), i.skip, i.take)
            for i in instructions
        ]
        return {
            "examples": len(records),
            "version": builder.info.full_name,
            "record files": digest(repr(files).encode()),
            "contents": digest(*records.read(sample(len(records)))[0]),
        }

    return Source(
        size=len(records),
        class_names=class_names,
        channels=channels,
        lookup=lookup,
        name=lambda index: f"{name} {split} example {index}",
        fingerprint=fingerprint,
        unreadable=records.defect,
    )


class _Records:
    """The examples in TFRecord files, by number."""

    def __init__(self, builder, instructions):
        self._features = _features(builder)
        self._paths = [instruction.filename for instruction in instructions]
        found = _starts(instructions)
        self._starts = np.concatenate([[], *found]).astype(np.int64)
        self._files = np.repeat(np.arange(len(found)), [len(starts) for starts in found])

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(encoded images, labels) at indices (B,); of a damaged record nothing, and -1."""
        try:
            return self._read(indices)
        except Exception:  # see `defect`
            if len(indices) == 1:
                return np.array([b""], object), np.array([-1])
            parts = [self.read(index[np.newaxis]) for index in indices]
            return tuple(map(np.concatenate, zip(*parts, strict=True)))

    def defect(self, index: int) -> str:
        """Why a record cannot be read, in one line; "" if it can."""
        path = self._paths[self._files[index]]
        try:
            self._read([index])
        except tf.errors.DataLossError:
            return f"is damaged: its bytes in {path} have another checksum"
        except Exception as error:  # the message holds the record, which is no text
            return f"is damaged: it cannot be parsed in {path} ({type(error).__name__})"
        return ""

    def _read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        records = [
            tf_record_random_reader(self._paths[self._files[i]]).read(int(self._starts[i]))[0]
            for i in indices
        ]
        parsed = tf.io.parse_example(tf.constant(records), self._features)
        return tuple(parsed[name].numpy() for name in self._features)


def _starts(instructions) -> list[np.ndarray]:
    """Where each record that an instruction takes begins in its file, of each instruction.

    Those of many records are kept in an index beside the files, of each file for as long as
    its size and its time of modification are the same.
    """
    if not instructions:
        return []
    names = [_version(instruction.filename) for instruction in instructions]
    index = pathlib.Path(instructions[0].filename)
    index = index.with_name(f".{index.name.partition('.tfrecord')[0]}.starts.npz")
    kept = _read_index(index)
    missing = {n: i for n, i in zip(names, instructions, strict=True) if n not in kept}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(missing, pool.map(_record_starts, missing.values()), strict=True))
    replaced = {name.split()[0] for name in found}
    kept = {n: starts for n, starts in kept.items() if n.split()[0] not in replaced} | found
    if missing and sum(map(len, kept.values())) >= _INDEXED:
        with contextlib.suppress(OSError), replace_file(index) as path:
            write_arrays(path, kept)  # where it may not be written, it is found each time
    return [
        kept[name][instruction.skip :][: instruction.take]
        for instruction, name in zip(instructions, names, strict=True)
    ]


def _version(path: str) -> str:
    """A file's name, with what is another once it has changed."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UsageError(f"dataset: cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"dataset: cannot read {path}: it is no file")
    return f"{os.path.basename(path)} {found.st_size} {found.st_mtime_ns}"


def _read_index(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What an index has; nothing if it is damaged, which its archive tells."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return {}


def _record_starts(instruction) -> np.ndarray:
    """Where each record of an instruction's file begins."""
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
    return np.array(starts, np.int64)


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


def _features(builder) -> dict[str, tf.io.FixedLenFeature]:
    """What is read of a record: the image and the label."""
    image, label = _keys(builder)
    return {
        image: tf.io.FixedLenFeature((), tf.string),
        label: tf.io.FixedLenFeature((), tf.int64),
    }


def _builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    from larq_adambnn.data import digits  # noqa: F401  (registers its builder)

    tfds.disable_progress_bar()
    expected = "dataset: expected digits, image_folder, idx or a name in TFDS"
    if name.startswith("/") or ".." in name:
        raise UsageError(f"{expected}; received {name!r}")
    for path in _directory(name, data_dir).rglob("*.*"):
        if path.suffix in (".json", ".txt"):  # which TFDS reads, whatever they are
            check_regular(path)
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
            _check_names(builder, _keys(builder)[1])
    except UsageError:
        raise
    except Exception as error:  # nearly any, on damaged files
        _check_prepared(name, data_dir, error)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{expected}; {reason}") from error
    return builder


def _check_names(builder, label: str) -> None:
    """Raises an error if the file of the names of the classes is not what TFDS took from it."""
    path = builder.data_path / f"{label}.labels.txt"
    if path.exists():
        names = [name.strip() for name in path.read_text().split("\n") if name.strip()]
        if names != builder.info.features[label].names:
            raise ValueError(
                f"{path} holds {len(names):,} other names of classes than {builder.name}"
            )


def _directory(name: str, data_dir: str) -> pathlib.Path:
    """Where TFDS has what it prepared of a data set."""
    import tensorflow_datasets as tfds

    directory = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    return directory / name.partition(":")[0]


def _check_prepared(name: str, data_dir: str, error: BaseException) -> None:
    """Raises UsageError if it is the files of a prepared data set that cannot be used."""
    import tensorflow_datasets as tfds

    directory = _directory(name, data_dir)
    found = [*directory.rglob("dataset_info.json"), *directory.rglob("*.tfrecord*")]
    if not found and not directory.exists():
        return
    if not found:
        raise UsageError(
            f"dataset: expected what tensorflow-datasets prepared in {directory}; there is no "
            "dataset_info.json (another data_dir prepares it again)"
        ) from error
    while error.__cause__ is not None:  # TFDS's own advice is to delete the directory
        error = error.__cause__
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if "has no field named" in reason:
        raise UsageError(
            f"dataset: {found[0]} was written by a newer tensorflow-datasets than "
            f"{tfds.__version__}, which is installed ({reason}); expected a newer one "
            "(pip install -U tensorflow-datasets), or another data_dir to prepare it again"
        ) from error
    raise UsageError(
        f"dataset: expected what tensorflow-datasets prepared; {found[0]} or a file beside it is "
        f"damaged: {reason}"
    ) from error


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
            with _quiet(), filelock.FileLock(lock), _growth(name, builder):
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


@contextlib.contextmanager
def _growth(name: str, builder) -> Iterator[None]:
    """Shows how much of a data set has been written, while it is prepared."""
    of_name = pathlib.Path(builder.data_dir).parent
    parts = of_name, of_name.parent / "downloads"
    done = threading.Event()

    def show():
        with progress(f"preparing {name} in {of_name}", "MB") as bar:
            before = sum(map(_size, parts))
            while not done.wait(_LOOKS_SECONDS):
                bar.update(max(0, (sum(map(_size, parts)) - before) // 2**20 - bar.n))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(directory: pathlib.Path) -> int:
    """Bytes of the files in and below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # it may go meanwhile
            total += path.stat().st_size
    return total


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
