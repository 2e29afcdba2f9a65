"""The self-test of a file: small, easily read, passed by the file itself and by no other."""

import struct

import exports
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import export, layers
from larq_adambnn.export import int8, interpreter, selftest


def network(size=16, seed=0):
    images = x = tf.keras.Input((size, size, 3))
    x = tf.keras.layers.Conv2D(32, 3, 2, "same")(images)
    x = layers.BinaryConv2D(32, 3, pad_values=1)(x)
    x = tf.keras.layers.BatchNormalization()(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    outputs = [tf.keras.layers.Dense(units)(x) for units in (10, 3)]
    return exports.randomized(tf.keras.Model(images, outputs), seed)


@pytest.fixture(scope="module")
def made():
    """(model, file, its self-test)"""
    model = network()
    tflite = export.convert(model)
    return model, tflite, selftest.make(tflite, exports.images(model, 40))


def test_the_format(made):
    """Read as the module describes it, without its code."""
    model, tflite, content = made
    mark, images, inputs, outputs, scale = struct.unpack("<8siiif", content[:24])
    assert (mark, images, inputs, outputs) == (b"LCETEST1", 8, 16 * 16 * 3, 13)
    reals = np.frombuffer(content[24:], "<f4", outputs * (images + 1)).reshape(-1, outputs)
    tolerance, expected = reals[0], reals[1:]
    values = np.frombuffer(content[-images * inputs :], np.int8).reshape(images, 16, 16, 3)
    assert len(content) == 24 + reals.nbytes + values.nbytes
    given = np.float32(scale) * values.astype(np.float32)
    own = interpreter.run(interpreter.load(tflite), given)
    np.testing.assert_array_equal(np.concatenate(own, axis=1), expected)
    keras = np.concatenate(model.predict(given, verbose=0), axis=1)
    assert (np.abs(keras - expected) <= tolerance).all()
    assert (tolerance > 0).all()
    assert tolerance[:10].max() < expected[:, :10].std()
    known = {
        image.tobytes() for image in np.round(exports.images(model, 40) / scale).astype(np.int8)
    }
    assert all(image.tobytes() in known for image in values)


def test_it_is_small():
    model = network(192)
    content = selftest.make(export.convert(model), exports.images(model, 8))
    assert struct.unpack("<8siii", content[:20])[1:] == (2, 192 * 192 * 3, 13)
    assert len(content) < 2**18


def test_only_the_same_network_passes(made):
    model, tflite, content = made
    assert selftest.failure(tflite, content) == ""
    eight = int8.quantize(export.fold(model), exports.images(model, 40))
    for int8_io in (False, True):
        quantized, _ = int8.convert_int8(eight, int8_io=int8_io)
        own = selftest.make(quantized, exports.images(model, 40))
        assert selftest.failure(quantized, own) == ""
    assert "expected" in selftest.failure(export.convert(network(seed=1)), content)
    assert "for images of 768 values, not 192" in selftest.failure(
        export.convert(network(8)), content
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: b"LCETEST2" + c[8:],
        lambda c: c[:20],
        lambda c: c[:-1],
        lambda c: c + b"0",
        lambda c: c[:8] + struct.pack("<i", 0) + c[12:],
        lambda c: c[:8] + struct.pack("<i", -1) + c[12:],
        lambda c: c[:8] + struct.pack("<i", 2**30) + c[12:],
    ],
)
def test_damaged_ones(damage, made):
    with pytest.raises(ValueError, match="Expected a self-test"):
        selftest.read(damage(made[2]))
