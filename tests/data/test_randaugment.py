"""RandAugment's operations against Pillow's."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import tensorflow as tf
from photographs import crops

from larq_adambnn.data import randaugment


def affine(*coefficients):
    return lambda image: image.transform(
        image.size, PIL.Image.AFFINE, coefficients, PIL.Image.NEAREST
    )


def enhance(kind, strength):
    return lambda image: kind(image).enhance(1 + strength)


S = 0.21
# name: (strength, what Pillow does for an image, largest difference, share that may differ)
EXPECTED = {
    "identity": (0.0, lambda image: image, 0, 0),
    "shear_x": (S, affine(1, S, 0, 0, 1, 0), 255, 0.001),
    "shear_y": (-S, affine(1, 0, 0, -S, 1, 0), 255, 0.001),
    "translate_x": (S, lambda i: affine(1, 0, round(S * i.width), 0, 1, 0)(i), 0, 0),
    "translate_y": (-S, lambda i: affine(1, 0, 0, 0, 1, round(-S * i.height))(i), 0, 0),
    # the positions of Pillow's rotation are rounded to 1/65536
    "rotate": (17.0, lambda image: image.rotate(17.0), 255, 0.003),
    "brightness": (-0.4, enhance(PIL.ImageEnhance.Brightness, -0.4), 1, 1),
    "color": (0.7, enhance(PIL.ImageEnhance.Color, 0.7), 1, 1),
    "contrast": (0.7, enhance(PIL.ImageEnhance.Contrast, 0.7), 1, 1),
    "sharpness": (-0.8, enhance(PIL.ImageEnhance.Sharpness, -0.8), 1, 1),
    "posterize": (3.0, lambda image: PIL.ImageOps.posterize(image, 5), 0, 0),
    "solarize": (0.4, lambda image: PIL.ImageOps.solarize(image, 153), 0, 0),
    "autocontrast": (0.0, PIL.ImageOps.autocontrast, 1, 1),
    "equalize": (0.0, PIL.ImageOps.equalize, 0, 0),
}


def test_every_operation_is_tested():
    assert list(EXPECTED) == list(randaugment.OPERATIONS)


@pytest.mark.parametrize("name", EXPECTED)
def test_operation_is_pillows(name):
    strength, pillow, largest, share = EXPECTED[name]
    signature = [tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.float32)]
    operation = tf.function(randaugment.OPERATIONS[name][0], input_signature=signature)
    for image in crops(4, seed=9):
        image = image.point(lambda value: value // 2 + 40)  # so that there is contrast to add
        expected = np.asarray(pillow(image)).astype(int)
        received = operation(tf.constant(np.asarray(image)), strength).numpy()
        assert received.dtype == np.uint8
        difference = np.abs(received - expected)
        assert (difference > 0).mean() <= share
        assert difference.max() <= largest


def test_grey_images_pass_every_operation():
    image = np.asarray(next(crops(1, seed=9)).convert("L"))[..., np.newaxis]
    for operation, strength in randaugment.OPERATIONS.values():
        assert operation(tf.constant(image), strength(0.3)).shape == image.shape


def test_flat_images_stay_as_they_are():
    image = tf.fill((8, 8, 3), tf.constant(77, tf.uint8))
    for name in ("autocontrast", "equalize", "contrast", "sharpness", "color"):
        operation, _ = randaugment.OPERATIONS[name]
        np.testing.assert_allclose(operation(image, 0.5).numpy(), 77, atol=1)


def test_strengths_at_the_usual_magnitude_are_torchvisions():
    strengths = {name: strength(9 / 30) for name, (_, strength) in randaugment.OPERATIONS.items()}
    assert strengths["shear_x"] == pytest.approx(0.09)
    assert strengths["translate_y"] == pytest.approx(150 / 331 * 0.3)
    assert strengths["rotate"] == pytest.approx(9)
    assert strengths["brightness"] == pytest.approx(0.27)
    assert round(strengths["posterize"]) == 8 - round(8 - 9 / 7.5)
    assert 255 * (1 - strengths["solarize"]) == pytest.approx(178.5)


def test_operations_signs_and_seeds():
    image = tf.constant(np.asarray(next(crops(1, seed=9)).resize((24, 24))))
    augment = tf.function(lambda seed: randaugment.randaugment(image, seed, 1, 12))
    results = [augment(tf.constant([0, index])).numpy() for index in range(150)]
    again = [augment(tf.constant([0, index])).numpy() for index in range(150)]
    np.testing.assert_array_equal(results, again)
    seen = {result.tobytes() for result in results}
    possible = set()
    for operation, strength in randaugment.OPERATIONS.values():
        for sign in (-1, 1):
            possible.add(operation(image, sign * strength(12 / 30)).numpy().tobytes())
    assert seen <= possible
    assert len(seen) > 0.8 * len(possible)  # identity and others without a sign come twice


def test_two_operations_are_one_after_the_other():
    image = tf.constant(np.asarray(next(crops(1, seed=9)).resize((24, 24))))
    seed = tf.constant([1, 2])
    draws = tf.random.stateless_uniform((2, 2), seed, 0, 14, tf.int32).numpy()
    expected = image
    for kind, sign in draws:
        operation, strength = list(randaugment.OPERATIONS.values())[kind]
        expected = operation(expected, strength(0.3) * (1 if sign % 2 == 0 else -1))
    np.testing.assert_array_equal(randaugment.randaugment(image, seed, 2, 9), expected)
