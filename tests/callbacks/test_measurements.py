"""The measurements in `model.fit` against NumPy on the weights and activations of each step."""

import dataclasses
import itertools
import pathlib

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import larq_adambnn
from larq_adambnn import callbacks, layers, optimizers, quantizers
from larq_adambnn.callbacks.measurements import (
    absolute_means,
    binary_kernels,
    visit_binary_inputs,
)

STEPS, BATCH, EPOCHS = 5, 8, 2
NAMES = ("conv1", "conv2", "dense")


def build(*, frozen=False):
    """Three binary layers of different sizes, two scaled and one plain; many weights > 1."""

    def wide(seed):
        return tf.keras.initializers.RandomUniform(-2, 2, seed=seed)

    images = x = tf.keras.Input((6, 6, 3))
    x = layers.BinaryConv2D(4, 3, kernel_initializer=wide(1), name="conv1")(x)
    x = tf.keras.layers.BatchNormalization()(x)
    x = layers.BinaryConv2D(8, 1, strides=2, kernel_initializer=wide(2), name="conv2")(x)
    x = tf.keras.layers.BatchNormalization()(x)
    x = tf.keras.layers.Flatten()(x)
    x = lq.layers.QuantDense(
        5,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        kernel_initializer=wide(3),
        name="dense",
    )(x)
    model = tf.keras.Model(images, tf.keras.layers.BatchNormalization()(x))
    model.get_layer("conv2").trainable = not frozen
    return model


def data():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(STEPS * BATCH, 6, 6, 3)).astype(np.float32)
    return images, generator.integers(0, 5, len(images))


def batches():
    return tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)


def loss():
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Recorded(tf.keras.callbacks.Callback):
    """Every weight of the model before each step and after the last of an epoch."""

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([self.model.get_weights()])

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1].append(self.model.get_weights())


def fit(*measurements, optimizer=None, switch=True, model=None, epochs=EPOCHS):
    model = model or build()
    model.compile(optimizer=optimizer or optimizers.SGD(0.5), loss=loss())
    recorded = Recorded()
    recipe = [callbacks.TwoStepSwitch(1)] if switch else []
    # The measurements go first: they must not depend on coming after the switch.
    history = model.fit(
        batches(), epochs=epochs, verbose=0, callbacks=[*measurements, *recipe, recorded]
    )
    return model, recorded.epochs, history.history


def kernels(model, weights):
    """{layer: its kernel} from all weights of a model."""
    index = {w.name: i for i, w in enumerate(model.weights)}
    return {name: weights[index[f"{name}/kernel:0"]] for name in NAMES}


def signs(kernel):
    return np.where(kernel >= 0, 1, -1)


def assert_by_layer(callback, column, expected, rtol=1e-6):
    assert list(callback.by_layer[column]) == list(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(callback.by_layer[column][name], expected[name], rtol=rtol)


@dataclasses.dataclass
class Measured:
    """A training in both steps with the measurements, what they gave, and all its weights."""

    model: tf.keras.Model
    epochs: list
    history: dict
    by_name: dict

    def __getitem__(self, name):
        return self.by_name[name]


def probe():
    return data()[0][:7]


@pytest.fixture(scope="module")
def measured():
    tf.keras.utils.set_random_seed(0)
    measurements = [
        callbacks.FlipFlopRatio(),
        callbacks.CorrelationToInitialization(),
        callbacks.ActivationSaturation(probe()),
        callbacks.KernelMagnitude(),
    ]
    return Measured(*fit(*measurements), {type(m).__name__: m for m in measurements})


def test_flip_flop_ratio_is_the_flips_of_every_iteration(measured):
    model, history, callback = measured.model, measured.history, measured["FlipFlopRatio"]
    for epoch, weights in enumerate(measured.epochs):
        flips, sizes = dict.fromkeys(NAMES, 0), {}
        for before, after in itertools.pairwise(weights):
            before, after = kernels(model, before), kernels(model, after)
            for name in NAMES:
                flips[name] += np.sum(np.abs(signs(after[name]) - signs(before[name]))) / 2
                sizes[name] = after[name].size
        total = sum(flips.values()) / (sum(sizes.values()) * STEPS)
        assert 0 < total < 1
        assert history["ff_ratio"][epoch] == pytest.approx(total, rel=1e-9)
    assert_by_layer(callback, "ff_ratio", {n: flips[n] / (sizes[n] * STEPS) for n in NAMES})
    assert len(set(callback.by_layer["ff_ratio"].values())) > 1  # or N-weighting shows nothing


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.FlipFlopRatio(),
        callbacks.UpdateSize(),
        callbacks.AverageWeights(0.9),
        callbacks.RateSchedule(0.1, 2),
        callbacks.LinearDecay(0.1, 2),
        callbacks.ProgressiveWeights(2),
    ],
)
def test_what_works_at_each_iteration_wants_to_see_every_one(callback):
    model = build()
    model.compile(optimizer="sgd", loss=loss(), steps_per_execution=2)
    with pytest.raises(ValueError, match=r"steps_per_execution=1.*Received: .*=2$"):
        model.fit(batches(), verbose=0, callbacks=[callback])


def test_correlation_to_the_start_of_the_run_and_of_the_step(measured):
    model, epochs, history = measured.model, measured.epochs, measured.history
    callback = measured["CorrelationToInitialization"]
    run, step = kernels(model, epochs[0][0]), kernels(model, epochs[1][0])
    sizes = {name: kernel.size for name, kernel in run.items()}
    for epoch, (column, start) in [
        (0, ("c2i_ratio", run)),
        (0, ("c2i_step_ratio", run)),
        (1, ("c2i_ratio", run)),
        (1, ("c2i_step_ratio", step)),
    ]:
        end = kernels(model, epochs[epoch][-1])
        ratios = {n: np.mean(signs(end[n]) == signs(start[n])) for n in NAMES}
        total = sum(ratios[n] * sizes[n] for n in NAMES) / sum(sizes.values())
        assert 0 < total < 1
        assert history[column][epoch] == pytest.approx(total, rel=1e-12)
        if epoch == 1:
            assert_by_layer(callback, column, ratios)
    assert history["c2i_ratio"][1] != history["c2i_step_ratio"][1]


def test_saturation_is_of_the_inputs_of_each_layer_on_the_fixed_batch(measured):
    model, history, callback = measured.model, measured.history, measured["ActivationSaturation"]
    parts = tf.keras.Model(model.inputs, [model.get_layer(name).input for name in NAMES])
    inputs = dict(zip(NAMES, parts(probe(), training=False), strict=True))
    outside = {name: np.sum(np.abs(x.numpy()) > 1) for name, x in inputs.items()}
    sizes = {name: x.numpy().size for name, x in inputs.items()}
    total = sum(outside.values()) / sum(sizes.values())
    assert 0 < total < 1
    assert history["saturation"][-1] == pytest.approx(total, rel=1e-12)
    assert_by_layer(callback, "saturation", {n: outside[n] / sizes[n] for n in NAMES})


def test_saturation_is_counted_from_the_clip_of_each_sign_on(eager):
    images = tf.keras.Input((1, 1, 1))
    signs = {
        "wide": quantizers.ApproxSign(2.5),
        "switched": quantizers.Switchable(quantizers.ApproxSign(2.5), on=False),
        "larq": lq.quantizers.SteSign(clip_value=3),
        "endless": lq.quantizers.SwishSign(),
    }
    outputs = [
        lq.layers.QuantDense(1, input_quantizer=sign, name=name)(images)
        for name, sign in signs.items()
    ]
    model = tf.keras.Model(images, outputs)
    values = np.array([0.9, 2.4, -2.6, 3.1], np.float32)
    callback = callbacks.ActivationSaturation(values.reshape(4, 1, 1, 1))
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, logs := {})
    expected = {"wide": 0.5, "switched": 0.5, "larq": 0.25, "endless": 0}
    assert callback.by_layer["saturation"] == expected
    assert logs == {"saturation": 5 / 16}


def test_saturation_at_its_cadence(eager):
    callback = callbacks.ActivationSaturation(data()[0][:2], every=2)
    _, _, history = fit(callback, epochs=3)
    assert len(history["saturation"]) == 2


def test_inputs_are_seen_in_nested_and_subclassed_models_and_nothing_is_left():
    class Outer(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = build()

        def call(self, inputs, training=None):
            return self.inner(inputs, training=training)

    model, seen = Outer(), {}
    images = data()[0][:3]
    visit_binary_inputs(model, images, lambda name, x, clip: seen.update({name: x.shape}))
    assert seen == {"conv1": (3, 6, 6, 3), "conv2": (3, 6, 6, 4), "dense": (3, 72)}
    seen.clear()
    model(images)
    assert not seen


def test_cam_and_sdam_of_the_latent_weights(measured):
    history, callback = measured.history, measured["KernelMagnitude"]
    cam, sdam = {}, {}
    for name, kernel in kernels(measured.model, measured.epochs[-1][-1]).items():
        cams = [np.abs(kernel[..., channel]).mean() for channel in range(kernel.shape[-1])]
        cam[name] = np.mean(cams)
        sdam[name] = np.sqrt(np.mean((cams - np.mean(cams)) ** 2))
        np.testing.assert_allclose(absolute_means(kernel), cams, rtol=1e-6)
    assert_by_layer(callback, "cam", cam)
    assert_by_layer(callback, "sdam", sdam, rtol=1e-5)
    assert history["cam"][-1] == pytest.approx(np.mean(list(cam.values())), rel=1e-6)
    assert history["sdam"][-1] == pytest.approx(np.mean(list(sdam.values())), rel=1e-5)


@pytest.mark.parametrize("every", [1, 2, 10])
def test_update_size_at_its_cadence(every):
    tf.config.run_functions_eagerly(every != 2)
    callback = callbacks.UpdateSize(every=every)
    model, epochs, history = fit(callback)
    measured = range(0, STEPS, every)
    sizes = dict.fromkeys(NAMES, 0.0)
    weights = epochs[-1]
    for index in measured:
        before, after = kernels(model, weights[index]), kernels(model, weights[index + 1])
        for name in NAMES:
            sizes[name] += np.abs(after[name] - before[name]).mean() / len(measured)
    numbers = {name: kernel.size for name, kernel in after.items()}
    total = sum(sizes[n] * numbers[n] for n in NAMES) / sum(numbers.values())
    assert_by_layer(callback, "update_size", sizes, rtol=1e-5)
    assert history["update_size"][-1] == pytest.approx(total, rel=1e-5)


def gradients(model, epochs):
    """{layer: its gradients} in the last epoch, from the weights before each step."""
    twin = build()
    larq_adambnn.binarize(twin, *larq_adambnn.binarization(model))
    found = {name: [] for name in NAMES}
    for weights, (images, labels) in zip(epochs[-1][:-1], batches(), strict=True):
        twin.set_weights(weights)
        with tf.GradientTape() as tape:
            value = loss()(labels, twin(images, training=True))
        kernels = [twin.get_layer(name).kernel for name in NAMES]
        for name, gradient in zip(NAMES, tape.gradient(value, kernels), strict=True):
            found[name].append(gradient.numpy())
    return found


def adam(**options):
    return optimizers.Adam(0.1, **options)


OPTIMIZERS = {
    "sgd with decay": lambda: optimizers.SGD(0.5, weight_decay=0.01),
    "adam": adam,
    "Keras's adam": lambda: tf.keras.optimizers.Adam(0.1, jit_compile=True),
    "legacy": lambda: tf.keras.optimizers.legacy.SGD(0.5),
    "float16": lambda: tf.keras.mixed_precision.LossScaleOptimizer(adam()),
    "Bop": lambda: lq.optimizers.CaseOptimizer(
        (lq.optimizers.Bop.is_binary_variable, lq.optimizers.Bop(threshold=1e-6)),
        default_optimizer=tf.keras.optimizers.legacy.SGD(0.5),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_norms_and_dead_weights(name):
    optimizer = OPTIMIZERS[name]()
    callback = callbacks.Gradients()
    model, epochs, history = fit(callback, optimizer=optimizer, switch=False)
    expected = gradients(model, epochs)
    squares = {n: np.mean([np.sum(np.square(g, dtype=float)) for g in expected[n]]) for n in NAMES}
    dead = {n: np.mean(np.all([g == 0 for g in expected[n]], axis=0)) for n in NAMES}
    sizes = {n: expected[n][0].size for n in NAMES}
    assert 0 < dead["conv1"] < 1 or name == "Bop"  # whose weights are -1 and 1
    # The traced and the eager gradient differ by float32 rounding.
    assert_by_layer(callback, "gradient_norm", {n: squares[n] ** 0.5 for n in NAMES}, rtol=1e-4)
    assert history["gradient_norm"][-1] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-4)
    assert_by_layer(callback, "dead_weights", dead)
    total = sum(dead[n] * sizes[n] for n in NAMES) / sum(sizes.values())
    assert history["dead_weights"][-1] == pytest.approx(total, rel=1e-9)


def test_frozen_layers_have_no_gradient(eager):
    callback = callbacks.Gradients()
    fit(callback, model=build(frozen=True), switch=False)
    assert callback.by_layer["dead_weights"]["conv2"] == 1
    assert callback.by_layer["gradient_norm"]["conv2"] == 0


def test_gradients_leave_the_training_and_the_optimizer_as_they_were():
    plain, _, _ = fit(tf.keras.callbacks.Callback(), switch=False)
    tf.keras.utils.set_random_seed(0)
    callback = callbacks.Gradients()
    optimizer = optimizers.SGD(0.5)
    model, _, first = fit(callback, optimizer=optimizer, switch=False)
    for received, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    assert "update_step" not in vars(optimizer)
    # A later fit without it, and one with it again on the function traced meanwhile.
    model.fit(batches(), verbose=0)
    again = model.fit(batches(), verbose=0, callbacks=[callback])
    assert again.history["gradient_norm"][0] > 0
    assert first["gradient_norm"][0] != again.history["gradient_norm"][0]


class Measuring(tf.keras.callbacks.Callback):
    """Measurements of which new ones take over the state after a batch (the last: the epoch)."""

    def __init__(self, batch=None):
        super().__init__()
        self.batch = batch

    def on_train_begin(self, logs=None):
        self.inner = [
            callbacks.FlipFlopRatio(),
            callbacks.CorrelationToInitialization(),
            callbacks.Gradients(),
            callbacks.UpdateSize(),
        ]
        for callback in self.inner:
            callback.set_model(self.model)
            callback.set_params(self.params)
            callback.on_train_begin()

    def on_train_end(self, logs=None):
        for callback in self.inner:
            callback.on_train_end()

    def on_epoch_begin(self, epoch, logs=None):
        for callback in self.inner:
            callback.on_epoch_begin(epoch)

    def on_train_batch_begin(self, index, logs=None):
        for callback in self.inner:
            callback.on_train_batch_begin(index)

    def on_train_batch_end(self, index, logs=None):
        for callback in self.inner:
            callback.on_train_batch_end(index)
        if index == self.batch != STEPS - 1:
            self._resume(0)

    def on_epoch_end(self, epoch, logs=None):
        for callback in self.inner:
            callback.on_epoch_end(epoch, logs)
        if self.batch == STEPS - 1:
            self._resume(epoch + 1)

    def _resume(self, epoch):
        states = [{k: np.array(v) for k, v in c.get_state().items()} for c in self.inner]
        self.on_train_end()
        self.on_train_begin()
        self.on_epoch_begin(epoch)
        for callback, state in zip(self.inner, states, strict=True):
            callback.set_state(state)


@pytest.fixture(scope="module")
def undisturbed():
    tf.keras.utils.set_random_seed(0)
    _, _, history = fit(Measuring(), switch=False)
    columns = {"ff_ratio", "c2i_ratio", "gradient_norm", "dead_weights", "update_size"}
    assert columns < history.keys()
    return history


@pytest.mark.parametrize("batch", [1, STEPS - 1])
def test_a_resumed_epoch_measures_as_an_undisturbed_one(batch, undisturbed):
    _, _, received = fit(Measuring(batch), switch=False)
    assert received == undisturbed


def test_a_model_without_binary_layers_measures_nothing():
    model = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(5)])
    images = data()[0][:4]
    measurements = [
        callbacks.FlipFlopRatio(),
        callbacks.CorrelationToInitialization(),
        callbacks.ActivationSaturation(images),
        callbacks.KernelMagnitude(),
        callbacks.Gradients(),
        callbacks.UpdateSize(),
    ]
    model.compile(optimizer="sgd", loss=loss())
    model.fit(batches(), verbose=0, callbacks=measurements)
    assert all(not layer for m in measurements for layer in m.by_layer.values())


def test_layers_with_two_kernels_and_of_the_same_name():
    inner = tf.keras.Sequential([tf.keras.Input((4,)), lq.layers.QuantDense(3, name="same")])
    images = tf.keras.Input((8, 8, 2))
    x = lq.layers.QuantSeparableConv2D(
        4, 3, depthwise_quantizer="ste_sign", pointwise_quantizer="ste_sign", name="same"
    )(images)
    model = tf.keras.Model(images, inner(tf.keras.layers.GlobalAveragePooling2D()(x)))
    assert list(binary_kernels(model)) == ["same", "same_2"]


REPLICAS = """
import sys
sys.path.insert(0, sys.argv[1])
import test_measurements as t
import tensorflow as tf
from larq_adambnn import callbacks
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
def run(strategy):
    tf.keras.utils.set_random_seed(0)
    measurements = [
        callbacks.FlipFlopRatio(),
        callbacks.CorrelationToInitialization(),
        callbacks.KernelMagnitude(),
        callbacks.Gradients(),
        callbacks.UpdateSize(every=1),
        callbacks.ActivationSaturation(t.data()[0][:2]),
    ]
    average = callbacks.AverageWeights(0.5)
    recipe = [callbacks.LinearDecay(0.02, 2), callbacks.ProgressiveWeights(2), average]
    with strategy.scope():
        model = t.build()
        t.larq_adambnn.binarize(model, False, True)  # a sign would enlarge rounding errors
        for layer in model.layers:  # each replica would have its own statistics
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                layer.trainable = False
        model.compile(optimizer=t.optimizers.SGD(0.02), loss=t.loss())
        model.fit(t.batches(), epochs=2, verbose=0, callbacks=[*recipe, *measurements])
        weights = model.get_weights()
        with average.swapped():
            averaged = model.get_weights()
    for flags in measurements[3]._alive:  # on one device
        assert len(strategy.experimental_local_results(flags)) == 1, flags
    return {k: v for m in measurements for k, v in m.by_layer.items()}, weights, averaged
tf.config.run_functions_eagerly(True)
one, *weights_of_one = run(tf.distribute.get_strategy())
tf.config.run_functions_eagerly(False)
two, *weights_of_two = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
for expected, received in zip(weights_of_one, weights_of_two, strict=True):
    for a, b in zip(expected, received, strict=True):
        t.np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
assert any((a != b).any() for a, b in zip(*weights_of_one, strict=True))
assert len(one) == 9, one.keys()
assert all(max(one[column].values()) > 0 for column in one), one
for column in one:
    for layer, value in one[column].items():
        assert abs(two[column][layer] - value) <= 1e-4 * abs(value), (column, layer, value, two)
"""


def test_two_replicas_measure_what_one_does(server, tmp_path):
    program = tmp_path / "replicas.py"
    program.write_text(REPLICAS)
    status, _, err = server.start(pathlib.Path(__file__).parent, program=program).finish()
    assert status == 0, err
