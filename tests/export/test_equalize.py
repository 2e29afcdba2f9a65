"""Factors of channels: what passes them on, how large they are, and that they change nothing."""

import exports
import larq as lq
import networks
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import export, layers
from larq_adambnn.export.equalize import equalized, factors

ALL, NONE = [1, 2, 4, 8], [1, 1, 1, 1]


def merge(x):
    """As in MeliusNet: the last channels are added to."""
    last = [[0, 0], [0, 0], [0, 0], [2, 0]]
    return tf.keras.layers.Lambda(lambda xs: xs[0] + tf.pad(xs[1], last))([x, x[..., :2]])


@pytest.mark.parametrize(
    ("function", "before", "after"),
    [
        (tf.nn.relu, ALL, ALL),
        (tf.nn.relu6, NONE, NONE),
        (layers.Shift(), ALL, ALL),
        (tf.keras.layers.PReLU(shared_axes=[1, 2]), ALL, ALL),
        (tf.keras.layers.AveragePooling2D(2), ALL, ALL),
        (tf.keras.layers.GlobalMaxPooling2D(), ALL, ALL),
        (tf.keras.layers.Flatten(), ALL, 16 * ALL),
        (tf.keras.layers.UpSampling2D(interpolation="bilinear"), ALL, ALL),
        (tf.keras.layers.Conv2D(4, 1, activation="tanh", name="tanh"), ALL, NONE),
        (lambda x: x[..., 2:], ALL, [4, 8]),
        (lambda x: x[..., ::-1], ALL, [8, 4, 2, 1]),
        (lambda x: tf.concat([x, x[..., :2]], -1), ALL, [*ALL, 1, 2]),
        (lambda x: tf.split(x, [1, 3], axis=-1)[1], ALL, [2, 4, 8]),
        (lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [1, 0]]), ALL, [1, *ALL]),
        (lambda x: tf.keras.layers.Add()([x, x[..., ::-1]]), [1, 2, 2, 1], [1, 2, 2, 1]),
        (merge, [1, 2, 1, 2], [1, 2, 1, 2]),
        (lambda x: tf.maximum(x, tf.roll(x, 1, 2)), ALL, ALL),
        (tf.keras.layers.Activation(lq.quantizers.SteSign()), ALL, NONE),
        (lq.layers.QuantConv2D(4, 1, input_quantizer="ste_sign", name="sign"), ALL, NONE),
        (lq.layers.QuantConv2D(4, 1, input_quantizer="dorefa_quantizer", name="two"), NONE, NONE),
        (tf.nn.softmax, NONE, NONE),
        (lambda x: x * x, NONE, NONE),
        (lambda x: x + 1.0, NONE, NONE),
        (lambda x: tf.reduce_mean(x, -1, keepdims=True), NONE, [1]),
        (tf.keras.layers.LayerNormalization(), NONE, NONE),
    ],
)
def test_what_passes_factors_on(function, before, after):
    images = tf.keras.Input((4, 4, 3))
    x = tf.keras.layers.Conv2D(4, 1)(images)
    y = function(x)
    model = tf.keras.Model(images, tf.keras.layers.Dense(2)(y))
    found = factors(model, {id(x): np.array([8.0, 4.0, 2.0, 1.0])})
    np.testing.assert_array_equal(found[id(x)], before)
    np.testing.assert_array_equal(found[id(y)], after)
    assert all((found[id(tensor)] == 1).all() for tensor in (*model.inputs, *model.outputs))


@pytest.mark.parametrize(
    ("layer", "after"),
    [
        (tf.keras.layers.Conv2D(4, 1, activation="relu", name="convolution"), ALL),
        (tf.keras.layers.Dense(4, activation="relu", name="first"), NONE),
    ],
)
def test_channels_whose_kernel_has_a_scale_of_their_own(layer, after):
    """One large column would take the steps of the others."""
    images = tf.keras.Input((4, 4, 3))
    y = layer(images)
    model = tf.keras.Model(images, tf.keras.layers.Dense(2)(tf.keras.layers.Flatten()(y)))
    found = factors(model, {id(y): np.array([8.0, 4.0, 2.0, 1.0])})
    np.testing.assert_array_equal(found[id(y)], after)


def test_no_tensor_becomes_larger():
    """A factor is the least that a tensor has room for, and at most 64."""
    images = tf.keras.Input((4, 4, 3))
    x = tf.keras.layers.Conv2D(4, 1)(images)
    y = tf.keras.layers.ReLU()(x)
    model = tf.keras.Model(images, tf.keras.layers.Dense(2)(y))
    widths = {id(x): np.array([6.0, 3.0, 1.0, 0.01]), id(y): np.array([2.0, 2.0, 0.0, 0.02])}
    found = factors(model, widths)
    np.testing.assert_array_equal(found[id(y)], [1, 1, 6, 64])
    assert all((found[tensor] * width).max() <= width.max() for tensor, width in widths.items())


@pytest.mark.parametrize("name", ["nested, called twice", "concatenation", "split", "four outputs"])
def test_the_network_is_the_same(name):
    row = networks.SMALL[name]
    model = row.random(row.sizes[0])
    images = exports.images(model, 8)
    folded = export.fold(model).model
    stem = folded.get_layer("stem").output
    found = factors(folded, {id(stem): np.geomspace(1, 50, stem.shape[-1])})
    assert max(of.max() for of in found.values()) > 10
    other = equalized(folded, found)
    assert other.output_names == folded.output_names
    for own, expected in zip(
        tf.nest.flatten(other(images)), tf.nest.flatten(folded(images)), strict=True
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
