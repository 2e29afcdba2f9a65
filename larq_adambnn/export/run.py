"""--mode=export: the .tflite of a run, its check and its report."""

import dataclasses
import json
import time

import numpy as np

from larq_adambnn import data, layers
from larq_adambnn.config import Config, load_run
from larq_adambnn.data import Dataset
from larq_adambnn.export.check import check, predict
from larq_adambnn.export.convert import convert
from larq_adambnn.export.tflite import operators
from larq_adambnn.runs import Run, replace_file

__all__ = ["export_run", "main"]


def main(config: Config) -> None:
    """Exports the run of a config (--run, or --output_dir)."""
    directory = config.run or config.output_dir
    run_config = load_run(directory, **config.given("data_dir"))
    result = export_run(Run(directory), run_config, data.load(run_config))
    print(json.dumps(result, indent=2))


def export_run(run: Run, config: Config, dataset: Dataset) -> dict:
    """Writes model.tflite and export.json of a finished run, and returns the latter."""
    from larq_adambnn.training import load_student

    start = time.perf_counter()
    student = load_student(run, config, dataset)
    tflite = convert(student)
    counts = operators(tflite)
    expected = sum(isinstance(layer, layers.BinaryConv2D) for layer in student.layers)
    images, labels = _arrays(dataset)
    comparison = check(student, tflite, images)
    accuracy = float(np.mean(predict(tflite, images).argmax(-1) == labels))
    result = {
        "bytes": len(tflite),
        "float_bytes": 4 * student.count_params(),
        "binary_convolutions": {"expected": expected, "converted": counts.get("LceBconv2d", 0)},
        "operators": counts,
        "check": dataclasses.asdict(comparison),
        "accuracy": {
            "keras": float(np.mean(student.predict(images, verbose=0).argmax(-1) == labels)),
            "tflite": accuracy,
        },
        "seconds": round(time.perf_counter() - start, 1),
    }
    with replace_file(run.tflite) as path:
        path.write_bytes(tflite)
    with replace_file(run.export) as path:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _arrays(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The test images and labels."""
    batches = list(dataset.evaluation().as_numpy_iterator())
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
