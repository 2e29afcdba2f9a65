"""--mode=predict: the classes of image files, by a run or by a .tflite."""

import json
import os
import pathlib
import sys
from collections.abc import Iterator

import tensorflow as tf

from larq_adambnn import inference
from larq_adambnn.commands.evaluate import check_fits, naming, read_tflite
from larq_adambnn.data.folder import hidden, leads_above
from larq_adambnn.errors import UsageError
from larq_adambnn.export import selftest
from larq_adambnn.export.workers import Worker
from larq_adambnn.files import printable, read_bytes
from larq_adambnn.inference import Guess
from larq_adambnn.runs import datasets, provenance, strategies, students
from larq_adambnn.runs.config import Config, named_run
from larq_adambnn.runs.directory import Run

__all__ = ["image_files", "main"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def main(config: Config) -> None:
    """Prints the five most probable classes of every image, as a table or as JSON.

    Raises:
        UsageError: an image is none, or there is no such run or file, or the .tflite has
            no export.json beside it, or does not pass the self-test beside it.
    """
    files = image_files(config.images)
    if config.tflite:
        network, known = read_tflite(config.tflite)
        if known is None:
            raise UsageError(
                f"--tflite: expected the export.json that was written with {config.tflite} beside "
                "it; it is not there"
            )
        _check_itself(pathlib.Path(config.tflite), network)
        if known.preprocessing is None or not known.class_names:
            raise UsageError(
                f"--tflite: expected class_names and preprocessing in the export.json of "
                f"{config.tflite}; they are not there"
            )
        preparation, class_names = known.preprocessing.preparation, tuple(known.class_names)
        source = "its export.json says"
        check_fits(network, config.tflite, preparation.input_shape, class_names, source)
        name = config.tflite
    else:
        name = directory = config.run or config.output_dir
        run_config = named_run(config)
        dataset = datasets.without_images(run_config, provenance.read(Run(directory)))
        preparation, class_names = dataset.preparation, dataset.class_names
        network = students.load_student(Run(directory), run_config, dataset, config.step)
    with naming(name, ValueError, flag="tflite" if config.tflite else "run"):
        guesses = inference.classify(network, files, preparation, class_names)
    found = list(zip(map(printable, files), guesses, strict=True))
    if not config.tflite:
        strategies.say_devices(tf.distribute.get_strategy(), file=sys.stderr)
    print(_json(found) if config.json else _table(found))


def image_files(paths: tuple[str, ...]) -> list[pathlib.Path]:
    """The files among paths, and the images in the folders among them, in order of name.

    Hidden files and folders in a folder are left out.

    Raises:
        UsageError: a path does not exist, or a folder holds no image.
    """
    files = []
    for path in map(pathlib.Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(_images_below(path))
        elif not path.is_file():
            raise UsageError(
                f"--images: expected image files or folders; received {str(path)!r}, which "
                f"{'is neither' if path.exists() else 'does not exist'}"
            )
        if not found:
            raise UsageError(
                f"--images: expected images ({', '.join(_SUFFIXES)}) in {path}; it holds none"
            )
        files += found
    return files


def _check_itself(path: pathlib.Path, network: Worker) -> None:
    """Raises UsageError where a file fails its self-test; it need not have one."""
    test = selftest.path(path)
    if test.is_file():
        try:
            failure = selftest.failure(network, read_bytes(test))
        except ValueError as error:
            raise UsageError(f"--tflite: {test}: {error}") from None
        if failure:
            raise UsageError(f"--tflite: {path} does not pass {test.name}: {failure}")


def _images_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The images in and below a folder, by links too; OSError if a folder cannot be read."""

    def fail(error):
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = pathlib.Path(place)
        above = [f for f in folders if (place / f).is_symlink() and leads_above(place / f)]
        folders[:] = [f for f in folders if f not in above and not hidden(f)]
        for name in names:
            if pathlib.PurePath(name).suffix.lower() in _SUFFIXES and not hidden(name):
                yield place / name


def _json(found: list[tuple[str, list[Guess]]]) -> str:
    results = [
        {
            "image": image,
            "predictions": [{"class": g.name, "probability": g.probability} for g in guesses],
        }
        for image, guesses in found
    ]
    return json.dumps(results, indent=2)


def _table(found: list[tuple[str, list[Guess]]]) -> str:
    lines = []
    for image, guesses in found:
        lines.append(image)
        lines += [f"  {100 * guess.probability:6.2f} %  {guess.name}" for guess in guesses]
    return "\n".join(lines)
