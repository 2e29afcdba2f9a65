"""Every flag of main.py, checked, in one frozen `Config`.

A flag is a field of `Config`: its default gives the type, its metadata the help
text and the checks.  No other module reads flags.
"""

import contextlib
import csv
import dataclasses
import difflib
import functools
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags

from larq_adambnn.errors import UsageError
from larq_adambnn.files import shipped
from larq_adambnn.names import (
    APPLICATIONS,
    BAD_IMAGES,
    CROPS,
    FAMILIES,
    IO_TYPES,
    NETWORKS,
    ZOO,
    is_own,
)
from larq_adambnn.runs.usage import FIRST_STEPS, TOPICS, flag_text, usage

__all__ = ["SMALLEST_IMAGE", "Config", "load_run", "named_run", "parse"]


def _flag(
    topic, default, help, *, choices=None, lower=None, upper=None, above=None, defines_run=True
):
    """A field of Config.

    Args:
        topic: its group in --help, one of `TOPICS`.
        default: the flag's default; a tuple makes it a comma-separated list.
        help: one line for --help.
        choices: the only allowed values.
        lower, upper: inclusive bounds of numbers.
        above: exclusive lower bound of numbers.
        defines_run: whether a run with another value is another run.
    """
    metadata = {
        "topic": topic,
        "help": help,
        "choices": choices,
        "lower": lower,
        "upper": upper,
        "above": above,
        "defines_run": defines_run,
    }
    return dataclasses.field(default=default, metadata=metadata)


_task, _network, _data, _recipe, _run, _export = (
    functools.partial(_flag, topic) for topic in TOPICS
)

MODES = (
    "train",
    "evaluate",
    "predict",
    "export",
    "import",
    "summary",
    "benchmark",
    "check_data",
    "analyze",
    "study",
)

# Flags that had another name, which still parses
_FORMER_NAMES = {"checkpoint_steps": "checkpoint_iterations"}
# Flags that hold paths, or may
_PATHS = (
    "run",
    "tflite",
    "images",
    "source",
    "compare",
    "sweep",
    "data_dir",
    "init_from",
    "teacher",
    "teacher_weights",
    "output_dir",
    "device_profile",
)
# Flags that may name what comes with the package, by paths that begin so in any folder
_MAY_BE_SHIPPED = ("run", "tflite", "init_from", "sweep", "teacher")
_SHIPPED = ("pretrained", "docs/studies")
SMALLEST_IMAGE = 32  # side of what the networks take


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of one command; `check` has passed for every instance that `parse` returns."""

    mode: str = _task("train", "What to do.", choices=MODES, defines_run=False)
    run: str = _task("", "Run directory to evaluate, export or inspect.", defines_run=False)
    tflite: str = _task(
        "",
        "A .tflite file to evaluate, predict with, time or sum up, instead of a run or a network.",
        defines_run=False,
    )
    images: tuple[str, ...] = _task(
        (), "Image files or folders of them for --mode=predict.", defines_run=False
    )
    json: bool = _task(False, "Print predictions as JSON.", defines_run=False)
    split: str = _task(
        "test",
        "Split to evaluate on, and to compare a .tflite with Keras on: test (where there is none, "
        "validation), validation, train, or a part of a TFDS split such as train[90%:]. A training "
        "is evaluated on it (see --validate_every), and its best weights are chosen by it.",
    )
    step: int = _task(
        0,
        "Step of the run to evaluate, predict with or export; 0: the last that is finished.",
        lower=0,
        upper=2,
        defines_run=False,
    )
    best: bool = _task(
        False,
        "Take the weights of that step's best epoch on --split, not those of its end.",
        defines_run=False,
    )
    eval_batch_size: int = _task(
        64, "Images in a batch of --mode=evaluate, over all devices.", lower=1, defines_run=False
    )
    benchmark: str = _task(
        "data",
        "What --mode=benchmark measures.",
        choices=("data", "train", "tflite", "device_times"),
        defines_run=False,
    )
    source: str = _task("", "PyTorch checkpoint (.pth) to import.")
    import_step: int = _task(
        0, "Step of --order whose end the import is; 0: the last.", lower=0, upper=2
    )
    resolution: int = _task(
        15,
        "Points along each side of a loss surface of --mode=analyze.",
        lower=3,
        defines_run=False,
    )
    compare: tuple[str, ...] = _task(
        (), "Run directories that --mode=analyze compares the run with.", defines_run=False
    )
    study: str = _task(
        "",
        "The experiment of --mode=study: one of the paper's, or the recipes.",
        choices=(
            "",
            "optimizers",
            "weight_decay",
            "order",
            "learning_rate",
            "recipes",
            "recipe_rates",
        ),
    )
    sweep: str = _task(
        "",
        "Directory of a finished learning_rate study, or a study.csv of one; another study takes "
        "each optimizer's best rate from it (recipes: of a recipe_rates study, each recipe's).",
    )
    rows: tuple[str, ...] = _task(
        (),
        "Only these lines of a study, by the names of their directories in runs/; empty: all.",
        defines_run=False,
    )
    seeds: int = _task(
        5, "Seeds of a study: --seed and those after it.", lower=1, defines_run=False
    )
    jobs: int = _task(1, "Runs of a study at the same time.", lower=1, defines_run=False)
    debug: bool = _task(False, "Show tracebacks.", defines_run=False)

    model: str = _network(
        "reactnet_a",
        "Network; resnet34 is real-valued (a teacher), names like QuickNet are larq-zoo's, and "
        "package.module:function is your own function from (input_shape, num_classes) to a "
        f"tf.keras.Model of Larq layers. One of {', '.join(NETWORKS)}, package.module:function.",
    )
    weights: str = _network(
        "",
        "Weights that a network of larq-zoo begins with; of other classes than ImageNet's all but "
        "its classifier. imagenet downloads them.",
        choices=("", "imagenet"),
    )
    width: float = _network(1.0, "Multiplier of every channel count.", above=0, upper=16)
    image_size: int = _network(224, "Side of the square input in pixels.", lower=SMALLEST_IMAGE)
    num_classes: int = _network(
        0,
        "Classes, checked against the data set's; 0 takes the data set's.",
        lower=0,
        defines_run=False,
    )
    pad_values: int = _network(0, "What pads binary inputs: 0 as published, or 1.", choices=(0, 1))
    stem_stride: int = _network(
        0, "Stride of a ReActNet's stem; 0: 2, and 1 for images under 64 pixels.", choices=(0, 1, 2)
    )

    dataset: str = _data(
        "imagenet2012",
        "digits, image_folder (train/CLASS/*, val/CLASS/*), idx (MNIST's files), or a TFDS name, "
        "with :SPLIT if another split or part than train is to be trained on.",
    )
    data_dir: str = _data(
        "", "Where the data set is or, for a TFDS name, is prepared.", defines_run=False
    )
    train_images: int = _data(
        0, "Training images to use, evenly spaced in the data set; 0: all.", lower=0
    )
    held_out: int = _data(
        0,
        "Training images, evenly spaced, that are not trained on but are the split held_out, to "
        "choose rates and recipes by; --train_images are of the rest.",
        lower=0,
    )
    bad_images: str = _data(
        "error",
        "What an unusable image does: error stops with its name, skip reads everything once "
        "before the training and leaves out, counts and lists what cannot be used.",
        choices=BAD_IMAGES,
    )
    channels: int = _data(
        0,
        "Channels of the images, which are converted: 1 (grey) or 3 (colour); 0: the data set's, "
        "and 3 for an image_folder.",
        choices=(0, 1, 3),
    )
    crop: str = _data(
        "random_resized",
        "Training crop: random_resized (ImageNet), padded (shift by up to 1/8) or none.",
        choices=CROPS,
    )
    flip: bool = _data(True, "Flip training images horizontally at random.")
    lighting: float = _data(0.1, "Standard deviation of the PCA lighting; 0 is off.", lower=0)
    lighting_range: int = _data(
        1,
        "Lighting is added to values on 0..1 or, as in the published code, 0..255.",
        choices=(1, 255),
    )
    randaugment: int = _data(0, "Operations of RandAugment an image; 0 is off.", lower=0, upper=14)
    randaugment_magnitude: int = _data(9, "Strength of RandAugment.", lower=0, upper=30)
    mixup: float = _data(
        0.0,
        "Beta(a, a) parameter of mixup; 0 is off. Needs a teacher, which sees the mixture.",
        lower=0,
    )
    cutmix: float = _data(
        0.0, "Beta(a, a) parameter of cutmix; 0 is off. Needs a teacher, as mixup does.", lower=0
    )

    order: str = _recipe(
        "activations_first",
        "What is binary in each step; progressive is one step, in which a ReActNet's weights "
        "become binary by and by.",
        choices=("activations_first", "weights_first", "one_step", "progressive", "real_valued"),
    )
    init_from: str = _recipe(
        "",
        "Run directory whose weights the training starts from, such as an imported one; teacher: "
        "that of --teacher, the first of several. If it has other classes, all but its classifier "
        "is taken.",
    )
    freeze_backbone: bool = _recipe(
        False,
        "Train the classifier alone; the layers before it stay as --init_from has them, with "
        "their batch norm statistics.",
    )
    backbone_rate: float = _recipe(
        1.0,
        "Learning rate of the layers before the classifier, as a multiple of --learning_rate.",
        above=0,
    )
    epochs: int = _recipe(256, "Epochs of each step.", lower=1)
    batch_size: int = _recipe(256, "Images in an iteration.", lower=1)
    microbatches: int = _recipe(
        1,
        "Equal parts of an iteration, to save memory (gradient accumulation).",
        lower=1,
    )
    optimizer: str = _recipe(
        "adam",
        "Optimizer; adam has coupled weight decay, sgd momentum 0.9; diode is sign descent for "
        "binary kernels and adam for the rest.",
        choices=("adam", "adamw", "amsgrad", "sgd", "rmsprop", "diode"),
    )
    diode_momenta: tuple[float, ...] = _recipe(
        (0.99, 0.9999),
        "Momenta of --optimizer=diode: of the gradients, and of their signs, which is to be less "
        "in a short training.",
        lower=0,
        upper=0.999999,
    )
    learning_rate: float = _recipe(1.25e-3, "Initial learning rate of each step.", above=0)
    weight_decay: tuple[float, ...] = _recipe(
        (5e-6, 0.0), "Weight decay of step 1 and step 2.", lower=-1, upper=1
    )
    schedule: str = _recipe(
        "linear", "How the learning rate falls to 0 in each step.", choices=("linear", "cosine")
    )
    warmup: float = _recipe(
        0.0, "Share of each step in which the learning rate rises first.", lower=0, upper=0.9
    )
    published_schedule: bool = _recipe(
        False, "Decay the learning rate by epochs, as the published code does, not by iterations."
    )
    clip_norm: float = _recipe(
        0.0, "Largest norm of an iteration's gradient, which is scaled down to it; 0: any.", lower=0
    )
    activation_clip: float = _recipe(
        1.0,
        "How far from 0 the gradient of a ReActNet's binary activations reaches: a triangle of the "
        "same area; 1 as published.",
        above=0,
    )
    weight_clip: float = _recipe(
        1.0, "The same of its binary weights, whose gradient is 1 inside.", above=0
    )
    gradient_floor: float = _recipe(
        0.0,
        "Smallest norm of the gradient of a binary kernel's output channel, as a share of its "
        "weights' norm; a smaller one is scaled up.",
        lower=0,
    )
    silent_decay: float = _recipe(
        0.0, "Weight decay of those binary weights alone that do not change their sign.", lower=0
    )
    silent_iterations: int = _recipe(
        1000, "Iterations over which --silent_decay averages the changes of a sign.", lower=1
    )
    reload_best: bool = _recipe(
        False, "Begin step 2 from step 1's best weights, as the published code does."
    )
    ema: float = _recipe(
        0.0,
        "Momentum of the averaged weights that are evaluated and kept; 0: none.",
        lower=0,
        upper=0.999999,
    )
    batch_norm_batches: int = _recipe(
        0,
        "Training batches by which the statistics of batch norm are computed anew for each "
        "evaluation and for export; 0: those of the training.",
        lower=0,
    )
    loss: str = _recipe(
        "distribution",
        "Training loss: the teacher's distribution, the labels, or a weighted sum of both.",
        choices=("distribution", "cross_entropy", "weighted_sum"),
    )
    label_weight: float = _recipe(
        0.5, "Share of the labels' cross-entropy in --loss=weighted_sum.", lower=0, upper=1
    )
    label_smoothing: float = _recipe(
        0.0,
        "Share of a label that is spread over all classes; the teacher of --teacher=self has none.",
        lower=0,
        upper=0.9,
    )
    teacher: tuple[str, ...] = _recipe(
        ("resnet34",),
        "Teacher of the distribution loss: self (the real-valued student, trained first), a run "
        "directory, resnet34, or a name of tf.keras.applications such as ResNet50. Several are "
        "weighted by image; each self has another seed.",
    )
    step2_teacher: str = _recipe(
        "same",
        "Teacher of step 2: the same, or the network at the end of step 1, as it is evaluated and "
        "kept (see --ema); with --reload_best its best.",
        choices=("same", "step1"),
    )
    attention: float = _recipe(
        0.0,
        "Weight of attention matching in the loss of step 1, or of the only one: where in its "
        "feature maps a student is strong is compared with the teacher. Published is 30; 0 is off.",
        lower=0,
    )
    teacher_weights: tuple[str, ...] = _recipe(
        (),
        "Weights of each named teacher, in their order: a file, or imagenet (downloads them).",
        defines_run=False,
    )
    teacher_epochs: int = _recipe(0, "Epochs of teacher=self; 0 means those of a step.", lower=0)
    teacher_rate: float = _recipe(
        0.0,
        "Learning rate of teacher=self, which falls linearly whatever the student's does; 0 means "
        "--learning_rate.",
        lower=0,
    )

    output_dir: str = _run("", "Directory of the run.", defines_run=False)
    seed: int = _run(0, "Seed of weights, order and augmentation.", lower=0, upper=2**31 - 1)
    deterministic: bool = _run(True, "Use deterministic operations.")
    precision: str = _run(
        "float32",
        "Arithmetic of the training; export is float32. bfloat16 saves memory, and on processors "
        "that have it (such as AVX-512 BF16) some time for wide networks; float16 is for GPUs.",
        choices=("float32", "bfloat16", "float16"),
    )
    jit_compile: bool = _run(
        False, "Compile the training's networks, loss and gradients with XLA, for GPUs."
    )
    tf32: bool = _run(
        False,
        "Multiply float32 in TensorFloat-32 on GPUs that have it: several times as fast, with 10 "
        "bits of the mantissa instead of 23.",
    )
    strategy: str = _run(
        "one",
        "Devices: one; mirrored, all of this machine; multi_worker, the machines in TF_CONFIG.",
        choices=("one", "mirrored", "multi_worker"),
    )
    devices: tuple[str, ...] = _run(
        (), "Devices of --strategy=mirrored, such as GPU:0,GPU:1; all of them by default."
    )
    sync_batch_norm: bool = _run(False, "Batch norm over all replicas instead of each its own.")
    checkpoint_iterations: int = _run(
        0,
        "Iterations between checkpoints, besides those at each epoch; 0: none.",
        lower=0,
        defines_run=False,
    )
    validate_every: int = _run(
        1,
        "Epochs from one evaluation on --split to the next; the last of a step is always "
        "evaluated.",
        lower=1,
    )
    snapshots: int = _run(
        2,
        "Weights kept of each step for --mode=analyze, evenly spaced from its first epoch to its "
        "last (with the initial ones); 0: none.",
        lower=0,
        defines_run=False,
    )

    export: bool = _export(
        True, "Convert to .tflite and check it at the end of training.", defines_run=False
    )
    allow_float_fallback: bool = _export(
        False, "Export although a binary layer stays real.", defines_run=False
    )
    check_images: int = _export(
        0,
        "Images of --split that Keras and the .tflite are compared on; 0: 1000 of up to 64 pixels, "
        "100 of larger ones.",
        lower=0,
        defines_run=False,
    )
    device_profile: str = _export(
        "",
        "What LCE's benchmark tool printed with --enable_op_profiling=true on a board, beside the "
        ".tflite that it timed: times are estimated for that board (export and summary).",
        defines_run=False,
    )
    int8: bool = _export(False, "Export what stays real in 8 bits.", defines_run=False)
    io_type: str = _export(
        "float",
        "Input and output of a .tflite made with --int8.",
        choices=IO_TYPES,
        defines_run=False,
    )
    int8_epochs: int = _export(
        0, "Epochs that fine-tune what is real in a network of --int8.", lower=0, defines_run=False
    )

    def replace(self, **changes) -> "Config":
        """A checked copy with other values."""
        return check(dataclasses.replace(self, **changes))

    @property
    def steps(self) -> tuple[tuple[bool, bool], ...]:
        """(activations, weights) that are binary in each step of the training."""
        first = {
            "activations_first": ((True, False),),
            "weights_first": ((False, True),),
            "one_step": (),
            "progressive": (),
            "real_valued": (),
        }[self.order]
        return (*first, (False, False) if self.order == "real_valued" else (True, True))

    @property
    def sweep_file(self) -> pathlib.Path:
        """The table of the runs of --sweep."""
        path = pathlib.Path(self.sweep)
        return path / "study.csv" if path.is_dir() else path

    @property
    def named_teachers(self) -> dict[str, str]:
        """The weights of each teacher that is a network's name; empty where none are given."""
        names = [name for name in self.teacher if name in ("resnet34", *APPLICATIONS)]
        return dict(itertools.zip_longest(names, self.teacher_weights[: len(names)], fillvalue=""))

    def given(self, *names: str) -> dict[str, str]:
        """Those of some settings that are not empty, to change another config's with."""
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @staticmethod
    def defining() -> list[str]:
        """Names of the settings that make a run what it is."""
        return [name for name, field in _fields().items() if field.metadata["defines_run"]]

    def lines(self) -> list[str]:
        """Every setting as a line of a flagfile, from which it is read back as it is.

        A text that a plain line cannot hold (with a line break or a blank at its end, say) is
        written as a JSON string, and such a list as a JSON list of strings.
        """
        values = {name: getattr(self, name) for name in _fields()}
        values |= {name: _each(_named, values[name]) for name in _MAY_BE_SHIPPED}
        return [_line(field, values[name]) for name, field in _fields().items()]


def _fields() -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(Config)}


def _bounds(metadata) -> str:
    parts = [
        f"{sign} {metadata[key]}"
        for key, sign in (("above", ">"), ("lower", ">="), ("upper", "<="))
        if metadata[key] is not None
    ]
    return " and ".join(parts)


def _check_value(name: str, value, metadata) -> None:
    choices = metadata["choices"]
    if choices is not None and value not in choices:
        raise UsageError(
            f"--{name}: expected one of {', '.join(filter(None, map(str, choices)))}; "
            f"received {value!r}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high, above = metadata["lower"], metadata["upper"], metadata["above"]
        if (
            not math.isfinite(value)
            or (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
        ):
            bounds = _bounds(metadata) or "a finite number"
            raise UsageError(f"--{name}: expected {bounds}; received {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _check_values(config: Config) -> None:
    """Raises UsageError for a value that its flag cannot have, whatever the others are."""
    for name, field in _fields().items():
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            _check_value(name, item, field.metadata)
        _require(
            not isinstance(value, tuple) or "" not in value,
            f"--{name}: expected no empty item between commas; received {flag_text(value)!r}",
        )


def check(config: Config) -> Config:
    """Returns the config, or raises UsageError naming the flag and what was expected."""
    _check_values(config)
    _require(
        len(config.weight_decay) == 2,
        "--weight_decay: expected two values, of step 1 and step 2, such as 5e-6,0; received "
        f"{flag_text(config.weight_decay)!r}",
    )
    _require(
        len(config.diode_momenta) == 2,
        "--diode_momenta: expected two values, of the gradients and of their signs, such as "
        f"0.95,0.997; received {flag_text(config.diode_momenta)!r}",
    )
    _require(
        config.model in NETWORKS or is_own(config.model),
        f"--model: expected one of {', '.join(NETWORKS)}, or your own function as "
        f"package.module:function; received {config.model!r}",
    )
    _require(
        not (config.model in ZOO or is_own(config.model))
        or (config.width == 1 and config.pad_values == 0),
        f"--model: {config.model} {'of larq-zoo ' if config.model in ZOO else ''}has one width and "
        "padding; expected --width=1 and --pad_values=0",
    )
    _require(
        not config.weights or config.model in ZOO,
        f"--weights: expected a network of larq-zoo with it, such as --model=QuickNet; received "
        f"{config.model}",
    )
    _require(
        not (config.weights and config.init_from),
        f"--weights: expected no --init_from with it; received {config.init_from!r}",
    )
    _require(
        config.model != "resnet34" or config.pad_values == 0,
        f"--pad_values: expected 0 for the real-valued resnet34; received {config.pad_values}",
    )
    _require(
        config.stem_stride == 0 or config.model.startswith("reactnet"),
        f"--stem_stride: expected 0, as only the ReActNets have it; received {config.stem_stride} "
        f"for --model={config.model}",
    )
    for name in ("activation_clip", "weight_clip"):
        _require(
            getattr(config, name) == 1 or config.model.startswith("reactnet"),
            f"--{name}: expected 1, as only the ReActNets have another; received "
            f"{getattr(config, name)} for --model={config.model}",
        )
    _require(
        config.order != "progressive" or config.model.startswith("reactnet"),
        f"--order: expected another than progressive for --model={config.model}, as only the "
        "ReActNets have it",
    )
    _require(
        config.step2_teacher == "same"
        or (len(config.steps) == 2 and config.loss != "cross_entropy"),
        "--step2_teacher: expected two steps and a loss with a teacher for step1; received "
        f"--order={config.order} and --loss={config.loss}",
    )
    _require(
        not config.attention or config.loss != "cross_entropy",
        "--attention: expected --loss=distribution or weighted_sum with it, as cross_entropy has "
        "no teacher",
    )
    _require(
        not config.attention or len(config.teacher) < 2,
        f"--attention: expected one --teacher with it; received {flag_text(config.teacher)}",
    )
    _require(
        not config.label_smoothing or config.loss != "distribution",
        "--label_smoothing: expected --loss=cross_entropy or weighted_sum with it, as "
        "distribution has no labels",
    )
    _require(bool(config.dataset), "--dataset: expected a data set name; received nothing")
    _require(
        config.dataset not in ("image_folder", "idx") or bool(config.data_dir),
        f"--data_dir: expected the directory of --dataset={config.dataset}; received nothing",
    )
    _require(
        not (config.mixup or config.cutmix) or config.loss == "distribution",
        "--loss: expected distribution with --mixup or --cutmix, since only the teacher knows "
        f"what a mixture shows; received {config.loss}",
    )
    _require(
        not (config.mixup or config.cutmix) or config.batch_size % 2 == 0,
        "--batch_size: expected an even number with --mixup or --cutmix, which mix pairs; "
        f"received {config.batch_size}",
    )
    mode = config.mode
    if mode in ("train", "import"):
        _require(bool(config.output_dir), "--output_dir: expected a directory for the run")
        _require(
            config.model != "resnet34" or config.order == "real_valued",
            f"--order: expected real_valued with --model=resnet34; received {config.order}",
        )
        _require(
            config.model != "DoReFaNet" or len(config.steps) == 1,
            "--order: expected one_step or real_valued with --model=DoReFaNet, whose activations "
            f"have 2 bits; received {config.order}",
        )
    if mode == "import":
        _check_import(config)
    if mode == "train":
        _require(
            not config.source,
            f"--source: only --mode=import takes it; to train on from an imported run, expected "
            f"--init_from; received {config.source!r}",
        )
        if config.init_from == "teacher":
            first = "".join(config.teacher[:1])
            _require(
                config.loss != "cross_entropy" and (first == "self" or _is_run(first)),
                "--init_from: expected a --teacher that is self or a run directory (the first of "
                f"several), and a --loss that has one; received {first!r} and {config.loss}",
            )
        elif config.init_from:
            _check_run(config.init_from, "init_from")
        _require(
            not config.freeze_backbone or config.backbone_rate == 1,
            "--backbone_rate: expected no --freeze_backbone with it, which trains no backbone",
        )
        for name in ("epochs", "teacher_epochs"):
            _require(
                not config.published_schedule or getattr(config, name) != 1,
                f"--{name}: expected 2 or more with --published_schedule, whose last epoch has "
                "the learning rate 0; received 1",
            )
        if config.loss != "cross_entropy":
            _check_teachers(config)
        _require(
            config.batch_size % config.microbatches == 0,
            f"--microbatches: expected a divisor of the batch size {config.batch_size}; received "
            f"{config.microbatches}",
        )
        _require(
            not config.sync_batch_norm
            or (
                config.microbatches == 1
                and config.precision == "float32"
                and not config.jit_compile
            ),
            "--sync_batch_norm: expected --microbatches=1, --precision=float32 and no "
            "--jit_compile with it",
        )
    if mode == "analyze":
        _require(
            bool(config.run or config.output_dir),
            "--run: expected the directory of a run to analyze",
        )
    if mode == "study":
        _require(bool(config.study), "--study: expected the name of a study; received nothing")
        _require(bool(config.output_dir), "--output_dir: expected a directory for the study")
        _require(
            config.strategy != "multi_worker",
            "--strategy: expected one or mirrored with --mode=study, whose runs are processes of "
            "their own; received multi_worker",
        )
        _require(
            config.held_out > 0,
            "--held_out: expected above 0, since a study compares its runs on these images; "
            f"received {config.held_out}",
        )
        _require(
            not config.sweep or config.sweep_file.is_file(),
            "--sweep: expected the directory of a finished study (with study.csv), or such a "
            f"file; received {config.sweep!r}",
        )
    for name in ("study", "sweep", "rows"):
        value = getattr(config, name)
        _require(
            not value or mode != "train",
            f"--{name}: expected --mode=study with it; received {flag_text(value)!r} with "
            "--mode=train",
        )
    for run in config.compare:
        _check_run(run, "compare")
    if mode in ("evaluate", "predict", "export"):
        _require(
            bool(config.run or config.output_dir or (config.tflite and mode != "export")),
            f"--run: expected the directory of a run to {mode}",
        )
    for name in ("step", "best"):
        value = getattr(config, name)
        _require(
            not value or (mode in ("evaluate", "predict", "export") and not config.tflite),
            f"--{name}: only --mode=evaluate, predict and export of a run take it; received "
            f"{value} with {'--tflite' if config.tflite else f'--mode={mode}'}",
        )
    if mode == "predict":
        _require(bool(config.images), "--images: expected image files or folders; received none")
    _require(
        config.int8 or (config.io_type == "float" and config.int8_epochs == 0),
        "--int8: expected it with --io_type=int8 and --int8_epochs",
    )
    _require(
        mode == "export" or not config.int8,
        f"--int8: only --mode=export takes it; received it with --mode={mode}",
    )
    _require(
        not config.device_profile or (mode in ("export", "summary")),
        f"--device_profile: only --mode=export and summary take it; received it with --mode={mode}",
    )
    if config.device_profile:
        _check_file(config.device_profile, "device_profile")
    if config.run:
        _check_run(config.run, "run")
    if config.tflite:
        _check_file(config.tflite, "tflite")
    return config


def _check_import(config: Config) -> None:
    _check_file(config.source, "source", "a PyTorch checkpoint")
    _require(
        config.model in NETWORKS and config.model not in ZOO,
        f"--model: expected reactnet_a, reactnet18 or resnet34 to import; received {config.model}",
    )
    _require(
        config.import_step <= len(config.steps),
        f"--import_step: expected a step of --order={config.order}, which has {len(config.steps)}; "
        f"received {config.import_step}",
    )


def _check_teachers(config: Config) -> None:
    given = [name for name in config.teacher if name != "self"]
    _require(
        len(given) == len(set(given)),
        f"--teacher: expected each but self once; received {flag_text(config.teacher)!r}",
    )
    named, weights = config.named_teachers, config.teacher_weights
    _require(
        not named or len(named) == len(weights),
        f"--teacher_weights: expected the file of {flag_text(tuple(named))}'s weights, one for "
        f"each that is named; received {flag_text(weights) or 'none'}",
    )
    for name, path in named.items():
        if path != "imagenet" or name == "resnet34":
            _check_file(path, "teacher_weights")
    names = ", ".join(f"{family}{'/'.join(sizes)}" for family, sizes in FAMILIES.items())
    for name in config.teacher or ("",):
        _require(
            name == "self" or name in named or _is_run(name),
            "--teacher: expected self, resnet34, a run directory (with flags.cfg), or a network of "
            f"tf.keras.applications ({names}), or several of these; received {name!r}",
        )


def _is_run(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "flags.cfg"))


def _check_run(path: str, flag: str) -> None:
    _require(
        _is_run(path),
        f"--{flag}: expected a run directory (with flags.cfg); received {path!r}",
    )


def _check_file(path: str, flag: str, expected: str = "a file") -> None:
    _require(
        os.path.isfile(path),
        f"--{flag}: expected {expected}; received {path!r}, which "
        f"{'is no file' if os.path.exists(path) else 'does not exist'}",
    )


# How the text of a flag is read as each type
_KINDS = {
    bool: ("true or false", flags.BooleanParser()),
    int: ("a whole number", flags.IntegerParser()),
    float: ("a number", flags.FloatParser()),
    str: ("text", flags.ArgumentParser()),
}


class _Parser(flags.ArgumentParser):
    """Reads the text of a flag as the type of its field."""

    def __init__(self, field: dataclasses.Field):
        self._field = field

    def parse(self, text: str):
        default = self._field.default
        several = isinstance(default, tuple)
        expected, parser = _KINDS[type((*default, "")[0] if several else default)]
        try:
            return tuple(map(parser.parse, _items(text))) if several else parser.parse(text)
        except (TypeError, ValueError):
            expected += ", or several with commas between" if several else ""
            raise UsageError(
                f"--{self._field.name}: expected {expected}; received {text!r}"
            ) from None


def _items(text: str) -> list[str]:
    """The items of a list: a JSON list of strings, or else a row of a CSV file."""
    if text.startswith("["):
        with contextlib.suppress(ValueError):  # a row whose first item begins so
            items = json.loads(text)
            if all(isinstance(item, str) for item in items):
                return items
    try:
        return [item.strip() for item in next(csv.reader([text], strict=True), ())]
    except csv.Error as error:
        raise ValueError(error) from None


def _flag_values() -> flags.FlagValues:
    """A flag for each field of Config, None until it is given, and --help."""
    values = flags.FlagValues()
    for name, field in _fields().items():
        flag = flags.Flag(
            _Parser(field), None, name, None, "", boolean=isinstance(field.default, bool)
        )
        flags.DEFINE_flag(flag, values)
    for old, new in _FORMER_NAMES.items():
        flags.DEFINE_alias(old, new, flag_values=values)
    parser = flags.ArgumentParser()
    flags.DEFINE_flag(flags.Flag(parser, None, "help", None, "", "h", boolean=True), values)
    return values


def _line(field: dataclasses.Field, value) -> str:
    """A line of a flagfile that is read back as this value, plain where it can be."""
    text = flag_text(value)
    line = f"--{field.name}={text}"
    with contextlib.suppress(UsageError):  # no row of a CSV file
        if (
            text.isprintable()
            and list(_arguments(line)) == [line]
            and _Parser(field).parse(text) == value
        ):
            return line
    return f"--{field.name}={json.dumps(value)}"


def _arguments(text: str) -> Iterator[str]:
    """The arguments in the text of a flagfile."""
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", "//")):
            continue
        name, _, value = line.partition("=")
        field = _fields().get(name.lstrip("-"))
        if field and isinstance(field.default, str) and value.startswith('"'):
            with contextlib.suppress(ValueError):  # a quotation mark like another character
                line = f"{name}={json.loads(value)}"
        yield line


def _shipped_names() -> list[str]:
    return sorted(path.stem for path in shipped("configs").glob("*.cfg"))


def _find(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The flagfile that a name means to one in a folder: beside it, a path, or a shipped config."""
    own, name = shipped("configs"), os.path.expanduser(name)
    for path in (folder / name, pathlib.Path(name), own / name, own / f"{name}.cfg"):
        if os.path.isfile(path):
            return path
    raise UsageError(
        f"--flagfile: expected a file, or one of {', '.join(_shipped_names())}; received {name!r}"
    )


def _read_flagfile(path: pathlib.Path, seen: tuple[pathlib.Path, ...] = ()) -> list[str]:
    """The arguments in a flagfile and in those that it names."""
    if path.resolve() in seen:
        raise UsageError(f"--flagfile: {path} includes itself")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: expected a readable text file in UTF-8; {reason}") from None
    return _expand(_arguments(text), path.parent, (*seen, path.resolve()))


def _expand(arguments: Iterable[str], folder: pathlib.Path, seen=()) -> list[str]:
    """Replaces every --flagfile=FILE by the arguments in FILE."""
    expanded: list[str] = []
    arguments = iter(arguments)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        value = value if equals else next(arguments, "")
        path = _find(value, folder)
        if path.name == "flags.cfg":  # a run's own, which may have been moved
            expanded += [*_read_run(path, seen), f"--output_dir={path.parent}"]
        else:
            expanded += _read_flagfile(path, seen)
    return expanded


def _read_run(path: pathlib.Path, seen: tuple[pathlib.Path, ...] = ()) -> list[str]:
    """The arguments in a run's flags.cfg, which has nothing else."""
    arguments = _read_flagfile(path, seen)
    try:
        values, rest = _read(arguments)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if rest or not _settings(values):
        found = repr(rest[0]) if rest else "nothing"
        raise UsageError(f"{path}: expected the flags of a run; received {found}")
    return arguments


def _settings(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that were given."""
    given = {name: values[name].value for name in _fields()}
    for name in _PATHS:  # shells leave the ~ in --flag=~/PATH
        given[name] = _each(os.path.expanduser, given[name])
    for name in _MAY_BE_SHIPPED:
        given[name] = _each(_found, given[name])
    return {name: value for name, value in given.items() if value is not None}


def _read(arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags in arguments, and what follows them."""
    values = _flag_values()
    try:
        return values, values(["main.py", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, _fields(), 1)
        hint = f" (--{near[0]}?)" if near else ""
        raise UsageError(
            f"--{error.flagname}: expected a flag that --help shows{hint}; received "
            f"{error.flagvalue!r}"
        ) from None
    except flags.Error:  # only the last argument can lack its value
        flag = f"--{arguments[-1].lstrip('-')}"
        raise UsageError(f"{flag}: expected a value, {flag}=VALUE; received none") from None
    except ValueError as error:  # --noFLAG=VALUE
        argument = str(error).split()[0]
        name = argument.partition("=")[0]
        raise UsageError(f"{name}: expected it without a value; received {argument!r}") from None


def parse(arguments: list[str]) -> Config | str:
    """The Config of a command line (without the program's name), or a text to print.

    That is of --help or, where there is no flag at all, what to do first.

    Later flags win over earlier ones and over flagfiles before them.

    Raises:
        UsageError: an unknown flag, a wrong value, a missing file.
    """
    if not arguments:
        return FIRST_STEPS
    values, rest = _read(_expand(arguments, pathlib.Path()))
    topic = values["help"].value
    if topic is not None:
        _check_value("help", topic, {"choices": ("true", *TOPICS)})
        return usage(_fields(), _shipped_names(), topic if topic in TOPICS else "")
    if rest:
        raise UsageError(f"expected only flags (--name=value); received {rest[0]!r}")
    return check(Config(**_settings(values)))


def _found(path: str) -> str:
    """A path, or what comes with the package under it, unless something else is there."""
    for folder in _SHIPPED:
        own = shipped(folder) / path.removeprefix(f"{folder}/")
        if (
            path.startswith(f"{folder}/")
            and own.exists()
            and (not os.path.exists(path) or os.path.samefile(path, own))
        ):
            return str(own)
    return path


def _named(path: str) -> str:
    """The path by which `_found` finds a file of the package, wherever that is installed."""
    for folder in _SHIPPED:
        if path.startswith(f"{shipped(folder)}{os.sep}"):
            return f"{folder}/{os.path.relpath(path, shipped(folder))}"
    return path


def _each(function: Callable[[str], str], value: str | tuple[str, ...] | None):
    """A function of a text, or of each in a tuple; None stays."""
    if isinstance(value, tuple):
        return tuple(map(function, value))
    return None if value is None else function(value)


def load_run(directory: str | pathlib.Path, **changes) -> Config:
    """The Config that a run directory was made with, with some values changed.

    Raises:
        UsageError: the directory holds no run, or one of another version.
    """
    path = pathlib.Path(directory) / "flags.cfg"
    _check_run(str(directory), "run")
    values, _ = _read(_read_run(path))
    found = Config(**{**_settings(values), "output_dir": str(path.parent), **changes})
    try:
        _check_values(found)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return found


def named_run(config: Config, **changes) -> Config:
    """The Config of the run that a command names with --run, or else with --output_dir.

    Args:
        config: the command's; its mode counts, and its data_dir if it has one.
        **changes: what counts of the command besides.

    Raises:
        UsageError: as `load_run`; or the command asks for another network or other data than the
            run has, which would not be what it gets.
    """
    directory = config.run or config.output_dir
    found = load_run(directory, **{"mode": config.mode, **config.given("data_dir"), **changes})
    for name, field in _fields().items():
        asked, has = getattr(config, name), getattr(found, name)
        _require(
            asked in (field.default, has)
            or not field.metadata["defines_run"]
            or field.metadata["topic"] not in ("network", "data"),
            f"--{name}: expected {flag_text(has)}, as the run in {directory} has; received "
            f"{flag_text(asked)}",
        )
    return found
