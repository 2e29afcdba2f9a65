"""Quantizers against NumPy, forward and gradient, exact zeros included."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import kernels
from larq_adambnn.layers import BinaryConv2D
from larq_adambnn.quantizers import ApproxSign, ScaledSign, Switchable, approx_sign, scaled_sign


@pytest.fixture(params=[True, False], ids=["tuned", "plain"])
def tuned(request, monkeypatch):
    monkeypatch.setattr(kernels, "tuned", lambda: request.param)


def kernel(shape=(3, 3, 5, 7)):
    w = np.random.default_rng(0).normal(scale=0.8, size=shape)
    w.flat[0], w.flat[1], w.flat[2] = 0.0, 1.0, -1.0
    return w


def test_scaled_sign_is_the_mean_magnitude_with_the_sign(tuned):
    w = kernel()
    scale = np.abs(w).mean(axis=(0, 1, 2))
    expected = np.where(w >= 0, scale, -scale)
    np.testing.assert_allclose(scaled_sign(tf.constant(w)), expected, rtol=1e-14)


@pytest.mark.parametrize("clip", [1.0, 0.3, 1.5])
def test_scaled_sign_gradient_is_clipped_and_none_flows_through_the_scale(tuned, clip):
    w, dy = kernel(), np.random.default_rng(1).normal(size=(3, 3, 5, 7))
    x = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Switchable(ScaledSign(clip))(x)
    np.testing.assert_array_equal(y, scaled_sign(x))
    expected = np.where(np.abs(w) <= clip, dy, 0)
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_array_equal(tape.gradient(y, x, tf.constant(dy)), expected)


@pytest.mark.parametrize("temperature", [2.0, 0.1, 0.0])
def test_a_warm_sign_is_soft_and_has_the_gradient_of_the_cold_one(tuned, temperature):
    w, dy = kernel(), np.random.default_rng(1).normal(size=(3, 3, 5, 7))
    x = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = scaled_sign(x, 1.5, tf.constant(temperature))
    scale = np.abs(w).mean(axis=(0, 1, 2))
    expected = np.clip(w / temperature, -scale, scale) if temperature else scaled_sign(x)
    np.testing.assert_allclose(y, expected, rtol=1e-7 if temperature else 0)
    np.testing.assert_array_equal(
        tape.gradient(y, x, tf.constant(dy)), np.where(np.abs(w) <= 1.5, dy, 0)
    )


def test_scaled_sign_takes_the_kernel_of_a_layer():
    """Without a graph too, where it is watched under another name than it is given by."""
    layer = BinaryConv2D(2, 3)
    layer.build((None, 4, 4, 3))
    expected = scaled_sign(tf.constant(layer.kernel.numpy()))
    np.testing.assert_array_equal(scaled_sign(layer.kernel), expected)


def test_scaled_sign_of_a_dense_kernel_scales_each_output(tuned):
    w = kernel((11, 4))
    y = scaled_sign(tf.constant(w)).numpy()
    np.testing.assert_allclose(np.abs(y), np.tile(np.abs(w).mean(0), (11, 1)), rtol=1e-14)


def test_approx_sign_of_zero_is_one_and_its_gradient_is_the_triangle():
    x = tf.constant([-1.5, -1.0, -0.25, -0.0, 0.0, 1e-300, 0.5, 1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = approx_sign(x)
    np.testing.assert_array_equal(y, [-1, -1, -1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0, 1.5, 2, 2, 2, 1, 0, 0])


@pytest.mark.parametrize("clip", [0.5, 2.0, 3.0])
def test_a_wider_gradient_of_the_sign_has_the_same_area(clip):
    x = tf.constant(np.linspace(-4, 4, 8001))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Switchable(ApproxSign(clip))(x)
    np.testing.assert_array_equal(y, approx_sign(x))
    gradient = tape.gradient(y, x).numpy()
    expected = np.where(np.abs(x) < clip, 2 / clip * (1 - np.abs(x) / clip), 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    assert gradient.sum() * 1e-3 == pytest.approx(2, rel=1e-6)  # x is 1e-3 apart


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scaled_sign_keeps_the_dtype(tuned, dtype):
    assert scaled_sign(tf.cast(kernel(), dtype)).dtype == dtype


def test_switchable_off_is_the_identity_with_its_gradient():
    x = tf.constant(kernel())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Switchable(ScaledSign(), on=False)(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones(x.shape))


def test_switchable_precision_follows_the_switch():
    switch = Switchable("ste_sign")
    assert switch.precision == 1
    switch.on = False
    assert switch.precision == 32


@pytest.mark.parametrize("on", [True, False])
def test_switchable_survives_serialization(on):
    switch = Switchable(ScaledSign(clip=0.5), on=on)
    copy = tf.keras.layers.deserialize(tf.keras.layers.serialize(switch))
    assert copy.on is on
    assert isinstance(copy.quantizer, ScaledSign) and copy.quantizer.clip == 0.5
    x = tf.constant(kernel())
    np.testing.assert_array_equal(copy(x), switch(x))
