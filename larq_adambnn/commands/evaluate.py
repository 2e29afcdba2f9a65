"""--mode=evaluate: accuracy of a run or of a .tflite on a split."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from larq_adambnn import inference
from larq_adambnn.data import Dataset, Description
from larq_adambnn.errors import UsageError
from larq_adambnn.export import description, interpreter
from larq_adambnn.export.workers import FileError, Worker
from larq_adambnn.files import read_bytes
from larq_adambnn.runs import (
    agreement,
    datasets,
    exporting,
    provenance,
    strategies,
    students,
)
from larq_adambnn.runs.config import SMALLEST_IMAGE, Config, named_run
from larq_adambnn.runs.directory import Run

__all__ = ["check_fits", "main", "naming", "read_tflite"]


def main(config: Config) -> None:
    """Prints top-1 and top-5 accuracy in percent.

    Raises:
        UsageError: no such run, file or split, or the file takes other images.
    """
    directory = config.run or config.output_dir
    strategy = strategies.build(config)
    with strategies.explained():
        with strategies.together(strategy):
            tflite, exported = read_tflite(config.tflite) if config.tflite else (None, None)
            if directory:
                run_config = named_run(config)
                dataset = datasets.load(run_config, provenance.read(Run(directory)))
            else:
                dataset = _as_exported(config, tflite, exported)
            split = dataset.split_name(config.split)
            if tflite is not None:
                source = f"{dataset.name} has at --image_size={dataset.settings.image_size}"
                check_fits(tflite, config.tflite, dataset.input_shape, dataset.class_names, source)
        if tflite is not None:
            network, name = tflite, config.tflite
        else:
            facts = agreement.evaluation(config, directory, dataset, split)
            strategies.agree(strategy, facts)
            with strategy.scope():
                network = students.load_student(Run(directory), run_config, dataset, config.step)
            name = directory
            if strategies.is_chief(strategy):
                strategies.say_devices(strategy, config.strategy)
        with naming(name, ValueError, flag="tflite" if config.tflite else "run"):
            accuracy = inference.evaluate(
                network, dataset, split, batch_size=config.eval_batch_size
            )
    if not strategies.is_chief(strategy):
        return
    print(
        f"{name}: {split} top-1 {100 * accuracy.top1:.2f} %, "
        f"top-5 {100 * accuracy.top5:.2f} % of {accuracy.images} images"
    )


def read_tflite(path: str) -> tuple[Worker, description.Description | None]:
    """LCE's interpreter of a file, and what its export.json says.

    Raises:
        UsageError: it cannot, or the file is not the one that the export.json beside it is of.
    """
    exporting.check_installed()
    tflite = read_bytes(pathlib.Path(path))
    with naming(path, ValueError):
        network = interpreter.load(tflite)
    return network, description.find(pathlib.Path(path), tflite)


@contextlib.contextmanager
def naming(path: str, kind: type[Exception] = FileError, *, flag: str = "tflite") -> Iterator[None]:
    """Puts the name of a .tflite, or of a run, before what is wrong with it."""
    try:
        yield
    except kind as error:
        raise UsageError(f"--{flag}: {path}: {error}") from None


def _as_exported(
    config: Config, tflite: Worker, exported: description.Description | None
) -> Dataset:
    """The data set of the flags, prepared as the export.json beside the .tflite says."""
    prepared = exported and exported.preprocessing
    if prepared is None:
        shape = description.signature(tflite)["input"].shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[1] < SMALLEST_IMAGE:
            raise UsageError(
                f"--tflite: expected an input of [1, SIZE, SIZE, CHANNELS] with a SIZE of "
                f"{SMALLEST_IMAGE} or more; {config.tflite} has {shape}"
            )
        return datasets.load(config.replace(image_size=shape[1]))
    known = None
    if exported.class_names:
        known = Description(
            class_names=tuple(exported.class_names),
            channels=prepared.channels,
            mean=tuple(prepared.mean),
            std=tuple(prepared.std),
        )
    dataset = datasets.load(config.replace(image_size=prepared.size, crop=prepared.crop), known)
    return dataclasses.replace(dataset, preparation=prepared.preparation)


def check_fits(
    tflite: Worker,
    path: str,
    input_shape: Sequence[int],
    class_names: Sequence[str],
    source: str,
) -> None:
    """Raises UsageError unless a file takes such images and gives a logit for each class."""
    found = description.signature(tflite)
    expected = {"input": list(input_shape), "output": [len(class_names)]}
    for name, shape in expected.items():
        if found[name].shape[1:] != shape:
            raise UsageError(
                f"--tflite: expected an {name} of {shape}, as {source}; {path} has "
                f"{found[name].shape[1:]}"
            )
