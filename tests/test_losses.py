"""The distribution loss against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.losses import CrossEntropy, DistributionLoss


def logits(seed):
    return 3 * np.random.default_rng(seed).normal(size=(6, 11))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_loss_and_gradient_match_numpy():
    teacher, student = logits(0), logits(1)
    x = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = DistributionLoss()(teacher, x)
    p = np.exp(log_softmax(teacher))
    np.testing.assert_allclose(loss, -(p * log_softmax(student)).sum(-1).mean(), rtol=1e-12)
    expected = (np.exp(log_softmax(student)) - p) / len(student)
    np.testing.assert_allclose(tape.gradient(loss, x), expected, atol=1e-12)


def test_no_gradient_reaches_the_teacher():
    teacher = tf.constant(logits(0))
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        loss = DistributionLoss()(teacher, logits(1))
    assert tape.gradient(loss, teacher) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    teacher, student = logits(0), tf.cast(logits(1), dtype)
    loss = DistributionLoss()(teacher, student)
    expected = DistributionLoss()(teacher, tf.cast(student, "float32"))
    assert loss.dtype == tf.float32
    np.testing.assert_array_equal(loss, expected)


def test_loss_survives_serialization():
    loss = DistributionLoss(name="soft", reduction="sum")
    copy = tf.keras.losses.deserialize(tf.keras.losses.serialize(loss))
    assert copy.get_config() == loss.get_config()
    np.testing.assert_array_equal(copy(logits(0), logits(1)), loss(logits(0), logits(1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_and_its_gradient_are_pytorchs(smoothing):
    torch = pytest.importorskip("torch")
    labels = np.array([0, 10, 3, 3, 7, 1])
    theirs = torch.tensor(logits(0), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(labels), label_smoothing=smoothing
    )
    expected.backward()
    ours = tf.constant(logits(0))
    loss = CrossEntropy(smoothing)
    loss = tf.keras.losses.deserialize(tf.keras.losses.serialize(loss))
    with tf.GradientTape() as tape:
        tape.watch(ours)
        received = loss(labels[:, None], ours)
    np.testing.assert_allclose(received, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(received, ours), theirs.grad, atol=1e-12)
    assert CrossEntropy(smoothing)(labels, tf.cast(ours, "float16")).dtype == tf.float32
