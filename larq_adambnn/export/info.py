"""export.json: what is known about a .tflite, for people, phone apps and --mode=predict."""

import hashlib
import json
import pathlib

import numpy as np

from larq_adambnn.config import UsageError
from larq_adambnn.data import Dataset
from larq_adambnn.export.interpreter import load

__all__ = ["describe", "info_path", "preprocessing", "read_info", "signature"]

_RESIZE_RATIO = 256 / 224  # of the shorter side to the crop, as `data.augmentation` has it


def info_path(tflite: pathlib.Path) -> pathlib.Path:
    """Where the JSON file of a model*.tflite is written."""
    return tflite.with_name(tflite.name.replace("model", "export")).with_suffix(".json")


def read_info(path: pathlib.Path, tflite: bytes) -> dict:
    """What was written beside a .tflite when it was exported; the files may have been renamed.

    Raises:
        UsageError: no export*.json beside it is about this file.
    """
    digest = hashlib.sha256(tflite).hexdigest()
    for candidate in sorted(path.parent.glob("*.json")):
        try:
            info = json.loads(candidate.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(info, dict) and info.get("sha256") == digest:
            return info
    raise UsageError(
        f"--tflite: expected the export.json that was written with {path.name} beside it; "
        f"{path.parent} has none whose sha256 is {digest[:12]}..."
    )


def preprocessing(dataset: Dataset) -> dict:
    """How an image becomes the network's input, in words and numbers."""
    config = dataset.config
    size = config.image_size
    if config.crop == "random_resized":
        shorter = round(size * _RESIZE_RATIO)
        resize = f"the shorter side to {shorter}, then the centre {size} x {size}"
    else:
        resize = f"both sides to {size}"
    return {
        "size": size,
        "crop": config.crop,
        "resize": f"{resize}; bilinear with antialiasing",
        "channels": dataset.channels,
        "channel_order": "RGB" if dataset.channels == 3 else "grey",
        "layout": "image, row, column, channel",
        "formula": "(pixel / 255 - mean) / std",
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }


def signature(tflite: bytes) -> dict:
    """Shape and type of a file's input and output; for int8 real = scale * (q - zero_point)."""
    interpreter = load(tflite)
    result = {}
    for name in ("input", "output"):
        shape, kind, scale, zero_point = (
            getattr(interpreter, f"{name}_{part}")[0]
            for part in ("shapes", "types", "scales", "zero_points")
        )
        result[name] = {"shape": list(shape), "type": np.dtype(kind).name}
        if kind == np.int8:
            result[name] |= {"scale": float(scale), "zero_point": int(zero_point)}
    return result


def describe(info: dict) -> list[str]:
    """Lines of Markdown about an export."""
    counts, folded, check = info["binary_convolutions"], info["folded"], info["check"]
    lines = [
        f"- `{info['file']}`: {info['bytes']:,} bytes, {info['float_bytes'] / info['bytes']:.1f} "
        f"times smaller than the network's {info['float_bytes']:,} bytes of float32 weights",
        f"- {counts['converted']} of {counts['expected']} binary layers are LceBconv2d",
    ]
    if info["trained_in"] != "float32":
        lines.insert(
            1,
            f"- trained in {info['trained_in']}; this file, and the network that it is compared "
            "with, are its float32 weights in float32 arithmetic",
        )
    for name, layer in counts["layers"].items():
        if not layer["converted"]:
            lines.append(f"    - `{name}` stays real: {layer['reason']}; {layer['advice']}")
    shifts, left = folded["shifts"], folded["shifts_left"]
    lines.append(
        f"- folded: {folded['batch_norms'] - folded['batch_norms_left']} of "
        f"{folded['batch_norms']} batch norms, {shifts - left} of {shifts} shifts"
    )
    for name, channels in folded["zero_scales"].items():
        lines.append(f"    - `{name}`: {channels} channels have the scale 0 and are constants")
    for name in folded["small_images"]:
        lines.append(
            f"    - `{name}`: its images are smaller than its kernel, where LCE's zero padding is "
            "wrong; it pads with ones and a constant corrects that"
        )
    if "stays_float32" in info:
        lines.append(f"- int8, with ranges from {info['calibrated_on']}")
        if info["stays_float32"]:
            lines.append(
                f"- {len(info['stays_float32'])} LceBconv2d give float32, which is quantized "
                "after them: LCE has no int8 output with zero padding (train with --pad_values=1)"
            )
    lines += [
        f"- check: {'passed' if check['passed'] else 'FAILED'} on {check['images']} {check['on']}",
        *(f"    - {failure}" for failure in check["failures"]),
        f"    - same top-1 class on {100 * check['agreement']:.2f} %; logits differ by at most "
        f"{check['largest_difference']:.2g}, on average {check['mean_difference']:.2g}",
    ]
    if check["keras_accuracy"] is not None:
        lines.append(
            f"    - top-1 of Keras {100 * check['keras_accuracy']:.2f} %, of the .tflite "
            f"{100 * check['tflite_accuracy']:.2f} %"
        )
    if check["signs"]:
        worst = min(check["signs"], key=check["signs"].get)
        lines.append(
            f"    - given the same signs before it, at least {100 * check['signs'][worst]:.4f} % "
            f"of the signs at each layer agree (least at `{worst}`), and the logits differ by "
            f"at most {check['same_signs_difference']:.2g}"
        )
    lines += [
        "",
        "| operator | count | weights, bytes | binary MACs | real MACs |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {kind} | {row['count']} | {row['weight_bytes']:,} | {row['binary_macs']:,} | "
            f"{row['real_macs']:,} |"
            for kind, row in info["operators"].items()
        ),
    ]
    return lines
