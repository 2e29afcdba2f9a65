"""Every callback with every optimizer, and through Keras's BackupAndRestore."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import larq_adambnn
from larq_adambnn import callbacks, layers, optimizers

pytestmark = pytest.mark.usefixtures("eager")

STEPS, BATCH, RATE, MOMENTUM = 4, 4, 0.1, 0.75
KERAS, LEGACY = tf.keras.optimizers, tf.keras.optimizers.legacy


class Idle(tf.keras.layers.Layer):
    """A weight that changes nothing: its gradient is 0, so that only its decay moves it."""

    def build(self, input_shape):
        # With four axes it is among the published code's decayed variables.
        self.idle = self.add_weight("idle", (1, 1, 1, 2), initializer="ones")

    def call(self, inputs):
        return inputs + 0 * tf.reduce_sum(self.idle)


def network():
    images = x = tf.keras.Input((5, 5, 2))
    x = layers.BinaryConv2D(3, 3, name="conv1")(x)
    x = tf.keras.layers.BatchNormalization()(x)
    x = layers.BinaryConv2D(3, 1, name="conv2")(Idle(name="idle")(x))
    x = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.BatchNormalization()(x))
    model = tf.keras.Model(images, tf.keras.layers.Dense(3, name="classifier")(x))
    weights = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable.shape.rank == 4 and "idle" not in variable.name:
            variable.assign(weights.normal(0, 0.3, variable.shape))
    return model


def compiled(optimizer):
    model = network()
    model.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data(epochs):
    """(images, labels) of every iteration of so many epochs."""
    generator = np.random.default_rng(1)
    count = epochs * STEPS * BATCH
    images = generator.normal(size=(count, 5, 5, 2)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, generator.integers(0, 3, count)))


def probe():
    return np.random.default_rng(2).normal(size=(6, 5, 5, 2)).astype(np.float32)


def every(epochs):
    """All callbacks, in the order of the paper's recipe; step 2 begins with epoch 1."""
    return [
        callbacks.TwoStepSwitch(1),
        callbacks.WeightDecaySchedule({0: 0.5, 1: 0.0}),
        callbacks.LinearDecay(RATE, epochs=(1, epochs - 1)),
        callbacks.ProgressiveWeights(epochs),
        callbacks.AverageWeights(MOMENTUM),
        callbacks.FlipFlopRatio(),
        callbacks.CorrelationToInitialization(),
        callbacks.ActivationSaturation(probe()),
        callbacks.KernelMagnitude(),
        callbacks.Gradients(),
        callbacks.UpdateSize(every=2),
    ]


def fit(model, recipe, epochs, *, first_iteration=0):
    history = model.fit(
        data(epochs).batch(BATCH).skip(first_iteration).repeat(),
        steps_per_epoch=STEPS,
        epochs=epochs,
        validation_data=data(1).batch(BATCH),
        callbacks=recipe,
        verbose=0,
    )
    return history.history


# For a Distiller, and tried with one in tests/runs/test_recipes.py
DISTILLERS = {"FirstStepTeacher"}


def test_all_callbacks_are_here():
    here = {kind.__name__ for callback in every(2) for kind in type(callback).mro()}
    assert set(callbacks.__all__) <= here | DISTILLERS


# Every optimizer


def case():
    return lq.optimizers.CaseOptimizer(
        (lambda variable: "conv1" in variable.name, lq.optimizers.Bop(threshold=1e-3, gamma=0.5)),
        default_optimizer=LEGACY.Adam(RATE),
    )


def classes(module):
    """The optimizers of one of Keras's modules, but for their common parent."""
    found = [value for value in vars(module).values() if isinstance(value, type)]
    own = [c for c in found if issubclass(c, module.Optimizer) and c is not module.Optimizer]
    return {c.__name__: c for c in own}


OPTIMIZERS = {
    **{name: (lambda c=c: c(RATE)) for name, c in classes(KERAS).items()},
    **{f"legacy.{name}": (lambda c=c: c(RATE)) for name, c in classes(LEGACY).items()},
    "CaseOptimizer": case,
    "ours.Adam": lambda: optimizers.Adam(RATE),
    "ours.AdamW": lambda: optimizers.Adam(RATE, decoupled=True, decays=lambda variable: True),
    "ours.SGD": lambda: optimizers.SGD(RATE),
    "ours.RMSprop": lambda: optimizers.RMSprop(RATE),
}
NO_DECAY = {name for name in OPTIMIZERS if name.startswith("legacy.")} | {"CaseOptimizer"}
NO_RATE = {"CaseOptimizer"}
TRACED = {"AdamW", "legacy.Adam"}


def test_all_optimizers_are_here():
    both = {"SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl"}
    assert {*both, "AdamW", "Lion", "Adafactor"} <= set(OPTIMIZERS)
    assert {f"legacy.{name}" for name in both} <= set(OPTIMIZERS)


class Spy(tf.keras.callbacks.Callback):
    """Everything that a callback of ours is to do with an optimizer, iteration by iteration."""

    def __init__(self):
        super().__init__()
        self.rates, self.idle, self.weights, self.slots, self.evaluated = [], [], [], [], []

    def _slots(self):
        parts = [part for part, _ in optimizers.assigned(self.model.optimizer, [])]
        variables = [v for part in parts for v in optimizers._variables(part)]
        rate = getattr(self.model.optimizer, "_learning_rate", None)
        return [v.numpy() for v in variables if v is not rate]

    def _weights(self):
        return self.model.get_layer("classifier").get_weights()[0]

    def on_train_begin(self, logs=None):
        self.slots.append(self._slots())
        self.weights.append(self._weights())

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.slots.append(self._slots())

    def on_train_batch_begin(self, batch, logs=None):
        if hasattr(self.model.optimizer, "learning_rate"):
            self.rates.append(float(self.model.optimizer.learning_rate))
        self.idle.append(self.model.get_layer("idle").get_weights()[0].copy())

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self._weights())

    def on_epoch_end(self, epoch, logs=None):
        self.slots.append(self._slots())

    def on_test_batch_begin(self, batch, logs=None):
        self.evaluated.append(self._weights())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_callbacks_do_what_they_say_or_are_refused(name):
    epochs, recipe = 2, every(2)
    model = compiled(OPTIMIZERS[name]())
    tf.config.run_functions_eagerly(name not in TRACED)
    for refused, kind, attribute in (
        (NO_DECAY, callbacks.WeightDecaySchedule, "weight_decay"),
        (NO_RATE, callbacks.LinearDecay, "learning_rate"),
    ):
        if name not in refused:
            continue
        (wrong,) = (callback for callback in recipe if isinstance(callback, kind))
        with pytest.raises(ValueError, match=f"Expected an optimizer with `{attribute}`") as error:
            fit(model, [wrong], 1)
        assert "\n" not in str(error.value)
        assert model.optimizer.iterations.numpy() == 0
        recipe.remove(wrong)
    spy = Spy()
    history = fit(model, [*recipe, spy], epochs)

    # TwoStepSwitch: the form, and every variable of the optimizer as it was at first
    assert larq_adambnn.binarization(model) == (True, True)
    initial, trained, switched, _ = (spy.slots[i] for i in (0, 1, 2, 3))
    assert any(np.any(a != b) for a, b in zip(initial, trained, strict=True))
    for one, other in zip(initial, switched, strict=True):
        np.testing.assert_array_equal(one, other)
    if name not in NO_RATE:
        expected = [RATE * (1 - t / STEPS) for _ in range(epochs) for t in range(STEPS)]
        np.testing.assert_allclose(spy.rates, expected, rtol=1e-6)
        assert history["learning_rate"][-1] == pytest.approx(expected[-1])
    if name not in NO_DECAY:
        assert history["weight_decay"] == [0.5, 0.0]
        assert np.all(spy.idle[STEPS - 1] < spy.idle[0])
        if name != "Ftrl":  # which forgets a weight whose gradients it has not seen
            np.testing.assert_array_equal(spy.idle[STEPS], spy.idle[-1])
    # AverageWeights: what is evaluated, of the iterations since the switch
    shares = MOMENTUM ** np.arange(STEPS)[::-1]
    average = np.tensordot(shares / shares.sum(), np.stack(spy.weights[-STEPS:]), 1)
    np.testing.assert_allclose(spy.evaluated[-1], average, rtol=1e-4, atol=1e-6)
    assert np.abs(spy.evaluated[-1] - spy.weights[-1]).max() > 0
    # The measurements
    columns = {column for callback in recipe[2:] for column in getattr(callback, "by_layer", ())}
    assert len(columns) == 9
    for column in columns:
        assert len(history[column]) == epochs and np.isfinite(history[column]).all(), column
    for column in ("update_size", "gradient_norm", "cam", "saturation"):
        assert history[column][-1] > 0, column


# BackupAndRestore


class KilledError(Exception):
    pass


class Kill(tf.keras.callbacks.Callback):
    """Ends a training after so many iterations."""

    def __init__(self, iterations):
        super().__init__()
        self.left = iterations

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KilledError


EPOCHS = 3


def resumable():
    tf.keras.utils.set_random_seed(0)
    return compiled(optimizers.Adam(RATE))


def end(model, recipe, history):
    """What has to be the same at the end of a training, bit for bit."""
    figures = {k: v for callback in recipe for k, v in getattr(callback, "by_layer", {}).items()}
    # The metrics of a resumed epoch are of its rest: Keras begins them anew.
    columns = {k: v for k, v in history.items() if k not in ("loss",)}
    return [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)], figures, columns


@pytest.fixture(scope="module")
def unbroken():
    """`end` of a training that nothing ended, eager and traced."""

    def train(eager):
        tf.config.run_functions_eagerly(eager)
        model, recipe = resumable(), every(EPOCHS)
        return end(model, recipe, fit(model, recipe, EPOCHS))

    return {eager: train(eager) for eager in (True, False)}


@pytest.mark.parametrize(
    ("place", "save_freq", "killed", "done", "eager"),
    [
        # In the switch's epoch, after the end of the one before; the switch traces anew
        ("first", "epoch", STEPS + 2, STEPS, True),
        ("last", "epoch", STEPS + 2, STEPS, False),
        # After the last iteration of an epoch, before its end
        ("first", 1, STEPS, STEPS, True),
        ("last", 1, STEPS, STEPS, True),
        # Within an epoch of each step
        ("last", 1, 2, 2, True),
        ("first", 1, STEPS + 3, STEPS + 3, False),
        ("last", 3, 2 * STEPS + 2, 2 * STEPS + 1, True),
    ],
)
def test_a_resumed_training_ends_as_the_unbroken_one(
    place, save_freq, killed, done, eager, unbroken, tmp_path
):
    tf.config.run_functions_eagerly(eager)

    def train(*more, first_iteration=0):
        model, recipe = resumable(), every(EPOCHS)
        backup = tf.keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=save_freq)
        listed = [backup, *recipe] if place == "first" else [*recipe, backup]
        history = fit(model, [*listed, *more], EPOCHS, first_iteration=first_iteration)
        return end(model, recipe, history)

    with pytest.raises(KilledError):
        train(Kill(killed))
    arrays, figures, history = train(first_iteration=done)
    expected_arrays, expected_figures, expected_history = unbroken[eager]
    for one, other in zip(arrays, expected_arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    assert figures == expected_figures
    for column, values in history.items():
        assert values == expected_history[column][-len(values) :], column
    assert len(history["ff_ratio"]) == EPOCHS - done // STEPS


def test_the_same_model_and_callbacks_go_on_after_an_interruption(unbroken, tmp_path):
    model, recipe = resumable(), every(EPOCHS)
    backup = tf.keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    with pytest.raises(KilledError):
        fit(model, [backup, *recipe, Kill(STEPS + 3)], EPOCHS)
    backup = tf.keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    history = fit(model, [backup, *recipe], EPOCHS, first_iteration=STEPS + 3)
    arrays, figures, _ = end(model, recipe, history)
    for one, other in zip(arrays, unbroken[True][0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert figures == unbroken[True][1]
    assert not [name for name in vars(model) if name.startswith("state_of")]


def test_two_of_one_kind_are_refused():
    model = compiled(optimizers.Adam(RATE))
    with pytest.raises(ValueError, match="Expected one AverageWeights in a fit"):
        fit(model, [callbacks.AverageWeights(0.9), callbacks.AverageWeights(0.99)], 1)


def test_a_model_is_saved_during_a_fit_without_the_state(tmp_path, caplog):
    """In the format that holds everything a model tracks."""
    kinds = tf.keras.layers
    model = tf.keras.Sequential([kinds.Flatten(input_shape=(5, 5, 2)), kinds.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    save = tf.keras.callbacks.ModelCheckpoint(str(tmp_path / "saved"))
    fit(model, [callbacks.AverageWeights(MOMENTUM), save], 1)
    assert "python values" not in caplog.text
    loaded = tf.keras.models.load_model(tmp_path / "saved")
    np.testing.assert_array_equal(loaded(probe()), model(probe()))
