"""Accuracy by a network, whatever the size of its batches."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import data, inference

IMAGES, CLASSES = 37, 7


def test_hits_are_those_of_a_stable_ranking():
    random = np.random.default_rng(0)
    outputs = random.integers(-3, 3, (200, CLASSES)).astype(np.float32)  # with many ties
    labels = random.integers(0, CLASSES, 200)
    ranking = np.argsort(-outputs, axis=-1, kind="stable")
    expected = [(ranking[:, :k] == labels[:, np.newaxis]).any(-1).sum() for k in (1, 5)]
    np.testing.assert_array_equal(inference._hits(outputs, labels), [200, *expected])


def test_nan_is_never_right():
    outputs = np.array([[np.nan] * CLASSES, [1, np.nan, 0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(inference._hits(outputs, np.array([0, 0])), [2, 0, 1])


class Counted(tf.keras.layers.Layer):
    """The first pixels of an image as logits; counts how often it is called."""

    calls = 0

    def call(self, images):
        Counted.calls += 1
        return images[:, 0, :CLASSES, 0]


@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_a_model_is_traced_once_for_any_batches(batch_size):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 32, 32, 1), np.uint8)
    labels = random.integers(0, CLASSES, IMAGES)
    given = tf.data.Dataset.from_tensor_slices((images, labels))
    names = [str(label) for label in range(CLASSES)]
    dataset = data.from_datasets(given, given, names, image_size=32, batch_size=8, crop="none")
    inputs = tf.keras.Input((32, 32, 1))
    model = tf.keras.Model(inputs, Counted()(inputs))
    Counted.calls = 0
    found = inference.evaluate(model, dataset, batch_size=batch_size)
    assert Counted.calls == 1
    ranking = np.argsort(-images[:, 0, :CLASSES, 0].astype(int), axis=-1, kind="stable")
    right = ranking == labels[:, np.newaxis]
    expected = inference.Accuracy(IMAGES, right[:, 0].mean(), right[:, :5].any(-1).mean())
    assert found == expected
