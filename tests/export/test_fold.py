"""Folding: the same network to 1e-9 in float64, with the operators that it promises."""

import exports
import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import binarize, layers, models
from larq_adambnn.export import convert, fold, operators
from larq_adambnn.export.fold import signs_and_scales


def logits(model, images):
    return model(images, training=False).numpy()


def assert_exact(model, folded, count=4):
    images = exports.images(model, count).astype("float64")
    expected = logits(model, images)
    assert expected.std(axis=0).min() > 1e-4  # the images are told apart
    assert np.abs(logits(folded, images) - expected).max() < 1e-9


@pytest.mark.parametrize("pad_values", [0, 1])
@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("reactnet_a", 32, 0.25), ("reactnet_a", 96, 0.125), ("reactnet18", 64, 0.125)],
)
def test_folded_networks_compute_the_same(name, size, width, pad_values, float64):
    model = exports.network(name, size, width, pad_values=pad_values)
    folding = fold(model)
    assert_exact(model, folding.model)
    assert folding.batch_norms == sum("BatchNorm" in type(x).__name__ for x in model.layers)
    assert folding.batch_norms_left == 0
    signs = len({id(x.input) for x in model.layers if isinstance(x, layers.BinaryConv2D)})
    assert folding.shifts == signs + 2 * sum(isinstance(x, layers.RPReLU) for x in model.layers)
    assert folding.shifts_left == signs - 1  # the first is in the batch norm of the stem
    assert not folding.zero_scales


@pytest.mark.parametrize("form", [(True, False), (False, False)])
def test_networks_that_are_not_all_binary_fold_too(form, float64):
    model = binarize(exports.network("reactnet18", 32, 0.125), *form)
    assert_exact(model, fold(model).model)


def test_the_original_stays_as_it_is():
    model = exports.network("reactnet18", 32, 0.0625)
    weights = [w.numpy() for w in model.weights]
    images = exports.images(model, 2)
    before = logits(model, images)
    fold(model)
    for weight, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    np.testing.assert_array_equal(logits(model, images), before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reactnet_a", {"LceBconv2d": 31, "LceQuantize": 26, "PRELU": 26, "ADD": 56, "CONV_2D": 1}),
        ("reactnet18", {"LceBconv2d": 16, "LceQuantize": 16, "PRELU": 16, "ADD": 31, "CONV_2D": 4}),
    ],
)
def test_operators(name, expected):
    """A shift before each sign but one, a shortcut for each binary convolution, and no more."""
    size = 96 if name == "reactnet_a" else 32
    model = exports.network(name, size, 0.125, pad_values=1)
    found = operators(convert(model))
    assert {kind: found[kind] for kind in expected} == expected
    rest = set(found) - set(expected)
    assert rest <= {"CONCATENATION", "AVERAGE_POOL_2D", "REVERSE_V2", "MEAN", "FULLY_CONNECTED"}


def test_small_images_are_padded_as_meant(float64):
    """LCE's zero padding assumes images not smaller than the kernel."""
    for strides, size in ((1, 1), (1, 2), (2, 2)):
        inputs = tf.keras.Input((size, size, 8))
        x = layers.BinaryConv2D(8, 3, strides=strides, name="conv")(inputs)
        x = tf.keras.layers.BatchNormalization(name="bn")(x)
        model = exports.randomized(tf.keras.Model(inputs, x))
        folding = fold(model)
        assert folding.small_images == ["conv"]
        images = exports.images(model, 8).astype("float64")
        assert np.abs(logits(folding.model, images) - logits(model, images)).max() < 1e-9


def test_a_scale_of_zero_is_a_constant(float64):
    model = exports.network("reactnet18", 32, 0.125)
    layer = model.get_layer("block3_conv3x3")
    kernel = layer.kernel.numpy()
    kernel[..., [1, 4]] = 0
    layer.set_weights([kernel])
    folding = fold(model)
    assert folding.zero_scales == {"block3_conv3x3": 2}
    assert_exact(model, folding.model)
    signs, scales = signs_and_scales(layer)
    assert set(np.unique(signs)) == {-1, 1}
    np.testing.assert_array_equal(np.flatnonzero(scales == 0), [1, 4])


def test_unknown_layers_nested_models_and_shared_tensors(float64):
    """What has no rule is copied, with what reaches it added before it."""
    inner_input = tf.keras.Input((8, 8, 6))
    x = tf.keras.layers.BatchNormalization(name="inner_bn")(inner_input)
    x = layers.RPReLU(name="inner_rprelu")(x)
    inner = tf.keras.Model(inner_input, x, name="inner")
    images = x = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(6, 3, name="conv", padding="same", activation="elu")(x)
    y = inner(x)
    z = tf.keras.layers.Conv2D(6, 1, use_bias=False, name="shared")(y)
    a = tf.keras.layers.BatchNormalization(name="bn")(z)
    b = tf.keras.layers.Activation("tanh", name="tanh")(z)
    x = tf.keras.layers.Multiply(name="multiply")([a, b])
    x = tf.keras.layers.Add(name="add")([x, y, y])
    x = tf.keras.layers.DepthwiseConv2D(3, name="depthwise")(layers.Shift(name="shift")(x))
    x = tf.keras.layers.Concatenate(name="concatenate")([x, layers.Shift(name="shift2")(x)])
    x = tf.keras.layers.Dropout(0.5, name="dropout")(x)
    x = tf.keras.layers.MaxPooling2D(name="pool")(layers.Shift(name="shift3")(x))
    x = tf.keras.layers.Flatten(name="flatten")(x)
    model = tf.keras.Model(images, tf.keras.layers.Dense(5, name="dense")(x))
    assert_exact(exports.randomized(model), fold(model).model)


def test_a_zoo_network_folds(float64):
    model = models.build("QuickNetSmall", input_shape=(64, 64, 3), num_classes=10)
    model = tf.keras.Model(model.input, model.layers[-1].input)  # whose last layer is float32
    exports.randomized(model)
    folding = fold(model)
    assert_exact(model, folding.model)
    assert folding.batch_norms_left < folding.batch_norms


def test_signs_and_scales():
    def scale_of(kernel_quantizer):
        layer = lq.layers.QuantConv2D(4, 3, kernel_quantizer=kernel_quantizer)
        layer.build((None, 8, 8, 2))
        return layer, signs_and_scales(layer)

    layer, (signs, scales) = scale_of("ste_sign")
    np.testing.assert_array_equal(signs, np.where(layer.kernel.numpy() >= 0, 1, -1))
    np.testing.assert_array_equal(scales, np.ones(4))
    layer, (signs, scales) = scale_of("magnitude_aware_sign")
    np.testing.assert_allclose(scales, np.abs(layer.kernel.numpy()).mean((0, 1, 2)), rtol=1e-6)
    for other in ("ste_tern", "dorefa_quantizer", None):
        assert scale_of(other)[1] is None


def test_what_is_no_functional_model():
    class Own(tf.keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match=r"Expected a functional model.*Received: own"):
        fold(Own(name="own"))
