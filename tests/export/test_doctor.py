"""The conversion doctor: what became of each binary layer, why, and what a file holds."""

import exports
import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import binarize, export, layers, models
from larq_adambnn.export.convert import convert_as_is
from larq_adambnn.export.device_times import features, work
from larq_adambnn.export.doctor import binary_layers, bits, diagnose, pack
from larq_adambnn.export.layer_work import layer_work
from larq_adambnn.export.tflite import Graph

SIGNS = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}


def model_of(binary, *, size=8, channels=32):
    """A real convolution, what `binary` makes of its output, and a classifier."""
    images = tf.keras.Input((size, size, 3))
    x = tf.keras.layers.Conv2D(channels, 1, name="stem")(images)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(binary(x))
    return exports.randomized(
        tf.keras.Model(images, tf.keras.layers.Dense(4, name="classifier")(x), name="network")
    )


def conv(filters=32, size=3, **options):
    return lq.layers.QuantConv2D(filters, size, name="conv", **{**SIGNS, **options})


def examined(model):
    """(file, diagnosis) of a model; the file computes what the model does."""
    folding = export.fold(model)
    tflite = convert_as_is(folding.model)
    images = exports.images(model, 3)
    np.testing.assert_allclose(
        export.predict(tflite, images), model.predict(images, verbose=0), rtol=1e-3, atol=1e-3
    )
    return tflite, diagnose(model, tflite, folding.model)


@pytest.mark.parametrize(
    ("binary", "reason", "advice"),
    [
        (
            lambda x: conv(padding="valid", input_quantizer=None)(
                tf.keras.layers.ZeroPadding2D(1)(lq.quantizers.SteSign()(x))
            ),
            "explicit padding stands between",
            'padding="same"',
        ),
        (lambda x: conv(groups=2)(x), "it has 2 groups", "groups=1"),
        (lambda x: conv(input_quantizer=None)(x), "the sign of its input is missing", "ste_sign"),
        (lambda x: conv(input_quantizer="ste_heaviside")(x), "its input is 0 or 1", "ste_sign"),
        (
            lambda x: conv(input_quantizer=None)(tf.keras.layers.ReLU()(x)),
            "it takes what Relu gives",
            "input quantizer",
        ),
        (lambda x: conv(input_quantizer="dorefa_quantizer")(x), "2 bits", "ste_sign"),
        (
            lambda x: lq.layers.QuantDepthwiseConv2D(
                3, name="conv", input_quantizer="ste_sign", depthwise_quantizer="ste_sign"
            )(x),
            "no binary form of QuantDepthwiseConv2D",
            "QuantConv2D",
        ),
        (
            lambda x: tf.keras.layers.Reshape((1, 1, 32))(
                lq.layers.QuantDense(32, name="conv", **SIGNS)(tf.keras.layers.Flatten()(x))
            ),
            "no binary form of QuantDense",
            "keep the layer real",
        ),
    ],
)
def test_what_stays_float_and_why(binary, reason, advice):
    model = model_of(binary)
    _, diagnosis = examined(model)
    assert diagnosis.converted == {}
    assert set(diagnosis.float_layers) == {"conv"}
    assert reason in diagnosis.float_layers["conv"][0]
    assert advice in diagnosis.float_layers["conv"][1]
    assert diagnosis.expected == 1


def test_a_kernel_of_two_scales_in_a_channel():
    def halves(kernel):
        sign = lq.math.sign(kernel)
        return tf.concat([sign[:1], 0.5 * sign[1:]], axis=0)

    halves.precision = 1
    _, diagnosis = examined(model_of(lambda x: conv(kernel_quantizer=halves)(x)))
    assert "not one scale per output channel" in diagnosis.float_layers["conv"][0]


def test_one_of_two_layers_stays_float():
    def binary(x):
        x = layers.BinaryConv2D(32, 3, name="good")(x)
        return conv(groups=4)(tf.keras.layers.BatchNormalization(name="bn")(x))

    _, diagnosis = examined(model_of(binary))
    assert set(diagnosis.converted) == {"good"}
    assert set(diagnosis.float_layers) == {"conv"}
    assert diagnosis.expected == 2


@pytest.mark.parametrize("quantizer", ["magnitude_aware_sign", None])
def test_a_scale_of_zero_is_repaired(quantizer):
    """LCE alone keeps such a layer real; folded it converts, and the channel is a constant."""

    def binary(x):
        x = layers.BinaryConv2D(32, 3, kernel_quantizer=quantizer, name="conv")(x)
        return tf.keras.layers.BatchNormalization(name="bn")(x)

    model = model_of(binary)
    kernel = model.get_layer("conv").kernel.numpy()
    kernel[..., 7] = 0
    model.get_layer("conv").set_weights([kernel])
    assert "LceBconv2d" not in export.operators(convert_as_is(model))
    tflite, diagnosis = examined(model)
    assert set(diagnosis.converted) == {"conv"}
    assert export.check(model, tflite).passed
    operator = Graph(tflite).operators[diagnosis.converted["conv"]]
    assert Graph(tflite).constant(operator.inputs[2])[7] == 0


@pytest.mark.parametrize(("size", "caught"), [(8, True), (7, False)])
def test_explicit_padding_with_ones_at_stride_2(size, caught):
    """LCE would take (1, 1) for "same", which pads (0, 1) if the size is even."""

    def binary(x):
        x = lq.quantizers.SteSign()(x)
        x = tf.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
        return conv(strides=2, padding="valid", input_quantizer=None)(x)

    model = model_of(binary, size=size)
    if caught:
        with pytest.raises(ValueError, match=r"Expected \(0, 1\).*Received: \(1, 1\)"):
            export.convert(model)
    else:
        examined(model)


def test_groups_are_counted_once():
    """LCE's converter takes 32 channels in each, which its kernel refuses."""
    model = model_of(lambda x: conv(64, padding="same", groups=2)(x), channels=64)
    (layer,) = (layer for layer in model.layers if layer.name == "conv")
    assert layer.kernel.shape == (3, 3, 32, 64)
    alone = convert_as_is(model)
    assert export.operators(alone)["LceBconv2d"] == 1
    with pytest.raises(ValueError, match="that LCE's interpreter can run"):
        export.predict(alone, exports.images(model, 1))
    expected = 8 * 8 * 9 * 32 * 64
    diagnosis = diagnose(model, alone, model)
    assert diagnosis.operators["LceBconv2d"]["binary_macs"] == expected
    tflite, diagnosis = examined(model)
    assert diagnosis.operators["CONV_2D"]["real_macs"] == expected + 8 * 8 * 3 * 64
    assert export.check(model, tflite).passed


def test_real_layers_are_not_expected_to_be_binary():
    model = exports.tiny((32, 32, 3), 10)
    assert [layer.name for layer in binary_layers(model)] == ["conv1", "conv2"]
    assert not list(binary_layers(binarize(model, False, False)))
    assert not list(binary_layers(models.build("resnet34", input_shape=(32, 32, 3), num_classes=2)))


def test_a_first_binary_kernel_on_the_image_stays_real():
    images = tf.keras.Input((8, 8, 3))
    x = lq.layers.QuantConv2D(32, 3, kernel_quantizer="ste_sign", name="first")(images)
    x = conv()(tf.keras.layers.BatchNormalization()(x))
    model = tf.keras.Model(images, tf.keras.layers.Flatten()(x))
    assert [layer.name for layer in binary_layers(model)] == ["conv"]


def test_the_operators_against_a_count_by_hand():
    """8 x 8 x 3 -> 1 x 1 conv to 40 -> 3 x 3 binary conv to 48, stride 2 -> classifier of 4."""
    model = model_of(lambda x: conv(48, strides=2, padding="same", pad_values=1)(x), channels=40)
    tflite, diagnosis = examined(model)
    found = diagnosis.operators
    assert found["CONV_2D"] == {
        "count": 1,
        "weight_bytes": 4 * (3 * 40 + 40),
        "binary_macs": 0,
        "real_macs": 8 * 8 * 3 * 40,
    }
    assert found["LceBconv2d"] == {
        "count": 1,
        "weight_bytes": 48 * 9 * 2 * 4 + 2 * 4 * 48,  # 40 signs in 2 words; scale and bias
        "binary_macs": 4 * 4 * 9 * 40 * 48,
        "real_macs": 0,
    }
    assert found["LceQuantize"]["count"] == 1
    assert found["FULLY_CONNECTED"] == {
        "count": 1,
        "weight_bytes": 4 * (48 * 4 + 4),
        "binary_macs": 0,
        "real_macs": 48 * 4,
    }
    weights = sum(row["weight_bytes"] for row in found.values())
    assert weights < len(tflite) < weights + 3000
    assert {kind: row["count"] for kind, row in found.items()} == export.operators(tflite)


@pytest.fixture(scope="module")
def reactnet18():
    """(model, its file, diagnosis)"""
    model = exports.network("reactnet18", 32, 0.0625, pad_values=1)
    return model, *examined(model)


def test_the_operators_of_reactnet18(reactnet18):
    """A shift before each sign but one, a shortcut for each binary convolution, and no more.

    Their MACs are those of the network's own count.  ReActNet-A's are counted in `test_check`.
    """
    model, _, diagnosis = reactnet18
    assert set(diagnosis.converted) == {f"block{number}_conv3x3" for number in range(1, 17)}
    found = diagnosis.operators
    counts = {"LceBconv2d": 16, "LceQuantize": 16, "PRELU": 16, "ADD": 31, "CONV_2D": 4}
    assert {kind: found[kind]["count"] for kind in counts} == counts
    rest = set(found) - set(counts)
    assert rest <= {"CONCATENATION", "AVERAGE_POOL_2D", "REVERSE_V2", "MEAN", "FULLY_CONNECTED"}
    counted = models.complexity(model)
    assert found["LceBconv2d"]["binary_macs"] == counted.bops
    assert sum(row["real_macs"] for row in found.values()) == counted.flops


def test_the_work_of_its_layers_is_near_that_of_its_file(reactnet18):
    model, tflite, _ = reactnet18
    of_layers, of_file = layer_work(model), work(Graph(tflite))
    ours, theirs = (features(sums.values()) for sums in (of_layers, of_file))
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-12)
    np.testing.assert_allclose(ours[2:], theirs[2:], rtol=0.1)


def test_a_zoo_network():
    """QuickNetSmall has no ReActNet layers; all its binary convolutions convert."""
    model = exports.randomized(
        models.build("QuickNetSmall", input_shape=(32, 32, 3), num_classes=10)
    )
    folding = export.fold(model)
    tflite = convert_as_is(folding.model)
    diagnosis = diagnose(model, tflite, folding.model)
    assert diagnosis.float_layers == {}
    assert diagnosis.expected == sum(
        getattr(layer, "kernel_quantizer", None) is not None for layer in model.layers
    )
    report = export.check(model, tflite, exports.images(model, 8))
    assert report.passed, report.failures


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 70])
def test_packing(channels):
    negative = np.random.default_rng(0).random((2, 3, channels)) < 0.5
    words = pack(negative)
    assert words.shape == (2, 3, -(-channels // 32))
    for channel in (0, channels - 1):
        bit = (words[..., channel // 32].astype(np.int64) >> (channel % 32)) & 1
        np.testing.assert_array_equal(bit, negative[..., channel])
    np.testing.assert_array_equal(bits(words, channels), negative)


def test_models_that_cannot_be_converted():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    mixed = model_of(layers.BinaryConv2D(32, 3))
    tf.keras.mixed_precision.set_global_policy("float32")
    with pytest.raises(ValueError, match=r"float32 policy.*layers of bfloat16"):
        export.convert(mixed)
    images = tf.keras.Input((8, 8, 3), batch_size=4)
    with pytest.raises(ValueError, match=r"or of 1.*Received: batch size 4"):
        export.convert(tf.keras.Model(images, layers.BinaryConv2D(32, 3)(images)))
    images = tf.keras.Input((None, None, 3))
    with pytest.raises(ValueError, match=r"fixed size.*Received: input_shape="):
        export.convert(tf.keras.Model(images, layers.BinaryConv2D(32, 3)(images)))
