"""Adam against torch.optim.Adam, and in everything that Keras does with an optimizer."""

import functools
import json
import pathlib

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import checkpoints, losses, models, optimizers
from larq_adambnn.kernels import arithmetic

SHAPES = {"conv/kernel": (3, 3, 2, 4), "rsign/shift": (4,), "bn/gamma": (4,), "fc/kernel": (4, 3)}
DECAYED = ("conv/kernel", "rsign/shift")  # what the published rule takes


def problem(dtype, steps, seed=0):
    """Start values and a gradient a step, of sizes from 1e-10 (where epsilon counts) to 10."""
    rng = np.random.default_rng(seed)
    start = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    gradients = [
        {
            name: (rng.normal(size=shape) * 10.0 ** rng.uniform(-10, 1, shape)).astype(dtype)
            for name, shape in SHAPES.items()
        }
        for _ in range(steps)
    ]
    return start, gradients


def variables_of(start, precision=1):
    """By name; the convolution's is a kernel of one of Larq's layers."""
    variables = {name: tf.Variable(value, name=name) for name, value in start.items()}
    kernel = variables["conv/kernel"]
    variables["conv/kernel"] = lq.quantized_variable.QuantizedVariable.from_variable(
        kernel, precision=precision
    )
    return variables


def run_keras(optimizer, start, gradients, learning_rates, precision=1):
    variables = variables_of(start, precision)
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply_gradients((tf.constant(gradient[n]), variables[n]) for n in variables)
    return {name: variable.numpy() for name, variable in variables.items()}


def run_torch(kind, start, gradients, learning_rates, weight_decay, **options):
    torch = pytest.importorskip("torch")
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = getattr(torch.optim, kind)(
        [
            {"params": [parameters[n] for n in parameters if n not in DECAYED]},
            {"params": [parameters[n] for n in DECAYED], "weight_decay": weight_decay},
        ],
        lr=1.0,
        **{"weight_decay": 0.0, **options},
    )
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


# Ours, and PyTorch's with its options
TWINS = {
    "adam": (optimizers.Adam, "Adam", {}),
    "amsgrad": (functools.partial(optimizers.Adam, amsgrad=True), "Adam", {"amsgrad": True}),
    "adamw": (functools.partial(optimizers.Adam, decoupled=True), "AdamW", {}),
    "momentum": (optimizers.SGD, "SGD", {"momentum": 0.9}),
    "sgd": (functools.partial(optimizers.SGD, momentum=0.0), "SGD", {}),
}


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("name", TWINS)
def test_is_pytorch(name, weight_decay, dtype, tolerance):
    """20 steps: differences are rounding, which an update passes on."""
    build, kind, options = TWINS[name]
    tf.keras.backend.set_floatx(dtype)
    start, gradients = problem(dtype, steps=20)
    rates = [0.01 * (1 - step / 20) for step in range(20)]
    expected = run_torch(kind, start, gradients, rates, weight_decay, **options)
    received = run_keras(build(1.0, weight_decay=weight_decay), start, gradients, rates)
    for name in SHAPES:
        np.testing.assert_allclose(received[name], expected[name], rtol=tolerance, atol=tolerance)
        assert np.abs(expected[name] - start[name]).max() > 1e-3  # it has moved


def norms(kernel):
    return np.sqrt((kernel**2).sum(axis=(0, 1, 2)))


def test_a_gradient_is_raised_to_a_share_of_the_weights_norm():
    """OvSW's rule, of four filters: large, small, below 1e-6, and of weights below 1e-3."""
    rng = np.random.default_rng(0)
    weights, gradient = rng.normal(size=(2, 3, 3, 2, 4))
    weights *= np.array([1, 1, 1, 1e-5]) / norms(weights)
    gradient *= np.array([0.05, 0.03, 1e-8, 1e-5]) / norms(gradient)
    raised = optimizers.raised(tf.constant(gradient), tf.constant(weights), 0.04).numpy()
    np.testing.assert_allclose(norms(raised), [0.05, 0.04, 0.04 * 1e-2, 4e-5], rtol=1e-12)
    np.testing.assert_allclose(raised / norms(raised), gradient / norms(gradient), rtol=1e-12)
    zero = optimizers.raised(tf.zeros((3, 3, 2, 4)), tf.ones((3, 3, 2, 4)), 0.04)
    np.testing.assert_array_equal(zero, np.zeros((3, 3, 2, 4)))


def test_ovsw_is_its_rule_for_binary_kernels_and_nothing_else():
    """Its scale, then its decay of weights that were silent for some iterations, by hand."""
    tf.keras.backend.set_floatx("float64")
    start, gradients = problem("float64", steps=40)
    gradients = [{n: np.clip(g, -1, 1) for n, g in gradient.items()} for gradient in gradients]
    options = {"gradient_floor": 0.3, "silent_decay": 0.2, "silent_iterations": 4}
    rates = [0.3] * 40

    def sgd(**options):
        return optimizers.SGD(1.0, weight_decay=0.01, momentum=0.0, **options)

    received = run_keras(sgd(**options), start, gradients, rates)
    plain = run_keras(sgd(), start, gradients, rates)
    w = start["conv/kernel"].copy()
    flips, signs, silent = np.zeros_like(w), w >= 0, []
    for gradient in gradients:
        g = gradient["conv/kernel"]
        g = g * np.maximum(1, 0.3 * norms(w) / norms(g))
        flips = 0.75 * flips + 0.25 * (signs != (w >= 0))
        signs = w >= 0
        silent.append(flips < 0.025)
        w -= 0.3 * (g + 0.2 * w * silent[-1] + 0.01 * w)
    assert silent[0].all() and 0.1 < np.mean(silent[20:]) < 0.9
    assert (~silent[20] & silent[-1]).any()  # one that is silent again
    np.testing.assert_allclose(received["conv/kernel"], w, rtol=1e-10, atol=1e-12)
    for name in ("rsign/shift", "bn/gamma", "fc/kernel"):
        np.testing.assert_array_equal(received[name], plain[name])
    real = run_keras(sgd(**options), start, gradients, rates, precision=32)
    for name in SHAPES:
        np.testing.assert_array_equal(real[name], plain[name])


def test_diode_is_its_rule_for_binary_kernels_and_adam_else():
    tf.keras.backend.set_floatx("float64")
    start, gradients = problem("float64", steps=30)
    rates = [0.02 * (1 - step / 30) for step in range(30)]
    diode = optimizers.Diode(1.0, momentum=0.8, memory=0.9, size=50.0)
    received = run_keras(diode, start, gradients, rates)
    adam = run_keras(optimizers.Adam(1.0), start, gradients, rates)
    m, s = np.zeros_like(start["conv/kernel"]), start["conv/kernel"].copy()
    for gradient, rate in zip(gradients, rates, strict=True):
        m = 0.8 * m + 0.2 * gradient["conv/kernel"]
        s = 0.9 * s - 0.1 * 50 * rate * np.sign(m)
    assert (np.sign(s) != np.sign(start["conv/kernel"])).mean() > 0.2  # it has moved
    np.testing.assert_allclose(received["conv/kernel"], s, rtol=1e-10, atol=1e-12)
    for name in ("rsign/shift", "bn/gamma", "fc/kernel"):
        np.testing.assert_array_equal(received[name], adam[name])
    real = run_keras(optimizers.Diode(1.0, memory=0.9), start, gradients, rates, precision=32)
    for name in SHAPES:
        np.testing.assert_array_equal(real[name], adam[name])


@pytest.mark.parametrize("norm", [1e-3, 1e6], ids=["clipped", "not clipped"])
def test_clipping_by_the_norm_of_all_gradients_is_pytorchs(norm):
    """Before the decay is added; what is clipped differs by PyTorch's 1e-6 beside the norm."""
    torch = pytest.importorskip("torch")
    start, gradients = problem("float64", steps=5)
    clipped = []
    for gradient in gradients:
        parameters = [torch.nn.Parameter(torch.tensor(start[name])) for name in SHAPES]
        for parameter, name in zip(parameters, SHAPES, strict=True):
            parameter.grad = torch.tensor(gradient[name])
        assert 1e-3 < torch.nn.utils.clip_grad_norm_(parameters, norm) < 1e6
        clipped.append({n: p.grad.numpy() for n, p in zip(SHAPES, parameters, strict=True)})
    tf.keras.backend.set_floatx("float64")
    expected = run_torch("SGD", start, clipped, [0.01] * 5, 0.1, momentum=0.9)
    optimizer = optimizers.SGD(weight_decay=0.1, global_clipnorm=norm)
    variables = {name: tf.Variable(value, name=name) for name, value in start.items()}
    for gradient in gradients:
        optimizer.learning_rate = 0.01
        optimizer.apply_gradients((tf.constant(gradient[n]), variables[n]) for n in variables)
    for name, variable in variables.items():
        np.testing.assert_allclose(variable, expected[name], rtol=1e-5, atol=1e-7)


RATES = {"": 0.5, "conv": 0.1, "conv/kernel": 3.0, "fc/": 0.0}
RATE_OF = {"conv/kernel": 3.0, "rsign/shift": 0.5, "bn/gamma": 0.5, "fc/kernel": 0.0}


@pytest.mark.parametrize("name", [*TWINS, "rmsprop"])
def test_rates_are_those_of_pytorchs_groups(name):
    """The longest beginning counts; the decay has the same factor; after from_config too."""
    build, kind, options = TWINS.get(name, (optimizers.RMSprop, None, {}))
    tf.keras.backend.set_floatx("float64")
    start, gradients = problem("float64", steps=10)
    rates = [0.01 * (1 - step / 10) for step in range(10)]
    optimizer = build(1.0, weight_decay=0.01, rates=RATES)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    received = run_keras(optimizer, start, gradients, rates)
    for name, factor in RATE_OF.items():
        scaled = [factor * rate for rate in rates]
        if kind is None:  # PyTorch's RMSprop is another: one optimizer a variable instead
            expected = run_keras(build(1.0, weight_decay=0.01), start, gradients, scaled)
        else:
            expected = run_torch(kind, start, gradients, scaled, 0.01, **options)
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(received["fc/kernel"], start["fc/kernel"])


@pytest.mark.parametrize(
    "rates", [3, {"": "x"}, {1: 0.1}, *({"": r} for r in (-0.1, float("nan"), float("inf")))]
)
def test_rates_that_are_none(rates):
    with pytest.raises(ValueError, match="Expected rates to be "):
        optimizers.Adam(rates=rates)


def test_rates_where_nothing_is_trained():
    optimizer = optimizers.Adam(rates={"classifier/": 1.0})
    optimizer.build([])
    assert optimizers.iterations(optimizer) == 0


def test_rates_of_no_variable():
    optimizer = optimizers.Adam(rates={"classifeir": 0.1, "class": 0.1})
    with pytest.raises(ValueError, match="Received: 'classifeir', which fits"):
        optimizer.build([tf.Variable(1.0, name="classifier")])


@pytest.mark.parametrize("network", [models.reactnet_a, models.reactnet18])
def test_decays_what_the_published_code_decays(network):
    """Its rule, on PyTorch's names and shapes: 4-D, or "conv" in the name."""
    model = network((32, 32, 3), 10, width=0.05)
    names = {
        id(parameter.variable): (name, parameter.shape)
        for name, parameter in checkpoints._parameters(model).items()
    }
    for variable in model.trainable_variables:
        name, shape = names[id(variable)]
        expected = len(shape) == 4 or "conv" in name
        assert optimizers.published_decay(variable) == expected, name


def small_model(seed=1):
    """A model with one decayed and one undecayed kernel, and data for it."""
    tf.keras.utils.set_random_seed(seed)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 3, input_shape=(6, 6, 2), name="conv"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(3, name="fc", dtype="float32"),
        ]
    )
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(8, 6, 6, 2)).astype("float32")
    return model, images, rng.normal(size=(8, 3)).astype("float32")


def compiled(optimizer, **kwargs):
    model, images, targets = small_model()
    model.compile(optimizer=optimizer, loss=losses.DistributionLoss(), **kwargs)
    return model, images, targets


@tf.keras.utils.register_keras_serializable("test_optimizers")
def decays_nothing(variable):
    return False


OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.01, weight_decay=0.1),
    "amsgrad": lambda: optimizers.Adam(
        0.02, weight_decay=0.2, beta_1=0.8, beta_2=0.95, epsilon=1e-5, amsgrad=True
    ),
    "decoupled": lambda: optimizers.Adam(0.01, weight_decay=0.1, decoupled=True),
    "other_rule": lambda: optimizers.Adam(0.01, weight_decay=0.1, decays=decays_nothing),
    "schedule": lambda: optimizers.Adam(
        tf.keras.optimizers.schedules.PolynomialDecay(0.1, 5, 0.0), weight_decay=0.1
    ),
    "clipped": lambda: optimizers.Adam(0.01, weight_decay=0.1, global_clipnorm=0.01),
    "averaged": lambda: optimizers.Adam(0.01, weight_decay=0.1, use_ema=True, ema_momentum=0.5),
    "sgd": lambda: optimizers.SGD(0.01, weight_decay=0.1, momentum=0.5),
    "rmsprop": lambda: optimizers.RMSprop(0.01, weight_decay=0.1),
    "ovsw": lambda: optimizers.SGD(
        0.01, weight_decay=0.1, gradient_floor=0.1, silent_decay=0.2, silent_iterations=3
    ),
    "diode": lambda: optimizers.Diode(0.01, momentum=0.8, memory=0.7, size=30.0, rates={"": 0.5}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_serialization_round_trip(name, eager):
    optimizer = OPTIMIZERS[name]()
    config = tf.keras.optimizers.serialize(optimizer)
    text = json.dumps(config)
    again = tf.keras.optimizers.deserialize(json.loads(text))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    first, second = compiled(optimizer), compiled(again)
    for _ in range(3):
        assert first[0].train_on_batch(*first[1:]) == second[0].train_on_batch(*second[1:])
    for a, b in zip(first[0].get_weights(), second[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_compiled_by_xla_are_the_same(name):
    start, gradients = problem(np.float32, 3)
    ends = []
    for jit_compile in (False, True):
        optimizer = OPTIMIZERS[name]()
        variables = list(variables_of(start).values())
        optimizer.build(variables)
        step = tf.function(
            lambda *values, optimizer=optimizer, variables=variables: optimizer.apply_gradients(
                zip(values, variables, strict=True)
            ),
            jit_compile=jit_compile,
        )
        for gradient in gradients:
            step(*[tf.constant(gradient[n]) for n in start])
        ends.append([variable.numpy() for variable in (*variables, *optimizer.variables)])
    for expected, received in zip(*ends, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-7)


def test_config_has_the_decay_that_was_set():
    optimizer = optimizers.Adam(weight_decay=0.1)
    optimizer.weight_decay.assign(0.025)
    again = optimizers.Adam.from_config(optimizer.get_config())
    assert float(again.weight_decay) == np.float32(0.025)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
@pytest.mark.parametrize("kind", ["keras", "h5", "checkpoint"])
def test_training_goes_on_after_saving(kind, name, tmp_path, eager):
    """Moments, iterations and decay come back: the third step is the same to the bit.

    (Keras drops every optimizer's state in its SavedModel format.)
    """
    model, images, targets = compiled(OPTIMIZERS[name]())
    for _ in range(2):
        model.train_on_batch(images, targets)
    path = str(tmp_path / {"keras": "a.keras", "h5": "a.h5"}.get(kind, "a"))
    if kind == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(path)
        again, *_ = compiled(OPTIMIZERS[name]())
        again.optimizer.build(again.trainable_variables)
        again.optimizer.weight_decay.assign(0.0)
        tf.train.Checkpoint(model=again, optimizer=again.optimizer).read(path).assert_consumed()
    else:
        model.save(path)
        again = tf.keras.models.load_model(path)
    assert int(again.optimizer.iterations) == 2
    assert float(again.optimizer.weight_decay) == float(model.optimizer.weight_decay)
    model.train_on_batch(images, targets)
    again.train_on_batch(images, targets)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(model, images, targets, decays, rate=0.01):
    """The kernels and biases after a step for each decay: Adam written out in NumPy, float64."""
    variables = model.trainable_variables
    m, v = ([np.zeros(x.shape) for x in variables] for _ in range(2))
    for t, decay in enumerate(decays, start=1):
        with tf.GradientTape() as tape:
            loss = losses.DistributionLoss()(targets, model(images))
        for i, gradient in enumerate(tape.gradient(loss, variables)):
            w = variables[i].numpy().astype("float64")
            g = gradient.numpy() + (decay * w if w.ndim == 4 else 0)
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            root = np.sqrt(v[i] / (1 - 0.999**t))
            variables[i].assign(w - rate * (m[i] / (1 - 0.9**t)) / (root + 1e-8))
    return model.get_weights()


@pytest.mark.parametrize("large", [1, 2**16])
def test_callback_sets_the_decay_in_a_running_fit(large, monkeypatch):
    monkeypatch.setattr(arithmetic, "_LARGE", large)

    class Decay(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.weight_decay.assign([0.1, 0.0, 1.0][epoch])

    model, images, targets = compiled(optimizers.Adam(0.01, weight_decay=0.5))
    model.fit(
        images, targets, batch_size=8, epochs=3, shuffle=False, callbacks=[Decay()], verbose=0
    )
    expected = by_hand(*small_model(), decays=[0.1, 0.0, 1.0])
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)  # float32 gradients


def test_average_of_the_weights():
    model, images, targets = compiled(OPTIMIZERS["averaged"]())
    average = [w.copy() for w in model.get_weights()]
    for _ in range(3):
        model.train_on_batch(images, targets)
        average = [0.5 * a + 0.5 * w for a, w in zip(average, model.get_weights(), strict=True)]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    for a, b in zip(model.get_weights(), average, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mixed_precision_scales_the_loss_only():
    """Under mixed_float16 a step is that of float32, up to float16 gradients; inf skips it."""
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, images, targets = compiled(OPTIMIZERS["adam"]())
        assert isinstance(model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        model.fit(images, targets, batch_size=8, epochs=3, shuffle=False, verbose=0)
        inner = model.optimizer.inner_optimizer
        assert int(inner.iterations) == 3
        before = model.get_weights()
        model.train_on_batch(np.full_like(images, np.inf), targets)
        for a, b in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    start = small_model()[0].get_weights()
    expected = by_hand(*small_model(), decays=[0.1] * 3)
    for a, b, c in zip(before, expected, start, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).mean() < 0.02 * np.abs(b - c).mean()


def train_twice(name, strategy):
    """Two fits of two steps, with a weight decay each."""
    with strategy.scope():
        model, images, targets = compiled(OPTIMIZERS[name]())
    data = tf.data.Dataset.from_tensor_slices((images, targets)).batch(8)
    for decay in (0.1, 0.5):
        model.optimizer.weight_decay.assign(decay)
        model.fit(data, epochs=2, verbose=0)
    return model.get_weights()


MIRRORED_OPTIMIZERS = ("adam", "amsgrad", "decoupled", "averaged")
MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
import test_optimizers

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for name in test_optimizers.MIRRORED_OPTIMIZERS:
    np.savez(f"{sys.argv[1]}/{name}.npz", *test_optimizers.train_twice(name, strategy))
"""


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory, server):
    """Directory with the weights that MirroredStrategy reaches; devices need a new process."""
    directory = tmp_path_factory.mktemp("mirrored")
    program = directory / "program.py"
    program.write_text(MIRRORED)
    tests = pathlib.Path(__file__).parent
    status, _, err = server.start(directory, program=program, cwd=tests).finish()
    assert status == 0, err
    return directory


@pytest.mark.parametrize("name", MIRRORED_OPTIMIZERS)
def test_two_replicas_are_one_device(name, two_replicas, eager):
    """Two halves of a batch on two replicas update as the whole batch on one does."""
    expected = train_twice(name, tf.distribute.get_strategy())
    with np.load(two_replicas / f"{name}.npz") as received:
        for a, b in zip(received.values(), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)  # order of the sums
