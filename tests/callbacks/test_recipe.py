"""The recipe's callbacks in a plain `model.fit`."""

import larq as lq
import numpy as np
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import callbacks, losses, optimizers
from larq_adambnn.batch_norm import reestimate_batch_norm
from larq_adambnn.callbacks.schedules import share_of_rate
from larq_adambnn.distillation import Distiller

STEPS = 4  # in an epoch of `fit`


class Spy(tf.keras.callbacks.Callback):
    """Notes optimizer settings and form at every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        self.seen.append(
            {
                "rate": float(tf.keras.backend.get_value(optimizer.learning_rate)),
                "decay": float(getattr(optimizer, "weight_decay", np.nan) or 0),
                "form": larq_adambnn.binarization(self.model),
                "iterations": int(optimizer.iterations.numpy()),
            }
        )


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8 * STEPS, 32, 32, 1)).astype("float32"), np.arange(8 * STEPS) % 10


def compiled(optimizer):
    model = small.network((32, 32, 1), 10)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def fit(model, recipe, epochs, **kwargs):
    spy = Spy()
    history = model.fit(
        *data(),
        batch_size=8,
        shuffle=False,
        epochs=epochs,
        callbacks=[*recipe, spy],
        verbose=0,
        **kwargs,
    )
    return spy.seen, history.history


@pytest.mark.parametrize(
    ("published", "epochs", "expected"),
    [
        # {iteration, of 4 an epoch: rate / initial rate}: first, middle, last, past the last
        (False, 4, {0: 1.0, 8: 0.5, 15: 0.0625, 16: 0.0, 36: 0.0}),
        (True, 4, {0: 0.75, 3: 0.75, 4: 0.5, 15: 0.0, 16: 0.0}),
        (False, (2, 4), {0: 1.0, 4: 0.5, 8: 1.0, 16: 0.5, 24: 0.0}),
        (True, (2, 4), {0: 0.5, 4: 0.0, 8: 0.75, 20: 0.0, 24: 0.0}),
    ],
)
def test_linear_decay_at_given_times(published, epochs, expected):
    decay = callbacks.LinearDecay(0.8, epochs, published=published)
    for iteration, share in expected.items():
        assert decay.value(iteration, 4) == pytest.approx(0.8 * share)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_rates_are_those_of_pytorchs_schedulers(shape, warmup):
    """In each of two periods, of 20 and 40 iterations; the warm-up is that share of it."""
    torch = pytest.importorskip("torch")
    schedulers, expected = torch.optim.lr_scheduler, []
    for iterations in (20, 40):
        rising = iterations * warmup // 20
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
        falling = {
            "linear": schedulers.LinearLR(optimizer, 1.0, 0.0, iterations - rising),
            "cosine": schedulers.CosineAnnealingLR(optimizer, iterations - rising),
        }[shape]
        if rising:
            optimizer.param_groups[0]["lr"] = 0.8
            start = schedulers.LinearLR(optimizer, 1 / rising, 1.0, max(1, rising - 1))
            falling = schedulers.SequentialLR(optimizer, [start, falling], [rising])
        for _ in range(iterations):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            falling.step()
    schedule = callbacks.RateSchedule(0.8, (5, 10), shape=shape, warmup=warmup / 20)
    received = [schedule.value(iteration, 4) for iteration in range(60)]
    np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("warmup", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_short_periods_rise_to_the_whole_rate_and_never_above(warmup, iterations):
    shares = [share_of_rate(i, iterations, "cosine", warmup) for i in range(iterations)]
    assert 0.5 < max(shares) <= 1
    assert min(shares) > 0
    assert share_of_rate(iterations, iterations) == 0


def test_a_schedule_sets_the_rate_of_each_iteration_of_a_fit(eager):
    schedule = callbacks.RateSchedule(0.01, (2, 1), warmup=0.25)
    seen, history = fit(compiled(optimizers.Adam()), [schedule], 3)
    rates = [schedule.value(iteration, STEPS) for iteration in range(3 * STEPS)]
    np.testing.assert_allclose([s["rate"] for s in seen], rates, rtol=1e-6)
    assert history["learning_rate"][-1] == pytest.approx(rates[-1])
    assert max(rates) == 0.01 > rates[0] > 0


def test_linear_decay_lowers_the_rate_at_each_step_of_a_fit(eager):
    seen, history = fit(compiled(optimizers.Adam()), [callbacks.LinearDecay(0.01, (2, 1))], 3)
    first = [0.01 * (1 - t / (2 * STEPS)) for t in range(2 * STEPS)]
    second = [0.01 * (1 - t / STEPS) for t in range(STEPS)]
    np.testing.assert_array_equal([s["rate"] for s in seen], np.float32([*first, *second]))
    assert history["learning_rate"][-1] == pytest.approx(second[-1])


def test_published_decay_is_constant_in_an_epoch_and_ends_at_zero(eager):
    decay = callbacks.LinearDecay(0.01, 4, published=True)
    seen, _ = fit(compiled(optimizers.Adam()), [decay], 4)
    expected = np.repeat(0.01 * (1 - np.arange(1, 5) / 4), STEPS)
    np.testing.assert_array_equal([s["rate"] for s in seen], np.float32(expected))


def test_weight_decay_schedule_sets_each_epoch(eager):
    schedule = callbacks.WeightDecaySchedule({0: 5e-6, 2: 0.0, 3: -1e-4})
    seen, history = fit(compiled(optimizers.Adam()), [schedule], 4)
    expected = np.repeat([5e-6, 5e-6, 0.0, -1e-4], STEPS)
    np.testing.assert_allclose([s["decay"] for s in seen], expected, rtol=1e-6)
    assert history["weight_decay"] == [5e-6, 5e-6, 0.0, -1e-4]


def test_switch_changes_the_form_resets_the_optimizer_and_keeps_the_weights():
    model = compiled(optimizers.Adam(0.01))
    weights = {}

    class Watch(tf.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights[epoch] = self.model.get_weights()

        def on_epoch_begin(self, epoch, logs=None):
            slots = [v.numpy() for v in self.model.optimizer.variables if "/" in v.name]
            if epoch == 1:
                assert any(np.abs(slot).max() > 0 for slot in slots)
            if epoch == 2:
                assert all(np.abs(slot).max() == 0 for slot in slots)
                for old, new in zip(weights[1], self.model.get_weights(), strict=True):
                    np.testing.assert_array_equal(old, new)

    seen, _ = fit(model, [callbacks.TwoStepSwitch(2), Watch()], 4)
    assert [s["form"] for s in seen] == [(True, False)] * 2 * STEPS + [(True, True)] * 2 * STEPS
    assert [s["iterations"] for s in seen] == [*range(2 * STEPS), *range(2 * STEPS)]
    assert {round(s["rate"], 6) for s in seen} == {0.01}


def test_switch_takes_other_orders(eager):
    switch = callbacks.TwoStepSwitch(1, first=(False, True), second=(True, True))
    seen, _ = fit(compiled(optimizers.Adam()), [switch], 2)
    assert [s["form"] for s in seen] == [(False, True)] * STEPS + [(True, True)] * STEPS


def test_switch_reloads_the_best_weights(tmp_path, eager):
    path = str(tmp_path / "best.weights.h5")
    found = {}

    class Watch(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            found[epoch] = self.model.get_weights()

    class FirstEpoch(tf.keras.callbacks.ModelCheckpoint):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                super().on_epoch_end(epoch, logs)

    best = FirstEpoch(path, save_weights_only=True)
    switch = callbacks.TwoStepSwitch(2, reload=path)
    fit(compiled(optimizers.Adam(0.01)), [best, switch, Watch()], 3)
    for old, new in zip(found[1], found[2], strict=True):
        np.testing.assert_array_equal(old, new)


def recipe():
    return [
        callbacks.TwoStepSwitch(2),
        callbacks.WeightDecaySchedule({0: 5e-2, 2: 0.0}),
        callbacks.LinearDecay(0.01, (2, 2)),
    ]


def test_each_step_is_traced_once(monkeypatch):
    """Keras alone does it twice, since the first trace makes the optimizer's variables."""
    traces, train_step = [], tf.keras.Model.train_step

    def counted(model, data):
        traces.append(larq_adambnn.binarization(model))
        return train_step(model, data)

    monkeypatch.setattr(tf.keras.Model, "train_step", counted)
    fit(compiled(optimizers.Adam(0.01)), recipe(), 4)
    assert traces == [(True, False), (True, True)]


def test_recipe_trains_in_mixed_float16():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    model = compiled(optimizers.Adam(0.01))
    assert isinstance(model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    seen, history = fit(model, recipe(), 4)
    assert [s["form"] for s in seen] == [(True, False)] * 2 * STEPS + [(True, True)] * 2 * STEPS
    assert seen[2 * STEPS]["rate"] == pytest.approx(0.01)
    assert np.isfinite(history["loss"]).all()


def test_losses_in_bfloat16_track_those_of_float32(eager):
    histories = []
    for policy in ("float32", "mixed_bfloat16"):
        tf.keras.mixed_precision.set_global_policy(policy)
        tf.keras.utils.set_random_seed(1)
        _, history = fit(compiled(optimizers.Adam(0.01)), recipe(), 4)
        histories.append(history["loss"])
    assert histories[0] != histories[1]
    fall = histories[0][0] - histories[0][-1]
    assert fall > 0.1
    np.testing.assert_allclose(histories[1], histories[0], rtol=0, atol=0.25 * fall)


def test_progressive_weights_become_signs_and_are_evaluated_as_signs():
    """The temperature falls by one factor; then the training is that of the sign."""
    model = compiled(optimizers.Adam(0.01))
    callback = callbacks.ProgressiveWeights(3, share=0.5, first=1.0, last=0.01)
    (layer,) = (layer for layer in model.layers if layer.name == "block1_conv3x3")
    levels = {"train": [], "test": []}

    class Watch(tf.keras.callbacks.Callback):
        def note(self, kind):
            kernel = layer.kernel_quantizer(tf.convert_to_tensor(layer.kernel.latent_variable))
            levels[kind].append(len(np.unique(np.abs(kernel[..., 0]).round(6))))

        def on_train_batch_begin(self, batch, logs=None):
            self.note("train")

        def on_test_batch_begin(self, batch, logs=None):
            self.note("test")

    options = {"validation_data": data(), "validation_batch_size": 32}
    fit(model, [callback, Watch()], 3, **options)
    temperatures = [callback.value(iteration, STEPS) for iteration in range(3 * STEPS)]
    np.testing.assert_allclose(temperatures[:6], 0.01 ** (np.arange(6) / 5))
    assert temperatures[6:] == [0.0] * 6
    assert levels["train"][0] > 10 > levels["train"][2] > 1
    assert levels["train"][6:] == [1] * 6
    assert levels["test"] == [1] * 3
    assert layer.kernel_quantizer.quantizer.temperature is None
    plain = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="binary kernels by a ScaledSign"):
        fit(plain, [callback], 1)


def test_the_network_at_the_end_of_step_1_teaches_step_2():
    """With binary activations only, while the student's weights are binary too."""
    images, labels = data()
    student, copy = (small.network((32, 32, 1), 10) for _ in range(2))
    model = Distiller(student, lambda images: tf.eye(1, 10) + 0 * images[:, 0, 0])
    model.compile(optimizers.Adam(0.01), losses.DistributionLoss())
    found = []

    class Watch(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            target = self.model._target(images[:8], labels[:8]).numpy()
            found.append((target, larq_adambnn.binarize(copy, True, False)(images[:8]).numpy()))
            found[-1] += (student.get_weights(), copy.get_weights())

    teacher = callbacks.FirstStepTeacher(1, copy)
    model.fit(
        images, labels, 8, 2, callbacks=[callbacks.TwoStepSwitch(1), teacher, Watch()], verbose=0
    )
    target, _, *_ = found[0]
    np.testing.assert_array_equal(target, np.eye(10)[[0] * 8])
    target, logits, now, taken = found[1]
    np.testing.assert_array_equal(target, logits)
    for one, other in zip(now, taken, strict=True):
        np.testing.assert_array_equal(one, other)
    assert larq_adambnn.binarization(student) == (True, True)
    longer = [callbacks.TwoStepSwitch(1), teacher]
    model.fit(images, labels, 8, 3, initial_epoch=2, callbacks=longer, verbose=0)
    for one, other in zip(copy.get_weights(), taken, strict=True):
        np.testing.assert_array_equal(one, other)
    model.fit(images, labels, 8, 2, callbacks=[*longer, Watch()], verbose=0)
    np.testing.assert_array_equal(found[2][0], np.eye(10)[[0] * 8])  # the first teacher again
    np.testing.assert_array_equal(*found[3][:2])
    assert any(np.any(a != b) for a, b in zip(copy.get_weights(), taken, strict=True))
    teacher = callbacks.FirstStepTeacher(1, copy, average=callbacks.AverageWeights(0.9))
    with pytest.raises(ValueError, match="Expected average to be one of the callbacks"):
        model.fit(images, labels, 8, 2, initial_epoch=1, callbacks=[teacher], verbose=0)
    with pytest.raises(ValueError, match="Expected model to be a Distiller"):
        fit(compiled(optimizers.Adam()), [callbacks.FirstStepTeacher(1, copy)], 1)


@pytest.mark.parametrize(("momentum", "anew"), [(0.9, False), (0.9, True), (0.0, True)])
def test_step_2_is_taught_by_what_step_1_is_evaluated_with(momentum, anew):
    """Averaged weights, and batch norms computed anew with real weights; the student stays."""
    tf.config.run_functions_eagerly(True)
    images, labels = data()
    student, copy = (small.network((32, 32, 1), 10) for _ in range(2))
    model = Distiller(student, lambda images: tf.one_hot(tf.zeros(len(images), tf.int32), 10))
    model.compile(optimizers.Adam(0.01), losses.DistributionLoss())
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(16) if anew else None
    average = callbacks.AverageWeights(momentum, batches=batches)
    evaluated, now = [], []

    class Watch(tf.keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            evaluated.append(student.get_weights())

        def on_epoch_end(self, epoch, logs=None):
            now.append(student.get_weights())

        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                now.append(student.get_weights())
                assert larq_adambnn.binarization(student) == (True, True)

    teacher = callbacks.FirstStepTeacher(1, copy, average=average)
    recipe = [callbacks.TwoStepSwitch(1), average, teacher, Watch()]
    options = {"validation_data": data(), "validation_batch_size": 32, "verbose": 0}
    model.fit(images, labels, 8, 2, callbacks=recipe, **options)
    for received, expected in ((copy.get_weights(), evaluated[0]), (now[1], now[0])):
        for one, other in zip(received, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    apart = zip(copy.get_weights(), now[0], strict=True)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in apart)


def averaged(values, momentum):
    """The mean of some arrays, the last but s of which counts momentum ** s."""
    shares = momentum ** np.arange(len(values))[::-1]
    return np.tensordot(shares / shares.sum(), np.stack(values), 1)


@pytest.mark.parametrize("momentum", [0.9, 0.9999])
def test_averaged_weights_are_evaluated_and_training_goes_on_with_the_others(momentum):
    """Those since the switch, with the statistics of the batch norm."""
    tf.config.run_functions_eagerly(momentum == 0.9999)
    history, evaluated = [], []

    def values(model):
        """Of a kernel, of a moving mean and of a moving variance."""
        norm = model.get_layer("block1_bn").get_weights()
        return [model.get_layer("classifier").get_weights()[0], *norm[2:]]

    class Watch(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            history.append(values(self.model))

        def on_test_batch_end(self, batch, logs=None):
            evaluated.append(values(self.model))

        def on_epoch_end(self, epoch, logs=None):
            for now, last in zip(values(self.model), history[-1], strict=True):
                np.testing.assert_array_equal(now, last)

    recipe = [callbacks.AverageWeights(momentum), callbacks.TwoStepSwitch(1), Watch()]
    options = {"validation_data": data(), "validation_batch_size": 32}
    fit(compiled(optimizers.Adam(0.01)), recipe, 3, **options)
    for epoch, start in enumerate((0, STEPS, STEPS)):
        for index, received in enumerate(evaluated[epoch]):
            past = [found[index] for found in history[start : STEPS * (epoch + 1)]]
            np.testing.assert_allclose(received, averaged(past, momentum), rtol=2e-5, atol=1e-7)
            assert np.abs(received - past[-1]).max() > 1e-4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_batch_norms_are_evaluated_with_statistics_of_the_weights(momentum):
    """Of the averaged ones; the training itself is the same with and without."""
    tf.config.run_functions_eagerly(momentum == 0.0)
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(16)
    found = []

    class Watch(tf.keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            found.append(self.model.get_weights())

    def train(*recipe):
        tf.keras.utils.set_random_seed(0)
        model = compiled(optimizers.Adam(0.01))
        options = {"validation_data": data(), "validation_batch_size": 32}
        fit(model, [callbacks.TwoStepSwitch(1), *recipe], 2, **options)
        return model

    model = train(callbacks.AverageWeights(momentum, batches=batches), Watch())
    for one, other in zip(model.get_weights(), train().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    model.set_weights(found[-1])
    reestimate_batch_norm(model, data()[0].reshape(2, 16, 32, 32, 1))
    for one, other in zip(model.get_weights(), found[-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: callbacks.TwoStepSwitch(0), "epoch"),
        (lambda: callbacks.TwoStepSwitch(1.5), "epoch"),
        (lambda: callbacks.LinearDecay(0, 3), "learning_rate"),
        (lambda: callbacks.LinearDecay(float("nan"), 3), "learning_rate"),
        (lambda: callbacks.LinearDecay(0.1, (3, 0)), "epochs"),
        (lambda: callbacks.LinearDecay(0.1, ()), "epochs"),
        (lambda: callbacks.RateSchedule(0.1, 3, shape="step"), "shape"),
        (lambda: callbacks.ProgressiveWeights(0), "epochs"),
        (lambda: callbacks.ProgressiveWeights(1, share=1.5), "share"),
        (lambda: callbacks.ProgressiveWeights(1, first=0), "first"),
        (lambda: callbacks.ProgressiveWeights(1, last=-1), "last"),
        (lambda: callbacks.RateSchedule(0.1, 3, warmup=1), "warmup"),
        (lambda: callbacks.WeightDecaySchedule({}), "values"),
        (lambda: callbacks.WeightDecaySchedule({1: 0.0}), "values"),
        (lambda: callbacks.WeightDecaySchedule({0: float("inf")}), "values"),
        (lambda: callbacks.AverageWeights(1.0), "momentum"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_linear_decay_needs_a_rate_that_it_can_set(eager):
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for kind in (tf.keras.optimizers.SGD, tf.keras.optimizers.legacy.SGD, optimizers.Adam):
        with pytest.raises(ValueError, match="with the schedule ExponentialDecay"):
            fit(compiled(kind(schedule)), [callbacks.LinearDecay(0.1, epochs=1)], 1)


def test_the_switch_resets_every_optimizer_of_a_case_optimizer(tmp_path, eager):
    """And loads the weights that it is to begin step 2 from."""
    latent = tf.keras.optimizers.legacy.Adam(0.01)
    optimizer = lq.optimizers.CaseOptimizer(
        (lambda variable: "conv3x3" in variable.name, latent),
        default_optimizer=tf.keras.optimizers.legacy.Adam(0.01),
    )
    model = compiled(optimizer)
    start = model.get_weights()
    path = tmp_path / "start.h5"
    model.save_weights(path)
    found = {}

    class Look(tf.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                found[self.epoch] = (
                    self.model.get_weights(),
                    [
                        np.abs(v.numpy()).max()
                        for part in optimizer.optimizers
                        for v in part.weights
                    ],
                )

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    switch = callbacks.TwoStepSwitch(epoch=1, reload=str(path))
    model.fit(*data(), batch_size=8, epochs=2, callbacks=[switch, Look()], verbose=0)
    weights, slots = found[1]
    for one, other in zip(weights, start, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(slots) > 2 and max(slots) == 0
    assert max(np.abs(v.numpy()).max() for v in optimizer.optimizers[1].weights) > 0


def test_the_switch_resets_whatever_the_batches_of_step_2_are(eager):
    """Its epochs may have more iterations than all that step 1 had."""
    model, (images, labels) = compiled(optimizers.Adam(0.01)), data()
    model.fit(images, labels, 8, 1, 0, [callbacks.TwoStepSwitch(1)])
    before = optimizers.iterations(model.optimizer)
    model.fit(images, labels, 1, 2, 0, [callbacks.TwoStepSwitch(1)], initial_epoch=1)
    assert optimizers.iterations(model.optimizer) == len(images) > before


def test_an_interrupted_evaluation_does_not_leave_the_average_behind(eager):
    model, average = compiled(optimizers.Adam(0.01)), callbacks.AverageWeights(0.9)

    def interrupt(batch, logs):
        raise KeyboardInterrupt

    model.evaluate(*data(), callbacks=[average], verbose=0)  # there is none yet
    stop = tf.keras.callbacks.LambdaCallback()
    stop.on_test_batch_begin = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data(), 8, validation_data=data(), callbacks=[average, stop], verbose=0)
    averaged = model.get_weights()
    seen = []
    look = tf.keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(model.get_weights())
    )
    model.fit(*data(), 8, callbacks=[average, look], verbose=0)
    assert any((a != b).any() for a, b in zip(seen[0], averaged, strict=True))
