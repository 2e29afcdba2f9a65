"""IDX files, the format of MNIST (yann.lecun.com/exdb/mnist), gzipped or not."""

import dataclasses
import gzip
import math
import pathlib
import zlib

import numpy as np

from larq_adambnn.data.sources import Problem, Source, array_source
from larq_adambnn.errors import UsageError

__all__ = ["class_names", "open_idx", "read_idx", "splits", "statistics"]

_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
_UNSIGNED_BYTE = 0x08  # the element type of the header's third byte


def splits(directory: pathlib.Path) -> tuple[str, ...]:
    """The splits that a directory has images of."""
    return tuple(split for split in _PREFIXES if _find(directory, split, "images", 3))


def _find(directory: pathlib.Path, split: str, kind: str, rank: int) -> pathlib.Path | None:
    names = [
        f"{prefix}-{kind}{separator}idx{rank}-ubyte{suffix}"
        for prefix in _PREFIXES[split]
        for separator in "-."
        for suffix in ("", ".gz")
    ]
    return next((directory / name for name in names if (directory / name).is_file()), None)


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
            content = _read(file, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from None
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
    """The classes: the training labels 0, 1, 2 and so on up to the first that never comes.

    Raises:
        UsageError: there are no training labels, or no 0 among them.
    """
    labels = read_idx(*_files(directory, "train")["labels"])
    present = np.bincount(labels, minlength=257) > 0
    count = int(np.argmin(present))
    if not count:
        raise UsageError(
            f"{directory}: expected training labels that begin at 0; the lowest is "
            f"{min(labels, default='none')}"
        )
    return tuple(map(str, range(count)))


def statistics(directory: pathlib.Path) -> tuple[tuple[float], tuple[float]]:
    """(mean, standard deviation) of the training pixels on 0..1 values."""
    pixels = np.bincount(read_idx(*_files(directory, "train")["images"]).reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = np.average(values, weights=pixels)
    std = np.sqrt(np.average((values - mean) ** 2, weights=pixels))
    return (round(float(mean), 4),), (max(round(float(std), 4), 1e-4),)


def open_idx(directory: pathlib.Path, split: str) -> Source:
    """One split of a directory with {train,t10k}-images-idx3-ubyte[.gz] and the labels.

    Labels out of range become problems, and their images are left out.  In range is what
    the training labels show: 0, 1, 2 and so on without a gap.

    Raises:
        UsageError: files are missing or damaged, or images and labels do not match.
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
    names = class_names(directory)
    outside = np.flatnonzero(labels >= len(names))
    problems = tuple(
        Problem(
            f"{directory} {split} image {index}",
            f"has label {labels[index]}; expected 0 to {len(names) - 1}",
        )
        for index in outside
    )
    source = array_source(images[..., np.newaxis], labels, names, f"{directory} {split}")
    return dataclasses.replace(source.without(outside), problems=problems)


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
