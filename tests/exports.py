"""Random networks and runs without training, for the tests of the export."""

import json

import numpy as np
import tensorflow as tf

from larq_adambnn import layers, models, optimizers
from larq_adambnn.files import replace_file
from larq_adambnn.runs import datasets, students
from larq_adambnn.runs.config import parse
from larq_adambnn.runs.directory import open_run

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


def settled(model, images, seed=0):
    """Gives batch norms the statistics that they have on images, as a training does.

    Otherwise a deep network's numbers grow from layer to layer, which 8 bits do not follow.  A
    channel of which a ReLU leaves almost nothing on so few images would be 300 times as large
    on the first image where it is not 0.
    """
    random = np.random.default_rng(seed)
    norms = [x for x in model.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0  # the latest statistics alone
        if layer.scale:
            signs = random.choice([-1, 1], layer.gamma.shape)
            layer.gamma.assign(signs * random.uniform(0.5, 1.5, layer.gamma.shape))
    model(images, training=True)
    for layer in norms:
        variance = layer.moving_variance.numpy()
        layer.moving_variance.assign(np.maximum(variance, 0.1 * variance.mean()))
    return model


def network(name, size=32, width=0.25, **options):
    """A random network of 10 classes for RGB images."""
    return randomized(
        models.build(name, input_shape=(size, size, 3), num_classes=10, width=width, **options)
    )


def images(model, count, seed=0):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tiny(input_shape, num_classes, width=1.0, *, pad_values=0.0, groups=(1, 1), **options):
    """Two binary convolutions of 32 channels; takes the place of --model=reactnet18."""
    images = tf.keras.Input(input_shape, name="images")
    x = tf.keras.layers.Conv2D(32, 3, 4, "same", name="stem")(images)
    x = tf.keras.layers.BatchNormalization(name="stem_bn")(x)
    for number, group in enumerate(groups, start=1):
        y = layers.Shift(name=f"shift{number}")(x)
        y = layers.BinaryConv2D(32, 3, groups=group, pad_values=pad_values, name=f"conv{number}")(y)
        y = tf.keras.layers.BatchNormalization(name=f"bn{number}")(y)
        x = tf.keras.layers.Add(name=f"add{number}")([x, y])
        x = layers.RPReLU(name=f"rprelu{number}")(x)
    x = tf.keras.layers.Conv2D(32, x.shape[1:3], name="places")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = tf.keras.layers.Dense(num_classes, name="classifier")(x)
    return tf.keras.Model(images, logits, name="tiny")


def make_run(directory, *flags, train=None):
    """A finished run of --model=reactnet18 with random weights, or what `train` makes of them."""
    tf.keras.utils.set_random_seed(0)
    arguments = ["--mode=import", f"--source={__file__}", f"--output_dir={directory}"]
    config = parse([*arguments, "--model=reactnet18", "--image_size=32", *flags])
    class_names, channels = datasets.describe(config)
    student = students.build(config, channels, len(class_names))
    if train is None:
        randomized(student)
    else:
        train(student, datasets.load(config))
    with open_run(config) as run, replace_file(run.weights(2)) as path:
        student.save_weights(str(path), save_format="h5")
    return directory


def fit(student, dataset, epochs=25, batch_size=64):
    """Trains to about 98 %, so that few images are close to another class."""
    images, labels = arrays(dataset, "train")
    steps = epochs * -(-len(images) // batch_size)
    rate = tf.keras.optimizers.schedules.PolynomialDecay(5e-3, steps, end_learning_rate=0.0)
    student.compile(
        optimizers.Adam(rate), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    student.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=0)


def arrays(dataset, split):
    """(images, labels) of a split, prepared for evaluation."""
    batches = dataset.evaluation(split).as_numpy_iterator()
    return tuple(map(np.concatenate, zip(*batches, strict=True)))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
