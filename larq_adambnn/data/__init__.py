"""Data sets as endless, seeded training streams and ordered evaluation batches."""

import dataclasses

import tensorflow as tf

from larq_adambnn.config import Config, UsageError
from larq_adambnn.data import augmentation
from larq_adambnn.data.sources import Source, tfds_description, tfds_source

__all__ = ["Dataset", "describe", "load"]

# (mean, standard deviation) of the training images on 0..1 values
_STATISTICS = {
    "digits": ((0.3055,), (0.3235,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_EVAL_SPLITS = ("test", "validation", "val")
_RESIZE_RATIO = 256 / 224  # of the shorter side to the crop in evaluation


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set prepared for one network input.

    Attributes:
        train_source, test_source: the undecoded examples.
        config: the settings of input size and augmentation.
        mean, std: per channel, on 0..1 values.
    """

    train_source: Source
    test_source: Source
    config: Config
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train_source.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (self.config.image_size, self.config.image_size, self.train_source.channels)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the last, incomplete one is left out."""
        return len(self.train_source) // self.config.batch_size

    def train(self, first_step: int = 0) -> tf.data.Dataset:
        """Endless training batches (images, labels) from a step on.

        Every epoch has its own order, and every image its own augmentation; both are
        functions of the seed, the epoch and the index in the epoch, so that a stream
        that starts at a step gives what the one from step 0 gives there.
        """
        config, source = self.config, self.train_source
        per_epoch = self.steps_per_epoch * config.batch_size
        first_epoch, first = divmod(first_step * config.batch_size, per_epoch)

        def indices(epoch):
            order = tf.random.experimental.stateless_shuffle(
                tf.range(len(source), dtype=tf.int64), _seed(config.seed, epoch, -1)
            )
            start = tf.where(epoch == first_epoch, tf.cast(first, tf.int64), 0)
            return tf.data.Dataset.range(start, per_epoch).map(
                lambda position: (_seed(config.seed, epoch, position), order[position])
            )

        def example(seed, index):
            image, label = source.example(index)
            return self._augment(self._decode(image), seed), label

        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        return (
            epochs.flat_map(indices)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(config.batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def evaluation(self, split: str = "test", batch_size: int | None = None) -> tf.data.Dataset:
        """All (images, labels) of a split once, in order, without augmentation."""
        sources = {"train": self.train_source, "test": self.test_source}
        if split not in sources:
            raise UsageError(f"--split: expected one of {', '.join(sources)}; received {split!r}")
        source = sources[split]

        def example(index):
            image, label = source.example(index)
            return self._preprocess(self._decode(image)), label

        return (
            tf.data.Dataset.range(len(source))
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(batch_size or self.config.batch_size)
            .prefetch(tf.data.AUTOTUNE)
        )

    def _decode(self, encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(
            encoded, channels=self.train_source.channels, expand_animations=False
        )
        return tf.image.convert_image_dtype(image, tf.float32)

    def _augment(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        config, size = self.config, self.config.image_size
        crop_seed, flip_seed, light_seed = tf.unstack(
            tf.random.experimental.stateless_split(seed, 3)
        )
        image = augmentation.resize(image, size)
        if config.crop == "padded":
            image = tf.ensure_shape(image, self.input_shape)
            image = augmentation.padded_crop(image, crop_seed, size // 8)
        if config.flip:
            image = augmentation.random_flip(image, flip_seed)
        return self._normalize(augmentation.lighting(image, light_seed, config.lighting))

    def _preprocess(self, image: tf.Tensor) -> tf.Tensor:
        return self._normalize(augmentation.resize(image, self.config.image_size))

    def _normalize(self, image: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape((image - self.mean) / self.std, self.input_shape)


def _seed(seed: int, epoch: tf.Tensor, index: tf.Tensor | int) -> tf.Tensor:
    """The seed of one image (or, with index -1, of one epoch's order)."""
    return tf.stack([epoch + (seed << 32), index])


def describe(config: Config) -> tuple[tuple[str, ...], int]:
    """(class names, channels) of the data set that a config names, without preparing it."""
    class_names, channels = tfds_description(config.dataset, config.data_dir)
    _check_classes(config, class_names)
    return class_names, channels


def _check_classes(config: Config, class_names: tuple[str, ...]) -> None:
    if config.num_classes not in (0, len(class_names)):
        raise UsageError(
            f"--num_classes: expected {len(class_names)}, the classes of {config.dataset}; "
            f"received {config.num_classes}"
        )


def load(config: Config) -> Dataset:
    """The data set that a config names.

    Raises:
        UsageError: it does not exist, is empty, or does not fit the config.
    """
    train = tfds_source(config.dataset, "train", config.data_dir)
    test = tfds_source(config.dataset, "test", config.data_dir)
    _check_classes(config, train.class_names)
    if config.batch_size > len(train):
        raise UsageError(
            f"--batch_size: expected at most the {len(train)} training images of "
            f"{config.dataset}; received {config.batch_size}"
        )
    key = "imagenet" if config.dataset.startswith("imagenet") else config.dataset.split("/")[0]
    mean, std = _STATISTICS.get(key, _STATISTICS["imagenet"])
    if len(mean) != train.channels:
        mean, std = (0.5,) * train.channels, (0.25,) * train.channels
    return Dataset(train, test, config, mean, std)
