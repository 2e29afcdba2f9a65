"""The .tflite of a run, and what is known about it."""

import dataclasses
import pathlib

import numpy as np

from larq_adambnn import export, weights
from larq_adambnn.data import Dataset
from larq_adambnn.data.dataset import take
from larq_adambnn.errors import SplitError, UsageError
from larq_adambnn.export import selftest
from larq_adambnn.export.description import Description, info_path, read
from larq_adambnn.export.device_profile import read_device
from larq_adambnn.export.device_times import Device
from larq_adambnn.files import sha256
from larq_adambnn.machine import cores
from larq_adambnn.runs import datasets, provenance, students
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run

__all__ = ["check_installed", "check_network", "devices", "export_run", "is_current", "outdated"]

# Images of the check by default: LCE's interpreter takes 10 to 500 ms for one here
_SMALL_IMAGE, _SMALL_COUNT, _LARGE_COUNT = 64, 1000, 100
_CALIBRATION_IMAGES = 256  # at most; and no more large ones than are checked


def check_installed() -> None:
    """Raises UsageError unless larq-compute-engine is there."""
    if not export.is_installed():
        raise UsageError(
            "export needs larq-compute-engine, which is not installed; expected it after: "
            "pip install larq-compute-engine==0.16.0 (Linux x86-64, macOS), or --noexport"
        )


def devices(config: Config, tflite: pathlib.Path | None = None) -> list[Device]:
    """The board of --device_profile, or none.

    Args:
        config: with the flag.
        tflite: what was timed, if that is not beside the profile.

    Raises:
        UsageError: as `read_device`.
    """
    path = config.device_profile
    return [read_device(pathlib.Path(path), tflite)] if path else []


def check_network(config: Config, dataset: Dataset) -> None:
    """Raises UsageError if it is known before the training that the network stays float."""
    if config.allow_float_fallback:
        return
    try:
        export.refuse_float(students.build_student(config, dataset))
    except ValueError as error:
        reason = str(error).replace("allow_float_fallback", "--allow_float_fallback")
        raise UsageError(f"--export: {reason}; or train with --noexport") from error


def export_run(run: Run, config: Config, dataset: Dataset | None = None) -> Description:
    """Writes the .tflite of a finished run and what is known about it as JSON.

    These are model.tflite, model.selftest.bin and export.json; with --int8 model_int8.tflite and
    so on, of a step before the last model_step1.tflite, and of its best weights model_best.tflite.

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
    step = config.step or run.last_step()
    path = run.exported(step, best=config.best, int8=config.int8)
    boards = devices(config, path)
    note = ""
    if dataset is None:
        dataset, note = _open(run, config)
    student = students.load_student(run, config, dataset, step, best=config.best)
    images, labels = _check_images(config, dataset, note)
    try:
        exported = export.export(
            student,
            images,
            labels=labels,
            int8=config.int8,
            io_type=config.io_type,
            calibration=_calibration_images(config, dataset, note) if config.int8 else None,
            fine_tuning=_fine_tuning(config, dataset, note) if config.int8_epochs else None,
            allow_float_fallback=config.allow_float_fallback,
            preparation=dataset.preparation,
            class_names=dataset.class_names,
            trained_in=config.precision,
            file=path.name,
            on=f"random images ({note})" if note else f"{dataset.split_name()} images",
            of=None if note else len(dataset.source()),
            calibrated_on="random images" if note else "training images",
            processes=cores(),
            devices=boards,
        )
    except ValueError as error:
        reason = str(error).replace("allow_float_fallback", "--allow_float_fallback")
        raise UsageError(f"--mode=export: {run.directory}: {reason}") from error
    about = weights.about(run.weights(step, best=True)) if config.best else {}
    description = dataclasses.replace(
        exported.description,
        step=step,
        epoch=about.get("epoch"),
        weights_sha256=sha256(run.weights(step, best=config.best)),
    )
    with run.replace(path) as temporary:
        temporary.write_bytes(exported.tflite)
    with run.replace(selftest.path(path)) as temporary:
        temporary.write_bytes(exported.selftest)
    with run.replace(info_path(path)) as temporary:  # last: it has the sum of the first
        temporary.write_text(description.to_json(), encoding="utf-8")
    return description


def is_current(run: Run) -> bool:
    """Whether model.tflite and export.json are of each other, and of the run's last weights."""
    try:
        description = read(run.export)
    except UsageError:
        return False
    return description.weights_sha256 is not None and not outdated(run, description)


def outdated(run: Run, description: Description) -> str:
    """Why what an export.json of a run says is not of the files in it; empty if it is."""
    tflite, step = run.directory / description.file, run.last_step()
    for path, digest in (
        (tflite, description.sha256),
        (selftest.path(tflite), description.selftest_sha256),  # which older files do not tell
    ):
        if digest is not None and not path.is_file():
            return f"{path.name} is not there"
        if digest is not None and sha256(path) != digest:
            return f"{path.name} is another file, or damaged"
    of = description.weights_sha256  # which older files do not tell
    if of is not None and (not step or of != sha256(run.weights(step))):
        return f"the run has other weights now than those of {tflite.name}"
    return ""


def _open(run: Run, config: Config) -> tuple[Dataset, str]:
    """The data set of a run, and if it is not there, why: then it has no images."""
    known = provenance.read(run)
    try:
        return datasets.load(config, known), ""
    except SplitError:
        raise
    except UsageError as error:
        (reason, *_) = str(error).split(". ")
        return datasets.without_images(config, known), reason


def _calibration_images(config: Config, dataset: Dataset, note: str) -> np.ndarray:
    count = _CALIBRATION_IMAGES if config.image_size <= _SMALL_IMAGE else _LARGE_COUNT
    if note:
        return _random_images(dataset, count)
    if dataset.iterations_per_epoch:
        return take(dataset.train(), count)[0]
    return dataset.examples(count, "train")[0]


def _fine_tuning(config: Config, dataset: Dataset, note: str) -> export.FineTuning:
    if note or not dataset.iterations_per_epoch:
        reason = note or f"there are {len(dataset.train_source):,} images"
        raise UsageError(
            f"--int8_epochs: expected a training set of a batch of {config.batch_size} or more; "
            f"{reason}"
        )
    return export.FineTuning(dataset.train(), config.int8_epochs, dataset.iterations_per_epoch)


def _check_images(config: Config, dataset: Dataset, note: str):
    """(images, labels) to check on; without a data set random ones, and no labels."""
    small = config.image_size <= _SMALL_IMAGE
    count = config.check_images or (_SMALL_COUNT if small else _LARGE_COUNT)
    if note:
        return _random_images(dataset, count), None
    return dataset.examples(count)


def _random_images(dataset: Dataset, count: int) -> np.ndarray:
    shape = (count, *dataset.input_shape)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
