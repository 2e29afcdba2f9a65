"""Folders of images as torchvision's ImageFolder reads them: SPLIT/CLASS/*.JPEG."""

import array
import os
import pathlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from larq_adambnn.data.sources import Problem, Source
from larq_adambnn.errors import UsageError
from larq_adambnn.files import printable
from larq_adambnn.progress import progress, say

__all__ = ["class_names", "hidden", "open_folder", "splits"]

# Those of torchvision's ImageFolder, in any case of letters
_EXTENSIONS = (b".jpg", b".jpeg", b".png", b".ppm", b".bmp", b".pgm", b".tif", b".tiff", b".webp")
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of archives made by macOS, of Synology's disks
_VALIDATION = ("val", "validation")


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
    with os.scandir(os.fsencode(folder)) as entries:
        return sum(_is_image(entry.name) for entry in entries)


def class_names(directory: pathlib.Path) -> tuple[str, ...]:
    """The classes: the folders in train/ that hold an image, sorted by name.

    Raises:
        UsageError: there are none.
    """
    return tuple(map(printable, _classes(directory)))


def _classes(directory: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes' folders."""
    train = directory / "train"
    found = _folders(train, "a folder with a folder of images for each class")
    if not found:
        _check_sorted(train)
    names = tuple(
        name for name in found if next(_walk(os.fsencode(train / name), [], Counter()), None)
    )
    if not names:
        raise UsageError(f"data_dir: expected folders with images in {train}; there are none")
    return names


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
        with os.scandir(directory) as entries:
            return tuple(
                sorted(
                    entry.name
                    for entry in entries
                    if not hidden(entry.name) and _holds(entry.is_dir)
                )
            )
    except OSError as error:
        raise UsageError(
            f"data_dir: expected {expected}; received {str(directory)!r}: {error.strerror}"
        ) from None


def open_folder(directory: pathlib.Path, split: str) -> Source:
    """One split of a directory; only names are read.

    Classes without an image, classes that the training images lack, and what has an image's
    name but is no regular file become problems and are left out.

    Raises:
        UsageError: the folder is missing or has no images.
    """
    classes = _classes(directory)
    labels = {name: label for label, name in enumerate(classes)}
    folder = directory / split
    found = _folders(folder, "a folder with a folder of images for each class")
    if not found:
        _check_sorted(folder)
    problems: list[Problem] = []
    others: Counter[bytes] = Counter()  # extensions of files whose names are no image's
    # 1.3 million names as Python strings would take four times the memory.
    names, ends, numbers = bytearray(), array.array("q", [0]), array.array("i")
    bar = progress(f"reading names in {folder}", "images")
    for name in found:
        count = 0
        for file in _walk(os.fsencode(folder / name), problems, others):
            count += 1
            bar.update()
            if name in labels:
                names += file
                ends.append(len(names))
                numbers.append(labels[name])
        if not count:
            problems.append(Problem(printable(folder / name), "is a class without images"))
        elif name not in labels:
            reason = f"is no class in train ({count:,} images)"
            problems.append(Problem(printable(folder / name), reason))
    bar.close()
    if not numbers:
        raise UsageError(f"data_dir: expected images of the classes in {folder}; there are none")
    say(_summary(folder, len(numbers), len(classes), others))
    return _source(folder, classes, bytes(names), np.array(ends), np.array(numbers), problems)


def _summary(folder: pathlib.Path, images: int, classes: int, others: Counter[bytes]) -> str:
    line = f"{folder}: {images:,} images, {classes:,} classes"
    if others:
        kinds = ", ".join(printable(extension) or "no extension" for extension in sorted(others))
        line += f"; {others.total():,} files ignored by their names ({kinds})"
    return line


def _walk(folder: bytes, problems: list[Problem], others: Counter[bytes], prefix: bytes = b""):
    """Yields the names of the images in and below a folder, sorted, relative to the folder."""
    try:
        with os.scandir(os.path.join(folder, prefix)) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(
            Problem(printable(os.path.join(folder, prefix)), f"cannot be read: {error.strerror}")
        )
        return
    below = []
    for entry in entries:
        if hidden(os.fsdecode(entry.name)):
            if not _holds(entry.is_dir):
                others[b"hidden"] += 1
        elif _holds(entry.is_dir):
            if entry.is_symlink() and entry.path.startswith(os.path.realpath(entry.path)):
                problems.append(
                    Problem(printable(entry.path), "is a link to a folder that holds it")
                )
            else:
                below.append(prefix + entry.name + b"/")
        elif not _is_image(entry.name):
            others[os.path.splitext(entry.name)[1]] += 1
        elif _holds(entry.is_file):
            yield prefix + entry.name
        else:
            kind = "a broken link" if entry.is_symlink() else "no regular file"
            problems.append(Problem(printable(entry.path), f"is {kind}"))
    for name in below:
        yield from _walk(folder, problems, others, name)


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not hidden(os.fsdecode(name))


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a circle of links
        return False


def _source(folder, classes, names, ends, numbers, problems) -> Source:
    folders = [os.fsencode(folder / name) + b"/" for name in classes]
    labels = tf.constant(numbers, tf.int64)

    def path(index: int) -> bytes:
        return folders[numbers[index]] + names[ends[index] : ends[index + 1]]

    def paths(indices: np.ndarray) -> np.ndarray:
        return np.array([path(index) for index in indices], object)

    def lookup(indices):
        found = tf.numpy_function(paths, [indices], tf.string, stateful=False)
        return tf.ensure_shape(found, indices.shape), tf.gather(labels, indices)

    return Source(
        size=len(numbers),
        class_names=tuple(map(printable, classes)),
        channels=3,
        lookup=lookup,
        load=tf.io.read_file,
        name=lambda index: printable(path(index)),
        problems=tuple(problems),
    )
