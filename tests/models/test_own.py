"""Networks of the user's own: what a function may give, and the line that refuses the rest."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import layers, models

MODULE = """
import larq_adambnn, sys
import tensorflow as tf
from larq_adambnn import layers

def features(input_shape):
    images = tf.keras.Input(input_shape)
    x = tf.keras.layers.Conv2D(4, 3, 8)(images)
    x = tf.keras.layers.BatchNormalization()(layers.BinaryConv2D(4, 3)(x))
    return images, tf.keras.layers.GlobalAveragePooling2D()(x)

def functional(input_shape, num_classes):
    images, x = features(input_shape)
    return tf.keras.Model(images, tf.keras.layers.Dense(num_classes)(x))

def softmax(input_shape, num_classes):
    images, x = features(input_shape)
    return tf.keras.Model(images, tf.keras.layers.Dense(num_classes, activation="softmax")(x))

def sequential(input_shape, num_classes):
    model = functional(input_shape, num_classes)
    return tf.keras.Sequential([tf.keras.Input(input_shape), model])

number = 3
def takes_one(input_shape): return functional(input_shape, 3)
def fails(input_shape, num_classes): raise KeyError("a\\nkey")
def none(input_shape, num_classes): return None
def unbuilt(input_shape, num_classes): return tf.keras.Sequential([tf.keras.layers.Dense(2)])
def other_classes(input_shape, num_classes): return functional(input_shape, 7)
def other_images(input_shape, num_classes): return functional((48, 48, 3), num_classes)
def two_outputs(input_shape, num_classes):
    model = functional(input_shape, num_classes)
    return tf.keras.Model(model.input, [model.output, model.output])
class Subclassed(tf.keras.Model):
    def __init__(self, *arguments): super().__init__()
"""
BROKEN = {"needs": "import no_such_library", "syntax": "def build(:", "exits": "exit(3)"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The working directory, with modules of the user's in it and in a package."""
    folder, path = tmp_path_factory.mktemp("own"), list(sys.path)
    (folder / "nets").mkdir()
    (folder / "nets" / "small.py").write_text(MODULE)
    for name, text in BROKEN.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.path[:] = path


def build(name):
    return models.build(name, input_shape=(32, 32, 1), num_classes=3)


@pytest.mark.parametrize("function", ["functional", "softmax", "sequential"])
def test_a_function_gives_logits(function):
    model = build(f"nets.small:{function}")
    logits = model(np.random.default_rng(0).normal(size=(5, 32, 32, 1)).astype("float32"))
    assert logits.shape == (5, 3)
    assert np.abs(logits.numpy().sum(-1) - 1).max() > 1e-3  # no probabilities
    assert model.layers[-1].name == "logits"
    assert layers.binarize(model, True, False) is model
    assert models.options(f"nets.small:{function}") == ()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nowhere:build", ("nowhere", "No module named 'nowhere'")),
        ("nets.nowhere:build", ("No module named 'nets.nowhere'",)),
        ("needs:build", ("needs", "No module named 'no_such_library'")),
        ("syntax:build", ("SyntaxError",)),
        ("exits:build", ("SystemExit: 3",)),
        ("nets.small:nosuch", ("a function nosuch in ", "small.py", "Received: none")),
        ("nets.small:number", ("a function number", "Received: 3")),
        ("nets.small:takes_one", ("input_shape=(32, 32, 1), num_classes=3", "TypeError")),
        ("nets.small:fails", ("KeyError", "key")),
        ("nets.small:none", ("tf.keras.Model", "NoneType")),
        ("nets.small:unbuilt", ("functional model", "Sequential")),
        ("nets.small:Subclassed", ("functional model", "Subclassed")),
        ("nets.small:other_classes", ("(None, 3)", "(None, 7)")),
        ("nets.small:other_images", ("(None, 32, 32, 1)", "(None, 48, 48, 3)")),
        ("nets.small:two_outputs", ("(None, 3)", "[(None, 3), (None, 3)]")),
        ("nets small:build", ("package.module:function",)),
        ("../nets:build", ("package.module:function",)),
        ("nets.small:", ("package.module:function",)),
    ],
)
def test_what_is_no_network_is_refused(name, parts):
    with pytest.raises(ValueError, match=r"^Expected ") as raised:
        build(name)
    for part in parts:
        assert part in str(raised.value)


def test_nothing_is_imported_before_it_is_built():
    modules = set(sys.modules)
    models.options("this:that")
    assert not {"this"} & (set(sys.modules) - modules)
    assert isinstance(build("nets.small:functional"), tf.keras.Model)
    assert "needs" not in sys.modules
