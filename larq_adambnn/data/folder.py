"""Folders of images as torchvision's ImageFolder reads them: SPLIT/CLASS/*.JPEG."""

import array
import functools
import hashlib
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from larq_adambnn.data.sources import Problem, Source, digest, sample
from larq_adambnn.errors import UsageError
from larq_adambnn.files import printable
from larq_adambnn.progress import progress, say

__all__ = ["class_names", "hidden", "leads_above", "open_folder", "splits"]

# Those of torchvision's ImageFolder, in any case of letters
_EXTENSIONS = (b".jpg", b".jpeg", b".png", b".ppm", b".bmp", b".pgm", b".tif", b".tiff", b".webp")
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of archives made by macOS, of Synology's disks
_VALIDATION = ("val", "validation")
_THREADS, _CHUNK = 16, 4096  # that ask for sizes, and how many at a time
_END = 2**15  # bytes at each end of a file that tell it from another
_SETTLED = 50_000_000  # ns after a change in which another one may have the same time


class _Folder(NamedTuple):
    """What is in one folder, sorted.

    Attributes:
        images: their names with "/" between them; as a list they would take four times the
            memory.
        folders: the names of those that are not hidden.
        below: those that the images in and below this one are in.
        problems: of links, and of images that are no regular files.
        others: extensions of files whose names are no image's.
    """

    images: bytes
    folders: tuple[bytes, ...]
    below: tuple[bytes, ...]
    problems: tuple[Problem, ...]
    others: Counter[bytes]


_kept: dict[bytes, tuple[tuple, _Folder]] = {}


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's or a program's, not the user's."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def splits(directory: pathlib.Path) -> tuple[str, ...]:
    """The folders of a directory that hold folders: its splits.

    A validation folder that holds only images is one too, so that `open_folder` says what it
    lacks.
    """
    names = _folders(directory, "a directory with train/CLASS/* and val/CLASS/*")
    return tuple(
        name
        for name in names
        if _folders(directory / name, "a folder")
        or (name in _VALIDATION and _images_in(directory / name))
    )


def _images_in(folder: pathlib.Path) -> int:
    """The number of images in a folder itself."""
    found = _list(os.fsencode(folder))
    return found.images.count(b"/") + bool(found.images)


def class_names(directory: pathlib.Path) -> tuple[str, ...]:
    """The classes: the folders in train/ that hold an image, sorted by name.

    Raises:
        UsageError: there are none.
    """
    train = directory / "train"
    found = _folders(train, "a folder with a folder of images for each class")
    if not found:
        _check_sorted(train)
    names = tuple(
        name for name in found if next(_walk(os.fsencode(train / name), [], Counter()), None)
    )
    if not names:
        raise UsageError(f"data_dir: expected folders with images in {train}; there are none")
    return tuple(map(printable, names))


def _check_sorted(folder: pathlib.Path) -> None:
    """Raises UsageError if a folder without folders holds images."""
    if count := _images_in(folder):
        hint = " (ImageNet's have to be sorted by their labels, as valprep.sh does)"
        raise UsageError(
            "data_dir: expected a folder of images for each class"
            f"{hint if folder.name in _VALIDATION else ''}; {folder} holds {count:,} images "
            "without class folders"
        )


def _folders(directory: pathlib.Path, expected: str) -> tuple[str, ...]:
    try:
        return tuple(map(os.fsdecode, _list(os.fsencode(directory)).folders))
    except OSError as error:
        raise UsageError(
            f"data_dir: expected {expected}; received {str(directory)!r}: {error.strerror}"
        ) from None


def open_folder(
    directory: pathlib.Path, split: str, classes: Sequence[str] | None = None
) -> Source:
    """One split of a directory; only names are read.

    Classes without an image, other classes than the training's, and what has an image's name
    but is no regular file become problems and are left out.

    Args:
        directory: where the split is.
        split: the name of its folder.
        classes: the names of the classes in the order of their labels; by default the
            folders in train/.

    Raises:
        UsageError: the folder is missing or has no images.
    """
    classes = tuple(class_names(directory) if classes is None else classes)
    labels = {name: label for label, name in enumerate(classes)}
    folder = directory / split
    found = _folders(folder, "a folder with a folder of images for each class")
    if not found:
        _check_sorted(folder)
    problems: list[Problem] = []
    others: Counter[bytes] = Counter()  # extensions of files whose names are no image's
    # 1.3 million names as Python strings would take four times the memory.
    names, ends, numbers = bytearray(), array.array("q", [0]), array.array("i")
    folders: dict[int, bytes] = {}  # by label
    bar = progress(f"reading names in {folder}", "images")
    for name in found:
        count, label = 0, labels.get(printable(name))
        if label is not None:
            folders[label] = os.fsencode(folder / name) + b"/"
        for file in _walk(os.fsencode(folder / name), problems, others):
            count += 1
            bar.update()
            if label is not None:
                names += file
                ends.append(len(names))
                numbers.append(label)
        if not count:
            problems.append(Problem(printable(folder / name), "is a class without images"))
        elif label is None:
            reason = f"is no class of the training ({count:,} images)"
            problems.append(Problem(printable(folder / name), reason))
    bar.close()
    if not numbers:
        raise UsageError(f"data_dir: expected images of the classes in {folder}; there are none")
    say(_summary(folder, len(numbers), len(classes), others))
    return _source(folders, classes, bytes(names), np.array(ends), np.array(numbers), problems)


def _summary(folder: pathlib.Path, images: int, classes: int, others: Counter[bytes]) -> str:
    line = f"{folder}: {images:,} images, {classes:,} classes"
    if others:
        kinds = ", ".join(printable(extension) or "no extension" for extension in sorted(others))
        line += f"; {others.total():,} files ignored by their names ({kinds})"
    return line


def _walk(
    folder: bytes, problems: list[Problem], others: Counter[bytes], prefix: bytes = b""
) -> Iterator[bytes]:
    """Yields the names of the images in and below a folder, sorted, relative to the folder."""
    path = os.path.join(folder, prefix)
    try:
        found = _list(path.rstrip(b"/"))
    except OSError as error:
        problems.append(Problem(printable(path), f"cannot be read: {error.strerror}"))
        return
    problems += found.problems
    others.update(found.others)
    if found.images:
        yield from (prefix + name for name in found.images.split(b"/"))
    for name in found.below:
        yield from _walk(folder, problems, others, prefix + name + b"/")


def _list(path: bytes) -> _Folder:
    """What is in a folder, which is read again only if it has changed since.

    Raises:
        OSError: it cannot be read.
    """
    found = os.stat(path)
    version = found.st_dev, found.st_ino, found.st_mtime_ns
    kept, folder = _kept.get(path, (None, None))
    if kept != version:
        now = time.time_ns()
        folder = _read(path)
        if now - found.st_mtime_ns > _SETTLED:
            _kept[path] = version, folder
    return folder


def _read(path: bytes) -> _Folder:
    with os.scandir(path) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    images, folders, below, problems, others = [], [], [], [], Counter()
    for entry in entries:
        if hidden(os.fsdecode(entry.name)):
            if not _holds(entry.is_dir):
                others[b"hidden"] += 1
        elif _holds(entry.is_dir):
            folders.append(entry.name)
            if entry.is_symlink() and leads_above(entry.path):
                problems.append(
                    Problem(printable(entry.path), "is a link to a folder that holds it")
                )
            else:
                below.append(entry.name)
        elif not _is_image(entry.name):
            others[os.path.splitext(entry.name)[1]] += 1
        elif _holds(entry.is_file):
            images.append(entry.name)
        else:
            kind = "a broken link" if entry.is_symlink() else "no regular file"
            problems.append(Problem(printable(entry.path), f"is {kind}"))
    return _Folder(b"/".join(images), tuple(folders), tuple(below), tuple(problems), others)


def leads_above(path: str | bytes | os.PathLike) -> bool:
    """Whether a link leads to a folder that it is in, by other links or not."""
    target, above = os.path.realpath(path), os.path.abspath(path)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        if os.path.realpath(above) == target:
            return True
    return False


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not hidden(os.fsdecode(name))


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a circle of links
        return False


def _source(folders, classes, names, ends, numbers, problems) -> Source:
    labels = tf.constant(numbers, tf.int64)

    def path(index: int) -> bytes:
        return folders[numbers[index]] + names[ends[index] : ends[index + 1]]

    def paths(indices: np.ndarray) -> np.ndarray:
        return np.array([path(index) for index in indices], object)

    def lookup(indices):
        found = tf.numpy_function(paths, [indices], tf.string, stateful=False)
        return tf.ensure_shape(found, indices.shape), tf.gather(labels, indices)

    @functools.cache
    def fingerprint():
        return {
            "examples": len(numbers),
            "file names": digest(names, ends),
            "labels": digest(numbers),
            "file sizes": digest(_sizes(path, len(numbers))),
            "contents": digest(*map(_ends, map(path, sample(len(numbers))))),
        }

    return Source(
        size=len(numbers),
        class_names=classes,
        channels=3,
        lookup=lookup,
        load=tf.io.read_file,
        name=lambda index: printable(path(index)),
        problems=tuple(problems),
        fingerprint=fingerprint,
    )


def _ends(path: bytes) -> bytes:
    """The checksum of the first and the last bytes of a file; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            found = hashlib.sha256(file.read(_END))
            file.seek(max(_END, os.fstat(file.fileno()).st_size - _END))
            found.update(file.read(_END))
            return found.digest()
    except OSError:
        return b""


def _sizes(path: Callable[[int], bytes], count: int) -> np.ndarray:
    """The sizes of files in bytes, -1 of one that is gone."""

    def size(index):
        try:
            return os.stat(path(index)).st_size
        except OSError:
            return -1

    def part(first):
        return [size(index) for index in range(first, min(first + _CHUNK, count))]

    sizes = array.array("q")
    with (
        ThreadPoolExecutor(_THREADS) as pool,  # the time goes into waiting for the disk
        progress("reading the sizes of the files", "images", count) as bar,
    ):
        for found in pool.map(part, range(0, count, _CHUNK)):
            sizes.extend(found)
            bar.update(len(found))
    return np.array(sizes)
