"""--mode=predict: the classes of image files, by a run or by a .tflite."""

import json
import pathlib

import numpy as np
import tensorflow as tf

from larq_adambnn import data, evaluation, students
from larq_adambnn.config import Config, UsageError, load_run
from larq_adambnn.data import images
from larq_adambnn.data.dataset import Dataset
from larq_adambnn.data.sources import Source
from larq_adambnn.runs import Run

__all__ = ["image_files", "main"]

_TOP = 5
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def main(config: Config) -> None:
    """Prints the five most probable classes of every image, as a table or as JSON.

    Raises:
        UsageError: an image is none, or there is no such run or file, or the .tflite has
            no export.json beside it.
    """
    files = image_files(config.images)
    directory = config.run or config.output_dir
    if config.tflite:
        tflite = evaluation.read_tflite(config.tflite)
        dataset = _of_export(tflite, pathlib.Path(config.tflite), files)
        predict = evaluation.predictor(tflite)
    else:
        run_config = load_run(directory, mode=config.mode, **config.given("data_dir"))
        class_names, channels = data.describe(run_config)
        dataset = _dataset(
            run_config, class_names, channels, *data.normalization(run_config), files
        )
        student = students.load_student(Run(directory), run_config, dataset)

        def predict(batches):
            return map(student.predict_on_batch, batches)

    _check_images(files, dataset.channels)
    batches = dataset.evaluation("test", batch_size=16).as_numpy_iterator()
    logits = np.concatenate(list(predict(batch for batch, _ in batches)))
    probabilities = tf.nn.softmax(tf.constant(logits, tf.float64)).numpy()
    results = [
        {"image": str(file), "predictions": _best(row, dataset.class_names)}
        for file, row in zip(files, probabilities, strict=True)
    ]
    print(json.dumps(results, indent=2) if config.json else _table(results))


def image_files(paths: tuple[str, ...]) -> list[pathlib.Path]:
    """The files among paths, and the images in the folders among them, in order of name.

    Raises:
        UsageError: a path does not exist, or a folder holds no image.
    """
    files = []
    for path in map(pathlib.Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES)
        elif not path.is_file():
            raise UsageError(
                f"--images: expected image files or folders; received {str(path)!r}, which does "
                "not exist"
            )
        if not found:
            raise UsageError(
                f"--images: expected images ({', '.join(_SUFFIXES)}) in {path}; it holds none"
            )
        files += found
    return files


def _check_images(files: list[pathlib.Path], channels: int) -> None:
    for file in files:
        defect = images.defect(file.read_bytes(), channels)
        if defect:
            raise UsageError(f"--images: {file} {defect}")


def _of_export(tflite: bytes, path: pathlib.Path, files: list[pathlib.Path]) -> Dataset:
    """The images as the export.json beside a .tflite says that they are to be prepared."""
    from larq_adambnn.export.info import read_info

    info = read_info(path, tflite)
    try:
        prepared = info["preprocessing"]
        config = Config(image_size=int(prepared["size"]), crop=str(prepared["crop"]))
        return _dataset(
            config,
            tuple(map(str, info["class_names"])),
            int(prepared["channels"]),
            tuple(map(float, prepared["mean"])),
            tuple(map(float, prepared["std"])),
            files,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--tflite: expected class_names and preprocessing (size, crop, channels, mean, std) "
            f"in the export.json of {path}; received {type(error).__name__}: {error}"
        ) from error


def _dataset(config, class_names, channels, mean, std, files) -> Dataset:
    """Image files as a data set of one split, so that they are prepared as for evaluation."""
    names = tf.constant([str(file) for file in files])
    source = Source(
        size=len(files),
        class_names=class_names,
        channels=channels,
        lookup=lambda indices: (tf.gather(names, indices), tf.zeros_like(indices)),
        name=lambda index: str(files[index]),
        load=tf.io.read_file,
    )
    return Dataset(config, class_names, channels, mean, std, ("test",), lambda split: (source, ()))


def _best(probabilities: np.ndarray, class_names: tuple[str, ...]) -> list[dict]:
    best = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [{"class": class_names[i], "probability": float(probabilities[i])} for i in best]


def _table(results: list[dict]) -> str:
    lines = []
    for result in results:
        lines.append(result["image"])
        lines += [f"  {100 * p['probability']:6.2f} %  {p['class']}" for p in result["predictions"]]
    return "\n".join(lines)
