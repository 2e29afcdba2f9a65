"""Winograd's convolution against TensorFlow's, and its rounding."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.kernels import winograd


def gradients(convolve, x, w, dy):
    """The output of a convolution, and its gradients with respect to x and w."""
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        y = convolve(x, w)
    return [y, *tape.gradient(y, [x, w], dy)]


def arrays(shape, filters, padding):
    """Images, kernels and gradients of the outputs, float64."""
    rng = np.random.default_rng(0)
    lost = 0 if padding == "SAME" else 2
    batch, height, width, channels = shape
    shapes = shape, (3, 3, channels, filters), (batch, height - lost, width - lost, filters)
    return [tf.constant(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (5, 6), (7, 8), (9, 14), (3, 21), (16, 5)])
def test_output_and_gradients_are_those_of_the_convolution(size, padding):
    x, w, dy = arrays((3, *size, 6), 5, padding)
    ours = gradients(lambda x, w: winograd.conv2d(x, w, padding), x, w, dy)
    theirs = gradients(lambda x, w: tf.nn.conv2d(x, w, 1, padding), x, w, dy)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-13 * np.abs(their).max())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(  # tiles of 2, 3, 4 and 5
    "size, limit", [(2, 5e-7), (6, 8e-7), (12, 1.4e-6), (15, 2.6e-6)]
)
def test_rounding_in_float32_is_near_the_convolutions_own(size, limit, binary):
    x, w, dy = arrays((4, size, size, 128), 128, "SAME")
    if binary:
        x, w = tf.sign(x), 0.01 * tf.sign(w)
    exact = gradients(lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), x, w, dy)
    single = [tf.cast(array, tf.float32) for array in (x, w, dy)]
    ours = gradients(lambda x, w: winograd.conv2d(x, w, "SAME"), *single)
    for our, truth in zip(ours, exact, strict=True):
        error = np.sqrt(np.mean((our - truth.numpy()) ** 2) / np.mean(truth**2))
        assert error < limit  # TensorFlow's: 6e-7; 4 with the usual points of evaluation: 2.4e-6


def test_any_batch_in_one_trace():
    x, w, _ = arrays((3, 6, 7, 4), 4, "SAME")
    convolve = tf.function(
        lambda x: winograd.conv2d(x, w, "SAME"),
        input_signature=[tf.TensorSpec([None, 6, 7, 4], tf.float64)],
    )
    for batch in (3, 1, 0):
        expected = tf.nn.conv2d(x[:batch], w, 1, "SAME")
        np.testing.assert_allclose(convolve(x[:batch]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "images, kernels, dtype, expected",
    [
        ((16, 14, 14, 512), (3, 3, 512, 512), "float32", True),
        ((None, 4, 7, 128), (3, 3, 128, 256), "float64", True),
        ((16, 14, 14, 512), (3, 3, 512, 512), "bfloat16", False),
        ((16, 14, 14, 512), (1, 1, 512, 512), "float32", False),
        ((128, 2, 2, 256), (3, 3, 256, 256), "float32", True),
        ((16, 14, 14, 64), (3, 3, 64, 512), "float32", True),
        ((16, 14, 14, 512), (3, 3, 512, 63), "float32", False),
        ((16, 14, 14, 63), (3, 3, 63, 512), "float32", False),
        ((16, 1, 14, 512), (3, 3, 512, 512), "float32", False),
        ((16, None, 14, 512), (3, 3, 512, 512), "float32", False),
    ],
)
def test_where_it_pays(images, kernels, dtype, expected):
    x, w = (tf.TensorSpec(shape, dtype) for shape in (images, kernels))
    assert winograd.pays(x, w, "SAME") is expected


@pytest.mark.parametrize(("side", "padding"), [(2, "SAME"), (3, "VALID")])
def test_it_is_for_maps_that_have_an_output(side, padding):
    w = tf.TensorSpec((3, 3, 64, 64))
    assert winograd.pays(tf.TensorSpec((8, side, side, 64)), w, padding)
    assert not winograd.pays(tf.TensorSpec((8, side - 1, side, 64)), w, padding)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_large_kernels_are_transformed_in_parts_and_again_for_the_gradients(monkeypatch, parts):
    x, w, dy = arrays((3, 7, 8, 6), 5, "SAME")
    ours = gradients(lambda x, w: winograd.conv2d(x, w, "SAME"), x, w, dy)
    values = 36 * 6 * 5  # 7 x 8 in tiles of 4 x 4 have 36 points
    monkeypatch.setattr(winograd, "_KEPT", values // parts + 1)

    @tf.function
    def call(x, w, dy):
        return gradients(lambda x, w: winograd.conv2d.python_function(x, w, "SAME"), x, w, dy)

    for our, their in zip(call(x, w, dy), ours, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-13 * np.abs(their).max())
    operations = call.get_concrete_function(x, w, dy).graph.get_operations()
    products = [operation for operation in operations if "MatMul" in operation.type]
    assert all(winograd.SCOPE in operation.name.split("/") for operation in products)
    sizes = [
        operation.outputs[0].shape[1]
        for operation in products
        if operation.inputs[0].shape == (36, 9) and operation.outputs[0].shape[0] == 36
    ]
    # 6 channels by the filters of a part
    assert sizes == {1: [30], 2: [18, 12] * 2, 3: [12, 12, 6] * 2}[parts]
