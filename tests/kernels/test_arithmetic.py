"""Sums and selections against NumPy, tuned and plain."""

import math

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import kernels
from larq_adambnn.kernels.arithmetic import add_scaled, select, sums_by_channel
from larq_adambnn.quantizers import scaled_sign


@pytest.fixture(params=[True, False], ids=["tuned", "plain"], autouse=True)
def tuned(request, monkeypatch):
    monkeypatch.setattr(kernels, "tuned", lambda: request.param)
    return request.param


def operators(function, *shapes, dtype="float64"):
    """The kinds of operators in a function of tensors."""
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    graph = tf.function(function).get_concrete_function(*specs).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 5, 3)])
def test_sums_and_their_gradients(shape):
    rng = np.random.default_rng(0)
    arrays, weights = rng.normal(size=(2, *shape)), rng.normal(size=(2, 3))
    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        sums = sums_by_channel(*tensors)
        total = tf.reduce_sum(tf.stack(sums) * weights)
    gradients = tape.gradient(total, tensors)
    for x, s, weight, gradient in zip(arrays, sums, weights, gradients, strict=True):
        expected = x.reshape(-1, 3).sum(0)
        np.testing.assert_allclose(s, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradient, np.broadcast_to(weight, shape), rtol=1e-12)


def test_sums_of_a_batch_of_any_size():
    function = tf.function(sums_by_channel, input_signature=[tf.TensorSpec((None, 4, 3))])
    for batch in (0, 2):
        np.testing.assert_array_equal(function(tf.ones((batch, 4, 3))), [[4 * batch] * 3])


def test_sums_are_products_only_where_tuned(tuned):
    kinds = operators(sums_by_channel, (None, 4, 3))
    assert ("MatMul" in kinds) == tuned
    assert ("Sum" in kinds) == (not tuned)


def test_scales_need_no_product_on_a_gpu_where_tf32_would_round_it(tuned):
    kinds = operators(scaled_sign, (3, 3, 4, 8), dtype="float32")
    assert bool(kinds & {"MatMul", "BatchMatMulV2", "Conv2D", "Einsum"}) == tuned


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_select_and_its_gradients(dtype):
    rng = np.random.default_rng(0)
    x, y = (tf.cast(rng.normal(size=(5, 7)), dtype) for _ in range(2))
    for other in (y, y[0], tf.zeros([], dtype)):
        with tf.GradientTape() as tape:
            tape.watch([x, other])
            chosen = select(x > 0, x, other)
        dx, dy = tape.gradient(chosen, [x, other])
        assert chosen.dtype == dx.dtype == dy.dtype == dtype
        values = [tf.cast(tensor, tf.float64).numpy() for tensor in (chosen, x, other, dx, dy)]
        positive = values[1] > 0
        np.testing.assert_array_equal(values[0], np.where(positive, values[1], values[2]))
        np.testing.assert_array_equal(values[3], positive)
        negative = ~positive  # at most 35 of them, which 16 bits count exactly
        axes = tuple(range(2 - values[2].ndim))
        np.testing.assert_array_equal(values[4], negative.sum(axes) if axes else negative)


@pytest.mark.parametrize("dtype, narrow", [("bfloat16", True), ("float32", False)])
def test_select_of_16_bits_goes_by_way_of_32_only_where_tuned(tuned, dtype, narrow):
    kinds = operators(lambda x, y: select(x > 0, x, y), (5, 7), (5, 7), dtype=dtype)
    assert ("Cast" in kinds) == (tuned and narrow)


@pytest.mark.parametrize("shape", [(3, 5), (2, 2, 128, 128)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_add_scaled(shape, dtype):
    x, y = tf.cast(np.random.default_rng(0).normal(size=(2, *shape)), dtype)
    variable = tf.Variable(y)
    graph = tf.function(lambda factor: add_scaled(x, factor, variable))
    for number in (0.0, 0.5, -2.0):
        factor = tf.constant(number, dtype)
        for received in (graph(factor), add_scaled(x, factor, variable)):
            np.testing.assert_array_equal(received, x + factor * y)


def test_what_is_not_added_is_not_computed(tuned):
    """With a factor of 0 even a y that is not finite does not show, as in PyTorch's decay."""
    x = tf.ones((2, 2, 128, 128))
    received = tf.function(add_scaled)(x, tf.constant(0.0), math.inf * x)
    np.testing.assert_array_equal(received, x if tuned else math.nan * x)
