"""--mode=evaluate: accuracy of a run or of a .tflite on a split."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from larq_adambnn import data, students
from larq_adambnn.config import Config, UsageError, load_run
from larq_adambnn.data.progress import progress
from larq_adambnn.runs import Run
from larq_adambnn.workers import cores

__all__ = ["main", "predictor", "read_tflite"]

_BATCH = 16


def main(config: Config) -> None:
    """Prints top-1 and top-5 accuracy in percent.

    Raises:
        UsageError: no such run, file or split, or the file takes other images.
    """
    directory = config.run or config.output_dir
    tflite = read_tflite(config.tflite) if config.tflite else None
    if directory:
        run_config = load_run(directory, mode=config.mode, **config.given("data_dir"))
        dataset = data.load(run_config)
    else:
        dataset = _as_exported(config, tflite)
    split = dataset.split_name(config.split)
    if tflite is not None:
        _check_fits(tflite, config.tflite, dataset)
        predict, name = predictor(tflite), config.tflite
    else:
        student = students.load_student(Run(directory), run_config, dataset)
        predict, name = _keras(student), directory
    batches = dataset.evaluation(split, batch_size=_BATCH)
    images = top1 = top5 = 0
    with progress(f"evaluating on {split}", "images", len(dataset.source(split))) as bar:
        labels = []

        def only_images():
            for batch, its_labels in batches.as_numpy_iterator():
                labels.append(its_labels)
                yield batch

        for logits in predict(only_images()):
            expected = labels.pop(0)
            ranking = np.argsort(-logits, axis=-1, kind="stable")
            top1 += int(np.sum(ranking[:, 0] == expected))
            top5 += int(np.sum(ranking[:, :5] == expected[:, np.newaxis]))
            images += len(expected)
            bar.update(len(expected))
    print(
        f"{name}: {split} top-1 {100 * top1 / images:.2f} %, "
        f"top-5 {100 * top5 / images:.2f} % of {images} images"
    )


def _as_exported(config: Config, tflite: bytes) -> data.Dataset:
    """The data set of the flags, prepared as the export.json beside the .tflite says."""
    from larq_adambnn.export.info import read_info, signature

    try:
        prepared = read_info(pathlib.Path(config.tflite), tflite)["preprocessing"]
    except UsageError:
        return data.load(config.replace(image_size=signature(tflite)["input"]["shape"][1]))
    dataset = data.load(config.replace(image_size=prepared["size"], crop=prepared["crop"]))
    return dataclasses.replace(dataset, mean=tuple(prepared["mean"]), std=tuple(prepared["std"]))


Predict = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def _keras(student) -> Predict:
    """A function from batches of images to their logits, of a Keras model."""
    return lambda batches: map(student.predict_on_batch, batches)


def predictor(tflite: bytes) -> Predict:
    """The same of a .tflite, over all cores."""
    from larq_adambnn.export import interpreter

    def predict(batches):
        for outputs in interpreter.predictions(tflite, batches, processes=cores()):
            yield outputs[0]

    return predict


def read_tflite(path: str) -> bytes:
    """The bytes of a file that LCE's interpreter can run.

    Raises:
        UsageError: it cannot.
    """
    from larq_adambnn import export
    from larq_adambnn.export import interpreter

    export.check_installed()
    tflite = pathlib.Path(path).read_bytes()
    try:
        interpreter.load(tflite)
    except ValueError as error:
        raise UsageError(f"--tflite: {path}: {error}") from None
    return tflite


def _check_fits(tflite: bytes, path: str, dataset: data.Dataset) -> None:
    from larq_adambnn.export.info import signature

    found = signature(tflite)
    expected = {"input": list(dataset.input_shape), "output": [len(dataset.class_names)]}
    for name, shape in expected.items():
        if found[name]["shape"][1:] != shape:
            raise UsageError(
                f"--tflite: expected an {name} of {shape}, as {dataset.config.dataset} has at "
                f"--image_size={dataset.config.image_size}; {path} has {found[name]['shape'][1:]}"
            )
