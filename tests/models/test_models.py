"""Networks: exact counts, shapes at many sizes, the paper's operation counts."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import larq_adambnn
from larq_adambnn import models
from larq_adambnn.models import reactnet


def count(weights):
    return sum(weight.shape.num_elements() for weight in weights)


@pytest.fixture(scope="module")
def published():
    return models.reactnet_a()


def shallow(build, *arguments):
    """A narrow ReActNet of its first blocks, which have both strides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reactnet, "_BLOCKS_A", reactnet._BLOCKS_A[:3])
        patch.setattr(reactnet, "_BLOCKS_18", reactnet._BLOCKS_18[:5])
        return build(*arguments, 0.125)


@pytest.fixture(scope="module")
def grey():
    """One for 32 x 32 grey pixels, built once."""
    return functools.cache(lambda build: shallow(build, (32, 32, 1), 10))


def test_reactnet_a_has_the_published_parameters_and_operations(published, capsys):
    model = published
    assert count(model.trainable_weights) == 29_343_592
    assert count(model.non_trainable_weights) == 21_888
    binary = [
        layer for layer in model.layers if isinstance(layer, larq_adambnn.layers.BinaryConv2D)
    ]
    assert len(binary) == 31
    work = models.complexity(model)
    # ReActNet, table 1: 4.82e9 BOPs, 0.12e8 FLOPs, 0.87e8 OPs
    assert f"{work.bops:.2e}" == "4.82e+09"
    assert f"{work.flops / 1e8:.2f}" == "0.12"
    assert f"{work.ops / 1e8:.2f}" == "0.87"
    assert f"{work.ace / 1e9:.1f}" == "7.9"  # PokeBNN, table 1
    models.summary(model)
    out = capsys.readouterr().out
    assert "BOPs 4.82e+09   FLOPs 1.19e+07   OPs 8.71e+07   ACE 7.85e+09" in out
    assert "29.3 M" in out


def test_complexity_follows_the_switch(grey):
    model = larq_adambnn.binarize(grey(models.reactnet_a), True, True)
    binary = models.complexity(model)
    real = models.complexity(larq_adambnn.binarize(model, True, False))
    assert binary.bops > 0
    assert real.bops == 0
    assert real.flops == binary.bops + binary.flops
    assert binary.ace == binary.bops + 16 * 16 * binary.flops
    assert real.ace == 16 * binary.bops + 16 * 16 * binary.flops  # activations of 1 bit


def test_reactnet18_has_resnet18_parameters():
    # The published state_dict's numbers without its running statistics.
    assert count(models.reactnet18().trainable_weights) == 11_704_424


@pytest.mark.parametrize("build", [models.reactnet_a, models.reactnet18])
def test_reactnets_take_any_size_and_channels(build):
    """Other tests have square ones of 32 to 224 pixels, and one or three channels.

    Small ones keep their size in the stem.
    """
    model = shallow(build, (63, 65, 2), 7)
    assert model.get_layer("stem_conv").output_shape[1:3] == (63, 65)
    images = np.random.default_rng(0).normal(size=(2, 63, 65, 2)).astype("float32")
    logits = model(images).numpy()
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0


@pytest.mark.parametrize("build", [models.reactnet_a, models.reactnet18])
def test_images_from_64_pixels_on_are_halved_in_the_stem(build):
    assert shallow(build, (64, 64, 3), 10).get_layer("stem_conv").output_shape[1] == 32


@pytest.mark.parametrize("build", [models.reactnet_a, models.reactnet18])
def test_forms_of_a_network_share_names_and_shapes(build, grey):
    model = larq_adambnn.binarize(grey(build), True, True)
    names = [(weight.name, weight.shape) for weight in model.weights]
    larq_adambnn.binarize(model, False, False)
    assert [(weight.name, weight.shape) for weight in model.weights] == names
    assert len({name for name, _ in names}) == len(names)


@pytest.mark.parametrize("build", [models.reactnet_a, models.reactnet18])
def test_reactnets_survive_serialization(build, grey, tmp_path):
    model = larq_adambnn.binarize(grey(build), True, True)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    expected = model(images)
    model.save(tmp_path / "model.keras")
    copy = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(copy(images), expected)


def test_initial_weights_have_pytorchs_bounds(published):
    for layer in published.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel = layer.kernel.numpy()
        bound = 1 / np.sqrt(np.prod(kernel.shape[:-1]))  # Kaiming uniform with a = sqrt(5)
        assert np.abs(kernel).max() <= bound * (1 + 1e-6)
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (31, 32, 3)}, "at least 32 x 32"),
        ({"input_shape": (32, 32)}, "at least 32 x 32"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0}, "width=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.reactnet_a(**arguments)


@pytest.mark.parametrize("name", ["QuickNetSmall", "BinaryAlexNet"])
def test_zoo_networks_give_logits_and_switch(name):
    model = models.build(name, input_shape=(64, 64, 3), num_classes=7)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    binary = model(images).numpy()
    assert binary.shape == (2, 7)
    assert np.abs(binary.sum(-1) - 1).max() > 1e-3  # not probabilities
    assert larq_adambnn.binarization(model) == (True, True)
    larq_adambnn.binarize(model, False, False)
    assert np.abs(model(images) - binary).max() > 1e-3


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="Expected name to be one of reactnet_a"):
        models.build("lenet", input_shape=(32, 32, 3), num_classes=10)


def shared_twice():
    images = tf.keras.Input((16, 16, 3))
    conv = tf.keras.layers.Conv2D(3, 3, padding="same", use_bias=False)
    return tf.keras.Model(images, conv(conv(images)))


def nested_at_two_sizes():
    """A model without a fixed size that is called with two."""
    any_size = tf.keras.Input((None, None, 3))
    inner = tf.keras.Model(any_size, tf.keras.layers.Conv2D(3, 1)(any_size))
    images = tf.keras.Input((16, 16, 3))
    small = inner(tf.keras.layers.AveragePooling2D(2)(images))
    return tf.keras.Model(images, [inner(images), small])


def of(layer, *shape):
    return tf.keras.Sequential([tf.keras.Input(shape), layer])


COUNTS = {
    "one layer called twice": (shared_twice, 2 * 16 * 16 * 3 * 3 * 3 * 3),
    "a model at two sizes": (nested_at_two_sizes, (256 + 64) * 9),
    "transposed": (
        lambda: of(tf.keras.layers.Conv2DTranspose(4, 4, 2, "same"), 8, 8, 3),
        8 * 8 * 4 * 4 * 3 * 4,
    ),
    "1D": (lambda: of(tf.keras.layers.Conv1D(4, 3, padding="same"), 62, 4), 62 * 3 * 4 * 4),
    "dense at each place": (lambda: of(tf.keras.layers.Dense(7), 8, 5), 8 * 5 * 7),
    "depthwise": (lambda: of(tf.keras.layers.DepthwiseConv2D(3), 10, 10, 6), 8 * 8 * 9 * 6),
    "separable": (
        lambda: of(tf.keras.layers.SeparableConv2D(5, 3), 10, 10, 6),
        8 * 8 * (9 * 6 + 6 * 5),
    ),
    "groups": (
        lambda: of(tf.keras.layers.Conv2D(8, 3, groups=2), 10, 10, 4),
        8 * 8 * 9 * 2 * 8,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_multiply_accumulates(name):
    build, expected = COUNTS[name]
    counted = models.complexity(build())
    assert (counted.bops, counted.flops) == (0, expected)


def test_complexity_of_what_has_no_calls_or_no_size():
    class Subclassed(tf.keras.Model):
        pass

    with pytest.raises(ValueError, match="Expected a functional model"):
        models.complexity(Subclassed())
    with pytest.raises(ValueError, match="Expected a model of a fixed input size"):
        models.complexity(of(tf.keras.layers.Conv2D(3, 1), None, None, 3))
