"""The proof finds every defect that is planted in a file, and none in files without."""

import exports
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python.schema_py_generated import BuiltinOperator

from larq_adambnn import export, layers
from larq_adambnn.export import int8
from larq_adambnn.export.convert import convert_as_is
from larq_adambnn.export.tflite import Graph

CHANNEL = 5


def network(pad_values=1.0):
    """Real and binary layers, one between packed signs, pools, shortcuts, PReLUs, two outputs."""

    def binary(x, filters, size, name):
        pad = pad_values if size > 1 else 0.0
        x = layers.BinaryConv2D(filters, size, pad_values=pad, name=name)(x)
        return tf.keras.layers.BatchNormalization(name=f"{name}_bn")(x)

    images = tf.keras.Input((16, 16, 3), name="images")
    x = tf.keras.layers.Conv2D(32, 3, 2, "same", name="stem")(images)
    y = binary(layers.Shift(name="shift")(x), 32, 3, "first")
    x = layers.RPReLU(name="rprelu")(tf.keras.layers.Add(name="add")([x, y]))
    y = binary(binary(x, 64, 1, "second"), 64, 3, "third")
    x = tf.keras.layers.AveragePooling2D(2, name="halve")(y)
    y = binary(x, 64, 3, "fourth")
    x = tf.keras.layers.Add(name="add4")([x, y])
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = [tf.keras.layers.Dense(10, name=name)(x) for name in ("classifier", "other")]
    return exports.randomized(tf.keras.Model(images, outputs, name="defects"))


def converted(model, images, quantized):
    folding = export.fold(model)
    if not quantized:
        return convert_as_is(folding.model)
    return int8.convert_int8(int8.quantize(folding, images), int8_io=True)[0]


@pytest.fixture(scope="module", params=[False, True], ids=["float", "int8"])
def exported(request):
    """(model, images, its file, whether that is quantized, a file with another padding)."""
    model = network()
    images = exports.images(model, 60)
    files = []
    for padding in (1.0, 0.0):
        other = network(padding)
        other.set_weights(model.get_weights())
        files.append(converted(other, images, request.param))
    return model, images, files[0], request.param, files[1]


def constant(kind, place, change, number=0):
    """Other values of a constant that the n-th operator of a kind takes."""

    def plant(graph):
        operator = [op for op in graph.operators if op.kind == kind][number]
        tensor = operator.inputs[place]
        values = graph.constant(tensor)
        given = change(values.copy())
        if values.dtype.kind == "i" and given.dtype.kind == "f":
            limits = np.iinfo(values.dtype)
            given = np.clip(np.round(given), limits.min, limits.max)
        buffer = graph.model.buffers[graph.graph.tensors[tensor].buffer]
        buffer.data = np.frombuffer(given.astype(values.dtype).tobytes(), np.uint8)

    return plant


def bypass(kind, place, number=0):
    """What follows an operator takes one of its inputs in the place of its output."""

    def plant(graph):
        operator = [op for op in graph.operators if op.kind == kind][number]
        for other in graph.graph.operators:
            other.inputs = [
                operator.inputs[place] if tensor == operator.outputs[0] else tensor
                for tensor in other.inputs
            ]

    return plant


def swapped_outputs(graph):
    graph.graph.outputs = list(graph.graph.outputs)[::-1]


def other_pool(graph):
    (code,) = {
        raw.opcodeIndex
        for op, raw in zip(graph.operators, graph.graph.operators, strict=True)
        if op.kind == "AVERAGE_POOL_2D"
    }
    for field in ("builtinCode", "deprecatedBuiltinCode"):
        setattr(graph.model.operatorCodes[code], field, BuiltinOperator.MAX_POOL_2D)


def shifted_zero_point(graph):
    """Of the slopes, by an eighth of their range; real ones are as much too large."""
    (tensor,) = {op.inputs[1] for op in graph.operators if op.kind == "PRELU"}
    quantization = graph.graph.tensors[tensor].quantization
    if graph.scale(tensor) is None:
        constant("PRELU", 1, lambda slopes: slopes + np.ptp(slopes) / 8)(graph)
    else:
        quantization.zeroPoint = quantization.zeroPoint - 32


def shifted_thresholds(graph):
    """By 4 taps, of the convolution between signs; in int8 its bias is the threshold."""
    operator = [op for op in graph.operators if op.kind == "LceBconv2d"][1]
    if operator.inputs[4] >= 0 and graph.constant(operator.inputs[4]) is not None:
        constant("LceBconv2d", 4, lambda thresholds: thresholds + 4, number=1)(graph)
    else:
        multiplier = graph.constant(operator.inputs[2])
        constant("LceBconv2d", 3, lambda bias: bias + 4 * multiplier, number=1)(graph)


def one(values, change):
    """Changes one channel."""
    values[CHANNEL] = change(values[CHANNEL])
    return values


def flipped(words):
    words.flat[7] ^= 1 << 3
    return words


def stale(values):
    return values * np.random.default_rng(0).uniform(0.6, 1.6, values.shape)


DEFECTS = {
    "negated classifier": constant("FULLY_CONNECTED", 1, lambda v: -v),
    "negated second classifier": constant("FULLY_CONNECTED", 1, lambda v: -v, number=1),
    "swapped classes": constant("FULLY_CONNECTED", 1, lambda v: v[[1, 0, *range(2, 10)]]),
    "swapped outputs": swapped_outputs,
    "constant channel": constant("LceBconv2d", 3, lambda v: one(v, lambda b: -1e4 * np.sign(b))),
    "negated channel": constant("LceBconv2d", 2, lambda v: one(v, lambda m: -m)),
    "permuted channels": constant("CONV_2D", 1, lambda v: np.roll(v, 1, axis=0)),
    "flipped bit": constant("LceBconv2d", 1, flipped),
    "wrong scale": constant("LceBconv2d", 2, lambda v: 1.25 * v),
    "bias off": constant("CONV_2D", 2, lambda v: v + 0.1 * np.ptp(v)),
    "stale batch norm": constant("LceBconv2d", 2, stale, number=3),
    "shifted thresholds": shifted_thresholds,
    "shifted zero point": shifted_zero_point,
    "no activation": bypass("PRELU", 0),
    "no shortcut": bypass("ADD", 1),
    "another pool": other_pool,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect, exported):
    model, images, tflite, quantized, _ = exported
    graph = Graph(tflite)
    DEFECTS[defect](graph)
    assert export.check(model, graph.to_bytes(), images, quantized=quantized).failures


def test_another_padding_is_found(exported):
    model, images, _, quantized, padded_otherwise = exported
    assert export.check(model, padded_otherwise, images, quantized=quantized).failures


def test_without_a_defect_it_passes(exported):
    model, images, tflite, quantized, _ = exported
    report = export.check(model, tflite, images, quantized=quantized)
    assert report.passed, report.failures
    assert set(report.signs) == {"first", "second", "third", "fourth"}
    assert report.kernels == ("TFLite's kernels", "XNNPACK", "indirect BGEMM")
    assert report.not_compared == ()
    assert report.all_signs
