"""From a Keras model to a .tflite, with the proof that it is the same network."""

import dataclasses
import hashlib
import importlib.util
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import (
    FLAG,
    TEXT,
    Kind,
    array,
    check_fields,
    either,
    expect,
    instance,
    one_of,
    optional,
    required,
    several,
    whole,
)
from larq_adambnn.data import Preparation
from larq_adambnn.export import int8 as eight_bits
from larq_adambnn.export import interpreter, selftest
from larq_adambnn.export.check import Check, check
from larq_adambnn.export.convert import check_form, convert_as_is
from larq_adambnn.export.description import (
    Accuracy,
    BinaryConvolutions,
    Checked,
    Description,
    Folded,
    Layer,
    Operators,
    Preprocessing,
    signature,
)
from larq_adambnn.export.device_times import Device, complexity, estimates, work
from larq_adambnn.export.doctor import Diagnosis, binary_calls, diagnose, never_binary
from larq_adambnn.export.fold import Folding, fold
from larq_adambnn.export.tflite import Graph
from larq_adambnn.names import IO_TYPES

__all__ = ["Exported", "FineTuning", "export", "is_installed", "refuse_float"]


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How what is real in an int8 network is trained to give what the float one gives.

    Attributes:
        batches: endless (images, labels); the labels are not used.
        epochs: how long.
        iterations_per_epoch: batches in an epoch.

    Raises:
        ValueError: one of these is not what it should be.
    """

    batches: tf.data.Dataset = required(instance(tf.data.Dataset, "a tf.data.Dataset"))
    epochs: int = required(whole(1))
    iterations_per_epoch: int = required(whole(1))

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A converted network.

    Attributes:
        tflite: the file's bytes.
        report: the comparison with Keras; `failures` is empty when it passed.
        description: what export.json holds.
        selftest: what the .selftest.bin beside the file holds, see `selftest`.
    """

    tflite: bytes
    report: Check
    description: Description
    selftest: bytes


def is_installed() -> bool:
    """Whether larq-compute-engine is there."""
    return importlib.util.find_spec("larq_compute_engine") is not None


def export(
    model: tf.keras.Model,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    int8: bool = False,
    io_type: str = "float",
    calibration: np.ndarray | None = None,
    fine_tuning: FineTuning | None = None,
    allow_float_fallback: bool = False,
    preparation: Preparation | None = None,
    class_names: Sequence[str] = (),
    trained_in: str = "float32",
    file: str = "model.tflite",
    on: str = "given images",
    of: int | None = None,
    calibrated_on: str = "given images",
    processes: int = 1,
    devices: Sequence[Device] = (),
) -> Exported:
    """Converts a model to TFLite for 64-bit ARM, compares the two, and describes the result.

    Args:
        model: a float32 functional model of Larq and Keras layers; it stays as it is.
        images: preprocessed, float32 (B, H, W, C), to compare on.
        labels: integers (B,); with them the network counts as trained.
        int8: put what stays real into 8 bits.
        io_type: float or, of an int8 file, int8: input and output.
        calibration: images like those, of which an int8 file has its ranges; by default
            those.
        fine_tuning: of an int8 network, before its conversion.
        allow_float_fallback: convert although a binary layer stays real, or none is binary.
        preparation: how an image becomes an input, for the description.
        class_names: by label, for the description.
        trained_in: arithmetic of the training, for the description.
        file: name of the file, for the description.
        on, of: what the images are, and of how many they are the first, for the description.
        calibrated_on: what the calibration images are, for the description.
        processes: see `interpreter.predictions`.
        devices: to estimate the time on; by default those with published times.

    Raises:
        ImportError: larq-compute-engine is not installed.
        ValueError: an argument is not what it should be, or the model cannot be converted, or
            not all of it.
    """
    start = time.perf_counter()
    expect("model", model, instance(tf.keras.Model, "a Keras model"))
    expect("images", images, _images_of(model))
    expect("calibration", calibration, optional(_images_of(model)))
    images = np.asarray(images, np.float32)
    if labels is not None:
        labels = np.asarray(labels)
        expect("labels", labels, _labels_of(len(images)))
    expect("int8", int8, FLAG)
    expect("allow_float_fallback", allow_float_fallback, FLAG)
    expect("fine_tuning", fine_tuning, optional(instance(FineTuning, "an export.FineTuning")))
    expect("preparation", preparation, optional(instance(Preparation, "a data.Preparation")))
    expect("processes", processes, whole(1))
    expect("class_names", class_names, _names_of(model))
    expect("io_type", io_type, one_of(*IO_TYPES))
    if io_type == "int8" and not int8:
        raise ValueError(
            'Expected io_type="float", or "int8" with int8=True. Received: '
            f"io_type={io_type!r}, int8={int8}"
        )
    check_form(model)
    if not allow_float_fallback:
        refuse_float(model)
    folding = fold(model)
    real = None
    if int8:
        quantized = eight_bits.quantize(folding, images if calibration is None else calibration)
        if fine_tuning is not None:
            eight_bits.fine_tune(quantized, folding.model, **_fields(fine_tuning))
        tflite, real = eight_bits.convert_int8(quantized, int8_io=io_type == "int8")
    else:
        tflite = convert_as_is(folding.model)
    diagnosis = diagnose(model, tflite, folding.model)
    if not allow_float_fallback:
        _refuse(model, diagnosis.float_layers)
    report = check(model, tflite, images, labels, quantized=int8, processes=processes)
    sums = work(Graph(tflite))
    network = interpreter.load(tflite)
    test = selftest.make(network, images)
    description = Description(
        file=file,
        sha256=hashlib.sha256(tflite).hexdigest(),
        bytes=len(tflite),
        float_bytes=4 * model.count_params(),
        trained_in=trained_in,
        **signature(network),
        preprocessing=None if preparation is None else Preprocessing.of(preparation),
        class_names=list(class_names),
        binary_convolutions=_binary_convolutions(diagnosis),
        operators={kind: Operators(**row) for kind, row in diagnosis.operators.items()},
        folded=_folded(folding),
        check=Checked(**_fields(report), on=on, of=of),
        accuracy=Accuracy(report.keras_accuracy, report.tflite_accuracy),
        complexity=complexity(sums),
        estimates=estimates(sums, devices),
        seconds=round(time.perf_counter() - start, 1),
        stays_float32=real,
        calibrated_on=calibrated_on if int8 else None,
        selftest_sha256=hashlib.sha256(test).hexdigest(),
    )
    return Exported(tflite, report, description, test)


def _images_of(model: tf.keras.Model) -> Kind:
    """Images that a model takes."""
    batch, shape = array("(B, H, W, C)"), getattr(model, "input_shape", None)
    known = tf.TensorShape(shape if isinstance(shape, tuple) else None)
    return Kind(
        f"{batch.expected}, each {tuple(known)[1:]}" if known.rank else batch.expected,
        lambda images: batch.fits(images) and known.is_compatible_with(images.shape),
    )


def _names_of(model: tf.keras.Model) -> Kind:
    """The names of a model's classes, or none."""
    shape = getattr(model, "output_shape", None)
    count = shape[-1] if isinstance(shape, tuple) else None  # a list of several outputs
    known = several(TEXT, f"{count or ''} names".strip(), length=count)
    return either(known, Kind("empty", lambda names: names in ((), [])))


def _labels_of(images: int) -> Kind:
    return Kind(
        f"{images} integers, one an image",
        lambda labels: labels.shape == (images,) and labels.dtype.kind in "iu",
    )


def _fields(record) -> dict:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def refuse_float(model: tf.keras.Model) -> None:
    """Raises ValueError where it is known before any work that a binary layer stays float.

    Or if there is none.
    """
    if not binary_calls(model):
        raise ValueError(
            f"Expected a network with binary weights and activations; {model.name} has no binary "
            "layer (allow_float_fallback converts it all the same)"
        )
    _refuse(model, never_binary(model))


def _refuse(model: tf.keras.Model, float_layers: dict[str, tuple[str, str]]) -> None:
    for name, (reason, advice) in float_layers.items():
        more = len(float_layers) - 1
        raise ValueError(
            f"{name} of {model.name} would stay float: {reason}; {advice}, or allow it "
            f"with allow_float_fallback{f' ({more} more such layers)' if more else ''}"
        )


def _binary_convolutions(diagnosis: Diagnosis) -> BinaryConvolutions:
    layers = {name: Layer(True, operator=index) for name, index in diagnosis.converted.items()}
    for name, (reason, advice) in diagnosis.float_layers.items():
        layers[name] = Layer(False, reason=reason, advice=advice)
    return BinaryConvolutions(diagnosis.expected, len(diagnosis.converted), layers)


def _folded(folding: Folding) -> Folded:
    return Folded(**{f.name: getattr(folding, f.name) for f in dataclasses.fields(Folded)})
