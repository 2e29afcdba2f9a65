"""export.json: what is known about a .tflite, for people, phone apps and `inference`."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Literal

import numpy as np

from larq_adambnn.arguments import PATH, expect, instance
from larq_adambnn.data import Preparation
from larq_adambnn.errors import UsageError
from larq_adambnn.export.check import Check
from larq_adambnn.export.device_times import Estimate, table
from larq_adambnn.export.interpreter import load
from larq_adambnn.export.workers import Worker
from larq_adambnn.files import read_json, sha256
from larq_adambnn.models import Complexity

__all__ = [
    "Accuracy",
    "BinaryConvolutions",
    "Checked",
    "Description",
    "Folded",
    "Layer",
    "Operators",
    "Preprocessing",
    "Tensor",
    "describe",
    "find",
    "info_path",
    "read",
    "signature",
]

# Of the .json of a run's files
_INFO_NAMES = tuple(
    f"export{step}{best}{int8}"
    for step in ("", "_step1")
    for best in ("", "_best")
    for int8 in ("", "_int8")
)
_MOST_BYTES = 2**26  # of a .json that may be about a .tflite
_RESIZE_RATIO = 256 / 224  # of the shorter side to the crop, as `data.augmentation` has it


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a file; for int8 ``real = scale * (q - zero_point)``."""

    shape: list[int]
    type: str
    scale: float | None = None
    zero_point: int | None = None


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input, in words and numbers."""

    size: int
    crop: str
    resize: str
    channels: Literal[1, 3]
    channel_order: str
    layout: str
    formula: str
    mean: list[float]
    std: list[float]

    def __post_init__(self):
        _ = self.preparation  # which raises ValueError for values that no training has

    @classmethod
    def of(cls, preparation: Preparation) -> "Preprocessing":
        size = preparation.image_size
        resize = f"both sides to {size}"
        if preparation.crop == "random_resized":
            shorter = round(size * _RESIZE_RATIO)
            resize = f"the shorter side to {shorter}, then the centre {size} x {size}"
        return cls(
            size=size,
            crop=preparation.crop,
            resize=f"{resize}; bilinear with antialiasing",
            channels=preparation.channels,
            channel_order="RGB" if preparation.channels == 3 else "grey",
            layout="image, row, column, channel",
            formula="(pixel / 255 - mean) / std",
            mean=list(preparation.mean),
            std=list(preparation.std),
        )

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.size, self.crop, self.channels, tuple(self.mean), tuple(self.std))


@dataclasses.dataclass(frozen=True)
class Layer:
    """What became of a binary layer: the index of its operator, or why it stays real."""

    converted: bool
    operator: int | None = None
    reason: str | None = None
    advice: str | None = None


@dataclasses.dataclass(frozen=True)
class BinaryConvolutions:
    """The binary layers of the network, and how many of them LCE computes in binary."""

    expected: int
    converted: int
    layers: dict[str, Layer]


@dataclasses.dataclass(frozen=True)
class Operators:
    """All operators of one kind; the multiply-accumulates are of one image."""

    count: int
    weight_bytes: int
    binary_macs: int
    real_macs: int


@dataclasses.dataclass(frozen=True)
class Folded:
    """What was folded before the conversion; see `fold.Folding`."""

    batch_norms: int
    batch_norms_left: int
    shifts: int
    shifts_left: int
    zero_scales: dict[str, int]
    small_images: list[str]


@dataclasses.dataclass(frozen=True)
class Checked(Check):
    """The comparison with Keras, on which images, and of how many they are the first."""

    on: str
    of: int | None


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 on the images of the check, where they have labels."""

    keras: float | None
    tflite: float | None


# Fields of a Description that its JSON has only where they apply
_LEFT_OUT = (
    "stays_float32",
    "calibrated_on",
    "step",
    "epoch",
    "weights_sha256",
    "selftest_sha256",
)


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything that is known about a .tflite.

    Attributes:
        file: its name.
        sha256: of its bytes.
        bytes: its size.
        float_bytes: that of the network's weights in float32.
        trained_in: the arithmetic of the training.
        input, output: of one image; of several outputs the first.
        preprocessing: None where it is not known.
        class_names: by label; empty where they are not known.
        binary_convolutions: what became of each binary layer.
        operators: by kind, the most frequent first.
        folded: what was folded before the conversion.
        check: the comparison with Keras.
        accuracy: top-1 of both in it.
        seconds: that the export took.
        other_outputs: those after the first, in the order of the Keras model.
        stays_float32: of an int8 file, the binary convolutions that give float32.
        calibrated_on: of an int8 file, the images of its ranges.
        step: of a run's network, the step whose end it is.
        epoch: of that step, whose end it is instead: its best one.
        weights_sha256: of the file with that network's weights.
        selftest_sha256: of the file with the self-test.
        complexity: the work of one image.
        estimates: of the time on devices.
    """

    file: str
    sha256: str
    bytes: int
    float_bytes: int
    trained_in: str
    input: Tensor
    output: Tensor
    preprocessing: Preprocessing | None
    class_names: list[str]
    binary_convolutions: BinaryConvolutions
    operators: dict[str, Operators]
    folded: Folded
    check: Checked
    accuracy: Accuracy
    seconds: float
    other_outputs: list[Tensor] = dataclasses.field(default_factory=list)
    stays_float32: list[str] | None = None
    calibrated_on: str | None = None
    step: int | None = None
    epoch: int | None = None
    weights_sha256: str | None = None
    selftest_sha256: str | None = None
    complexity: Complexity | None = None
    estimates: list[Estimate] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """The text of export.json; what does not apply is left out."""
        result = dataclasses.asdict(self)
        for name in _LEFT_OUT:
            if result[name] is None:
                del result[name]
        tensors = [result["input"], result["output"], *result["other_outputs"]]
        for part in (*tensors, *_layers(result)):
            for name in [name for name, value in part.items() if value is None]:
                del part[name]
        if not self.other_outputs:
            del result["other_outputs"]
        result["check"] = {"passed": self.check.passed, **result["check"]}
        return json.dumps(result, indent=2) + "\n"


def _layers(result: dict) -> list[dict]:
    return list(result["binary_convolutions"]["layers"].values())


def read(path: str | os.PathLike) -> Description:
    """Reads an export.json.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    expect("path", path, PATH)
    return read_json(pathlib.Path(path), Description, "what an export wrote")


def info_path(tflite: str | os.PathLike) -> pathlib.Path:
    """Where the JSON file of a model*.tflite is written."""
    tflite = pathlib.Path(tflite)
    return tflite.with_name(tflite.name.replace("model", "export")).with_suffix(".json")


def find(path: str | os.PathLike, tflite: bytes) -> Description | None:
    """What was written beside a .tflite when it was exported; the files may have been renamed.

    Returns:
        None if no .json beside it can be about it.

    Raises:
        UsageError: the .json beside it is about another file, or is damaged.
    """
    expect("path", path, PATH)
    expect("tflite", tflite, instance(bytes, "the bytes of a file"))
    path = pathlib.Path(path)
    digest = hashlib.sha256(tflite).hexdigest()
    files = [other for other in sorted(path.parent.iterdir()) if other.is_file()]
    others = [other for other in files if other.suffix == ".tflite" and other.name != path.name]
    about = []
    for candidate in files:
        if candidate.suffix != ".json" or candidate.stat().st_size > _MOST_BYTES:
            continue
        try:
            content = json.loads(candidate.read_text(encoding="utf-8"))
            name, expected = str(content["file"]), content["sha256"]
        except (OSError, ValueError, RecursionError, TypeError, KeyError):
            if candidate == info_path(path) and candidate.stem in _INFO_NAMES:
                return read(candidate)  # which says what it has instead
            continue
        if expected == digest:
            return read(candidate)
        renamed = candidate.stem in _INFO_NAMES and info_path(path).stem not in _INFO_NAMES
        if name == path.name or (renamed and expected not in map(sha256, others)):
            about.append(candidate)
    if about:
        raise UsageError(
            f"tflite: expected {path} as {about[0]} describes it; its SHA-256 is another, so it "
            "is damaged or of another export"
        )
    return None


def signature(tflite: bytes | Worker) -> dict[str, Tensor | list[Tensor]]:
    """`input`, `output` and `other_outputs` of a file."""
    interpreter = load(tflite)

    def tensors(name):
        parts = ("shapes", "types", "scales", "zero_points")
        of_each = (getattr(interpreter, f"{name}_{part}") for part in parts)
        for shape, kind, scale, zero_point in zip(*of_each, strict=True):
            quantization = (float(scale), int(zero_point)) if kind == np.int8 else ()
            yield Tensor(list(map(int, shape)), np.dtype(kind).name, *quantization)

    (of_input,), (output, *others) = tensors("input"), tensors("output")
    return {"input": of_input, "output": output, "other_outputs": others}


def describe(export: Description) -> list[str]:
    """Lines of Markdown about an export."""
    counts, folded, check = export.binary_convolutions, export.folded, export.check
    lines = [
        f"- `{export.file}`: {export.bytes:,} bytes, {export.float_bytes / export.bytes:.1f} "
        f"times smaller than the network's {export.float_bytes:,} bytes of float32 weights",
        f"- {counts.converted} of {counts.expected} binary layers are LceBconv2d",
    ]
    if export.trained_in != "float32":
        lines.insert(
            1,
            f"- trained in {export.trained_in}; this file, and the network that it is compared "
            "with, are its float32 weights in float32 arithmetic",
        )
    for name, layer in counts.layers.items():
        if not layer.converted:
            lines.append(f"    - `{name}` stays real: {layer.reason}; {layer.advice}")
    shifts, left = folded.shifts, folded.shifts_left
    lines.append(
        f"- folded: {folded.batch_norms - folded.batch_norms_left} of "
        f"{folded.batch_norms} batch norms, {shifts - left} of {shifts} shifts"
    )
    for name, channels in folded.zero_scales.items():
        lines.append(f"    - `{name}`: {channels} channels have the scale 0 and are constants")
    for name in folded.small_images:
        lines.append(
            f"    - `{name}`: its images are smaller than its kernel, where LCE's zero padding is "
            "wrong; it pads with ones and a constant corrects that"
        )
    if export.stays_float32 is not None:
        lines.append(f"- int8, with ranges from {export.calibrated_on}")
        if export.stays_float32:
            lines.append(
                f"- {len(export.stays_float32)} LceBconv2d give float32, which is quantized "
                "after them: LCE has no int8 output with zero padding (train with pad_values=1)"
            )
    lines += [
        f"- check: {'passed' if check.passed else 'FAILED'} on {check.images} {check.on}",
        *(f"    - {failure}" for failure in check.failures),
        f"    - same top-1 class on {100 * check.agreement:.2f} %; logits differ by at most "
        f"{check.largest_difference:.2g}, on average {check.mean_difference:.2g}",
    ]
    if check.keras_accuracy is not None:
        lines.append(
            f"    - top-1 of Keras {100 * check.keras_accuracy:.2f} %, of the .tflite "
            f"{100 * check.tflite_accuracy:.2f} %"
        )
    if len(check.kernels) > 1:
        lines.append(
            f"    - run with {check.kernels[0]}, and its first images also with "
            f"{' and '.join(check.kernels[1:])}"
        )
    if check.not_compared:
        lines.append(
            f"    - not compared: the signs before {', '.join(check.not_compared)}, which were not "
            "found in the file"
        )
    if check.signs:
        worst = min(check.signs, key=check.signs.get)
        lines.append(
            f"    - given the same signs before it, at least {100 * check.signs[worst]:.4f} % "
            f"of the signs at each layer agree (least at `{worst}`), and the logits differ by "
            f"at most {check.same_signs_difference:.2g}"
        )
    if check.channels:
        worst = min(check.channels, key=check.channels.get)
        lines.append(
            f"    - counted by their distance from 0, at least {100 * check.channels[worst]:.4f} % "
            f"agree in every channel (least at `{worst}`)"
        )
    lines += [
        "",
        "| operator | count | weights, bytes | binary MACs | real MACs |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {kind} | {row.count} | {row.weight_bytes:,} | {row.binary_macs:,} | "
            f"{row.real_macs:,} |"
            for kind, row in export.operators.items()
        ),
    ]
    if export.complexity is not None:
        lines += ["", str(export.complexity)]
    if export.estimates:
        lines += ["", *table(export.estimates)]
    return lines
