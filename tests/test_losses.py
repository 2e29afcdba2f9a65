"""The distribution loss against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.losses import CrossEntropy, DistributionLoss, weighted_by_image


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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_teachers_are_weighted_by_image_as_in_pytorch(count):
    """As in BNext's published training, without its division by their number."""
    torch = pytest.importorskip("torch")
    teachers = np.stack([logits(seed) for seed in range(count)], axis=1)
    theirs = torch.tensor(logits(9), requires_grad=True)
    each = [
        torch.nn.functional.cross_entropy(theirs, torch.tensor(t).softmax(-1), reduction="none")
        for t in teachers.swapaxes(0, 1)
    ]
    shares = torch.stack(each, dim=-1).softmax(-1).detach()
    expected = sum(share * loss for share, loss in zip(shares.T, each, strict=True))
    expected.mean().backward()
    ours = tf.constant(logits(9))
    with tf.GradientTape() as tape:
        tape.watch(ours)
        received = DistributionLoss()(teachers, ours)
    np.testing.assert_allclose(
        weighted_by_image(teachers, ours), expected.detach().numpy(), rtol=1e-12
    )
    np.testing.assert_allclose(received, expected.mean().item(), rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(received, ours), theirs.grad, atol=1e-12)
    if count == 1:
        np.testing.assert_allclose(received, DistributionLoss()(teachers[:, 0], ours), rtol=1e-12)
    else:  # the teacher that the student is further from counts more
        further = shares.numpy().argmax(-1)
        np.testing.assert_array_equal(further, torch.stack(each, dim=-1).detach().argmax(-1))


@pytest.mark.parametrize("shape", [(6,), (6, 10), (5, 2, 11), (6, 2, 10), (6, 2, 2, 11)])
def test_what_is_no_teachers_logits_is_refused(shape):
    with pytest.raises(ValueError, match="Expected y_true to be the teacher's logits"):
        DistributionLoss().call(np.zeros(shape), tf.constant(logits(1)))


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
