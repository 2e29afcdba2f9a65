"""Folding: the same network to 1e-9 in float64, with the operators that it promises."""

import exports
import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import binarize, layers, models
from larq_adambnn.export import check, convert, fold, operators
from larq_adambnn.export.doctor import diagnose
from larq_adambnn.export.fold import signs_and_scales
from larq_adambnn.export.folding import rules
from larq_adambnn.export.folding.records import Record
from larq_adambnn.export.folding.rules import rewrite


def logits(model, images):
    return model(images, training=False).numpy()


def assert_exact(model, folded, count=4):
    images = exports.images(model, count).astype("float64")
    expected = logits(model, images)
    assert expected.std(axis=0).min() > 1e-4  # the images are told apart
    assert np.abs(logits(folded, images) - expected).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "size", "width", "pad_values"),
    [("reactnet_a", 32, 0.125, 0), ("reactnet18", 64, 0.125, 1)],
)
def test_folded_networks_compute_the_same(name, size, width, pad_values, float64):
    model = exports.network(name, size, width, pad_values=pad_values)
    folding = fold(model)
    assert_exact(model, folding.model)
    assert folding.batch_norms == sum("BatchNorm" in type(x).__name__ for x in model.layers)
    assert folding.batch_norms_left == 0
    signs = len({id(x.input) for x in model.layers if isinstance(x, layers.BinaryConv2D)})
    assert folding.shifts == signs + 2 * sum(isinstance(x, layers.RPReLU) for x in model.layers)
    assert folding.shifts_left == signs - 1  # the first is in the batch norm of the stem
    assert not folding.zero_scales


def test_networks_that_are_not_all_binary_fold_too(float64):
    model = exports.network("reactnet18", 32, 0.125)
    for form in ((True, False), (False, False)):
        assert_exact(model, fold(binarize(model, *form)).model)


def test_the_original_stays_as_it_is():
    model = exports.randomized(exports.tiny((32, 32, 3), 10))
    weights = [w.numpy() for w in model.weights]
    images = exports.images(model, 2)
    before = logits(model, images)
    fold(model)
    for weight, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    np.testing.assert_array_equal(logits(model, images), before)


def test_small_images_are_padded_as_meant(float64):
    """LCE's zero padding assumes images not smaller than the kernel."""
    for strides, size in ((1, 1), (1, 2), (2, 2)):
        inputs = tf.keras.Input((size, size, 8))
        x = layers.BinaryConv2D(8, 3, strides=strides, name="conv")(inputs)
        x = tf.keras.layers.BatchNormalization(name="bn")(x)
        model = exports.randomized(tf.keras.Model(inputs, x))
        folding = fold(model)
        assert folding.small_images == ["conv"]
        images = exports.images(model, 8).astype("float64")
        assert np.abs(logits(folding.model, images) - logits(model, images)).max() < 1e-9


def test_a_scale_of_zero_is_a_constant(float64):
    model = exports.randomized(exports.tiny((32, 32, 3), 10))
    layer = model.get_layer("conv2")
    kernel = layer.kernel.numpy()
    kernel[..., [1, 4]] = 0
    layer.set_weights([kernel])
    folding = fold(model)
    assert folding.zero_scales == {"conv2": 2}
    assert_exact(model, folding.model)
    signs, scales = signs_and_scales(layer)
    assert set(np.unique(signs)) == {-1, 1}
    np.testing.assert_array_equal(np.flatnonzero(scales == 0), [1, 4])


def test_unknown_layers_nested_models_and_shared_tensors(float64):
    """What has no rule is copied, with what reaches it added before it."""
    inner_input = tf.keras.Input((8, 8, 6))
    x = tf.keras.layers.BatchNormalization(name="inner_bn")(inner_input)
    x = layers.RPReLU(name="inner_rprelu")(x)
    inner = tf.keras.Model(inner_input, x, name="inner")
    images = x = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(6, 3, name="conv", padding="same", activation="elu")(x)
    y = inner(x)
    z = tf.keras.layers.Conv2D(6, 1, use_bias=False, name="shared")(y)
    a = tf.keras.layers.BatchNormalization(name="bn")(z)
    b = tf.keras.layers.Activation("tanh", name="tanh")(z)
    x = tf.keras.layers.Multiply(name="multiply")([a, b])
    x = tf.keras.layers.Add(name="add")([x, y, y])
    x = tf.keras.layers.DepthwiseConv2D(3, name="depthwise")(layers.Shift(name="shift")(x))
    x = tf.keras.layers.Concatenate(name="concatenate")([x, layers.Shift(name="shift2")(x)])
    x = tf.keras.layers.Dropout(0.5, name="dropout")(x)
    x = tf.keras.layers.MaxPooling2D(name="pool")(layers.Shift(name="shift3")(x))
    x = tf.keras.layers.Flatten(name="flatten")(x)
    model = tf.keras.Model(images, tf.keras.layers.Dense(5, name="dense")(x))
    assert_exact(exports.randomized(model), fold(model).model)


def test_a_zoo_network_folds(float64):
    model = models.build("QuickNetSmall", input_shape=(64, 64, 3), num_classes=10)
    model = tf.keras.Model(model.input, model.layers[-1].input)  # whose last layer is float32
    exports.randomized(model)
    folding = fold(model)
    assert_exact(model, folding.model)
    assert folding.batch_norms_left < folding.batch_norms


def test_signs_and_scales():
    def scale_of(kernel_quantizer):
        layer = lq.layers.QuantConv2D(4, 3, kernel_quantizer=kernel_quantizer)
        layer.build((None, 8, 8, 2))
        return layer, signs_and_scales(layer)

    layer, (signs, scales) = scale_of("ste_sign")
    np.testing.assert_array_equal(signs, np.where(layer.kernel.numpy() >= 0, 1, -1))
    np.testing.assert_array_equal(scales, np.ones(4))
    layer, (signs, scales) = scale_of("magnitude_aware_sign")
    np.testing.assert_allclose(scales, np.abs(layer.kernel.numpy()).mean((0, 1, 2)), rtol=1e-6)
    for other in ("ste_tern", "dorefa_quantizer", None):
        assert scale_of(other)[1] is None


def test_what_is_no_functional_model():
    class Own(tf.keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match=r"Expected a functional model.*Received: own"):
        fold(Own(name="own"))


def record(kind, inputs, outputs, **fields):
    """A record between values such as "0 1"; vectors may be lists."""
    vectors = {k: np.array(fields.pop(k), "d") for k in ("scale", "bias", "kernel") if k in fields}
    inputs, outputs = (tuple(map(int, values.split())) for values in (inputs, outputs))
    return Record(kind, "", inputs, outputs, **vectors, **fields)


def constant(before, after, *values):
    return record("constant", before, after, bias=values)


def sign(value):
    return record("binary", value, "", sink=True)


def assert_records(found, expected):
    assert [(r.kind, r.inputs, r.outputs) for r in found] == [
        (r.kind, r.inputs, r.outputs) for r in expected
    ]
    for one, other in zip(found, expected, strict=True):
        for field in ("scale", "bias"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


START = record("input", "", "0")


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (rules.drop, [constant("0", "1", 0, 0), sign("1")], [sign("0")]),
        (rules.drop, [constant("0", "1", 1, 2), sign("0")], [sign("0")]),
        (
            rules.merge,
            [constant("0", "1", 1, 2), constant("1", "2", 10, 20), sign("2")],
            [constant("0", "1", 1, 2), constant("0", "2", 11, 22), sign("2")],
        ),
        (
            rules.share,
            [constant("0", "1", 1, 2), constant("0", "2", 1, 2), record("sum", "1 2", "3")],
            [constant("0", "1", 1, 2), record("sum", "1 1", "3")],
        ),
        (
            rules.fall,
            [constant("0", "1", 1, 2), record("pool", "1", "2"), sign("2")],
            [constant("0", "1", 1, 2), record("pool", "0", "3"), constant("3", "2", 1, 2)],
        ),
        (
            rules.fall,
            [constant("0", "1", 1, 2), record("sum", "1 0 1", "2")],
            [constant("0", "1", 1, 2), record("sum", "0 0 0", "3"), constant("3", "2", 2, 4)],
        ),
        (
            rules.fall,
            [constant("0", "1", 1, 2), record("concatenation", "0 1", "2", widths=(2, 2))],
            [
                constant("0", "1", 1, 2),
                record("concatenation", "0 0", "3"),
                constant("3", "2", 0, 0, 1, 2),
            ],
        ),
        (
            rules.fall_in,
            [constant("0", "1", 1, 2), record("affine", "1", "2", scale=[3, 4], bias=[5, 6])],
            [constant("0", "1", 1, 2), record("affine", "0", "2", scale=[3, 4], bias=[8, 14])],
        ),
        (
            rules.fall_in,
            [
                constant("0", "1", 1, 2),
                record("dense", "1", "2", scale=[2], bias=[5], kernel=[[3], [4]]),
            ],
            [constant("0", "1", 1, 2), record("dense", "0", "2", scale=[2], bias=[27])],
        ),
        (
            rules.fall_in,
            [
                constant("0", "1", 1, 2),
                record("convolution", "1", "2", scale=[1], bias=[5], kernel=[[[[3], [4]]] * 2]),
            ],
            [constant("0", "1", 1, 2), record("convolution", "0", "2", scale=[1], bias=[27])],
        ),
        (
            rules.fuse,
            [
                record("dense", "0", "1", scale=[1, 2], bias=[3, 4]),
                record("affine", "1", "2", scale=[10, 20], bias=[5, 6]),
            ],
            [record("dense", "0", "2", scale=[10, 40], bias=[35, 86])],
        ),
        (
            rules.take_back,
            [
                record("affine", "0", "1", scale=[1, 1], bias=[3, 4]),
                record("sum", "0 1", "2"),
                constant("2", "3", 10, 20),
                sign("3"),
            ],
            [
                record("affine", "0", "4", scale=[1, 1], bias=[13, 24]),
                constant("4", "1", -10, -20),
                record("sum", "0 1", "2"),
                constant("2", "3", 10, 20),
                sign("3"),
            ],
        ),
        (
            rules.take_back,
            [
                record("affine", "0", "1", scale=[1], bias=[3]),
                record("affine", "0", "2", scale=[1], bias=[4]),
                record("concatenation", "1 2", "3", widths=(1, 1)),
                constant("3", "4", 10, 20),
                sign("4"),
            ],
            [
                record("affine", "0", "5", scale=[1], bias=[13]),
                constant("5", "1", -10),
                record("affine", "0", "6", scale=[1], bias=[24]),
                constant("6", "2", -20),
                record("concatenation", "1 2", "3"),
                constant("3", "4", 10, 20),
                sign("4"),
            ],
        ),
    ],
)
def test_a_rule(rule, before, after):
    """One step, with numbers by hand."""
    graph = rules.Graph([START, *before])
    changes = next(found for r in graph.records if (found := rule(r, graph)))
    found = [new for r in graph.records for new in changes.get(r, [r])]
    assert_records(found[: len(after) + 1], [START, *after])


@pytest.mark.parametrize(
    ("rule", "records"),
    [
        (rules.drop, [constant("0", "1", 0, 1), sign("1")]),
        (rules.share, [constant("0", "1", 1), constant("0", "2", 2), sign("1"), sign("2")]),
        (rules.fall_in, [constant("0", "1", 1), sign("1")]),
        (
            rules.fuse,  # the sign needs what is before the affine
            [
                record("dense", "0", "1", scale=[1], bias=[3]),
                record("affine", "1", "2", scale=[1], bias=[3]),
                sign("1"),
            ],
        ),
        (
            rules.take_back,  # in two ways, so that twice as much would be added
            [
                record("affine", "0", "1", scale=[1], bias=[3]),
                record("pool", "1", "2"),
                record("sum", "1 2", "3"),
                constant("3", "4", 1),
                sign("4"),
            ],
        ),
        (
            rules.take_back,  # a sign before would get a constant instead
            [
                record("affine", "0", "1", scale=[1], bias=[3]),
                sign("1"),
                constant("1", "2", 1),
                record("prelu", "2", "3", sink=True),
            ],
        ),
    ],
)
def test_where_a_rule_does_not_apply(rule, records):
    assert rewrite([START, *records], [rule]) == [START, *records]


def test_a_constant_that_is_taken_back_is_added_after_the_first_sink():
    """The stem of ReActNet: its bias has the first sign's shift, and the sum's the difference."""
    records = [
        record("affine", "0", "1", scale=[1], bias=[3]),
        constant("1", "2", 10),
        record("binary", "2", "3", sink=True, scale=[2], bias=[4]),
        record("sum", "3 1", "4"),
        record("prelu", "4", "5", sink=True),
    ]
    _, stem, binary, added, prelu = rewrite([START, *records])
    assert (stem.kind, binary.kind, added.kind, prelu.kind) == ("affine", "binary", "sum", "prelu")
    assert (stem.bias, binary.bias) == (13, 4 - 10)
    assert stem.outputs == binary.inputs == added.inputs[1:]


def test_the_blocks_in_the_docstring():
    """Its two lists, with numbers for the letters."""
    a, b, c, d, g, s = 1, 2, 4, 8, 3, 5
    a2, b2, c2, g2, s2 = 16, 32, 64, 7, 11
    records = [
        constant("0", "1", a),
        record("binary", "1", "2", sink=True, scale=[s], bias=[0]),
        record("affine", "2", "3", scale=[g], bias=[b]),
        record("sum", "3 0", "4"),
        constant("4", "5", c),
        record("prelu", "5", "6", sink=True),
        constant("6", "7", d),
        constant("7", "8", a2),
        record("binary", "8", "9", sink=True, scale=[s2], bias=[0]),
        record("affine", "9", "10", scale=[g2], bias=[b2]),
        record("sum", "10 7", "11"),
        constant("11", "12", c2),
        record("prelu", "12", "13", sink=True),
    ]
    found = rewrite([START, *records])
    kinds = ["constant", "binary", "sum", "prelu"]
    assert [r.kind for r in found] == ["input", *kinds, *kinds]
    _, shift, conv, _, _, shift2, conv2, total, _ = found
    assert (shift.bias, conv.scale, conv.bias) == (a, g * s, b + c)
    assert (shift2.bias, conv2.scale, conv2.bias) == (a2 + d, g2 * s2, b2 + c2 + d)
    assert total.inputs == (*conv2.outputs, *shift2.inputs)


def test_a_sum_of_a_value_and_its_pool(float64):
    """A constant in the batch norm would be added twice."""
    images = tf.keras.Input((8, 8, 4))
    x = tf.keras.layers.BatchNormalization(name="bn")(images)
    x = tf.keras.layers.Add(name="add")([x, tf.keras.layers.MaxPooling2D(1, name="pool")(x)])
    model = exports.randomized(tf.keras.Model(images, layers.RPReLU(name="rprelu")(x)))
    assert_exact(model, fold(model).model)


def test_numbers_that_are_not_finite_come_to_an_end():
    """A diverged network is folded too; the check will tell."""
    model = exports.randomized(exports.tiny((32, 32, 3), 10))
    for layer in model.layers:
        for weight in layer.weights:
            if "shift" in weight.name:
                weight.assign(np.full(weight.shape, np.nan if len(layer.name) % 2 else np.inf))
    assert not np.isfinite(logits(fold(model).model, exports.images(model, 1))).all()


def block(filters=32, name=""):
    """A model of a shift, a binary convolution, a batch norm and an RPReLU."""
    inputs = tf.keras.Input((8, 8, filters))
    x = layers.Shift(name="shift")(inputs)
    x = layers.BinaryConv2D(filters, 3, pad_values=1, name="conv")(x)
    x = tf.keras.layers.BatchNormalization(name="bn")(x)
    x = tf.keras.layers.Add(name="add")([x, inputs])
    return tf.keras.Model(inputs, layers.RPReLU(name="rprelu")(x), name=name)


def shared(x):
    conv = layers.BinaryConv2D(32, 3, pad_values=1, name="conv")
    for number in (1, 2):
        y = conv(layers.Shift(name=f"shift{number}")(x))
        y = tf.keras.layers.BatchNormalization(name=f"bn{number}")(y)
        x = tf.keras.layers.Add(name=f"add{number}")([x, y])
    return x


def called_twice(x):
    nested = block(name="nested")
    return nested(nested(x))


def equal_names(x):
    return block(name="second")(block(name="first")(x))


def sequential(x):
    parts = [
        layers.Shift(name="shift"),
        layers.BinaryConv2D(32, 3, pad_values=1, name="conv"),
        tf.keras.layers.BatchNormalization(name="bn"),
    ]
    return tf.keras.Sequential(parts, name="parts")(block(name="first")(x))


@pytest.mark.parametrize("middle", [shared, called_twice, equal_names, sequential])
def test_shared_layers_and_nested_models(middle):
    images = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(32, 1, name="stem")(images)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(middle(x))
    model = tf.keras.Model(images, tf.keras.layers.Dense(10, name="classifier")(x))
    exports.randomized(model)
    folding = fold(model)
    assert folding.batch_norms == 2
    assert folding.batch_norms_left == 0
    # The stem, and what is linear between two convolutions, take the shift after them back
    assert folding.shifts_left == (0 if middle is shared else 1)
    names = [layer.name for layer in folding.model.layers]
    assert {"stem", "conv", "conv_2", "pool", "classifier"} <= set(names)
    inputs = exports.images(model, 4)
    expected = logits(model, inputs)
    assert np.abs(logits(folding.model, inputs) - expected).max() < 1e-5 * np.abs(expected).max()
    tflite = convert(model)
    found = operators(tflite)
    assert found["LceBconv2d"] == 2
    assert "MUL" not in found
    diagnosis = diagnose(model, tflite, folding.model)
    assert set(diagnosis.converted) == {"conv", "conv_2"}
    assert len(set(diagnosis.converted.values())) == 2
    report = check(model, tflite)
    assert report.passed, report.failures
    assert report.all_signs


def test_names_with_numbers_of_their_own(float64):
    """A second call's name is not that of another layer."""
    images = x = tf.keras.Input((4, 4, 8))
    conv = tf.keras.layers.Conv2D(8, 3, padding="same", activation="elu", name="conv")
    for layer in (conv, conv, tf.keras.layers.Conv2D(8, 1, name="conv_2")):
        x = layer(x)
    model = exports.randomized(tf.keras.Model(images, x))
    folded = fold(model).model
    assert {"conv", "conv_2", "conv_3"} <= {layer.name for layer in folded.layers}
    assert folded.get_layer("conv_2").kernel_size == (1, 1)
    assert_exact(model, folded)
