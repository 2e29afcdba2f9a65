"""--mode=export: the .tflite of a run, its check and what is known about it."""

import dataclasses
import hashlib
import importlib.util
import json
import time

import numpy as np
import tensorflow as tf

from larq_adambnn import data, report, students
from larq_adambnn.config import Config, SplitError, UsageError, load_run
from larq_adambnn.data import Dataset
from larq_adambnn.export import int8
from larq_adambnn.export.check import check
from larq_adambnn.export.convert import convert_as_is
from larq_adambnn.export.doctor import Diagnosis, diagnose
from larq_adambnn.export.fold import fold
from larq_adambnn.export.info import describe, info_path, preprocessing, signature
from larq_adambnn.runs import Run, replace_file
from larq_adambnn.workers import cores

__all__ = ["check_installed", "export_run", "main"]

# Images of the check by default: LCE's interpreter takes 10 to 500 ms for one here
_SMALL_IMAGE, _SMALL_COUNT, _LARGE_COUNT = 64, 1000, 100
_CALIBRATION_IMAGES = 256  # at most; and no more large ones than are checked


def main(config: Config) -> None:
    """Exports the run of a config (--run, or --output_dir).

    Raises:
        UsageError: as `export_run`; or the .tflite is not the same network.
    """
    check_installed()
    directory = config.run or config.output_dir
    own = ("int8", "io_type", "int8_epochs", "check_images", "allow_float_fallback")
    run = Run(directory)
    run_config = load_run(
        directory,
        mode=config.mode,
        **config.given("data_dir", "split"),
        **{name: getattr(config, name) for name in own},
    )
    result = export_run(run, run_config)
    report.write(run, run_config)
    print("\n".join(describe(result)))
    if not result["check"]["passed"]:
        raise UsageError(
            f"{directory}/{result['file']} does not compute what the network computes: "
            + "; ".join(result["check"]["failures"])
        )


def check_installed() -> None:
    """Raises UsageError unless larq-compute-engine is there."""
    if importlib.util.find_spec("larq_compute_engine") is None:
        raise UsageError(
            "export needs larq-compute-engine, which is not installed; expected it after: "
            "pip install larq-compute-engine==0.16.0 (Linux x86-64, macOS), or --noexport"
        )


def export_run(run: Run, config: Config, dataset: Dataset | None = None) -> dict:
    """Writes the .tflite of a finished run and what is known about it as JSON.

    These are model.tflite and export.json, or model_int8.tflite and export_int8.json.

    Args:
        run: where the weights are.
        config: how the run was made, and how to export it.
        dataset: the run's; by default it is opened, and if it is not there the check (and
            the calibration) use random images.

    Returns:
        What the JSON file holds.

    Raises:
        UsageError: there is no trained network, none of it is binary, or a part of it was
            not converted (and that is not allowed).
    """
    start = time.perf_counter()
    note = ""
    if dataset is None:
        dataset, note = _open(config)
    student = students.load_student(run, config, dataset)
    try:
        folding = fold(student)
        if config.int8:
            tflite, real = _convert_int8(folding.model, config, dataset, note)
        else:
            tflite, real = convert_as_is(folding.model), []
        diagnosis = diagnose(student, tflite, folding.model)
    except ValueError as error:
        raise UsageError(f"--mode=export: {error}") from error
    _check_converted(diagnosis, student, config)
    images, labels = _check_images(config, dataset, note)
    path = run.directory / ("model_int8.tflite" if config.int8 else "model.tflite")
    try:
        with replace_file(path) as temporary:
            temporary.write_bytes(tflite)
            tflite = temporary.read_bytes()  # what was written is what is opened, run and checked
            comparison = check(
                student, tflite, images, labels, quantized=config.int8, processes=cores()
            )
    except ValueError as error:
        raise UsageError(f"--mode=export: {error}") from error
    result = {
        "file": path.name,
        "sha256": hashlib.sha256(tflite).hexdigest(),
        "bytes": len(tflite),
        "float_bytes": 4 * student.count_params(),
        "trained_in": config.precision,
        **signature(tflite),
        "preprocessing": preprocessing(dataset),
        "class_names": list(dataset.class_names),
        "binary_convolutions": {
            "expected": diagnosis.expected,
            "converted": len(diagnosis.converted),
            "layers": _layers(diagnosis),
        },
        "operators": diagnosis.operators,
        "folded": {
            "batch_norms": folding.batch_norms,
            "batch_norms_left": folding.batch_norms_left,
            "shifts": folding.shifts,
            "shifts_left": folding.shifts_left,
            "zero_scales": folding.zero_scales,
            "small_images": folding.small_images,
        },
        "check": {
            "on": f"random images ({note})" if note else f"{dataset.split_name()} images",
            "of": None if note else len(dataset.source()),
            "passed": comparison.passed,
            **dataclasses.asdict(comparison),
        },
        "accuracy": {"keras": comparison.keras_accuracy, "tflite": comparison.tflite_accuracy},
        "seconds": round(time.perf_counter() - start, 1),
    }
    if config.int8:
        result["stays_float32"] = real
        result["calibrated_on"] = "random images" if note else "training images"
    with replace_file(info_path(path)) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _open(config: Config) -> tuple[Dataset, str]:
    """The data set of a run, and if it is not there, why: then it has no images."""
    try:
        return data.load(config), ""
    except SplitError:
        raise
    except UsageError as error:
        class_names, channels = data.describe(config)
        mean, std = data.normalization(config)
        (reason, *_) = str(error).split(". ")
        return Dataset(config, class_names, channels, mean, std, (), None), reason


def _check_converted(diagnosis: Diagnosis, student: tf.keras.Model, config: Config) -> None:
    if config.allow_float_fallback:
        return
    if diagnosis.expected == 0:
        raise UsageError(
            f"--run: expected a network with binary weights and activations; {student.name} of "
            f"{config.output_dir} has no binary layer (--allow_float_fallback converts it all "
            "the same)"
        )
    for name, (reason, advice) in diagnosis.float_layers.items():
        more = len(diagnosis.float_layers) - 1
        raise UsageError(
            f"{name} of {config.output_dir} would stay float: {reason}; {advice}, or allow it "
            f"with --allow_float_fallback{f' ({more} more such layers)' if more else ''}"
        )


def _convert_int8(folded, config: Config, dataset: Dataset, note: str) -> tuple[bytes, list[str]]:
    count = _CALIBRATION_IMAGES if config.image_size <= _SMALL_IMAGE else _LARGE_COUNT
    if note:
        images = _random_images(dataset, count)
    elif dataset.steps_per_epoch:
        images, _ = _take(dataset.train(), count)
    else:
        images, _ = _take(dataset.evaluation("train"), count)
    quantized = int8.quantize(folded, int8.calibrate(folded, images))
    if config.int8_epochs:
        if note or not dataset.steps_per_epoch:
            raise UsageError(f"--int8_epochs: expected a training set of a batch or more; {note}")
        int8.fine_tune(
            quantized,
            folded,
            dataset.train(),
            epochs=config.int8_epochs,
            steps_per_epoch=dataset.steps_per_epoch,
        )
    return int8.convert_int8(quantized, int8_io=config.io_type == "int8")


def _check_images(config: Config, dataset: Dataset, note: str):
    """(images, labels) to check on; without a data set random ones, and no labels."""
    small = config.image_size <= _SMALL_IMAGE
    count = config.check_images or (_SMALL_COUNT if small else _LARGE_COUNT)
    if note:
        return _random_images(dataset, count), None
    return _take(dataset.evaluation(batch_size=min(count, 64)), count)


def _random_images(dataset: Dataset, count: int) -> np.ndarray:
    shape = (count, *dataset.input_shape)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _take(batches: tf.data.Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first (images, labels)."""
    images, labels, missing = [], [], count
    for batch in batches.as_numpy_iterator():
        images.append(batch[0][:missing])
        labels.append(batch[1][:missing])
        missing -= len(images[-1])
        if not missing:
            break
    return np.concatenate(images), np.concatenate(labels)


def _layers(diagnosis: Diagnosis) -> dict[str, dict]:
    layers = {
        name: {"converted": True, "operator": index} for name, index in diagnosis.converted.items()
    }
    for name, (reason, advice) in diagnosis.float_layers.items():
        layers[name] = {"converted": False, "reason": reason, "advice": advice}
    return layers
