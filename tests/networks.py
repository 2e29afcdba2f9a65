"""Every network that is named, and small ones for what a network may be made of, as a table.

`tests/export/test_networks.py` takes each row from its layers to a .tflite.
"""

import dataclasses
from collections.abc import Callable

import exports
import larq as lq
import numpy as np
import tensorflow as tf

from larq_adambnn import layers, models
from larq_adambnn.names import ZOO

CLASSES = 10
GROUPS = "has 2 groups, which LCE's kernel does not compute"
DENSE = "no binary form of QuantDense"
TWO_BITS = "its input has 2 bits"
LEVELS = "rounding to 8 bits moves inputs of 2 bits to another of their four levels"
SUMS = "one scale serves all channels of sums that grow from block to block, and signs read them"


@dataclasses.dataclass(frozen=True)
class Row:
    """A network and what it can do.

    Attributes:
        build: makes it for images of a size.
        sizes: the smallest, and another.
        binary: number of its binary convolutions, all of which LCE has an operator for.
        not_binary: part of the line that refuses the two steps, "" where it trains in them.
        stays_float: part of the line that refuses the export, "" where all of it converts.
        outputs: number of them.
        int8_fails: why the check of its int8 file may fail, "" where it passes.
        gammas: of its batch norm "bn", again and again; otherwise they are random.
    """

    build: Callable[[int], tf.keras.Model]
    sizes: tuple[int, int]
    binary: int
    not_binary: str = ""
    stays_float: str = ""
    outputs: int = 1
    int8_fails: str = ""
    gammas: tuple[float, ...] = ()

    def random(self, size: int) -> tf.keras.Model:
        """The network with statistics, gammas, shifts and biases drawn at random."""
        model = exports.randomized(self.build(size))
        if self.gammas:
            gamma = model.get_layer("bn").gamma
            gamma.assign(np.resize(self.gammas, gamma.shape))
        return model


def named(name: str, sizes: tuple[int, int], binary: int, **options) -> Row:
    """A row of `models.build`."""
    chosen = {option: options.pop(option) for option in ("width",) if option in options}

    def build(size):
        return models.build(name, input_shape=(size, size, 3), num_classes=CLASSES, **chosen)

    return Row(build, sizes, binary, **options)


def small(body: Callable, binary: int, *, channels: int = 32, sizes=(6, 9), **options) -> Row:
    """A row of a real convolution, what `body` makes of its output, and a classifier.

    Args:
        body: from a tensor (B, H, W, channels) to one, or to a list of several.
    """

    def build(size):
        images = tf.keras.Input((size, size, 3), name="images")
        made = body(tf.keras.layers.Conv2D(channels, 3, 1, "same", name="stem")(images))
        outputs = []
        for number, x in enumerate(made if isinstance(made, list) else [made], start=1):
            x = tf.keras.layers.Flatten(name=f"flatten{number}")(x)
            outputs.append(tf.keras.layers.Dense(CLASSES + number - 1, name=f"logits{number}")(x))
        return tf.keras.Model(images, outputs if len(outputs) > 1 else outputs[0], name="small")

    return Row(build, sizes, binary, outputs=options.pop("outputs", 1), **options)


def conv(x, name, filters=32, size=3, pad_values=1.0, **options):
    return layers.BinaryConv2D(filters, size, pad_values=pad_values, name=name, **options)(x)


def norm(x, name):
    return tf.keras.layers.BatchNormalization(name=name)(x)


def chain(x):
    return norm(conv(norm(conv(x, "first"), "bn"), "second"), "bn2")


def real(x):
    """A real convolution and a batch norm before a sign and a sum."""
    x = tf.keras.layers.Conv2D(32, 3, padding="same", use_bias=False, name="real")(x)
    x = norm(x, "bn")
    return tf.keras.layers.Add(name="add")([x, norm(conv(x, "conv"), "bn2")])


def called_twice(x):
    shared = layers.BinaryConv2D(32, 3, pad_values=1.0, name="conv")
    for number in (1, 2):
        x = norm(shared(layers.Shift(name=f"shift{number}")(x)), f"bn{number}")
    return x


def called_on_one_tensor(x):
    shared = layers.BinaryConv2D(32, 3, name="conv")
    inputs = [tf.keras.Input(x.shape[1:], name=name) for name in ("left", "right")]
    inside = tf.keras.layers.Add(name="add")([norm(shared(inputs[0]), "bn1"), inputs[1]])
    inner = tf.keras.Model(inputs, inside, name="inner")
    return tf.keras.layers.Add(name="add2")([inner([x, x]), inner([x, norm(shared(x), "bn2")])])


def called_on_two_tensors(x):
    shared = layers.BinaryConv2D(32, 3, name="conv")
    y = shared(layers.Shift(name="shift2")(layers.RPReLU(name="rprelu")(x)))
    z = norm(shared(layers.Shift(name="shift1")(x)), "bn1")
    return tf.keras.layers.Add(name="add")([z, norm(y, "bn2")])


def called_at_two_sizes(x):
    shared = layers.BinaryConv2D(32, 3, name="conv")
    y = tf.keras.layers.GlobalMaxPooling2D(name="max1")(shared(x))
    z = tf.keras.layers.AveragePooling2D(2, name="halve")(x)
    z = tf.keras.layers.GlobalMaxPooling2D(name="max2")(shared(z))
    return tf.keras.layers.Concatenate(name="concat")([y, z])


def nested(x):
    inputs = tf.keras.Input(x.shape[1:])
    y = norm(conv(layers.Shift(name="shift")(inputs), "conv"), "bn")
    y = layers.RPReLU(name="rprelu")(tf.keras.layers.Add(name="add")([y, inputs]))
    inner = tf.keras.Model(inputs, y, name="inner")
    return inner(inner(x))


def split(x):
    parts = tf.split(x, 2, axis=-1)
    parts = [norm(conv(part, f"conv{i}"), f"bn{i}") for i, part in enumerate(parts)]
    return tf.concat(parts, axis=-1)


def after_concatenation(x):
    y = norm(conv(x, "conv1", pad_values=0.0), "bn1")
    x = tf.keras.layers.Concatenate(name="concat")([x, y])
    return norm(conv(norm(x, "bn2"), "conv2"), "bn3")


def after_others(x):
    """Batch norms after other layers than a convolution, before binary convolutions."""
    pools = tf.keras.layers.MaxPooling2D(2), tf.keras.layers.AveragePooling2D(2)
    for number, layer in enumerate((tf.keras.layers.ReLU(), *pools), start=1):
        x = norm(conv(norm(layer(x), f"bn{number}"), f"conv{number}"), f"bn{number}b")
    return tf.keras.layers.Flatten()(x)


def after_sum(x):
    y = norm(conv(x, "conv1"), "bn1")
    x = tf.keras.layers.Add(name="add")([x, y])
    return norm(conv(norm(x, "bn2"), "conv2"), "bn3")


def pool_between(x):
    """A binary convolution, a pool and a batch norm, as in XNOR-Net."""
    for number in (1, 2):
        x = conv(x, f"conv{number}", padding="same")
        x = tf.keras.layers.MaxPooling2D(2, 1, name=f"pool{number}")(x)
        x = norm(x, f"bn{number}")
    return x


def grouped(filters, groups):
    return lambda x: norm(conv(x, "conv", filters, groups=groups), "bn")


def dense(x):
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    for number in (1, 2):
        options = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}
        x = lq.layers.QuantDense(32, name=f"dense{number}", **options)(x)
        x = norm(x, f"bn{number}")
    return x


def outputs(x):
    y = norm(conv(x, "conv"), "bn")
    z = layers.RPReLU(name="rprelu")(y)
    return [y, z, x, tf.keras.layers.MaxPooling2D(2, name="pool")(z)]


def two_bits(x):
    quantizers = {"input_quantizer": "dorefa_quantizer", "kernel_quantizer": "ste_sign"}
    return norm(lq.layers.QuantConv2D(32, 3, name="conv", **quantizers)(x), "bn")


SMALL = {
    "chain": small(chain, 2),
    "chain, gammas near zero": small(chain, 2, gammas=(1.0, 0.0, -1.0, 1e-6)),
    "chain, zero padding": small(lambda x: conv(norm(conv(x, "a", pad_values=0.0), "bn"), "b"), 2),
    "real, gammas near zero": small(real, 1, gammas=(1.0, 0.0, 1e-6, -1e-6)),
    "called twice": small(called_twice, 2),
    "called three times on one tensor": small(called_on_one_tensor, 3),
    "called on two tensors": small(called_on_two_tensors, 2),
    "called at two sizes": small(called_at_two_sizes, 2),
    "nested, called twice": small(nested, 2),
    "split": small(split, 2),
    "concatenation": small(after_concatenation, 2),
    "sum": small(after_sum, 2),
    "ReLU, max pool, average pool": small(after_others, 3, sizes=(12, 16)),
    "pool before the batch norm": small(pool_between, 2),
    "one channel": small(lambda x: norm(conv(x, "conv", 1, 1), "bn"), 1, channels=1),
    "groups of 16": small(grouped(32, 2), 1, stays_float=GROUPS),
    "groups of 32": small(grouped(64, 2), 1, channels=64, stays_float=GROUPS),
    "dense": small(dense, 2, stays_float=DENSE),
    "two bits": small(
        two_bits, 1, stays_float=TWO_BITS, not_binary="never of 1 bit", int8_fails=LEVELS
    ),
    "four outputs": small(outputs, 1, outputs=4),
}

NAMED = {
    "reactnet_a": named("reactnet_a", (32, 45), 31, width=0.125),
    "reactnet18": named("reactnet18", (32, 45), 16, width=0.125),
    "BiRealNet": named("BiRealNet", (32, 64), 16),
    "BinaryAlexNet": named("BinaryAlexNet", (57, 64), 7),
    "BinaryDenseNet28": named("BinaryDenseNet28", (8, 32), 23),
    "BinaryDenseNet37": named("BinaryDenseNet37", (8, 32), 32),
    "BinaryDenseNet37Dilated": named("BinaryDenseNet37Dilated", (2, 32), 32),
    "BinaryDenseNet45": named("BinaryDenseNet45", (8, 32), 40),
    "BinaryResNetE18": named("BinaryResNetE18", (8, 32), 16),
    "DoReFaNet": named(
        "DoReFaNet",
        (44, 64),
        6,
        not_binary="never of 1 bit",
        stays_float=TWO_BITS,
        int8_fails=LEVELS,
    ),
    "MeliusNet22": named("MeliusNet22", (32, 64), 34),
    "QuickNet": named("QuickNet", (29, 32), 16, int8_fails=SUMS),
    "QuickNetLarge": named("QuickNetLarge", (29, 32), 32, int8_fails=SUMS),
    "QuickNetSmall": named("QuickNetSmall", (29, 32), 16, int8_fails=SUMS),
    "RealToBinaryNet": named("RealToBinaryNet", (32, 64), 16),
    "XNORNet": named("XNORNet", (217, 224), 6),
}
assert set(ZOO) < set(NAMED)
