"""The proof: it passes for the same network, and fails for any other."""

import dataclasses
import sys

import exports
import larq as lq
import numpy as np
import pytest
import seeded
import tensorflow as tf

from larq_adambnn import binarize, checkpoints, export, inference, layers, models
from larq_adambnn.export.tflite import Graph, compact, with_outputs

check_module = sys.modules["larq_adambnn.export.check"]  # export.check is the function


def network(seed=0):
    """Two binary convolutions between real ones."""
    images = x = tf.keras.Input((16, 16, 3))
    x = tf.keras.layers.Conv2D(32, 3, 2, "same", name="stem")(x)
    for name in ("first", "second"):
        y = layers.BinaryConv2D(32, 3, name=name)(layers.Shift(name=f"{name}_shift")(x))
        y = tf.keras.layers.BatchNormalization(name=f"{name}_bn")(y)
        x = layers.RPReLU(name=f"{name}_rprelu")(tf.keras.layers.Add(name=f"{name}_add")([x, y]))
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = tf.keras.layers.Dense(10, name="classifier")(x)
    return exports.randomized(tf.keras.Model(images, outputs, name="two"), seed)


@pytest.fixture(scope="module")
def small():
    model = network()
    return model, export.convert(model)


def changed(tflite, kind, place, change):
    """The file with another constant at an input of the first operator of a kind."""
    graph = Graph(tflite)
    operator = next(op for op in graph.operators if op.kind == kind)
    buffer = graph.model.buffers[graph.graph.tensors[operator.inputs[place]].buffer]
    values = np.array(graph.constant(operator.inputs[place]))
    buffer.data = np.frombuffer(change(values).astype(values.dtype).tobytes(), np.uint8)
    return graph.to_bytes()


def test_golden_reactnet_a():
    """The published network's size, with the seeded weights of the golden vectors."""
    state_dict = seeded.state_dict("adambnn_step2", 0)
    model = models.build("reactnet_a", input_shape=(224, 224, 3), num_classes=1000)
    checkpoints.load_state_dict(
        model, {k: v.astype("f") if v.dtype.kind == "f" else v for k, v in state_dict.items()}
    )
    tflite = export.convert(model)
    assert len(tflite) < 7_825_000
    counts = export.operators(tflite)
    expected = {"LceBconv2d": 31, "LceQuantize": 26, "PRELU": 26, "ADD": 56, "CONV_2D": 1}
    assert {kind: counts[kind] for kind in expected} == expected
    rest = set(counts) - set(expected)
    assert rest <= {"CONCATENATION", "AVERAGE_POOL_2D", "REVERSE_V2", "MEAN", "FULLY_CONNECTED"}
    images = seeded.images(0, 2).transpose(0, 2, 3, 1).astype("f")
    report = export.check(model, tflite, images)
    assert report.passed, report.failures
    assert report.images == 2
    assert len(report.signs) == 31
    assert min(report.signs.values()) > 0.9999
    assert report.keras_accuracy is report.tflite_accuracy is None
    with np.load(seeded.HERE / "adambnn_step2_seed0.npz") as golden:
        expected = golden["eval_logits"]
    # A few signs differ from those in float64, which changes what follows
    error = np.abs(export.predict(tflite, images) - expected)
    assert error.mean() < 0.2 * expected.std()


def test_by_default_on_random_images(small):
    report = export.check(*small)
    assert report.passed, report.failures
    assert report.images == 20
    assert set(report.signs) == {"first", "second"}
    assert report.largest_difference >= report.mean_difference
    assert report.agreement == 1.0


def test_the_numbers_are_those_of_the_two_networks(small):
    model, tflite = small
    images = exports.images(model, 11, seed=1)
    labels = np.arange(11) % 10
    report = export.check(model, tflite, images, labels)
    keras, own = model.predict(images, verbose=0), export.predict(tflite, images)
    np.testing.assert_allclose(report.largest_difference, np.abs(keras - own).max(), atol=1e-6)
    np.testing.assert_allclose(report.mean_difference, np.abs(keras - own).mean(), atol=1e-6)
    assert report.keras_accuracy == np.mean(keras.argmax(-1) == labels)
    assert report.tflite_accuracy == np.mean(own.argmax(-1) == labels)
    assert report.agreement == np.mean(keras.argmax(-1) == own.argmax(-1))


def test_signs_are_compared_bit_by_bit(small):
    """The bits of the file's LceQuantize are those of Keras's tensors, counted one by one."""
    model, tflite = small
    graph = Graph(tflite)
    places = [op.outputs[0] for op in graph.operators if op.kind == "LceQuantize"]
    images = exports.images(model, 3)
    _, *words = export.interpreter.run(
        export.interpreter.load(with_outputs(tflite, places)), images
    )
    for name, packed in zip(("first", "second"), words, strict=True):
        values = tf.keras.Model(model.input, model.get_layer(name).input)(images).numpy()
        expected = np.zeros(packed.shape, np.uint32)
        for channel in range(32):
            expected[..., 0] |= (values[..., channel] < 0).astype(np.uint32) << channel
        np.testing.assert_array_equal(packed.view(np.uint32), expected)


def test_another_network_fails(small):
    model, _ = small
    report = export.check(model, export.convert(network(seed=1)))
    assert any("signs before first agree" in failure for failure in report.failures)
    assert any("logits differ" in failure for failure in report.failures)


@pytest.mark.parametrize(
    ("kind", "place", "change", "line"),
    [
        ("CONV_2D", 1, lambda v: 1.1 * v, "logits differ"),
        ("CONV_2D", 2, lambda v: v + 0.05, "signs before first agree"),
        ("LceBconv2d", 2, lambda v: 0.8 * v, "signs before second agree"),
        ("LceBconv2d", 3, np.zeros_like, "signs before second agree"),
        ("PRELU", 1, np.zeros_like, "signs before second agree"),
        ("FULLY_CONNECTED", 2, lambda v: v + 0.01, "logits differ"),
    ],
)
def test_a_changed_constant_fails(kind, place, change, line, small):
    model, tflite = small
    report = export.check(model, changed(tflite, kind, place, change))
    assert any(line in failure for failure in report.failures)


def test_a_few_wrong_signs_fail_and_are_located(small):
    """A changed bit of a binary kernel: the signs before it are right, those after it not."""
    model, tflite = small
    other = changed(tflite, "LceBconv2d", 1, lambda words: words ^ 1)
    report = export.check(model, other)
    assert report.signs["first"] > 0.9999
    assert report.failures[0] == "the filters in the file are not the kernel of first"
    assert "of the signs before second agree" in report.failures[1]


def test_trained_networks_must_agree_in_their_classes(small):
    """With labels, even if no sign before the classifier differs."""
    model, tflite = small
    images = exports.images(model, 50)
    labels = model.predict(images, verbose=0).argmax(-1)
    same = export.check(model, tflite, images, labels)
    assert same.passed
    assert same.keras_accuracy == same.tflite_accuracy == 1.0
    swapped = changed(tflite, "FULLY_CONNECTED", 1, lambda v: v[::-1])
    report = export.check(model, swapped, images, labels)
    assert any("top-1 class is the same on" in failure for failure in report.failures)


def test_quantized_networks_have_their_own_limits(small):
    model, tflite = small
    images = exports.images(model, 200)
    labels = model.predict(images, verbose=0).argmax(-1)
    slightly = changed(tflite, "FULLY_CONNECTED", 1, lambda v: 1.003 * v)
    assert not export.check(model, slightly, images, labels).passed
    assert export.check(model, slightly, images, labels, quantized=True).passed
    worse = changed(tflite, "FULLY_CONNECTED", 2, lambda v: v + np.eye(10)[0] * np.ptp(v))
    report = export.check(model, worse, images, labels, quantized=True)
    assert "logit 0 differs by" in report.failures[0]
    assert "accuracy falls from 100.00 %" in report.failures[-1]
    negated = changed(tflite, "FULLY_CONNECTED", 1, lambda v: -v)
    assert "differs by" in export.check(model, negated, images, quantized=True).failures[0]
    noise = changed(tflite, "CONV_2D", 2, lambda v: v + 1)
    report = export.check(model, noise, images, quantized=True)
    assert "signs before first agree" in report.failures[0]


@pytest.mark.parametrize(
    ("lost", "gained", "images", "fails"),
    [
        (12, 0, 1000, False),  # 5 + 1 + 2 sqrt(12)
        (14, 0, 1000, True),
        (24, 14, 1000, False),
        (36, 14, 1000, True),
        (22, 14, 360, False),
        (95, 16, 360, True),  # from 69.7 to 47.8 %
        (200, 0, 100_000, False),
        (700, 0, 100_000, True),
        (0, 50, 1000, False),
    ],
)
def test_the_accuracy_may_fall_by_half_a_point_and_chance(lost, gained, images, fails):
    right, labels = np.eye(2)[np.zeros(images, int)], np.zeros(images, int)
    keras, own = right.copy(), right.copy()
    own[:lost] = keras[lost : lost + gained] = (0, 1)
    found = check_module._Comparison([keras], [keras], [own], {})
    failures = check_module._class_failures(found, labels, True)
    assert bool(failures) == fails
    assert not fails or f"{100 * (images - lost) / images:.2f} %; expected" in failures[0]


def test_several_processes_give_the_same(small, monkeypatch):
    monkeypatch.setattr(export.interpreter, "_ALONE_SECONDS", 0.0)
    model, tflite = small
    images = exports.images(model, 40)
    batches = [images[:16], images[16:19], images[19:]]
    parts = list(export.interpreter.predictions(tflite, iter(batches), processes=2))
    assert [len(logits) for (logits,) in parts] == [16, 3, 21]
    np.testing.assert_array_equal(
        np.concatenate([logits for (logits,) in parts]), export.predict(tflite, images)
    )


def test_compact_files_compute_the_same(small):
    model, tflite = small
    graph = Graph(tflite)
    for tensor in graph.graph.tensors:
        tensor.name = b"some/longer/name/of/this/tensor"
    graph.model.buffers += [type(graph.model.buffers[0])() for _ in range(100)]
    larger = graph.to_bytes()
    smaller = compact(larger)
    assert len(smaller) < len(larger) - 1000
    images = exports.images(model, 2)
    np.testing.assert_array_equal(export.predict(smaller, images), export.predict(tflite, images))
    assert export.operators(smaller) == export.operators(tflite)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b"not a model",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1000],
        lambda b: b[:100] + bytes(len(b) - 100),
    ],
)
def test_files_that_are_no_tflite(small, damage):
    model, tflite = small
    with pytest.raises(ValueError, match=r"Expected a TFLite model\. Received: .* bytes"):
        export.check(model, damage(tflite))


def test_images_of_another_size(small):
    _, tflite = small
    with pytest.raises(ValueError, match=r"Expected images of 16 x 16 x 3.*Received: 8 x 16 x 3"):
        export.predict(tflite, np.zeros((1, 8, 16, 3), np.float32))


def test_a_sign_after_a_max_pool_is_compared_there():
    """In step 1 too, where the weights are real: LCE packs the signs and pools them then."""
    images = x = tf.keras.Input((16, 16, 3))
    x = tf.keras.layers.Conv2D(32, 3, name="stem")(x)
    x = layers.BinaryConv2D(32, 3, name="first")(tf.keras.layers.MaxPooling2D(2)(x))
    x = layers.BinaryConv2D(32, 3, name="second")(tf.keras.layers.MaxPooling2D(3)(x))
    x = tf.keras.layers.Dense(10)(tf.keras.layers.Flatten()(x))
    model = exports.randomized(tf.keras.Model(images, x))
    for weights in (True, False):
        binarize(model, True, weights)
        tflite = export.convert(model)
        report = export.check(model, tflite)
        assert report.passed, report.failures
        assert set(report.signs) == {"first", "second"}
        assert report.all_signs
        assert not report.not_compared
        worse = changed(tflite, "CONV_2D", 1, lambda v: v[::-1])
        assert "signs before first agree" in export.check(model, worse).failures[0]


def test_one_wrong_channel_of_1024():
    images = x = tf.keras.Input((4, 4, 3))
    x = tf.keras.layers.Conv2D(1024, 1, name="stem")(x)
    x = layers.BinaryConv2D(32, 1, name="binary")(x)
    x = tf.keras.layers.Dense(10)(tf.keras.layers.Flatten()(x))
    model = exports.randomized(tf.keras.Model(images, x))
    constant = changed(
        export.convert(model),
        "CONV_2D",
        2,
        lambda v: np.where(np.arange(1024) == 700, -100 * np.sign(v), v),
    )
    for quantized in (False, True):
        report = export.check(model, constant, quantized=quantized)
        assert report.signs["binary"] > 0.999
        assert report.channels["binary"] < 0.9
        assert "of the signs at channel 700 before binary agree" in report.failures[0]


def test_dense_layers_only():
    """LCE has no binary form of them; they are compared all the same."""
    features = x = tf.keras.Input((40,))
    for units in (64, 48):
        x = lq.layers.QuantDense(
            units, input_quantizer="ste_sign", kernel_quantizer="ste_sign", name=f"dense{units}"
        )(x)
        x = tf.keras.layers.BatchNormalization()(x)
    model = exports.randomized(tf.keras.Model(features, x))
    tflite = export.convert(model)
    report = export.check(model, tflite)
    assert report.passed, report.failures
    assert set(report.signs) | set(report.not_compared) == {"dense64", "dense48"}
    negated = changed(tflite, "FULLY_CONNECTED", 1, lambda v: -v)
    assert export.check(model, negated).failures


def test_what_could_not_be_compared_is_named(small, monkeypatch):
    """As where LCE leaves a sign in a form that is not known here."""
    model, tflite = small
    places = check_module.find_signs(model, Graph(tflite))
    first = {"first": places.tensors["first"]}
    for tensors, lost, line in (
        (first, ("second",), None),
        ({}, ("first", "second"), "none of the signs before 2 layers could be compared"),
    ):
        less = dataclasses.replace(places, tensors=tensors, not_found=lost)
        monkeypatch.setattr(check_module, "find_signs", lambda *_, less=less: less)
        report = export.check(model, tflite)
        assert report.failures == (() if line is None else (line,))
        assert report.not_compared == lost
        assert not report.all_signs
        assert set(report.signs) == set(tensors)
        negated = changed(tflite, "FULLY_CONNECTED", 1, lambda v: -v)
        assert "differs by" in export.check(model, negated).failures[-1]


@pytest.mark.parametrize("named", [False, True], ids=["list", "dictionary"])
def test_several_outputs(named):
    images = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(32, 3, name="stem")(images)
    x = layers.BinaryConv2D(32, 3, name="binary")(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    outputs = [tf.keras.layers.Dense(n, name=f"of{n}")(x) for n in (10, 4, 7)]
    if named:
        outputs = dict(zip("bca", outputs, strict=True))
    model = exports.randomized(tf.keras.Model(images, outputs))
    tflite = export.convert(model)
    batch = exports.images(model, 6)
    report = export.check(model, tflite, batch)
    assert report.passed, report.failures
    first = next(inference.logits(model, [batch]))
    assert first.shape == (6, 7 if named else 10)
    np.testing.assert_allclose(next(inference.logits(tflite, [batch])), first, atol=1e-3)
    other = changed(tflite, "FULLY_CONNECTED", 1, lambda v: -v)
    assert "given the same signs, the logits of of" in export.check(model, other, batch).failures[0]


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D"])
def test_a_kernel_smaller_than_its_stride(kind):
    """XNNPACK would compute it wrongly if the file said "same" where nothing is padded."""
    images = tf.keras.Input((32, 32, 3))
    options = {"filters": 8} if kind == "Conv2D" else {}
    layer = getattr(tf.keras.layers, kind)(kernel_size=2, strides=4, padding="same", **options)
    model = tf.keras.Model(images, layer(images))
    report = export.check(model, export.convert(model))
    assert report.passed, report.failures
    assert report.kernels == ("TFLite's kernels", "XNNPACK", "indirect BGEMM")
