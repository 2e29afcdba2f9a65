"""From an image to a network's input."""

import dataclasses

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import check_fields, number, one_of, required, several, whole
from larq_adambnn.data import augmentation, images, randaugment
from larq_adambnn.data.settings import Settings
from larq_adambnn.names import CROPS

__all__ = ["Preparation"]

# Added to an image's seed, so that each part of the augmentation draws its own numbers
_CROP, _FLIP, _LIGHTING, _RANDAUGMENT = range(4)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What a trained network has to know of its images.

    Images are encoded strings, or uint8 or (on 0..1) float32 (H, W, channels) pixels.

    Attributes:
        image_size: side of the square input in pixels.
        crop: of the training, see `Settings`; with random_resized the centre is evaluated.
        channels: 1 or 3.
        mean, std: per channel, on 0..1 values.

    Raises:
        ValueError: one of these is not what it should be.
    """

    image_size: int = required(whole(1))
    crop: str = required(one_of(*CROPS))
    channels: int = required(one_of(1, 3))
    mean: tuple[float, ...] = required(several(number(), "numbers, one a channel"))
    std: tuple[float, ...] = required(several(number(above=0), "numbers above 0, one a channel"))

    def __post_init__(self):
        check_fields(self)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"Expected {self.channels} {name}. Received: {name}={values}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (self.image_size, self.image_size, self.channels)

    def for_inference(self, image: tf.Tensor) -> tf.Tensor:
        """The network's input of an image to evaluate or to predict: float32 `input_shape`."""
        size = self.image_size

        def box(height, width):
            if self.crop == "random_resized":
                return augmentation.center_box(height, width, size)
            return tf.cast(_whole(height, width), tf.float32)

        def needed(height, width):
            return augmentation.support(box(height, width), size, height, width)

        image, shape = self._part(image, needed)
        height, width = tf.unstack(shape)
        corner = tf.cast(needed(height, width)[:2], tf.float32)
        inside = box(height, width) - tf.concat([corner, tf.zeros(2)], 0)
        return self._normalize(augmentation.resample(image, size, inside), tf.zeros(self.channels))

    def for_training(self, image: tf.Tensor, key: tf.Tensor, settings: Settings) -> tf.Tensor:
        """The network's input of a training image: float32 `input_shape`.

        Args:
            image: encoded or decoded.
            key: int64 (2,), the image's seed.
            settings: the augmentation.
        """
        if not settings.augment:
            return self.for_inference(image)
        size = self.image_size

        def seed(part):
            return key + tf.constant([0, part << 48], tf.int64)

        def crop(height, width):
            if self.crop == "random_resized":
                return augmentation.crop_window(height, width, seed(_CROP))
            return _whole(height, width)

        image, _ = self._part(image, crop)
        shape = tf.shape(image)
        box = tf.cast(_whole(shape[0], shape[1]), tf.float32)
        flip = augmentation.flip(seed(_FLIP)) if settings.flip else False
        image = augmentation.resample(image, size, box, flip=flip)
        if self.crop == "padded":
            image = augmentation.padded_crop(image, seed(_CROP), size // 8)
        if settings.randaugment:
            image = randaugment.randaugment(
                tf.cast(tf.round(image), tf.uint8),
                seed(_RANDAUGMENT),
                settings.randaugment,
                settings.randaugment_magnitude,
            )
        light = tf.zeros(self.channels)
        if settings.lighting and self.channels == 3:
            light = augmentation.lighting(seed(_LIGHTING), settings.lighting)
            light /= settings.lighting_range
        return self._normalize(image, light)

    def _part(self, image, window) -> tuple[tf.Tensor, tf.Tensor]:
        """A window of an image on 0..255, and int32 (height, width) of the whole."""
        if image.dtype == tf.string:
            return images.decode(image, self.channels, window)
        image = images.convert(image, self.channels)
        if image.dtype == tf.float32:
            image *= 255.0
        shape = tf.shape(image)[:2]
        top, left, height, width = tf.unstack(window(shape[0], shape[1]))
        return image[top : top + height, left : left + width], shape

    def _normalize(self, image: tf.Tensor, light: tf.Tensor) -> tf.Tensor:
        """(image / 255 + light - mean) / std, by rows, which is several times as fast."""
        size = self.image_size
        scale = 1 / (255 * np.array(self.std, np.float32))
        shift = (light - self.mean) / self.std
        rows = tf.reshape(tf.cast(image, tf.float32), [size, size * self.channels])
        rows = tf.nn.bias_add(rows * np.tile(scale, (size, size)), tf.tile(shift, [size]))
        return tf.reshape(rows, self.input_shape)


def _whole(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    return tf.stack([0, 0, height, width])
