"""Layers against NumPy and their Keras twins; the switch between real and binary."""

import math

import larq as lq
import numpy as np
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import batch_norm, data, inference, kernels, layers, models, quantizers


@pytest.fixture(params=[True, False], ids=["tuned", "plain"])
def tuned(request, monkeypatch):
    monkeypatch.setattr(kernels, "tuned", lambda: request.param)


def images(batch=4, size=32, channels=1):
    return np.random.default_rng(0).normal(size=(batch, size, size, channels)).astype("float32")


def test_rotate180_reverses_rows_and_columns():
    x = images(channels=3)
    np.testing.assert_array_equal(layers.Rotate180()(x), x[:, ::-1, ::-1])


def test_shift_adds_its_bias_to_each_channel(tuned):
    layer = layers.Shift(dtype="float64")
    x, dy = np.random.default_rng(0).normal(size=(2, 4, 5, 6, 3))
    layer.build(x.shape)
    np.testing.assert_array_equal(layer(x), x)
    layer.set_weights([np.array([1.0, -2.0, 0.5])])
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs)
    dx, d_bias = tape.gradient(y, [inputs, *layer.weights], tf.constant(dy))
    np.testing.assert_array_equal(y, x + np.array([1.0, -2.0, 0.5]))
    np.testing.assert_array_equal(dx, dy)
    np.testing.assert_allclose(d_bias, dy.sum((0, 1, 2)), rtol=1e-12, atol=1e-12)


def test_rprelu_starts_as_prelu_of_slope_a_quarter():
    x = images(channels=3)
    np.testing.assert_allclose(layers.RPReLU()(x), np.where(x > 0, x, 0.25 * x), rtol=1e-6)


def test_rprelu_and_its_gradients_match_numpy(tuned):
    rng = np.random.default_rng(1)
    x, dy = rng.normal(size=(2, 2, 5, 6, 3))
    shift_in, slope, shift_out = rng.normal(size=(3, 3))
    layer = layers.RPReLU(dtype="float64")
    layer.build(x.shape)
    layer.set_weights([shift_in, slope, shift_out])
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs)
    dx, d_in, d_slope, d_out = tape.gradient(y, [inputs, *layer.weights], tf.constant(dy))
    u = x + shift_in
    negative = u <= 0
    np.testing.assert_allclose(y, np.where(negative, slope * u, u) + shift_out, rtol=1e-12)
    expected = dy * np.where(negative, slope, 1)
    np.testing.assert_allclose(dx, expected, rtol=1e-12)
    np.testing.assert_allclose(d_in, expected.sum((0, 1, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(d_slope, (dy * u * negative).sum((0, 1, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(d_out, dy.sum((0, 1, 2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("pad_values", [0.0, 1.0])
def test_binary_convolution_is_a_convolution_of_signs_with_scaled_signs(strides, pad_values):
    x = images(channels=5)
    layer = layers.BinaryConv2D(7, 3, strides=strides, pad_values=pad_values)
    y = layer(x)
    w = layer.get_weights()[0]
    signs = np.where(x >= 0, 1, -1).astype("float32")
    scale = np.abs(w).mean((0, 1, 2))
    if pad_values:
        padding = (1, 1) if strides == 1 else (0, 1)
        signs = np.pad(signs, [(0, 0), padding, padding, (0, 0)], constant_values=pad_values)
    expected = tf.nn.conv2d(
        signs, np.where(w >= 0, scale, -scale), strides, "VALID" if pad_values else "SAME"
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_binary_convolution_gradients_are_those_of_the_paper(tuned):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    layer = layers.BinaryConv2D(4, 3, dtype="float64")
    layer.build(x.shape)
    layer.set_weights([np.random.default_rng(1).normal(size=(3, 3, 3, 4))])
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs) ** 2)
    dx, dw = tape.gradient(loss, [inputs, *layer.trainable_weights])
    w = layer.get_weights()[0]
    scale = np.abs(w).mean((0, 1, 2))
    signs, kernel = tf.constant(np.sign(x)), tf.constant(np.where(w >= 0, scale, -scale))
    with tf.GradientTape() as tape:
        tape.watch([signs, kernel])
        loss = tf.reduce_sum(tf.nn.conv2d(signs, kernel, 1, "SAME") ** 2)
    d_signs, d_kernel = tape.gradient(loss, [signs, kernel])
    expected = d_signs * np.maximum(0, 2 - 2 * np.abs(x))
    np.testing.assert_allclose(dx, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dw, d_kernel * (np.abs(w) <= 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", [False, True])
def test_after_a_call_that_was_interrupted_kernels_are_read_as_they_are(graph):
    def quantizer(w):
        raise KeyboardInterrupt

    x = tf.ones((1, 4, 4, 1))
    layer = layers.BinaryConv2D(1, 3)
    layer(x)
    latent = layer.kernel.numpy()
    layer.kernel.quantizer = quantizer
    with pytest.raises(KeyboardInterrupt):
        (tf.function(layer) if graph else layer)(x)
    layer.kernel.quantizer = layer.kernel_quantizer
    np.testing.assert_array_equal(layer.get_weights()[0], latent)
    np.testing.assert_array_equal(tf.convert_to_tensor(layer.kernel), latent)
    with lq.context.quantized_scope(True):
        layer(x)
        assert lq.context.should_quantize()


def test_binary_convolution_switched_off_is_keras_convolution():
    x = images(channels=5)
    layer = layers.BinaryConv2D(7, 3, strides=2)
    twin = tf.keras.layers.Conv2D(7, 3, strides=2, padding="same", use_bias=False)
    layer(x), twin(x)
    twin.set_weights(layer.get_weights())
    layer.input_quantizer.on = layer.kernel_quantizer.on = False
    np.testing.assert_array_equal(layer(x), twin(x))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Rotate180(),
        layers.Shift(),
        layers.RPReLU(),
        layers.BinaryConv2D(7, 3, strides=2, pad_values=1.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_survive_serialization(layer):
    x = images(channels=5)
    expected = layer(x)
    copy = type(layer).from_config(layer.get_config())
    copy.build(x.shape)
    copy.set_weights([np.copy(w) for w in layer.get_weights()])
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(x), expected)


def test_model_survives_saving_with_its_switches(tmp_path):
    model = larq_adambnn.binarize(small.network((32, 32, 1), 10), True, False)
    x = images()
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = tf.keras.models.load_model(tmp_path / "model.keras")
    assert larq_adambnn.binarization(copy) == (True, False)
    np.testing.assert_array_equal(copy.predict(x, verbose=0), expected)


FORMS = [(True, False), (False, True), (True, True), (False, False)]


@pytest.mark.parametrize("form", FORMS)
def test_binarize_sets_what_is_binary_and_keeps_every_weight(form):
    model = small.network((32, 32, 1), 10)
    before = [np.copy(w) for w in model.get_weights()]
    assert larq_adambnn.binarize(model, *form) is model
    assert larq_adambnn.binarization(model) == form
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    kernels = [layer.kernel.precision for layer in model.layers if "conv3x3" in layer.name]
    assert kernels == [1 if form[1] else 32] * 2


def test_binarize_changes_what_a_compiled_model_computes():
    model, x = small.network((32, 32, 1), 10), images()
    outputs = [larq_adambnn.binarize(model, *form).predict(x, verbose=0) for form in FORMS]
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(
            larq_adambnn.binarize(model, *FORMS[i]).predict(x, verbose=0), output
        )
        for other in outputs[:i]:
            assert np.abs(output - other).max() > 1e-4


def test_binarize_inside_a_running_fit_retraces_once_and_trains_the_new_form():
    model, x = small.network((32, 32, 1), 10), images(batch=32)
    labels = np.arange(32) % 10
    traces = []

    class Switch(tf.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2 and larq_adambnn.binarization(self.model) == (True, False):
                traces.append(self.model.train_tf_function.experimental_get_tracing_count())
                weights = self.model.get_weights()
                larq_adambnn.binarize(self.model, True, True)  # in the middle of an epoch
                for old, new in zip(weights, self.model.get_weights(), strict=True):
                    np.testing.assert_array_equal(old, new)

    larq_adambnn.binarize(model, True, False)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.0), loss)
    history = model.fit(
        x, labels, batch_size=8, shuffle=False, epochs=2, callbacks=[Switch()], verbose=0
    )
    traces.append(model.train_tf_function.experimental_get_tracing_count())
    assert traces[1] == 1  # one retrace; the first trace also made the optimizer's variables
    # Without learning the loss of the second epoch is that of the binary network.
    larq_adambnn.binarize(model, True, True)
    binary = model.fit(x, labels, batch_size=8, shuffle=False, verbose=0)
    assert history.history["loss"][1] == pytest.approx(binary.history["loss"][0], rel=1e-5)
    assert history.history["loss"][0] != pytest.approx(binary.history["loss"][0], rel=1e-5)


def test_binarize_reaches_larq_models_of_plain_quantizers():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            lq.layers.QuantConv2D(4, 3, kernel_quantizer="ste_sign"),
            lq.layers.QuantDepthwiseConv2D(
                3, input_quantizer="ste_sign", depthwise_quantizer="ste_sign"
            ),
            lq.layers.QuantSeparableConv2D(
                4, 3, depthwise_quantizer="ste_sign", pointwise_quantizer="ste_sign"
            ),
        ]
    )
    twin = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            tf.keras.layers.Conv2D(4, 3),
            tf.keras.layers.DepthwiseConv2D(3),
            tf.keras.layers.SeparableConv2D(4, 3),
        ]
    )
    twin.set_weights(model.get_weights())
    x = images(size=8, channels=3)
    binary = model(x).numpy()
    larq_adambnn.binarize(model, False, False)
    np.testing.assert_allclose(model(x), twin(x), atol=1e-5)
    assert isinstance(model.layers[1].depthwise_quantizer, quantizers.Switchable)
    larq_adambnn.binarize(model, True, True)
    np.testing.assert_array_equal(model(x), binary)


def test_binarize_refuses_a_model_without_binary_layers():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="binary Larq layers"):
        larq_adambnn.binarize(model)


def network_of_plain_quantizers():
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            lq.layers.QuantConv2D(4, 3, kernel_quantizer="ste_sign"),
            lq.layers.QuantConv2D(
                4, 3, input_quantizer="ste_sign", kernel_quantizer="dorefa_quantizer"
            ),
        ]
    )


def quantizers_of(model):
    """Every quantizer object of a model, and of its kernels."""
    found = [getattr(layer, name, None) for layer in model.submodules for name in layers.QUANTIZERS]
    kernels = [getattr(v, "quantizer", None) for v in model.weights]
    return [quantizer for quantizer in (*found, *kernels) if quantizer is not None]


@pytest.mark.parametrize(
    "build, form",
    [
        (network_of_plain_quantizers, (True, True)),
        (
            lambda: models.build("QuickNetSmall", input_shape=(32, 32, 3), num_classes=10),
            (True, True),
        ),
        (lambda: small.network((32, 32, 1), 10), (True, True)),
        (lambda: larq_adambnn.binarize(small.network((32, 32, 1), 10), True, False), (True, False)),
        (
            lambda: tf.keras.Sequential(
                [tf.keras.Input((4,)), lq.layers.QuantDense(2, input_quantizer="ste_sign")]
            ),
            (True, False),
        ),
        (
            lambda: tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)]),
            (False,) * 2,
        ),
    ],
)
def test_binarization_asks_and_changes_nothing(build, form):
    model = build()
    before = quantizers_of(model)
    assert larq_adambnn.binarization(model) == form
    after = quantizers_of(model)
    assert len(after) == len(before)
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_binarize_wraps_plain_quantizers_once():
    model = network_of_plain_quantizers()
    larq_adambnn.binarize(model, True, False)
    before = quantizers_of(model)
    assert larq_adambnn.binarization(model) == (True, False)
    larq_adambnn.binarize(model, False, True)
    assert larq_adambnn.binarization(model) == (False, True)
    after = quantizers_of(model)
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_what_is_binary_in_a_layer():
    """A switch that is off can be binary; two bits are not, unless a switch holds them."""
    layer = lq.layers.QuantConv2D(
        4,
        3,
        input_quantizer=quantizers.Switchable("ste_sign", on=False),
        kernel_quantizer="dorefa_quantizer",
    )
    model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), layer])
    assert layers.quantizer(layer, "input_quantizer") is None
    assert layers.quantizer(layer, "kernel_quantizer").precision == 2
    assert layers.quantizer(layer, "depthwise_quantizer") is None
    assert not any(layers.is_binary(layer, attribute) for attribute in layers.QUANTIZERS)
    assert layers.binary_quantizers(model) == [(layer, "input_quantizer")]
    assert layers.binary_quantizers(model, layers.KERNELS) == []
    layer.input_quantizer.on = True
    assert layers.quantizer(layer, "input_quantizer") is layer.input_quantizer.quantizer
    assert layers.is_binary(layer, "input_quantizer")


def test_binary_layers_in_a_module_that_is_no_layer_are_found_and_switched():
    class Holder(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense = lq.layers.QuantDense(
                3, input_quantizer="ste_sign", kernel_quantizer="ste_sign"
            )

    class Network(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.holder = Holder()

        def call(self, inputs):
            return self.holder.dense(inputs)

    model = Network()
    model(tf.ones((2, 4)))
    assert larq_adambnn.binarization(larq_adambnn.binarize(model, True, False)) == (True, False)


@pytest.mark.parametrize(
    "quantizer,expected",
    [
        (quantizers.ApproxSign(), 1.0),
        (quantizers.ApproxSign(2.5), 2.5),
        (quantizers.Switchable(quantizers.ApproxSign(2.5), on=False), 2.5),
        (quantizers.Switchable("ste_sign"), 1.0),
        ("ste_sign", 1.0),
        ("approx_sign", 1.0),
        (lq.quantizers.SteSign(1.3), 1.3),
        (lq.quantizers.SteSign(None), math.inf),
        (lq.quantizers.SwishSign(), math.inf),
        (lq.quantizers.NoOp(precision=1), math.inf),
    ],
)
def test_from_the_clip_on_a_sign_has_no_gradient(quantizer, expected):
    layer = lq.layers.QuantDense(1, input_quantizer=quantizer)
    assert layers.clip(layer, "input_quantizer") == expected
    x = tf.constant([0.99, 1.01]) * min(expected, 5.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = getattr(layer.input_quantizer, "quantizer", layer.input_quantizer)(x)
    inside, outside = tape.gradient(y, x).numpy()
    assert inside != 0
    assert (outside == 0) == (expected < math.inf)


def by_predict(model, batch):
    return model.predict(batch, verbose=0)


def by_logits(model, batch):
    return np.concatenate(list(inference.logits(model, [batch])))


def by_reestimate_batch_norm(model, batch):
    normalized = tf.keras.Sequential([model, tf.keras.layers.BatchNormalization()])
    batch_norm.reestimate_batch_norm(normalized, [batch])
    return model(batch)


def by_evaluate(model, batch):
    pixels = tf.data.Dataset.from_tensors((np.zeros((32, 32, 1), np.uint8), 0))
    dataset = data.from_datasets(pixels, pixels, ("a", "b"), image_size=32, batch_size=1)
    resized = tf.keras.Input((32, 32, 1))
    logits = tf.keras.layers.Flatten()(model(resized[:, :1, :2]))
    assert inference.evaluate(tf.keras.Model(resized, logits), dataset).images == 1
    return model(batch)


@pytest.mark.parametrize("attribute", ["input_quantizer", "kernel_quantizer"])
@pytest.mark.parametrize("use", [by_predict, by_logits, by_reestimate_batch_norm, by_evaluate])
def test_a_quantizer_of_ones_own_may_branch_on_tensors(attribute, use):
    """As in any layer of Keras, whose calls AutoGraph converts."""

    def quantizer(x):
        if tf.reduce_sum(x) < 0:
            x = -x
        return tf.sign(x)

    x = tf.keras.Input((None, None, 1))
    initial = tf.keras.initializers.Constant(-2.0 if attribute == "kernel_quantizer" else 1.0)
    options = {attribute: quantizers.Switchable(quantizer)}
    layer = layers.BinaryConv2D(1, 1, **options, kernel_initializer=initial)
    model = tf.keras.Model(x, layer(x))
    values = np.full((1, 3, 3, 1), -2.0, np.float32)
    expected = np.sign(values) if attribute == "kernel_quantizer" else -np.sign(values)
    np.testing.assert_allclose(use(model, values), expected)
