"""Attention matching: the maps that are compared, the loss, and what it trains."""

import numpy as np
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import attention, callbacks, layers, losses, models, optimizers
from larq_adambnn.distillation import Distiller

RNG = np.random.default_rng(0)


def looks(features):
    """Attention maps (B, H, W) by NumPy."""
    energy = (features.astype("float64") ** 2).mean(-1)
    largest = energy.max((1, 2), keepdims=True)
    return np.divide(energy, largest, out=np.zeros_like(energy), where=largest > 0)


def test_the_difference_is_numpy_s():
    """Of other channels, with an image that is 0, by the sizes that both have."""
    student = {"2x3": RNG.normal(size=(4, 2, 3, 5)), "4x4": RNG.normal(size=(4, 4, 4, 2))}
    teacher = {"2x3": RNG.normal(size=(4, 2, 3, 1)), "4x4": RNG.normal(size=(4, 4, 4, 7))}
    teacher["9x9"] = RNG.normal(size=(4, 9, 9, 1))
    student["2x3"][1] = 0
    each = [
        ((looks(student[size]) - looks(teacher[size])) ** 2).mean((1, 2)) for size in ("2x3", "4x4")
    ]
    inputs = [{k: tf.constant(v) for k, v in maps.items()} for maps in (student, teacher)]
    received = attention.difference(*inputs)
    np.testing.assert_allclose(received, np.mean(each, axis=0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Squares of 1000 are too large for float16."""
    features = tf.cast(tf.constant(1000 * RNG.normal(size=(2, 3, 3, 4))), dtype)
    received = attention.attention_map(features)
    assert received.dtype == tf.float32
    exact = looks(tf.cast(features, tf.float64).numpy())
    np.testing.assert_allclose(received, exact, rtol=1e-6)


def test_gradients_are_those_of_numpy_and_the_teacher_has_none():
    """By differences in float64, also where features are 0."""
    student, teacher = RNG.normal(size=(2, 1, 3, 3, 4))
    student = np.concatenate([student, np.zeros_like(student)])
    teacher = np.concatenate([teacher, teacher])
    variables = tf.Variable(student), tf.Variable(teacher)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(attention.difference(*({"3x3": v} for v in variables)))
    received, of_teacher = tape.gradient(loss, variables)
    assert of_teacher is None

    def value(features):
        return ((looks(features) - looks(teacher)) ** 2).mean((1, 2)).sum()

    expected = np.zeros_like(student)
    for index in np.ndindex(student[:1].shape):
        step = np.zeros_like(student)
        step[index] = 1e-6
        expected[index] = (value(student + step) - value(student - step)) / 2e-6
    np.testing.assert_allclose(received, expected, atol=1e-8)


# Networks


def conv(x, filters=4, stride=1, name=None):
    return tf.keras.layers.Conv2D(filters, 3, stride, "same", name=name)(x)


def residual(x, name):
    return tf.keras.layers.Add(name=f"{name}_add")([x, conv(x, x.shape[-1], name=f"{name}_conv")])


def network(body, size=12):
    images = tf.keras.Input((size, size, 3))
    x = tf.keras.layers.GlobalAveragePooling2D()(body(images))
    return tf.keras.Model(images, tf.keras.layers.Dense(5)(x))


def blocks(x):
    """Two sizes with sums, and a stem of a third without one."""
    x = residual(residual(conv(conv(x, name="stem"), 4, 2), "a"), "b")
    return residual(conv(tf.keras.layers.ReLU()(x), 4, 2), "c")


def chain(x):
    return conv(conv(conv(x, 4, 2), 4, 1, "a"), 4, 2, "b")


def operators(x):
    return conv(x, name="a") * 2 + conv(x, name="b")


def nested(x, **options):
    inputs = tf.keras.Input((*x.shape[1:-1], 4))
    y = tf.keras.layers.BatchNormalization(name="bn")(residual(inputs, "a"))
    inner = tf.keras.Model(inputs, residual(y, "b"), name="inner")
    x = inner(inner(conv(x), **options), **options)
    return residual(conv(x, 4, 2), "c")


def to_one_pixel(x):
    return residual(conv(residual(x, "a"), 4, 12), "b")


@pytest.mark.parametrize(
    "body, expected",
    [
        (blocks, {"6x6": "b_add", "3x3": "c_add"}),
        (chain, {"6x6": "a", "3x3": "b"}),
        (operators, {"12x12": "tf.__operators__.add"}),
        (nested, {"12x12": "inner", "6x6": "c_add"}),
        (to_one_pixel, {"12x12": "a_add"}),
    ],
)
def test_maps_are_the_last_of_each_size_where_branches_meet(body, expected):
    """The model gives what it gave, from the same weights, and stays as it is."""
    model = network(body)
    before = model.get_config()
    opened = attention.opened(model)
    maps = opened.output[1]
    assert {k: t.node.layer.name.rstrip("_0123456789") for k, t in maps.items()} == expected
    images = RNG.normal(size=(2, 12, 12, 3)).astype("float32")
    logits, values = opened(images)
    np.testing.assert_array_equal(logits, model(images))
    assert all(f"{v.shape[1]}x{v.shape[2]}" == size for size, v in values.items())
    assert {id(w) for w in opened.weights} == {id(w) for w in model.weights}
    assert model.get_config() == before


def test_what_is_inside_a_model_is_seen():
    """A whole network in another, with its preparation before."""
    inner = network(blocks)
    images = tf.keras.Input((12, 12, 3))
    outer = tf.keras.Model(images, inner(tf.keras.layers.Rescaling(2.0)(images)))
    for model in (outer, tf.keras.Sequential([tf.keras.layers.Rescaling(2.0), inner])):
        model.build((None, 12, 12, 3))
        batch = RNG.normal(size=(2, 12, 12, 3)).astype("float32")
        received, expected = attention.opened(model)(batch), attention.opened(inner)(2 * batch)
        assert list(received[1]) == ["6x6", "3x3"] == list(expected[1])
        for one, other in zip(*map(tf.nest.flatten, (received, expected)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"training": False}])
def test_batch_norms_of_a_model_inside_train_as_they_would(options):
    model = network(lambda x: nested(x, **options))
    twin = tf.keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    images = RNG.normal(size=(2, 12, 12, 3)).astype("float32")
    initial = model.get_weights()
    np.testing.assert_array_equal(
        attention.opened(model)(images, training=True)[0], twin(images, training=True)
    )
    changed = [
        not np.array_equal(one, other)
        for one, other in zip(initial, model.get_weights(), strict=True)
    ]
    assert any(changed) == (not options)
    for one, other in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class OwnModel(tf.keras.Model):
    pass


WITHOUT = {
    "functional": OwnModel,
    "known size": lambda: network(lambda x: x[:, :1, :1]),
    "Keras model": lambda: "a name",
}


@pytest.mark.parametrize("message", WITHOUT)
def test_a_network_without_maps_is_refused(message):
    with pytest.raises(ValueError, match=message):
        attention.opened(WITHOUT[message]())


# Training


def batch(count=8):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 12, 12, 3)).astype("float32"), np.arange(count) % 5


def distiller(weight, student=blocks, teacher=blocks, optimizer=None, compiled=None, **options):
    tf.keras.utils.set_random_seed(0)
    teacher, student = network(teacher), network(student)
    model = Distiller(student, attention.opened(teacher), attention=weight, **options)
    optimizer = optimizer or tf.keras.optimizers.SGD(0.1)
    model.compile(optimizer, losses.DistributionLoss(), **(compiled or {}))
    return model, student, teacher


def expected_loss(student, teacher, images, shares, weight):
    """The distribution loss by Keras, and attention matching by NumPy."""
    logits, maps = attention.opened(student)(images)
    target, wanted = attention.opened(teacher)(images)
    loss = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(target), logits).numpy()
    apart = [
        ((looks(maps[s].numpy()) - looks(wanted[s].numpy())) ** 2).mean((1, 2))
        for s in maps
        if s in wanted
    ]
    return np.mean(shares * (loss + weight * np.mean(apart, axis=0)))


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("student, teacher", [(blocks, blocks), (chain, blocks), (blocks, nested)])
def test_it_is_in_the_loss_of_training_alone(student, teacher, microbatches, eager):
    images, labels = batch()
    shares = np.linspace(0, 2, 8)
    model, student, teacher = distiller(30.0, student, teacher, microbatches=microbatches)
    expected = expected_loss(student, teacher, images, shares, 30.0)
    alone = expected_loss(student, teacher, images, shares, 0.0)
    assert expected > 1.1 * alone
    weights = [v.numpy() for v in teacher.weights]
    options = {"batch_size": 8, "sample_weight": shares, "verbose": 0}
    assert model.evaluate(images, labels, **options)[0] == pytest.approx(alone, rel=1e-5)
    history = model.fit(images, labels, **options).history
    assert history["loss"] == [pytest.approx(expected, rel=1e-5)]
    np.testing.assert_equal([v.numpy() for v in teacher.weights], weights)
    counted = {id(v) for metric in model.metrics for v in metric.weights}
    tracked = [id(v) for v in model.weights if id(v) not in counted]
    assert tracked == [id(v) for v in student.weights]


def test_matching_brings_the_maps_together(eager):
    images, labels = batch()
    ends = []
    for weight in (0.0, 100.0):
        model, student, teacher = distiller(weight, optimizer=tf.keras.optimizers.Adam(1e-2))
        model.fit(images, labels, batch_size=8, epochs=20, verbose=0)
        maps = [attention.opened(one)(images)[1] for one in (student, teacher)]
        ends.append(float(tf.reduce_mean(attention.difference(*maps))))
    assert ends[1] < 0.5 * ends[0]


def test_a_teacher_with_batch_norms_stays_as_it_is():
    """As the opened network itself, in a traced step."""
    model, _, teacher = distiller(30.0, teacher=nested)
    before = teacher.get_weights()
    model.fit(*batch(), batch_size=4, verbose=0)
    np.testing.assert_equal(teacher.get_weights(), before)


def test_without_weight_a_training_is_the_same_bit_for_bit():
    """Also with a teacher that gives its maps."""
    images, labels = batch()
    ends = []
    for with_maps in (False, True):
        model, student, teacher = distiller(0.0)
        if not with_maps:
            model.taught_by(lambda images, t=teacher: t(images, training=False))
        history = model.fit(images, labels, batch_size=4, epochs=2, verbose=0).history
        ends.append([history["loss"], *student.get_weights()])
    np.testing.assert_equal(*ends)


@pytest.mark.parametrize("policy, tolerance", [("float32", 1e-5), ("mixed_float16", 0.02)])
def test_a_compiled_step_is_the_same_step(policy, tolerance):
    """With XLA and the scale of float16, against float32 as it is."""
    images, labels = batch()
    ends = []
    for name in ("float32", policy):
        tf.keras.mixed_precision.set_global_policy(name)
        optimizer = tf.keras.optimizers.SGD(0.1)
        if name == "mixed_float16":
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
        compiled = {"jit_compile": bool(ends)}
        model, student, _ = distiller(30.0, optimizer=optimizer, compiled=compiled)
        before = student.get_weights()
        model.fit(images, labels, batch_size=8, verbose=0)
        ends.append([b - a for a, b in zip(before, student.get_weights(), strict=True)])
    for one, other in zip(*ends, strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


def test_it_is_off_in_step_2():
    """Where the loss is the distribution's alone; a later fit from the start has it again."""
    tf.config.run_functions_eagerly(True)
    student, teacher, copy = (small.network((32, 32, 1), 10) for _ in range(3))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 32, 32, 1)).astype("float32"), np.arange(8)
    model = Distiller(student, attention.opened(teacher), attention=30.0)
    model.compile(optimizers.SGD(0.0), losses.DistributionLoss())
    model.fit(*data, 8, 2, callbacks=[callbacks.TwoStepSwitch(1)], verbose=0)
    switch = callbacks.TwoStepSwitch(1)
    for steps in ([switch], [switch, callbacks.FirstStepTeacher(1, copy)]):
        model.taught_by(attention.opened(teacher))
        received = model.fit(*data, 8, 2, callbacks=steps, verbose=0).history["loss"]
        expected = []
        for weights in (False, True):
            larq_adambnn.binarize(student, True, weights)
            source = layers.binarize(copy, True, False) if weights and steps[1:] else teacher
            target, wanted = attention.opened(source)(data[0], training=False)
            logits, maps = attention.opened(student)(data[0], training=True)
            loss = losses.DistributionLoss()(target, logits)
            apart = tf.reduce_mean(attention.difference(maps, wanted))
            expected.append(float(loss + (0.0 if weights else 30.0) * apart))
        assert received == pytest.approx(expected, rel=1e-5)


def test_a_teacher_without_such_maps_is_refused(eager):
    images, labels = batch()
    model, student, _ = distiller(30.0, teacher=lambda x: conv(x))
    before = student.get_weights()
    with pytest.raises(ValueError, match=r"student's sizes, 6x6, 3x3\. Received: 12x12"):
        model.fit(images, labels, verbose=0)
    model.taught_by(lambda images: tf.zeros((len(images), 5)))
    with pytest.raises(ValueError, match=r"gives feature maps .*Received: none"):
        model.fit(images, labels, verbose=0)
    np.testing.assert_equal(student.get_weights(), before)
    with pytest.raises(ValueError, match="attention to be a finite number of at least 0"):
        distiller(-1.0)
    student.add_loss(tf.reduce_mean(student.output))
    with pytest.raises(ValueError, match=r"attention matching\. .* with a loss of model\.add_loss"):
        Distiller(student, attention=30.0)
    Distiller(student)


@pytest.mark.parametrize("name", ["reactnet_a", "reactnet18"])
def test_a_reactnet_looks_where_resnet34_does(name):
    """At all four sizes of ResNet-34, the published teacher."""
    shape = {"input_shape": (64, 64, 3), "num_classes": 10, "width": 0.125}
    maps = [attention.opened(models.build(n, **shape)).output[1] for n in (name, "resnet34")]
    assert attention.common(*maps) == ["16x16", "8x8", "4x4", "2x2"]
