"""A layer's convolution, tuned and plain: the same numbers, and which operators are used."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import kernels, layers, quantizers
from larq_adambnn.kernels import convolution, winograd


@pytest.fixture(params=[True, False], ids=["tuned", "plain"])
def tuned(request, monkeypatch):
    monkeypatch.setattr(kernels, "tuned", lambda: request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The tuned functions that have been called."""
    found = []

    def watch(module, name):
        function = getattr(module, name)
        watched = lambda *args, **kwargs: found.append(name) or function(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(module, name, watched)

    watch(winograd, "conv2d")
    watch(convolution, "kernel_gradient")
    return found


def images(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape))


def gradients(cls, x, filters, training=None, *, size=3, **options):
    """Output and gradients of a convolution layer with binary inputs and kernels."""
    layer = cls(
        filters,
        size,
        padding="same",
        use_bias=False,
        input_quantizer=quantizers.Switchable(quantizers.ApproxSign()),
        kernel_quantizer=quantizers.Switchable(quantizers.ScaledSign()),
        kernel_initializer=tf.keras.initializers.RandomNormal(seed=0),
        dtype=x.dtype,
        **options,
    )
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training) if training is not None else layer(x)
        loss = tf.reduce_sum(y**2)
    return [y, *tape.gradient(loss, [x, *layer.trainable_weights])]


def assert_close(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):  # sums of up to 8,000 products
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-12 * np.abs(their).max())


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("pad_values", [0.0, 1.0])
@pytest.mark.parametrize("filters, large", [(32, True), (31, False)])
def test_a_large_kernel_changes_no_gradient(
    tuned, calls, strides, pad_values, filters, large, monkeypatch
):
    monkeypatch.setattr(convolution, "_LARGE_KERNEL", 3 * 3 * 16 * 32)
    x, options = images(2, 4, 4, 16), {"strides": strides, "pad_values": pad_values}
    theirs = gradients(lq.layers.QuantConv2D, x, filters, **options)
    assert not calls
    ours = gradients(layers.BinaryConv2D, x, filters, False, **options)
    assert calls == ["kernel_gradient"] * (large and tuned)
    assert_close(ours, theirs)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("side", [5, 33])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_kernels_of_one_pixel_have_one_product_as_gradient(
    tuned, calls, strides, training, side, dtype
):
    """Where it is faster: not for 16 bits and more than 32 x 32 positions."""
    x = tf.cast(images(2, side, side, 3), dtype)
    theirs = gradients(lq.layers.QuantConv2D, x, 4, size=1, strides=strides)
    assert not calls
    ours = gradients(layers.BinaryConv2D, x, 4, training, size=1, strides=strides)
    pays = strides == 1 and training and (side == 5 or dtype != "bfloat16")
    assert calls == ["kernel_gradient"] * (pays and tuned)
    limit = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for our, their in zip(ours, theirs, strict=True):
        our, their = (tf.cast(array, tf.float64).numpy() for array in (our, their))
        np.testing.assert_allclose(our, their, rtol=0, atol=limit * np.abs(their).max())


@pytest.mark.parametrize("pad_values", [0.0, 1.0])
def test_winograds_convolution_trains_as_keras(tuned, calls, pad_values):
    x = images(2, 7, 9, 128)
    theirs = gradients(lq.layers.QuantConv2D, x, 136, pad_values=pad_values)
    assert not calls
    ours = gradients(layers.BinaryConv2D, x, 136, True, pad_values=pad_values)
    assert calls == ["conv2d"] * tuned
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    "training, filters, options",
    [
        (False, 136, {}),
        (None, 136, {}),
        (True, 136, {"strides": 2}),
        (True, 136, {"dilation_rate": 2}),
        (True, 63, {}),
    ],
)
def test_winograds_convolution_is_for_training_and_what_it_can_compute(
    monkeypatch, calls, training, filters, options
):
    monkeypatch.setattr(kernels, "tuned", lambda: True)
    x = images(2, 7, 9, 128)
    theirs = gradients(lq.layers.QuantConv2D, x, filters, **options)
    ours = gradients(layers.BinaryConv2D, x, filters, training, **options)
    assert not calls
    assert_close(ours, theirs)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("size", [(7, 8), (6, 5), (3, 3)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 1), (1, 3)])
def test_kernel_gradient_is_tensorflows(size, strides, padding, kernel_size):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(2, *size, 5)))
    kernel = tf.constant(rng.normal(size=(*kernel_size, 5, 4)))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.nn.conv2d(x, kernel, strides, padding)
    dy = tf.constant(rng.normal(size=y.shape))
    gradient = convolution.kernel_gradient(x, dy, kernel_size, strides, padding)
    np.testing.assert_allclose(gradient, tape.gradient(y, kernel, dy), rtol=1e-12, atol=1e-12)


def iteration(training):
    """(names, kinds) of the operators in an iteration of a network with a large convolution."""
    inputs = x = tf.keras.Input((4, 4, 512))
    x = layers.RPReLU()(layers.BinaryConv2D(912, 3)(layers.Shift()(x)))
    model = tf.keras.Model(inputs, x)
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 512))])
    def update(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=training) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    graph = update.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    parts = {part for node in nodes for part in node.name.split("/")}
    return parts, {node.op for node in nodes}


@pytest.mark.parametrize("training", [True, False])
def test_tuned_operators_are_in_an_iteration_only_where_tuned(tuned, training):
    names, kinds = iteration(training)
    products = {kind for kind in kinds if "MatMul" in kind}
    assert (winograd.SCOPE in names) == (tuned and training)
    assert bool(products) == tuned
    assert ("Conv2DBackpropFilter" in kinds) == (not tuned)
