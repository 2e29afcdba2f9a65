"""Random networks and runs without training, for the tests of the export."""

import contextlib
import json

import numpy as np

from larq_adambnn import models, runs, students
from larq_adambnn.config import parse
from larq_adambnn.data import load

# Uniform between two numbers, or normal around 0 with a deviation, by the end of the name
_VALUES = {
    "moving_variance": (0.3, 3.0),
    "slope": (-0.3, 0.8),
    "gamma": 1.0,
    "moving_mean": 0.5,
    "beta": 0.5,
    "shift": 0.5,
    "shift_in": 0.5,
    "shift_out": 0.5,
    "bias": 0.5,
}


def randomized(model, seed=0):
    """Draws all statistics, shifts, slopes and biases, which are all the same at first."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        values = _VALUES.get(weight.name.split("/")[-1].split(":")[0])
        if isinstance(values, tuple):
            weight.assign(random.uniform(*values, weight.shape))
        elif values is not None:
            weight.assign(random.normal(0, values, weight.shape))
    return model


def network(name, size=32, width=0.25, **options):
    """A random network of 10 classes for RGB images."""
    return randomized(
        models.build(name, input_shape=(size, size, 3), num_classes=10, width=width, **options)
    )


def images(model, count, seed=0):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_run(directory, data_dir, *flags, seed=0, train=None):
    """A finished run of digits with random weights, or what `train(student)` makes of them."""
    flags = (
        "--mode=import",
        "--source=/dev/null",
        "--dataset=digits",
        "--image_size=32",
        "--crop=padded",
        f"--data_dir={data_dir}",
        f"--output_dir={directory}",
        *flags,
    )
    with contextlib.suppress(FileExistsError):
        directory.parent.mkdir(parents=True)
    config = parse(list(flags)).replace(source="")
    student = randomized(students.build_student(config, load(config)), seed)
    with runs.open_run(config) as run:
        student.save_weights(str(run.weights(2)), save_format="h5")
    return run


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
