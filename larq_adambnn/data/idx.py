"""IDX files, the format of MNIST (yann.lecun.com/exdb/mnist), gzipped or not."""

import dataclasses
import gzip
import math
import pathlib
import re
import zlib
from collections.abc import Sequence

import numpy as np

from larq_adambnn.data.sources import Problem, Source, array_source
from larq_adambnn.errors import UsageError

__all__ = ["class_names", "open_idx", "read_idx", "splits", "statistics"]

_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
_MOST_BYTES, _MOST_RATIO = 2**28, 100  # of what a compressed file may hold
_UNSIGNED_BYTE = 0x08  # the element type of the header's third byte


def splits(directory: pathlib.Path) -> tuple[str, ...]:
    """The splits that a directory has images of."""
    return tuple(split for split in _PREFIXES if _find(directory, split, "images", 3))


def _find(directory: pathlib.Path, split: str, kind: str, rank: int) -> pathlib.Path | None:
    """The file of MNIST's name, or the only one of such a name as EMNIST's.

    Raises:
        UsageError: several have such a name.
    """
    names = [
        f"{prefix}-{kind}{separator}idx{rank}-ubyte{suffix}"
        for prefix in _PREFIXES[split]
        for separator in "-."
        for suffix in ("", ".gz")
    ]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    pattern = re.compile(rf".*({'|'.join(_PREFIXES[split])}).*{kind}.*idx{rank}.*")
    files = directory.iterdir() if directory.is_dir() else ()
    found = sorted(
        path
        for path in files
        if pattern.fullmatch(path.name) and not path.name.startswith(".") and path.is_file()
    )
    if len({path.name.removesuffix(".gz") for path in found}) > 1:
        raise UsageError(
            f"data_dir: expected one file of {split} {kind} in {directory}; received "
            f"{', '.join(path.name for path in found)}"
        )
    return found[0] if found else None


def read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """The uint8 array of an IDX file.

    Raises:
        UsageError: it cannot be read, or is not of that rank, or its header does not
            agree with its length.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:2] != b"\0\0":
                raise UsageError(
                    f"{path}: expected an IDX file, which begins with two zero bytes; "
                    f"received {header!r}"
                )
            if header[2:] != bytes([_UNSIGNED_BYTE, rank]):
                raise UsageError(
                    f"{path}: expected {rank} dimensions of unsigned bytes (type 0x08); received "
                    f"{header[3]} of type 0x{header[2]:02x}"
                )
            dimensions = file.read(4 * rank)
            if len(dimensions) < 4 * rank:
                raise UsageError(f"{path}: expected {rank} dimensions; the file ends in its header")
            shape = tuple(int(size) for size in np.frombuffer(dimensions, ">u4"))
            expected = math.prod(shape)
            most = max(_MOST_BYTES, _MOST_RATIO * path.stat().st_size)
            content = _read(file, min(expected, most) + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    if len(content) > most:
        raise UsageError(f"{path}: expected at most {most:,} bytes in a file of its size")
    if len(content) != expected:
        received = f"{len(content):,}" if len(content) < expected else "more"
        raise UsageError(
            f"{path}: its header says {' x '.join(map(str, shape))}; expected {expected:,} bytes "
            f"after it; received {received}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read(file, limit: int, chunk: int = 1 << 24) -> bytearray:
    """At most `limit` bytes, asking for memory only as they come."""
    content = bytearray()
    while len(content) < limit and (part := file.read(min(chunk, limit - len(content)))):
        content += part
    return content


def class_names(directory: pathlib.Path) -> tuple[str, ...]:
    """The classes: the numbers that occur as training labels, in order.

    Raises:
        UsageError: there are no training labels.
    """
    return tuple(map(str, _classes(directory)))


def _classes(directory: pathlib.Path) -> np.ndarray:
    labels = np.unique(read_idx(*_files(directory, "train")["labels"]))
    if not len(labels):
        raise UsageError(f"{directory}: expected training labels; there are none")
    return labels


def statistics(directory: pathlib.Path) -> tuple[tuple[float], tuple[float]]:
    """(mean, standard deviation) of the training pixels on 0..1 values."""
    images = read_idx(*_files(directory, "train")["images"])
    pixels = np.zeros(256, np.int64)
    for image in images:  # bincount makes 8 bytes of each pixel
        pixels += np.bincount(image.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = np.average(values, weights=pixels)
    std = np.sqrt(np.average((values - mean) ** 2, weights=pixels))
    return (round(float(mean), 4),), (max(round(float(std), 4), 1e-4),)


def open_idx(
    directory: pathlib.Path, split: str, class_names: Sequence[str] | None = None
) -> Source:
    """One split of a directory with {train,t10k}-images-idx3-ubyte[.gz] and the labels.

    Labels that do not occur in training become problems, and their images are left out.

    Args:
        directory: where the files are.
        split: train or test.
        class_names: the numbers that occur in training; by default they are read.

    Raises:
        UsageError: files are missing or damaged, images and labels do not match, or a class
            is no number.
    """
    files = _files(directory, split)
    images, labels = read_idx(*files["images"]), read_idx(*files["labels"])
    if len(images) != len(labels):
        raise UsageError(
            f"{directory}: expected as many {split} images as labels; received {len(images):,} "
            f"images and {len(labels):,} labels"
        )
    if 0 in images.shape:
        raise UsageError(f"{directory}: expected {split} images; received shape {images.shape}")
    classes = _classes(directory) if class_names is None else _numbers(class_names)
    outside = np.flatnonzero(~np.isin(labels, classes))
    problems = tuple(
        Problem(
            f"{directory} {split} image {index}",
            f"has label {labels[index]}; expected one of training's, {_ranges(classes)}",
        )
        for index in outside
    )
    numbers = np.searchsorted(classes, labels)
    names = tuple(map(str, classes))
    source = array_source(images[..., np.newaxis], numbers, names, f"{directory} {split}")
    return dataclasses.replace(source.without(outside), problems=problems)


def _numbers(class_names: Sequence[str]) -> np.ndarray:
    """The labels of classes that are the numbers of unsigned bytes, from low to high."""
    numbers = [number for number in range(256) if str(number) in class_names]
    if list(map(str, numbers)) != list(class_names):
        raise UsageError(
            "dataset: expected classes that are numbers, as those of idx are; received "
            f"{', '.join(map(repr, class_names[:3]))}, ..."
        )
    return np.array(numbers)


def _ranges(numbers: np.ndarray) -> str:
    """Sorted numbers in short: 0 to 4, 7, 9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _files(directory: pathlib.Path, split: str) -> dict[str, tuple[pathlib.Path, int]]:
    """Path and number of dimensions of a split's images and labels."""
    files = {}
    for kind, rank in (("images", 3), ("labels", 1)):
        path = _find(directory, split, kind, rank)
        if path is None:
            raise UsageError(
                f"data_dir: expected {_PREFIXES[split][0]}-{kind}-idx{rank}-ubyte[.gz] in "
                f"{directory}; it is not there"
            )
        files[kind] = (path, rank)
    return files
