"""mixup and cutmix against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.data import mixing


def keys(count):
    return tf.constant([[3, index] for index in range(count)], tf.int64)


def pairs(count, height=12, width=10):
    """(seed, two images) of each pair."""
    shape = (count, 2, height, width, 3)
    images = np.random.default_rng(0).random(shape).astype(np.float32)
    return list(zip(keys(2 * count)[::2], images, strict=True))


def beta(seed, alpha):
    """The Beta(alpha, alpha) number that a pair draws."""
    split = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    a, b = tf.random.stateless_gamma((2,), split[1], alpha).numpy()
    return a / (a + b), split[2]


def test_mixup_blends_the_images_of_a_pair():
    for seed, (a, b) in pairs(4):
        mixed = mixing.mix(tf.constant([a, b]), seed, mixup=0.8, cutmix=0.0).numpy()
        share, _ = beta(seed, 0.8)
        np.testing.assert_allclose(mixed[0], share * a + (1 - share) * b, atol=1e-6)
        np.testing.assert_allclose(mixed[1], share * b + (1 - share) * a, atol=1e-6)


def test_cutmix_swaps_a_box_between_the_images_of_a_pair():
    for seed, (a, b) in pairs(8):
        mixed = mixing.mix(tf.constant([a, b]), seed, mixup=0.0, cutmix=1.0).numpy()
        share, place = beta(seed, 1.0)
        y, x = np.floor(tf.random.stateless_uniform((2,), place).numpy() * (12, 10)).astype(int)
        h, w = (int(side * np.sqrt(1 - share)) for side in (12, 10))
        top, left = y - h // 2, x - w // 2
        box = (slice(max(top, 0), max(top + h, 0)), slice(max(left, 0), max(left + w, 0)))
        for received, own, other in [(mixed[0], a, b), (mixed[1], b, a)]:
            expected = own.copy()
            expected[box] = other[box]
            np.testing.assert_array_equal(received, expected)


def test_both_come_half_of_the_time():
    share = tf.function(lambda seed: mixing.share(9, 9, seed, mixup=0.4, cutmix=1.0))
    shares = [share(seed).numpy() for seed in tf.unstack(keys(400))]
    cut = [set(np.unique(share)) <= {0.0, 1.0} for share in shares]
    assert 150 < sum(cut) < 250  # five standard deviations


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_beta_distributed(alpha):
    share = tf.function(lambda seed: mixing.share(1, 1, seed, mixup=alpha, cutmix=0.0)[0, 0, 0])
    shares = np.array([share(seed) for seed in tf.unstack(keys(600))])
    assert np.isfinite(shares).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 600))
    assert shares.var() == pytest.approx(variance, rel=0.2)
