"""Every row of the table of networks: built, trained in two steps, exported and checked."""

import contextlib
import pathlib
import re

import exports
import networks
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import callbacks, export, layers, models
from larq_adambnn.export import tflite
from larq_adambnn.models.zoo import SMALLEST
from larq_adambnn.names import ZOO


def forms_of_two_steps(model, images):
    """What is binary in each of two epochs of one iteration."""
    forms = []
    note = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: forms.append(layers.binarization(model))
    )
    labels = [np.arange(len(images)) % networks.CLASSES for _ in model.outputs]
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(True), run_eagerly=True)
    switch = callbacks.TwoStepSwitch(1)
    model.fit(images, labels, len(images), epochs=2, callbacks=[switch, note], verbose=0)
    return forms


def refusal(line):
    return pytest.raises(ValueError, match=line) if line else contextlib.nullcontext()


def follow(row, size):
    model = row.build(size)
    images = exports.images(model, 16)
    with refusal(row.not_binary):
        assert forms_of_two_steps(model, images[:4]) == [(True, False), (True, True)]
    tf.keras.utils.set_random_seed(0)
    model = exports.settled(row.random(size), images) if size > 16 else row.random(size)
    for int8 in (False, True):
        if row.stays_float:
            with refusal(row.stays_float):
                export.export(model, images, int8=int8)
        exported = export.export(
            model, images, int8=int8, allow_float_fallback=bool(row.stays_float)
        )
        counts = exported.description.binary_convolutions
        assert counts.expected == row.binary
        assert counts.converted == (0 if row.stays_float else row.binary)
        assert tflite.output_names(exported.tflite) == model.output_names
        given = (exported.description.output, *exported.description.other_outputs)
        assert [output.shape for output in given] == [
            [1, networks.CLASSES + number] for number in range(row.outputs)
        ]
        if not (int8 and row.int8_fails):
            assert exported.report.passed, exported.report.failures


@pytest.mark.parametrize("name", networks.SMALL)
def test_a_small_network(name):
    row = networks.SMALL[name]
    follow(row, row.sizes[0])
    shapes = [output.shape for output in row.build(row.sizes[1]).outputs]
    assert shapes == [(None, networks.CLASSES + number) for number in range(row.outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NAMED)
def test_a_named_network(name):
    row = networks.NAMED[name]
    for size in row.sizes:
        assert row.build(size).output_shape == (None, networks.CLASSES)
    follow(row, row.sizes[1])


def test_the_guide_says_what_a_network_cannot_do():
    guide = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "networks.md"
    text = guide.read_text(encoding="utf-8").partition("\n## ")[0]
    assert f"larq-zoo's {len(ZOO)} names" in text
    said = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.M))

    def those(what):
        """The networks of a name, or of a family such as "QuickNets"."""
        return [name for name in networks.NAMED if name.startswith(what.removesuffix("s"))]

    (sizes,) = [(names, line) for names, line in said.items() if line.startswith("images below")]
    smallest = zip(sizes[0].split(", "), re.findall(r"\d+", sizes[1]), strict=True)
    found = {name: int(size) for what, size in smallest for name in those(what)}
    assert found == {name: size for name, size in SMALLEST.items() if size > 8}
    two_bits = [n for n, row in networks.NAMED.items() if row.not_binary or row.stays_float]
    assert two_bits == ["DoReFaNet"]
    assert all(flag in said["DoReFaNet"] for flag in ("one_step", "--allow_float_fallback"))
    in_int8 = {n for n, row in networks.NAMED.items() if row.int8_fails and not row.stays_float}
    assert in_int8 == set(those("QuickNets")) and "QuickNets in `--int8`" in said


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_size_is_said(name):
    size = SMALLEST[name]
    with pytest.raises(ValueError, match=f"at least {size} x {size} for {name}"):
        models.build(name, input_shape=(300, size - 1, 3), num_classes=2)


def test_a_size_that_two_branches_do_not_share():
    with pytest.raises(ValueError, match="that BinaryResNetE18 takes, such as a multiple of 32"):
        models.build("BinaryResNetE18", input_shape=(30, 30, 3), num_classes=2)


def test_real_to_binary_net_gives_logits():
    """It ends in a layer Softmax."""
    model = models.build("RealToBinaryNet", input_shape=(8, 8, 3), num_classes=3)
    assert np.abs(model(exports.images(model, 2)).numpy().sum(-1) - 1).max() > 1e-3
    assert not any(isinstance(layer, tf.keras.layers.Softmax) for layer in model.layers)
