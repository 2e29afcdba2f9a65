"""--mode=evaluate: accuracy of a run or of a .tflite on a split."""

import pathlib

import numpy as np

from larq_adambnn import data, training
from larq_adambnn.config import Config, UsageError, load_run
from larq_adambnn.runs import Run

__all__ = ["main"]


def main(config: Config) -> None:
    """Prints top-1 and top-5 accuracy in percent."""
    directory = config.run or config.output_dir
    run_config = load_run(directory, **config.given("data_dir")) if directory else config
    dataset = data.load(run_config)
    split = dataset.split_name(config.split)
    batches = dataset.evaluation(split)
    if config.tflite:
        predict, name = _tflite_predictor(pathlib.Path(config.tflite), dataset), config.tflite
    else:
        student = training.load_student(Run(directory), run_config, dataset)
        predict, name = student.predict_on_batch, directory
    images = top1 = top5 = 0
    for batch, labels in batches.as_numpy_iterator():
        ranking = np.argsort(-predict(batch), axis=-1, kind="stable")
        top1 += int(np.sum(ranking[:, 0] == labels))
        top5 += int(np.sum(ranking[:, :5] == labels[:, np.newaxis]))
        images += len(labels)
    print(
        f"{name}: {split} top-1 {100 * top1 / images:.2f} %, "
        f"top-5 {100 * top5 / images:.2f} % of {images} images"
    )


def _tflite_predictor(path: pathlib.Path, dataset: data.Dataset):
    from larq_adambnn.export import operators, predict

    tflite = path.read_bytes()
    try:
        operators(tflite)
    except ValueError as error:
        raise UsageError(f"--tflite: {path}: {error}") from None
    return lambda batch: predict(tflite, batch)
