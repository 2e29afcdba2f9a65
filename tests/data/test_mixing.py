"""mixup and cutmix against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.data import mixing


def keys(count):
    return tf.constant([[3, index] for index in range(count)], tf.int64)


def images(count, height=12, width=10):
    return np.random.default_rng(0).random((count, height, width, 3)).astype(np.float32)


def beta(seed, alpha):
    """The Beta(alpha, alpha) number that a pair draws."""
    split = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    a, b = tf.random.stateless_gamma((2,), split[1], alpha).numpy()
    return a / (a + b), split[2]


def test_nothing_is_mixed_when_both_are_off():
    batch = tf.constant(images(3))
    assert mixing.mix(batch, keys(3), mixup=0.0, cutmix=0.0) is batch


def test_mixup_blends_neighbours():
    batch, seeds = images(8), keys(8)
    mixed = mixing.mix(tf.constant(batch), seeds, mixup=0.8, cutmix=0.0).numpy()
    for first in range(0, 8, 2):
        share, _ = beta(seeds[first], 0.8)
        a, b = batch[first], batch[first + 1]
        np.testing.assert_allclose(mixed[first], share * a + (1 - share) * b, atol=1e-6)
        np.testing.assert_allclose(mixed[first + 1], share * b + (1 - share) * a, atol=1e-6)


def test_cutmix_swaps_a_box_between_neighbours():
    batch, seeds = images(16), keys(16)
    mixed = mixing.mix(tf.constant(batch), seeds, mixup=0.0, cutmix=1.0).numpy()
    for first in range(0, 16, 2):
        share, place = beta(seeds[first], 1.0)
        y, x = np.floor(tf.random.stateless_uniform((2,), place).numpy() * (12, 10)).astype(int)
        h, w = (int(side * np.sqrt(1 - share)) for side in (12, 10))
        top, left = y - h // 2, x - w // 2
        box = (slice(max(top, 0), max(top + h, 0)), slice(max(left, 0), max(left + w, 0)))
        a, b = batch[first], batch[first + 1]
        for index, (own, other) in enumerate([(a, b), (b, a)]):
            expected = own.copy()
            expected[box] = other[box]
            np.testing.assert_array_equal(mixed[first + index], expected)


def test_both_come_half_of_the_time():
    shares = [
        mixing.share(9, 9, seed, mixup=0.4, cutmix=1.0).numpy() for seed in tf.unstack(keys(400))
    ]
    cut = [set(np.unique(share)) <= {0.0, 1.0} for share in shares]
    assert 150 < sum(cut) < 250  # five standard deviations


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_beta_distributed(alpha):
    shares = np.array(
        [
            float(mixing.share(1, 1, seed, mixup=alpha, cutmix=0.0)[0, 0, 0])
            for seed in tf.unstack(keys(600))
        ]
    )
    assert np.isfinite(shares).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 600))
    assert shares.var() == pytest.approx(variance, rel=0.2)


def test_pairs_do_not_depend_on_their_batch():
    batch, seeds = images(8), keys(8)
    whole = mixing.mix(tf.constant(batch), seeds, mixup=0.3, cutmix=1.0).numpy()
    for start in (0, 4):
        part = slice(start, start + 4)
        half = mixing.mix(tf.constant(batch[part]), seeds[part], mixup=0.3, cutmix=1.0)
        np.testing.assert_array_equal(half, whole[part])
