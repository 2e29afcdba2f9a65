"""RPReLU and RSign, compiled and plain, against NumPy; what a training keeps of them."""

import weakref

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import kernels, layers
from larq_adambnn.kernels import activations, fusion
from larq_adambnn.quantizers import ApproxSign, approx_sign


@pytest.fixture(params=[True, False], ids=["fused", "plain"], autouse=True)
def fused(request, monkeypatch):
    monkeypatch.setattr(kernels, "tuned", lambda: True)
    monkeypatch.setattr(fusion, "_LARGE", 1 if request.param else 2**60)
    return request.param


def built(layer, x, *weights):
    layer.build(x.shape)
    layer.set_weights(weights)
    return layer


def rprelu(x, shift_in, slope, shift_out):
    u = x + shift_in
    return np.where(u > 0, u, slope * u) + shift_out


def rprelu_gradients(x, shift_in, slope, dy):
    """Of x, and of the three parameters."""
    u = x + shift_in
    axes = tuple(range(x.ndim - 1))
    dx = dy * np.where(u > 0, 1, slope)
    return [dx, *(y.sum(axes) for y in (dx, dy * np.minimum(u, 0), dy))]


def assert_close(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(4, 3), (2, 5, 6, 3), (2, 7, 7, 3), (3, 13, 11, 3), (0, 4, 4, 3)]
)
def test_rprelu_and_its_gradients(shape):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape))
    parameters = rng.normal(size=(3, 3))
    x[:1] = -parameters[0]  # where the input of PReLU is 0 the gradient has the slope
    layer = built(layers.RPReLU(dtype="float64"), x, *parameters)
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs, training=True)
    assert_close([y], [rprelu(x, *parameters)])
    gradients = tape.gradient(y, [inputs, *layer.weights], tf.constant(dy))
    assert_close(gradients, rprelu_gradients(x, *parameters[:2], dy))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("clip", [1.0, 2.5])
@pytest.mark.parametrize("before", ["nothing", "shift", "rprelu", "rprelu and shift"])
def test_the_sign_and_the_gradients_of_all_before_it(before, clip, graph):
    """The output of RPReLU has another use, as in ReActNet."""
    rng = np.random.default_rng(0)
    x, d_sign, d_shortcut = rng.normal(size=(3, 2, 5, 6, 4))
    parameters, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    first = built(layers.RPReLU(dtype="float64"), x, *parameters)
    second = built(layers.Shift(dtype="float64"), x, bias)
    quantizer = ApproxSign(clip, dtype="float64")

    def call(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = first(x, training=True) if "rprelu" in before else tf.identity(x)
            z = second(y, training=True) if "shift" in before else y
            s = quantizer(z, training=True)
        watched = [x, *first.weights, *second.weights]
        outputs = [tf.constant(d_sign), tf.constant(d_shortcut)]
        return y, s, tape.gradient([s, y], watched, outputs, unconnected_gradients="zero")

    y, s, (dx, *d_rprelu, d_bias) = (tf.function(call) if graph else call)(tf.constant(x))
    expected = rprelu(x, *parameters) if "rprelu" in before else x
    z = expected + bias if "shift" in before else expected
    assert_close([y, s], [expected, np.where(z >= 0, 1, -1)])
    dz = d_sign * 2 / clip * np.maximum(0, 1 - np.abs(z) / clip)
    dy = dz + d_shortcut
    assert_close([d_bias], [dz.sum((0, 1, 2)) if "shift" in before else np.zeros(4)])
    if "rprelu" in before:
        assert_close([dx, *d_rprelu], rprelu_gradients(x, *parameters[:2], dy))
    else:
        assert_close([dx], [dy])


def test_zeros_infinities_and_no_numbers():
    x = tf.constant([[0.0, -0.0, 1e-300, -1e-300, np.inf, -np.inf, np.nan]], tf.float64)
    bias = tf.zeros(7, tf.float64)
    expected = [[1, 1, 1, -1, 1, -1, np.nan]]
    np.testing.assert_array_equal(approx_sign(x, training=True), expected)
    shifted = activations.shift(x, bias, training=True)
    np.testing.assert_array_equal(approx_sign(shifted, training=True), expected)
    y = activations.rprelu(x, bias, bias + 0.5, bias, training=True)
    np.testing.assert_array_equal(y, [[0, 0, 1e-300, -5e-301, np.inf, -np.inf, np.nan]])


@pytest.mark.parametrize("dtype, step", [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_floats_of_16_bits(dtype, step, fused):
    """Compiled they are rounded once, and else at each of four operations."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in [(2, 8, 8, 4), (4,), (4,), (4,)]]
    arguments = [tf.cast(array, dtype) for array in arrays]
    exact = [tf.cast(argument, tf.float64).numpy() for argument in arguments]
    y = activations.rprelu(*arguments, training=True)
    assert y.dtype == dtype
    expected = rprelu(*exact)
    error = np.abs(tf.cast(y, tf.float64) - expected)
    x, shift_in, slope, shift_out = map(np.abs, exact)
    terms = (x + shift_in) * np.maximum(1, slope) + shift_out
    limit = step / 2 * 1.001 * np.abs(expected) if fused else 4 * step / 2 * 1.01 * terms
    assert (error <= limit).all()
    s = approx_sign(activations.shift(y, arguments[1], training=True), training=True)
    z = tf.cast(y, tf.float64) + exact[1]
    np.testing.assert_array_equal(tf.cast(s, tf.float64), np.where(z >= 0, 1, -1))


def test_of_all_between_rprelus_input_and_the_sign_the_gradients_keep_nothing(fused):
    x = tf.random.normal((2, 4, 4, 3))
    parameters = [tf.ones(3), tf.fill(3, 0.25), tf.ones(3)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = activations.rprelu(x, *parameters, training=True)
        z = activations.shift(y, tf.ones(3), training=True)
        s = approx_sign(z, training=True)
    kept = weakref.ref(y), weakref.ref(z)
    del y, z
    assert [tensor() is not None for tensor in kept] == [False, not fused]
    assert tape.gradient(s, x) is not None


def compiled(training, side=4):
    """How many functions XLA compiles in a block's forward pass and its gradients."""
    first, second = layers.RPReLU(), layers.Shift()
    quantizer = ApproxSign()

    @tf.function(input_signature=[tf.TensorSpec((None, side, side, 2))])
    def call(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = second(first(x, training=training), training=training)
            s = quantizer(y, training=training)
        return tape.gradient(s, x)

    library = call.get_concrete_function().graph.as_graph_def().library
    return sum(function.attr["_XlaMustCompile"].b for function in library.function)


def test_xla_compiles_them_in_the_training_of_large_images_on_a_cpu(monkeypatch, fused):
    assert compiled(training=True) == (4 if fused else 0)
    assert compiled(training=False) == 0
    monkeypatch.setattr(fusion, "_LARGE", 4 * 4 * 2)
    assert compiled(training=True) == 4
    assert compiled(training=True, side=3) == 0
    assert compiled(training=True, side=None) == 0
    monkeypatch.setattr(kernels, "tuned", lambda: False)
    assert compiled(training=True) == 0


def test_a_network_gives_its_layers_the_training(fused):
    """Through its switches too."""
    inputs = tf.keras.Input((4, 4, 3))
    x = layers.BinaryConv2D(5, 1)(layers.Shift()(layers.RPReLU()(inputs)))
    model = tf.keras.Model(inputs, x)

    def count(training):
        @tf.function
        def call(x):
            return model(x, training=training)

        graph = call.get_concrete_function(tf.ones((1, 4, 4, 3))).graph.as_graph_def()
        return sum(function.attr["_XlaMustCompile"].b for function in graph.library.function)

    assert count(True) == (2 if fused else 0)
    assert count(False) == 0
