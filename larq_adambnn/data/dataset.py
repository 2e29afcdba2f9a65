"""Training streams and evaluation batches of any source."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from larq_adambnn.config import Config, SplitError, UsageError
from larq_adambnn.data import augmentation, images, mixing, randaugment
from larq_adambnn.data.sources import Problem, Source
from larq_adambnn.workers import cores

__all__ = ["Dataset", "bad_example"]

# Added to an image's seed, so that each part of the augmentation draws its own numbers
_CROP, _FLIP, _LIGHTING, _RANDAUGMENT = range(4)
_AHEAD = 2  # batches that are ready before they are asked for
_NOTHING = -1  # the key and the index of what pads a batch
_MARK = "bad example: "


def _once(method):
    """Keeps what a method of a Dataset makes: half a second of work for a pipeline."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def kept(self, *args, **kwargs):
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        key = (method, *call.args[1:], *call.kwargs.values())
        if key not in self._made:
            self._made[key] = method(self, *args, **kwargs)
        return self._made[key]

    return kept


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set prepared for one network input.

    Attributes:
        config: the settings of input size and augmentation.
        class_names: one name a label.
        channels: channels of the images, 1 or 3.
        mean, std: per channel, on 0..1 values.
        splits: names of the splits besides the training one.
        open_split: from the name of a split (or "train") to its source and the problems
            that were left out of it; the same ones each time.
    """

    config: Config
    class_names: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: tuple[str, ...]
    open_split: Callable[[str], tuple[Source, tuple[Problem, ...]]]
    _made: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def train_source(self) -> Source:
        return self.source("train")

    @property
    def test_source(self) -> Source:
        return self.source()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (self.config.image_size, self.config.image_size, self.channels)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the last, incomplete one is left out."""
        return len(self.train_source) // self.config.batch_size

    def split_name(self, split: str = "") -> str:
        """The split that a name means in this data set; by default the config's.

        Where there is no test split, `test` is the validation split; `val` and
        `validation` are the same.
        """
        split = split or self.config.split
        others = {"test": ("validation", "val"), "val": ("validation",), "validation": ("val",)}
        for name in (split, *others.get(split, ())):
            if name in ("train", *self.splits):
                return name
        if "[" in split:  # TFDS's notation for a part of a split
            return split
        raise SplitError(
            f"--split: expected one of {', '.join(('train', *self.splits))} of "
            f"{self.config.dataset}; received {split!r}"
        )

    def source(self, split: str = "") -> Source:
        """The examples of a split; by default of the one to evaluate on."""
        return self.open_split(self.split_name(split))[0]

    def left_out(self, split: str = "") -> tuple[Problem, ...]:
        """What --bad_images=skip left out of a split."""
        return self.open_split(self.split_name(split))[1]

    @_once
    @tf.autograph.experimental.do_not_convert  # a second of each start
    def train(self, first_step: int = 0, *, shard: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """Endless training batches (images, labels) from a step on.

        Every epoch has its own order, and every image its own augmentation; both are
        functions of the seed, the epoch and the index in the epoch, so that a stream
        that starts at a step gives what the one from step 0 gives there.  What lies
        before the step is not read.

        Args:
            first_step: number of batches to leave out.
            shard: (index, count): gives only the index-th of `count` equal parts of every
                batch, and reads only that.
        """
        config, source, steps = self.config, self.train_source, self.steps_per_epoch
        index, count = shard
        if not 0 <= index < count or config.batch_size % count:
            raise ValueError(
                f"Expected a shard (index, count) with index < count and a count that divides "
                f"the {config.batch_size} images of a batch. Received: {shard}"
            )
        local = config.batch_size // count
        if (config.mixup or config.cutmix) and local % 2:
            raise UsageError(
                "--batch_size: expected an even number of images for each worker, since mixup "
                f"and cutmix mix pairs of them; received {config.batch_size} for {count}"
            )
        first_epoch, first = divmod(first_step, steps)
        offsets = tf.range(index * local, (index + 1) * local, dtype=tf.int64)

        def begin(epoch):
            return tf.where(epoch == first_epoch, tf.constant(first, tf.int64), 0)

        def batches(epoch):
            order = tf.range(len(source), dtype=tf.int64)
            if source.stream is None:
                seed = tf.stack([_high(config.seed, epoch), -1])
                order = tf.random.experimental.stateless_shuffle(order, seed)

            def batch(step):
                positions = step * config.batch_size + offsets
                return _key(config.seed, epoch, positions), tf.gather(order, positions)

            return tf.data.Dataset.range(begin(epoch), steps).map(batch).concatenate(_end(local))

        def examples(epoch):
            stream = source.stream.enumerate()
            if source.shuffle:
                stream = _shuffle(stream, source.shuffle, config.seed, epoch)
            stream = stream.enumerate().take(steps * config.batch_size)
            stream = stream.skip(begin(epoch) * config.batch_size)
            stream = stream.filter(lambda at, _: at % config.batch_size // local == index)
            stream = stream.map(
                lambda at, numbered: (_key(config.seed, epoch, at), numbered[0], *numbered[1])
            )
            return stream.concatenate(_padding(stream, local))

        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        stream = None if source.stream is None else epochs.flat_map(examples)
        read = self._read(source, epochs.flat_map(batches), stream, local, self.augment)
        return _ahead(read.map(self._mix))

    @_once
    def first_images(self, count: int) -> np.ndarray:
        """The first images of the training, (count, H, W, C), of one batch at most."""
        images, _ = next(iter(self.train()))
        return images[:count].numpy().copy()  # a slice would keep the whole batch

    @_once
    @tf.autograph.experimental.do_not_convert
    def evaluation(
        self,
        split: str = "",
        batch_size: int | None = None,
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """All (images, labels) of a split once, in order, without augmentation.

        Args:
            split: by default the config's.
            batch_size: by default the config's.
            shard: (index, count): gives only one in `count` batches, from the index-th on.
        """
        source = self.source(split)
        size = batch_size or self.config.batch_size
        batches = -(-len(source) // size)

        def batch(step):
            indices = step * size + tf.range(size, dtype=tf.int64)
            indices = tf.where(indices < len(source), indices, _NOTHING)
            return _key(0, 0, indices), indices

        def strip(keys, images, labels):
            real = tf.math.count_nonzero(keys[:, 1] != _NOTHING)
            return images[:real], labels[:real]

        index, count = shard
        schedule = tf.data.Dataset.range(index, batches, count).map(batch).concatenate(_end(size))
        stream = source.stream
        if stream is not None:
            stream = stream.enumerate().filter(lambda at, _: at // size % count == index)
            stream = stream.map(lambda at, example: (_key(0, 0, at), at, *example))
            stream = stream.concatenate(_padding(stream, 2 * size))
        read = self._read(source, schedule, stream, size, self._preprocess)
        return _ahead(read.map(strip))

    def _read(self, source, schedule, stream, size, finish) -> tf.data.Dataset:
        """Batches (keys, images, labels) of what a schedule of (keys, indices) asks for.

        An example that cannot be read is missing in what comes back, which comparing the
        keys shows; the index that was asked for leads to its name.  The padding that ends
        every epoch always comes back, so that there is something to compare.
        """
        if stream is None:
            stream = schedule.map(
                lambda keys, indices: (keys, indices, *source.lookup(tf.maximum(indices, 0))),
                num_parallel_calls=cores(),
                deterministic=True,
            ).unbatch()

        def example(key, index, image, label):
            pixels = tf.cond(
                key[1] == _NOTHING,
                lambda: tf.zeros(self.input_shape),
                lambda: finish(source.load(image), key),
            )
            return key, index, pixels, label

        def check(asked, received):
            keys, indices = asked
            received_keys, received_indices, pixels, labels = received
            missing = tf.reduce_any(keys != received_keys, axis=1)
            bad = missing | (labels < 0) | (labels >= len(self.class_names))

            def stop():
                first = tf.argmax(bad)
                index = tf.where(missing, indices, received_indices)[first]
                text = tf.numpy_function(
                    lambda index: self._explain(source, index), [index], tf.string, stateful=False
                )
                return tf.debugging.Assert(False, [text])

            with tf.control_dependencies([tf.cond(tf.reduce_any(bad), stop, tf.no_op)]):
                return keys, tf.identity(pixels), labels

        read = stream.map(example, num_parallel_calls=cores(), deterministic=True)
        if source.stream is None:
            read = read.ignore_errors()  # those of a user's own stream come with his message
        read = read.batch(size, drop_remainder=True)
        checked = tf.data.Dataset.zip(schedule, read).map(check)
        return checked.filter(lambda keys, images, labels: keys[0, 1] != _NOTHING)

    def _explain(self, source: Source, index: int) -> bytes:
        reason = source.defect(index) or "failed when it was read, but not when it was read again"
        line = f"{source.name(index)} {reason}"
        if source.stream is None:
            line += " (--bad_images=skip leaves such images out, --mode=check_data lists them)"
        return (_MARK + line).encode(errors="replace")

    def _part(self, image, window) -> tuple[tf.Tensor, tf.Tensor]:
        """A window of an image on 0..255, and int32 (height, width) of the whole."""
        if image.dtype == tf.string:
            return images.decode(image, self.channels, window)
        if image.dtype == tf.float32:
            image *= 255.0
        shape = tf.shape(image)[:2]
        top, left, height, width = tf.unstack(window(shape[0], shape[1]))
        return image[top : top + height, left : left + width], shape

    def augment(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """The network's input of a training image; its key is its seed."""
        config, size = self.config, self.config.image_size

        def seed(part):
            return key + tf.constant([0, part << 48], tf.int64)

        def crop(height, width):
            if config.crop == "random_resized":
                return augmentation.crop_window(height, width, seed(_CROP))
            return _whole(height, width)

        image, _ = self._part(image, crop)
        shape = tf.shape(image)
        box = tf.cast(_whole(shape[0], shape[1]), tf.float32)
        flip = augmentation.flip(seed(_FLIP)) if config.flip else False
        image = augmentation.resample(image, size, box, flip=flip)
        if config.crop == "padded":
            image = augmentation.padded_crop(image, seed(_CROP), size // 8)
        if config.randaugment:
            image = randaugment.randaugment(
                tf.cast(tf.round(image), tf.uint8),
                seed(_RANDAUGMENT),
                config.randaugment,
                config.randaugment_magnitude,
            )
        light = tf.zeros(self.channels)
        if config.lighting and self.channels == 3:
            light = augmentation.lighting(seed(_LIGHTING), config.lighting) / config.lighting_range
        return self._normalize(image, light)

    def _preprocess(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """The network's input of an image to evaluate on."""
        del key
        size = self.config.image_size

        def box(height, width):
            if self.config.crop == "random_resized":
                return augmentation.center_box(height, width, size)
            return tf.cast(_whole(height, width), tf.float32)

        def needed(height, width):
            return augmentation.support(box(height, width), size, height, width)

        image, shape = self._part(image, needed)
        height, width = tf.unstack(shape)
        corner = tf.cast(needed(height, width)[:2], tf.float32)
        inside = box(height, width) - tf.concat([corner, tf.zeros(2)], 0)
        return self._normalize(augmentation.resample(image, size, inside), tf.zeros(self.channels))

    def _normalize(self, image: tf.Tensor, light: tf.Tensor) -> tf.Tensor:
        """(image / 255 + light - mean) / std, by rows, which is several times as fast."""
        size = self.config.image_size
        scale = 1 / (255 * np.array(self.std, np.float32))
        shift = (light - self.mean) / self.std
        rows = tf.reshape(tf.cast(image, tf.float32), [size, size * self.channels])
        rows = rows * np.tile(scale, size) + tf.tile(shift, [size])
        return tf.reshape(rows, self.input_shape)

    def _mix(self, keys, images, labels):
        config = self.config
        return mixing.mix(images, keys, mixup=config.mixup, cutmix=config.cutmix), labels


def bad_example(error: Exception) -> str:
    """The line about the example that stopped a stream; "" if something else did."""
    found = re.search(rf"\[{_MARK}(.*?)\]\s+\[\[", str(error), re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""  # TensorFlow escapes \, ' and "


def _whole(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    return tf.stack([0, 0, height, width])


def _high(seed: int, epoch: tf.Tensor | int) -> tf.Tensor:
    return tf.cast(epoch, tf.int64) + (seed << 32)


def _key(seed: int, epoch: tf.Tensor | int, index: tf.Tensor) -> tf.Tensor:
    """The seeds (..., 2) of the images at indices (...) in an epoch."""
    high = tf.where(index == _NOTHING, tf.constant(_NOTHING, tf.int64), _high(seed, epoch))
    return tf.stack([high, index], axis=-1)


def _ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Reads the next batches while the last one is used, without tuning how many.

    The thread that tunes would hold up the end of every other iterator, by as long as the
    iterator has lived.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_AHEAD).with_options(options)


def _end(size: int) -> tf.data.Dataset:
    """One batch of (keys, indices) that asks for nothing."""
    nothing = tf.fill((size,), tf.constant(_NOTHING, tf.int64))
    return tf.data.Dataset.from_tensors((_key(0, 0, nothing), nothing))


def _shuffle(stream: tf.data.Dataset, window: int, seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """`stream.shuffle`, which takes no tensor as a seed."""
    specs = tf.nest.flatten(stream.element_spec)
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(stream),
        buffer_size=tf.constant(window, tf.int64),
        seed=tf.constant(seed + 1, tf.int64),  # two zeros would mean a random seed
        seed2=epoch,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
        reshuffle_each_iteration=False,
    )
    return tf.data.experimental.from_variant(shuffled, stream.element_spec)


def _padding(stream: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """What `_end` asks for, in the types of a stream of (key, index, image, label)."""
    image = stream.element_spec[2]
    image = "" if image.dtype == tf.string else tf.zeros([n or 0 for n in image.shape], image.dtype)
    nothing = tf.constant(_NOTHING, tf.int64)
    element = ([nothing, nothing], nothing, image, tf.constant(0, tf.int64))
    return tf.data.Dataset.from_tensors(element).repeat(count)
