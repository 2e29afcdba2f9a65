"""The distiller: losses, gradients, what it tracks."""

import pickle

import larq as lq
import numpy as np
import pytest
import small
import tensorflow as tf

from larq_adambnn import layers, losses, optimizers
from larq_adambnn.distillation import Distiller, together


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 32, 32, 1)).astype("float32"), np.arange(8) % 10


def logits_of(model, images):
    return model(images, training=False).numpy()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def distiller(**options):
    tf.keras.utils.set_random_seed(0)
    student = small.network((32, 32, 1), 10)
    teacher = small.network((32, 32, 1), 10)
    model = Distiller(student, lambda images: teacher(images, training=False), **options)
    model.compile(tf.keras.optimizers.SGD(0.1), losses.DistributionLoss())
    return model, student, teacher


@pytest.fixture(scope="module")
def taught():
    return distiller()


@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_weighted_sum_of_both(label_weight, smoothing, taught, eager):
    model, student, teacher = taught
    model.label_weight, model.label_smoothing = label_weight, smoothing
    images, labels = batch()
    result = model.evaluate(images, labels, batch_size=8, return_dict=True, verbose=0)
    p = softmax(logits_of(teacher, images))
    log_q = np.log(softmax(logits_of(student, images)))
    soft = -(p * log_q).sum(-1).mean()
    hard = -log_q[np.arange(8), labels].mean()
    hard = (1 - smoothing) * hard - smoothing * log_q.mean()
    expected = (1 - label_weight) * soft + label_weight * hard
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    ranking = np.argsort(-logits_of(student, images), -1)
    assert result["accuracy"] == np.mean(ranking[:, 0] == labels)
    assert result["top5_accuracy"] == np.mean((ranking[:, :5] == labels[:, None]).any(-1))


def test_several_teachers_are_each_computed_once_a_batch(eager):
    """Of several precisions; fitted and evaluated, with sample weights and in parts."""
    seen = []

    def teacher(index, dtype):
        def teach(images):
            seen.append((index, len(images)))
            return tf.cast(tf.reduce_mean(images, axis=(1, 2)) * tf.range(10.0) ** index, dtype)

        return teach

    both = together([teacher(1, tf.float32), teacher(2, tf.float16)])
    images, labels = batch()
    assert both(images).shape == (8, 2, 10)
    model, student, _ = distiller(microbatches=2)
    model.taught_by(both)
    shares = np.linspace(0, 2, 8)
    seen.clear()
    received = model.evaluate(images, labels, 8, sample_weight=shares, return_dict=True, verbose=0)
    expected = losses.weighted_by_image(both(images), student(images, training=False))
    assert received["loss"] == pytest.approx(np.mean(expected * shares), rel=1e-5)
    seen.clear()
    model.fit(images, labels, batch_size=8, verbose=0)
    assert seen == [(1, 4), (2, 4)] * 2
    other = together([teacher(2, tf.float16), teacher(1, tf.float32)])(images)
    assert other.dtype == tf.float32  # whichever comes first
    np.testing.assert_array_equal(other, both(images)[:, ::-1])
    alone = teacher(1, tf.float32)
    assert together([alone]) is alone
    with pytest.raises(ValueError, match="logits alone"):
        together([alone, lambda images: (alone(images), {})])(images)
    for bad in ([], [3], alone):
        with pytest.raises(ValueError, match="Expected teachers to be frozen functions"):
            together(bad)


def test_teacher_is_frozen_and_not_in_the_weights(eager):
    model, student, teacher = distiller()
    before = teacher.get_weights()
    assert not {id(v) for v in model.weights} & {id(v) for v in teacher.weights}
    assert [id(v) for v in model.trainable_variables] == [
        id(v) for v in student.trainable_variables
    ]
    model.fit(*batch(), batch_size=8, epochs=2, verbose=0)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_training_without_a_teacher_uses_the_labels():
    student = small.network((32, 32, 1), 10)
    model = Distiller(student)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(0.01), loss)
    history = model.fit(*batch(), batch_size=8, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_microbatches_average_their_gradients():
    """Without batch norm's statistics, parts of a batch give the gradient of the whole."""
    images, labels = batch()
    ends = []
    for microbatches in (1, 2, 4):
        tf.keras.utils.set_random_seed(0)
        inputs = tf.keras.Input((32, 32, 1))
        hidden = tf.keras.layers.Conv2D(4, 3, 2, activation="tanh")(inputs)
        outputs = tf.keras.layers.Dense(10)(tf.keras.layers.Flatten()(hidden))
        model = Distiller(tf.keras.Model(inputs, outputs), microbatches=microbatches)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(0.1), loss)
        history = model.fit(images, labels, batch_size=8, epochs=2, verbose=0).history
        assert model.optimizer.iterations.numpy() == 2
        ends.append((history["loss"], history["accuracy"], model.get_weights()))
    for loss, accuracy, weights in ends[1:]:
        np.testing.assert_allclose(loss, ends[0][0], rtol=1e-5)
        assert accuracy == ends[0][1]
        for a, b in zip(weights, ends[0][2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("jit_compile, microbatches", [(False, 1), (True, 2)])
def test_loss_that_is_not_finite_stops_the_step(jit_compile, microbatches):
    model = plain(jit_compile=jit_compile)
    model.microbatches = microbatches
    before = [np.full((6, 4), np.nan), np.zeros(4)]
    model.student.set_weights(before)
    with pytest.raises(tf.errors.InvalidArgumentError, match="loss is not finite"):
        model.fit(*vectors(), batch_size=8, verbose=0)
    for variable, value in zip(model.student.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    "policy, microbatches, forms, tolerance",
    # XLA's processor code keeps float32 between operations of 16 bits, which TensorFlow rounds.
    [
        ("float32", 2, (False, True), 1e-5),
        ("mixed_bfloat16", 1, (True,), 0.03),
        ("mixed_float16", 1, (True,), 0.01),
    ],
)
def test_a_compiled_step_is_the_same_step(policy, microbatches, forms, tolerance):
    """Without batch norm and a second sign, which enlarge rounding; in both forms of a network."""
    tf.keras.mixed_precision.set_global_policy(policy)
    ends = []
    for jit_compile in (False, True):
        tf.config.run_functions_eagerly(not jit_compile)
        tf.keras.utils.set_random_seed(0)
        images = x = tf.keras.Input((8, 8, 2))
        x = layers.RPReLU()(layers.BinaryConv2D(4, 3, strides=2)(layers.Shift()(x)))
        x = tf.keras.layers.GlobalAveragePooling2D()(x)
        student = tf.keras.Model(images, tf.keras.layers.Dense(3, dtype="float32")(x))
        model = Distiller(
            student,
            lambda images: tf.reduce_mean(images, axis=(1, 2))[:, :1] * [1.0, 2.0, 3.0],
            microbatches=microbatches,
        )
        optimizer = optimizers.SGD(0.5)
        if policy == "mixed_float16":
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
        model.compile(
            optimizer, losses.DistributionLoss(), metrics=["accuracy"], jit_compile=jit_compile
        )
        found = []
        rng = np.random.default_rng(0)
        for weights in forms:
            layers.binarize(student, True, weights)
            before = student.get_weights()
            data = rng.normal(size=(8, 8, 8, 2)).astype("float32"), rng.integers(0, 3, 8)
            history = model.fit(*data, batch_size=8, verbose=0).history
            found.append((history, before, student.get_weights()))
        ends.append(found)
    for (plain, before, expected), (jitted, _, received) in zip(*ends, strict=True):
        assert plain.keys() == jitted.keys()
        for name in plain:
            assert jitted[name] == pytest.approx(plain[name], rel=tolerance)
        for a, b, c in zip(before, expected, received, strict=True):
            update = np.abs(b - a).max()
            assert update > 0
            np.testing.assert_allclose(c - a, b - a, rtol=0, atol=tolerance * update)


@pytest.mark.parametrize("options", [{"label_weight": 1.1}, {"microbatches": 0}])
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        distiller(**options)


# What Keras users give


def plain(**compiled):
    """A student of one dense layer with a regularizer, without a teacher."""
    tf.keras.utils.set_random_seed(0)
    images = tf.keras.Input((6,))
    logits = tf.keras.layers.Dense(4, kernel_regularizer=tf.keras.regularizers.L2(0.5))(images)
    model = Distiller(tf.keras.Model(images, logits))
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": tf.keras.optimizers.SGD(0.1), "loss": loss, **compiled})
    return model


def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 6)).astype("float32"), np.arange(8) % 4


def twin_of(model, **compiled):
    """The same student in Keras's own training."""
    twin = tf.keras.models.clone_model(model.student)
    twin.set_weights(model.student.get_weights())
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twin.compile(**{"optimizer": tf.keras.optimizers.SGD(0.1), "loss": loss, **compiled})
    return twin


FITS = {
    "regularizer": {},
    "sample_weight": {"sample_weight": np.linspace(0, 2, 8)},
    "class_weight": {"class_weight": {0: 0.0, 1: 1.0, 2: 2.0, 3: 0.5}},
    "labels in a column": {"y": vectors()[1][:, np.newaxis]},
    "sample_weight in a column": {"sample_weight": np.linspace(0, 2, 8)[:, np.newaxis]},
}


@pytest.mark.parametrize("microbatches, label_weight", [(1, 0.0), (2, 0.0), (1, 0.5)])
@pytest.mark.parametrize("name", FITS)
def test_what_fit_takes_counts_as_in_keras(name, microbatches, label_weight):
    """Without a teacher the loss of the labels is the compiled one, whatever its share."""
    tf.config.run_functions_eagerly(name != "sample_weight")
    model = plain()
    model.microbatches, model.label_weight = microbatches, label_weight
    twin, (images, labels) = twin_of(model), vectors()
    options = {"x": images, "y": labels, "batch_size": 8, "epochs": 3, "verbose": 0, **FITS[name]}
    received, expected = model.fit(**options).history, twin.fit(**options).history
    np.testing.assert_allclose(received["loss"], expected["loss"], rtol=1e-5)
    for one, other in zip(model.student.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    right = model.student.predict(images, verbose=0).argmax(-1) == labels
    assert model.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] == right.mean()


def test_a_batch_that_has_no_equal_parts_is_refused():
    model = plain()
    model.microbatches = 2
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="microbatches=2 images"):
        model.fit(*(x[:7] for x in vectors()), batch_size=4, verbose=0)


def test_a_loss_is_needed():
    with pytest.raises(ValueError, match=r"Expected compile\(loss=\.\.\.\)"):
        plain(loss=None)


def test_metrics_of_compile_are_kept():
    metric = tf.keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy")
    model = plain(metrics=[metric, "accuracy"])
    images, labels = vectors()
    logs = model.evaluate(images, labels, verbose=0, return_dict=True)
    regularization = float(model.student.losses[0])
    assert logs["entropy"] == pytest.approx(logs["loss"] - regularization, rel=1e-5)
    assert model.evaluate(images, labels, verbose=0, return_dict=True) == pytest.approx(logs)


OPTIMIZERS = {
    "SGD": lambda: tf.keras.optimizers.SGD(0.1),
    "legacy SGD": lambda: tf.keras.optimizers.legacy.SGD(0.1),
    "legacy Adam": lambda: tf.keras.optimizers.legacy.Adam(0.1),
    "Larq's CaseOptimizer": lambda: lq.optimizers.CaseOptimizer(
        (lambda variable: "kernel" in variable.name, tf.keras.optimizers.legacy.SGD(0.1)),
        default_optimizer=tf.keras.optimizers.legacy.Adam(0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_all_kinds_train_as_in_keras(name):
    model = plain(optimizer=OPTIMIZERS[name]())
    twin = twin_of(model, optimizer=OPTIMIZERS[name]())
    options = {"batch_size": 8, "epochs": 3, "verbose": 0}
    model.fit(*vectors(), **options)
    twin.fit(*vectors(), **options)
    for one, other in zip(model.student.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_other_labels_are_refused():
    images, labels = vectors()
    for wrong, message in (
        (np.eye(4)[labels], "Expected .images, integer labels"),
        (np.eye(4, dtype=int)[labels], r"Expected integer labels \(B,\) or \(B, 1\)"),
        (None, "Expected .images, integer labels"),
    ):
        with pytest.raises(ValueError, match=message):
            plain().fit(images, wrong, batch_size=8, verbose=0)


@pytest.mark.parametrize(
    "jit_compile, label_weight, microbatches", [(False, 0.0, 1), (True, 0.5, 2)]
)
def test_labels_of_no_class_are_refused(jit_compile, label_weight, microbatches):
    """Beside a teacher only the metrics may look at them, and XLA has no checks."""
    images, labels = vectors()
    model = Distiller(
        plain().student,
        lambda images: tf.zeros((tf.shape(images)[0], 4)),
        label_weight=label_weight,
        microbatches=microbatches,
    )
    model.compile(tf.keras.optimizers.SGD(0.1), losses.DistributionLoss(), jit_compile=jit_compile)
    model.fit(images, labels, batch_size=8, verbose=0)
    before = model.student.get_weights()
    for wrong in (-1, 4, 2**40):
        with pytest.raises(tf.errors.InvalidArgumentError, match="Expected labels from 0 to 3"):
            model.fit(images, np.append(labels[:-1], wrong), batch_size=8, verbose=0)
        np.testing.assert_equal(model.student.get_weights(), before)
    message = "Expected labels from 0 to 3|outside the valid range"  # as cross-entropy has it
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.evaluate(images, labels + 1, verbose=0)


def test_labels_of_few_bits_are_no_other_classes():
    images, labels = np.ones((8, 6), np.float32), np.zeros(8, np.uint8)
    student = tf.keras.Sequential([tf.keras.layers.Dense(300, input_shape=(6,))])
    student.layers[0].bias.assign(tf.one_hot(256, 300, 100.0))
    model = Distiller(student)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.0), loss)
    assert model.fit(images, labels, verbose=0).history["accuracy"] == [0]


WHOLES = {
    "saved": lambda model: model.save("model.keras"),
    "pickled": pickle.dumps,
    "cloned": tf.keras.models.clone_model,
    "described": lambda model: model.to_json(),
}


@pytest.mark.parametrize("name", WHOLES)
def test_it_is_not_saved_whole(name):
    with pytest.raises(NotImplementedError, match=r"Expected distiller.student.save"):
        WHOLES[name](plain())
