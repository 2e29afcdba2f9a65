"""8 bits for what stays real: operators, ranges, inputs and outputs, and the accuracy."""

import exports
import numpy as np
import pytest
import tensorflow as tf

import larq_adambnn
from larq_adambnn import export, layers
from larq_adambnn.export import int8
from larq_adambnn.export.tflite import Graph


def network(pad_values):
    """Rotation, stem, strided and other binary convolutions, pools, a concatenation."""
    images = tf.keras.Input((16, 16, 3), name="images")
    x = layers.Rotate180(name="rotate")(images)
    x = tf.keras.layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem")(x)
    x = tf.keras.layers.BatchNormalization(name="stem_bn")(x)

    def half(x, y, size, strides, name):
        y = layers.BinaryConv2D(
            32, size, strides=strides, pad_values=pad_values if size > 1 else 0, name=name
        )(y)
        y = tf.keras.layers.BatchNormalization(name=f"{name}_bn")(y)
        return tf.keras.layers.Add(name=f"{name}_add")([x, y])

    y = layers.Shift(name="shift1")(x)
    x = tf.keras.layers.AveragePooling2D(2, padding="same", name="halve")(x)
    x = layers.RPReLU(name="rprelu1")(half(x, y, 3, 2, "wide"))
    y = layers.Shift(name="shift2")(x)
    parts = [half(x, y, 1, 1, "left"), half(x, y, 1, 1, "right")]
    x = layers.RPReLU(name="rprelu2")(tf.keras.layers.Concatenate(name="concat")(parts))
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = tf.keras.layers.Dense(10, name="classifier")(x)
    return exports.randomized(tf.keras.Model(images, logits, name="network"))


@pytest.fixture(scope="module", params=[0, 1], ids=["zeros", "ones"])
def quantized(request):
    """(pad_values, model, quantized model)."""
    model = network(request.param)
    return (
        request.param,
        model,
        int8.quantize(export.fold(model), exports.images(model, 64, seed=1)),
    )


one_padding = pytest.mark.parametrize("quantized", [1], indirect=True, ids=["ones"])


@pytest.mark.parametrize("int8_io", [False, True])
def test_what_stays_real_is_int8(quantized, int8_io):
    pad_values, model, network = quantized
    tflite, real = int8.convert_int8(network, int8_io=int8_io)
    graph = Graph(tflite)
    kinds = export.operators(tflite)
    assert kinds["LceBconv2d"] == 3
    assert kinds.get("QUANTIZE", 0) == (not int8_io) + len(real)
    assert kinds.get("DEQUANTIZE", 0) == (not int8_io)
    assert len(real) == (1 if pad_values == 0 else 0)  # the only one that pads
    for operator in graph.operators:
        if operator.kind in ("QUANTIZE", "DEQUANTIZE"):
            continue
        output = graph.dtype(operator.outputs[0])
        if operator.kind == "LceQuantize":
            assert output == np.int32  # packed signs
            assert graph.dtype(operator.inputs[0]) == np.int8
        elif output != np.int8:
            assert operator.kind == "LceBconv2d"
            assert graph.name(operator.outputs[0]) in real
        if operator.kind in ("CONV_2D", "FULLY_CONNECTED"):
            weights = graph.constant(operator.inputs[1])
            assert weights.dtype == np.int8
            assert np.abs(weights.astype(int)).max() == 127  # symmetric and narrow
    types = [graph.dtype(graph.inputs[0]), graph.dtype(graph.outputs[0])]
    assert types == [np.dtype("int8" if int8_io else "float32")] * 2

    images = exports.images(model, 100)
    keras, own = model.predict(images, verbose=0), export.predict(tflite, images)
    simulated = network.predict(images, verbose=0)
    spread = keras.std()
    assert np.abs(own - keras).mean() < 0.1 * spread
    assert np.abs(own - simulated).mean() < 0.05 * spread
    assert export.check(model, tflite, images, quantized=True).passed


@one_padding
def test_the_extremes_of_each_channel(quantized):
    _, model, _ = quantized
    folded = export.fold(model).model
    images = exports.images(model, 20)
    extremes = int8.calibrate(folded, images)
    np.testing.assert_array_equal(extremes[""], (images.min((0, 1, 2)), images.max((0, 1, 2))))
    stem = tf.keras.Model(folded.input, folded.get_layer("stem").output)(images).numpy()
    expected = np.minimum(0, stem.min((0, 1, 2))), np.maximum(0, stem.max((0, 1, 2)))
    np.testing.assert_allclose(extremes["stem"], expected, rtol=1e-4, atol=1e-5)
    logits = folded(images).numpy()  # with room, since they are few
    assert logits.min() < 0 < logits.max()
    low, high = logits.mean(0) - 4 * logits.std(0), logits.mean(0) + 4 * logits.std(0)
    expected = (
        np.minimum(0, np.minimum(low, logits.min(0))),
        np.maximum(0, np.maximum(high, logits.max(0))),
    )
    np.testing.assert_allclose(extremes["classifier"], expected, rtol=1e-4, atol=1e-5)


def test_few_values_leave_room_for_others():
    """But for what a sigmoid gives, which has one range in int8, and what passes it on."""
    images = tf.keras.Input((2, 2, 16))
    convolutions = [tf.keras.layers.Conv2D(32, 1)(images) for _ in range(2)]
    x = tf.keras.layers.Add()(convolutions)
    x = tf.keras.layers.Lambda(lambda x: tf.identity(x))(x)
    x = tf.keras.layers.Flatten()(tf.keras.layers.AveragePooling2D(2)(x))
    gate = tf.keras.layers.Dense(32, activation="sigmoid", name="gate")(x)
    gate = tf.keras.layers.Reshape((32,), name="reshape")(gate)
    x = tf.keras.layers.ReLU()(tf.keras.layers.Dense(32, name="features")(x))
    x = tf.keras.layers.Multiply()([x, gate])
    model = exports.randomized(tf.keras.Model(images, tf.keras.layers.Dense(10)(x)))
    few, others = exports.images(model, 8, seed=1), exports.images(model, 256, seed=2)
    extremes = int8.calibrate(export.fold(model).model, few)
    assert np.max(extremes["gate"][1]) < 1
    np.testing.assert_array_equal(extremes["gate"], extremes["reshape"])
    expected = model.predict(others, verbose=0)
    received = export.predict(int8_of(model, few)[0], others)
    assert np.abs(received - expected).mean() < 0.03 * expected.std()


def int8_of(model, images):
    return int8.convert_int8(int8.quantize(export.fold(model), images), int8_io=False)


def split(x):
    return tf.concat(tf.split(x, 2, axis=-1)[::-1], -1)


def unstack(x):
    return tf.stack(tf.unstack(x, axis=1), axis=2)


def maxima(x):
    pool = tf.keras.layers.GlobalMaxPooling2D()
    return tf.keras.layers.Concatenate()([pool(x), pool(3 * x)])


def normalized(x):
    return tf.keras.layers.BatchNormalization()(tf.keras.layers.ReLU()(x))


@pytest.mark.parametrize(
    ("function", "real"),
    [
        (tf.math.sin, {"SIN"}),  # it has no int8 form
        (tf.keras.layers.Lambda(lambda x: 2 * x + tf.nn.relu(x)), {"MUL", "RELU", "ADD"}),
        (split, set()),
        (unstack, set()),
        (maxima, set()),
        (normalized, set()),
        (lambda x: tf.keras.layers.ReLU()(tf.keras.layers.MaxPooling2D(2)(x)), set()),
        (lambda x: tf.keras.layers.BatchNormalization()(maxima(x)), {"MUL", "ADD"}),
    ],
)
def test_what_has_no_range_stays_float_and_nothing_else(function, real):
    """The numbers inside a layer have none; those that operators only move share one."""
    images = tf.keras.Input((8, 8, 3))
    x = function(tf.keras.layers.Conv2D(8, 3, name="stem")(images))
    outputs = tf.keras.layers.Dense(4)(tf.keras.layers.Flatten()(x))
    model = exports.randomized(tf.keras.Model(images, outputs))
    images = exports.images(model, 8)
    tflite, _ = int8_of(model, images)
    graph = Graph(tflite)
    kinds = {op.kind for op in graph.operators if graph.dtype(op.outputs[0]) == np.float32}
    assert kinds - {"DEQUANTIZE"} == real
    expected = model.predict(images, verbose=0)
    assert np.abs(export.predict(tflite, images) - expected).mean() < 0.05 * expected.std()


NEAR_ZERO = (0.0, 1e-6, -1e-30)


@pytest.mark.parametrize(
    ("kind", "gammas"),
    [
        ("convolution", (1, *NEAR_ZERO, -1, 1)),
        ("depthwise", (1, *NEAR_ZERO, -1, 1)),
        *(("dense", 6 * [gamma]) for gamma in NEAR_ZERO),  # whose channels have one scale
    ],
)
def test_a_bias_that_32_bits_do_not_hold(kind, gammas):
    """A channel with a gamma near zero is its bias, which is a multiple of its weights' scale."""
    images = tf.keras.Input((8, 8, 3))
    if kind == "dense":
        x = tf.keras.layers.Dense(6, name="layer")(tf.keras.layers.Flatten()(images))
    else:
        x = tf.keras.layers.Conv2D(6, 3, name="layer")(images)
    if kind == "depthwise":
        x = tf.keras.layers.ReLU()(x)
    model = tf.keras.Model(images, tf.keras.layers.BatchNormalization(name="bn")(x))
    exports.randomized(model)
    norm = model.get_layer("bn")
    norm.gamma.assign(gammas)
    norm.beta.assign([0.5, 1, -0.7, 3, -2, 0.9])
    images = exports.images(model, 8)
    tflite, _ = int8_of(model, images)
    expected = model.predict(images, verbose=0)
    step = np.ptp(np.append(expected, 0)) / 255
    assert np.abs(export.predict(tflite, images) - expected)[..., 1:4].max() < 1.5 * step


def test_thresholds_far_from_all_values_leave_the_others_their_steps():
    model = network(1)
    for name in ("shift1", "shift2"):
        layer = model.get_layer(name)
        (shifts,) = layer.get_weights()
        shifts[::4] *= 1000
        layer.set_weights([shifts])
    larq_adambnn.binarize(model)
    found = export.export(model, exports.images(model, 64, seed=1), int8=True)
    assert min(found.report.signs.values()) > 0.9


@one_padding
def test_fine_tuning_brings_it_nearer(quantized):
    _, model, _ = quantized
    folding = export.fold(model)
    images = exports.images(model, 64, seed=1)
    network = int8.quantize(folding, 0.25 * images)  # too narrow
    kernels = {x.name: x.get_weights() for x in network.layers if "QuantConv" in type(x).__name__}
    assert len(kernels) == 3

    def distance():
        expected = tf.nn.softmax(folding.model.predict(images, verbose=0))
        return float(
            tf.reduce_mean(
                tf.keras.losses.kl_divergence(
                    expected, tf.nn.softmax(network.predict(images, verbose=0))
                )
            )
        )

    before = distance()
    batches = tf.data.Dataset.from_tensor_slices((images, np.zeros(64))).repeat().batch(32)
    int8.fine_tune(network, folding.model, batches, epochs=5, iterations_per_epoch=8)
    assert distance() < 0.9 * before
    for name, weights in kernels.items():  # the signs are what they were
        np.testing.assert_array_equal(network.get_layer(name).get_weights()[0], weights[0])


def test_small_images_in_int8():
    """The constant that corrects their padding is int8 too."""
    inputs = tf.keras.Input((2, 2, 8))
    x = layers.BinaryConv2D(8, 3, name="conv")(inputs)
    x = tf.keras.layers.BatchNormalization(name="bn")(x)
    model = exports.randomized(
        tf.keras.Model(inputs, tf.keras.layers.Dense(3)(tf.keras.layers.Flatten()(x)))
    )
    folding = export.fold(model)
    assert folding.small_images == ["conv"]
    images = exports.images(model, 32)
    network = int8.quantize(folding, images)
    tflite, real = int8.convert_int8(network, int8_io=True)
    assert real == []
    expected = model.predict(images, verbose=0)
    assert np.abs(export.predict(tflite, images) - expected).mean() < 0.05 * expected.std()
