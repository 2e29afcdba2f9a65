"""Crops, resampling, flip and lighting, against Pillow and NumPy."""

import functools
import math

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import crops

from larq_adambnn.data import augmentation


def seeds(count):
    return [tf.constant([7, index], tf.int64) for index in range(count)]


def numpy_crop(height, width, draws):
    """torchvision's RandomResizedCrop.get_params with given uniform numbers (4, 10)."""
    area = height * width
    low, high = math.log(3 / 4), math.log(4 / 3)
    for share, shape, down, right in draws.T.astype(float):
        target = area * (0.08 + share * 0.92)
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


SIZES = [(375, 500), (500, 375), (64, 64), (1, 1), (2, 3), (30, 10_000), (10_000, 30), (333, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_random_resized_crop_is_sampled_as_torchvision_does(size):
    window = tf.function(lambda seed: augmentation.crop_window(*size, seed))
    tried_all = 0
    for seed in seeds(200):
        draws = tf.random.stateless_uniform((4, 10), seed).numpy()
        top, left, height, width = window(seed).numpy()
        assert 0 <= top <= top + height <= size[0] and 0 <= left <= left + width <= size[1]
        assert height > 0 and width > 0
        # float32 against Python's float64: a side can round the other way, by one pixel
        expected = np.array(numpy_crop(*size, draws))
        assert np.abs(np.array([top, left, height, width]) - expected).max() <= 1
        tried_all += (height, width) == tuple(expected[2:])
    assert tried_all >= 198


def test_random_resized_crop_has_the_right_distribution():
    window = tf.function(lambda seed: augmentation.crop_window(1000, 1000, seed))
    crops = np.array([window(seed).numpy() for seed in seeds(2000)])
    generator = np.random.default_rng(0)
    expected = np.array([numpy_crop(1000, 1000, generator.random((4, 10))) for _ in range(20_000)])
    for figures in (lambda c: c[:, 2] * c[:, 3] / 1e6, lambda c: np.log(c[:, 3] / c[:, 2])):
        ours, theirs = figures(crops), figures(expected)
        # five standard errors of the mean of 2,000 draws
        assert abs(ours.mean() - theirs.mean()) < 5 * theirs.std() / math.sqrt(len(ours))
        assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
    for axis in (0, 1):
        free = 1001 - crops[:, 2 + axis]
        place = (crops[:, axis] + 0.5) / free
        assert abs(place[free > 100].mean() - 0.5) < 0.04


@functools.cache
def resampler(size, channels):
    return tf.function(
        lambda pixels, box, flip: augmentation.resample(pixels, size, box, flip=flip),
        input_signature=[
            tf.TensorSpec((None, None, channels), tf.uint8),
            tf.TensorSpec((4,), tf.float32),
            tf.TensorSpec((), tf.bool),
        ],
    )


def resized(image, size, box, *, flip=False):
    """In a graph with unknown sizes, as in training."""
    function = resampler(size, len(image.getbands()))
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return function(pixels, tf.cast(box, tf.float32), flip).numpy()


def pillow_box(image, size, box):
    top, left, height, width = box
    return np.asarray(
        image.resize((size, size), PIL.Image.BILINEAR, box=(left, top, left + width, top + height)),
        np.float32,
    ).reshape(size, size, -1)


def test_resample_is_pillows_antialiased_bilinear_resize():
    generator = np.random.default_rng(0)
    for image in crops(50, seed=2):
        size = int(generator.choice([31, 32, 97, 224, 225]))
        height, width = generator.uniform(0.2, 1, 2) * (image.height, image.width)
        top = generator.uniform(0, image.height - height)
        left = generator.uniform(0, image.width - width)
        box = (top, left, height, width)
        difference = np.abs(resized(image, size, box) - pillow_box(image, size, box)) / 255
        # Pillow rounds to integers after each axis: two halves of 1/255
        assert difference.mean() < 0.6 / 255
        assert difference.max() < 2 / 255


def test_resample_of_the_whole_image_at_its_size_changes_nothing():
    (image,) = crops(1, seed=4, smallest=200)
    image = image.crop((0, 0, 129, 129))
    np.testing.assert_array_equal(resized(image, 129, (0, 0, 129, 129)), np.asarray(image))


def test_flip_in_resample_reverses_the_columns():
    for image in crops(4, seed=5):
        box = (0, 0, image.height, image.width)
        np.testing.assert_allclose(
            resized(image, 65, box, flip=True), resized(image, 65, box)[:, ::-1], atol=1e-4
        )


def torchvision_evaluation(image, size):
    """Resize(shorter side) and CenterCrop, with Pillow; 0..255."""
    shorter = round(size * 256 / 224)
    short, long = sorted(image.size)
    other = int(shorter * long / short)
    resized = (shorter, other) if image.width <= image.height else (other, shorter)
    image = image.resize(resized, PIL.Image.BILINEAR)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)), np.float32)


def test_evaluation_is_pillows_on_50_photographs_of_odd_sizes():
    for image in crops(50, seed=6):
        box = augmentation.center_box(image.height, image.width, 224)
        window = augmentation.support(box, 224, image.height, image.width)
        top, left, height, width = window.numpy()
        part = image.crop((left, top, left + width, top + height))
        inside = box.numpy() - (top, left, 0, 0)
        difference = resized(part, 224, inside) - torchvision_evaluation(image, 224)
        difference = np.abs(difference) / 255
        assert difference.mean() < 0.6 / 255
        assert difference.max() < 2 / 255


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), 1), ((30, 10_000), 28), ((10_000, 30), 28)]
)
def test_evaluation_looks_only_at_the_centre_of_long_images(size, expected):
    box = augmentation.center_box(*size, 224).numpy()
    assert box[2] == pytest.approx(box[3], rel=1e-3)
    window = augmentation.support(augmentation.center_box(*size, 224), 224, *size).numpy()
    assert window[:2].min() >= 0 and (window[:2] + window[2:] <= size).all()
    assert window[2:].max() <= expected + 8


def test_flip_is_true_half_of_the_time():
    flips = [bool(augmentation.flip(seed)) for seed in seeds(1000)]
    assert 420 < sum(flips) < 580  # five standard deviations
    assert flips == [bool(augmentation.flip(seed)) for seed in seeds(1000)]


def test_padded_crop_shifts_and_fills_with_zeros():
    image = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32) + 1
    seen = set()
    for seed in seeds(300):
        top, left = tf.random.stateless_uniform((2,), seed, 0, 5, tf.int32).numpy()
        expected = np.pad(image, [(2, 2), (2, 2), (0, 0)])[top : top + 16, left : left + 16]
        received = augmentation.padded_crop(tf.constant(image), seed, 2)
        np.testing.assert_array_equal(received, expected)
        seen.add((top, left))
    assert len(seen) == 25


def test_lighting_is_noise_along_the_principal_components():
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    for seed in seeds(20):
        alpha = tf.random.stateless_normal((3,), seed, 0.0, 0.1).numpy()
        np.testing.assert_allclose(
            augmentation.lighting(seed, 0.1), vectors @ (alpha * values), rtol=1e-4, atol=1e-7
        )
    lighting = tf.function(lambda seed: augmentation.lighting(seed, 0.1))
    noise = np.stack([lighting(seed) for seed in seeds(3000)])
    covariance = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(noise.T), covariance, atol=0.1 * covariance.max())
