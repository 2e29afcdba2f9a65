"""Training streams and evaluation batches of any source."""

import contextlib
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from larq_adambnn.arguments import expect, optional, several, whole
from larq_adambnn.data import mixing
from larq_adambnn.data.preparation import Preparation
from larq_adambnn.data.settings import Settings
from larq_adambnn.data.sources import Problem, Source
from larq_adambnn.errors import SplitError, UsageError
from larq_adambnn.machine import cores

__all__ = ["Dataset", "bad_example", "explained", "take"]

# Batches that are ready before they are asked for: as many as fit into so many bytes, within bounds
_AHEAD_BYTES, _LEAST_AHEAD, _MOST_AHEAD = 2**28, 1, 2
_EXAMPLES = 64  # that are read at a time
_READERS = 4  # that do so, whatever the number of cores: what they have read waits in memory
_PROBE = 64  # images that activations are measured on
_NOTHING = -1  # the key and the index of what pads a batch
_MARK = "bad example: "
_SHARD = several(whole(0), "(index, count), two whole numbers", length=2)


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
        name: what messages call it.
        settings: augmentation, batch size and seed.
        class_names: one name a label.
        preparation: how an image becomes the network's input.
        splits: names of the splits besides the training one.
        open_split: from the name of a split (or "train") to its source and the problems
            that were left out of it; the same ones each time.
        split: what `evaluation` gives by default.
    """

    name: str
    settings: Settings
    class_names: tuple[str, ...]
    preparation: Preparation
    splits: tuple[str, ...]
    open_split: Callable[[str], tuple[Source, tuple[Problem, ...]]]
    split: str = "test"
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
        return self.preparation.input_shape

    @property
    def iterations_per_epoch(self) -> int:
        """Full batches in an epoch; the last, incomplete one is left out."""
        return len(self.train_source) // self.settings.batch_size

    def check_batch(self) -> None:
        """Raises UsageError if the training images do not fill a batch."""
        if self.iterations_per_epoch == 0:
            raise UsageError(
                f"batch_size: expected at most the {len(self.train_source)} training images of "
                f"{self.name}; received {self.settings.batch_size}"
            )

    def split_name(self, split: str = "") -> str:
        """The split that a name means in this data set; by default `split`.

        Where there is no test split, `test` is the validation split; `val` and
        `validation` are the same.
        """
        split = split or self.split
        others = {"test": ("validation", "val"), "val": ("validation",), "validation": ("val",)}
        for name in (split, *others.get(split, ())):
            if name in ("train", *self.splits):
                return name
        if "[" in split:  # TFDS's notation for a part of a split
            return split
        raise SplitError(
            f"split: expected one of {', '.join(('train', *self.splits))} of "
            f"{self.name}; received {split!r}"
        )

    def source(self, split: str = "") -> Source:
        """The examples of a split; by default of the one to evaluate on."""
        return self.open_split(self.split_name(split))[0]

    def left_out(self, split: str = "") -> tuple[Problem, ...]:
        """What `bad_images="skip"` left out of a split."""
        return self.open_split(self.split_name(split))[1]

    @_once
    @tf.autograph.experimental.do_not_convert  # a second of each start
    def train(
        self, first_iteration: int = 0, *, shard: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Endless training batches (images, labels) from an iteration on.

        Every epoch has its own order, and every image its own augmentation; both are
        functions of the seed, the epoch and the index in the epoch, so that a stream
        that starts at an iteration gives what the one from 0 gives there.  What lies before
        is not read.

        Args:
            first_iteration: number of batches to leave out.
            shard: (index, count): gives only the index-th of `count` equal parts of every
                batch, and reads only that.
        """
        expect("first_iteration", first_iteration, whole(0))
        expect("shard", shard, _SHARD)
        self.check_batch()
        settings, source = self.settings, self.train_source
        iterations = self.iterations_per_epoch
        index, count = shard
        if not 0 <= index < count or settings.batch_size % count:
            raise ValueError(
                f"Expected a shard (index, count) with index < count and a count that divides "
                f"the {settings.batch_size} images of a batch. Received: {shard}"
            )
        local = settings.batch_size // count
        if settings.mixes and local % 2:
            raise UsageError(
                "batch_size: expected an even number of images for each worker, since mixup "
                f"and cutmix mix pairs of them; received {settings.batch_size} for {count}"
            )
        first_epoch, first = divmod(first_iteration, iterations)
        offsets = tf.range(index * local, (index + 1) * local, dtype=tf.int64)

        def begin(epoch):
            return tf.where(epoch == first_epoch, tf.constant(first, tf.int64), 0)

        def batches(epoch):
            order = tf.range(len(source), dtype=tf.int64)
            if source.stream is None:
                seed = tf.stack([_high(settings.seed, epoch), -1])
                order = tf.random.experimental.stateless_shuffle(order, seed)

            def batch(iteration):
                positions = iteration * settings.batch_size + offsets
                return _key(settings.seed, epoch, positions), tf.gather(order, positions)

            return (
                tf.data.Dataset.range(begin(epoch), iterations).map(batch).concatenate(_end(local))
            )

        def examples(epoch):
            stream = source.stream.enumerate()
            if source.shuffle:
                stream = _shuffle(stream, source.shuffle, settings.seed, epoch)
            stream = stream.enumerate().take(iterations * settings.batch_size)
            stream = stream.skip(begin(epoch) * settings.batch_size)
            stream = stream.filter(lambda at, _: at % settings.batch_size // local == index)
            stream = stream.map(
                lambda at, numbered: (_key(settings.seed, epoch, at), numbered[0], *numbered[1])
            )
            return stream.concatenate(_padding(stream, local))

        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        stream = None if source.stream is None else epochs.flat_map(examples)

        def prepare(image, key):
            return self.preparation.for_training(image, key, settings)

        mix = self._mix if settings.mixes else None
        read = self._read(source, epochs.flat_map(batches), stream, local, prepare, mix)
        return _ahead(
            read.map(lambda keys, images, labels: (images, labels)), local, self.input_shape
        )

    def examples(self, count: int, split: str = "") -> tuple[np.ndarray, np.ndarray]:
        """The first (images, labels) of a split, prepared for evaluation.

        Args:
            count: at most so many.
            split: by default `self.split`.

        Returns:
            float32 (count, H, W, C) and int64 (count,).

        Raises:
            UsageError: there is no such split, or an example of it cannot be used.
        """
        expect("count", count, whole(1))
        return take(self.evaluation(split, batch_size=min(count, _EXAMPLES)), count)

    def probe(self) -> np.ndarray:
        """The first images of `evaluation`, (64 or fewer, H, W, C), to measure activations on."""
        return take(self.evaluation(), _PROBE)[0]

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
            split: by default `self.split`.
            batch_size: by default that of the settings.
            shard: (index, count): gives only one in `count` batches, from the index-th on.
        """
        expect("batch_size", batch_size, optional(whole(1)))
        expect("shard", shard, _SHARD)
        source = self.source(split)
        size = batch_size or self.settings.batch_size
        batches = -(-len(source) // size)

        def batch(number):
            indices = number * size + tf.range(size, dtype=tf.int64)
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

        def prepare(image, key):
            return self.preparation.for_inference(image)

        read = self._read(source, schedule, stream, size, prepare)
        return _ahead(read.map(strip), size, self.input_shape)

    def _read(self, source, schedule, stream, size, finish, mix=None) -> tf.data.Dataset:
        """Batches (keys, images, labels) of what a schedule of (keys, indices) asks for.

        `finish` makes the pixels of each image, and `mix` those of each pair from both of them.
        An example that cannot be read is missing in what comes back, which comparing the
        keys shows; the index that was asked for leads to its name.  The padding that ends
        every epoch always comes back, so that there is something to compare.
        """
        if stream is None:
            parts = schedule.rebatch(_EXAMPLES) if size > _EXAMPLES else schedule
            stream = parts.map(
                lambda keys, indices: (keys, indices, *source.lookup(tf.maximum(indices, 0))),
                num_parallel_calls=min(_READERS, cores()),
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
        if mix is None:
            read = read.batch(size, drop_remainder=True)
        else:  # an epoch and its padding are even, so that no pair is of two epochs
            read = read.batch(2, drop_remainder=True)
            read = read.map(mix, num_parallel_calls=cores(), deterministic=True)
            read = read.batch(size // 2, drop_remainder=True)
            read = read.map(lambda *of_pairs: [_joined(x) for x in of_pairs])
        checked = tf.data.Dataset.zip(schedule, read).map(check)
        return checked.filter(lambda keys, images, labels: keys[0, 1] != _NOTHING)

    def _explain(self, source: Source, index: int) -> bytes:
        reason = source.defect(index) or "failed when it was read, but not when it was read again"
        line = f"{source.name(index)} {reason}"
        if source.stream is None:
            line += " (bad_images=skip leaves such images out, mode=check_data lists them)"
        return (_MARK + line).encode(errors="replace")

    def _mix(self, keys, indices, images, labels):
        """Mixes the images of a pair by the key of its first, whatever batch it is in."""
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        images = mixing.mix(images, keys[0], mixup=mixup, cutmix=cutmix)
        return keys, indices, images, labels


def take(batches: tf.data.Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first (images, labels) of some batches."""
    images, labels, missing = [], [], count
    with explained():
        for batch in batches.as_numpy_iterator():
            images.append(batch[0][:missing])
            labels.append(batch[1][:missing])
            missing -= len(images[-1])
            if not missing:
                break
    return np.concatenate(images), np.concatenate(labels)


def bad_example(error: Exception) -> str:
    """The line about the example that stopped a stream; "" if something else did."""
    found = re.search(rf"\[{_MARK}(.*?)\]\s+\[\[", str(error), re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""  # TensorFlow escapes \, ' and "


@contextlib.contextmanager
def explained():
    """Raises UsageError with that line, where an example stops a stream."""
    try:
        yield
    except tf.errors.OpError as error:
        line = bad_example(error)
        if not line:
            raise
        raise UsageError(line) from error


def _high(seed: int, epoch: tf.Tensor | int) -> tf.Tensor:
    return tf.cast(epoch, tf.int64) + (seed << 32)


def _key(seed: int, epoch: tf.Tensor | int, index: tf.Tensor) -> tf.Tensor:
    """The seeds (..., 2) of the images at indices (...) in an epoch."""
    high = tf.where(index == _NOTHING, tf.constant(_NOTHING, tf.int64), _high(seed, epoch))
    return tf.stack([high, index], axis=-1)


def _joined(pairs: tf.Tensor) -> tf.Tensor:
    """(N, 2, ...) to (2 N, ...)."""
    return tf.reshape(pairs, [2 * pairs.shape[0], *pairs.shape[2:]])


def _ahead(batches: tf.data.Dataset, size: int, shape: tuple[int, int, int]) -> tf.data.Dataset:
    """Reads the next batches while the last one is used, without tuning how many.

    The thread that tunes would hold up the end of every other iterator, by as long as the
    iterator has lived.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    fit = _AHEAD_BYTES // (4 * size * math.prod(shape))
    return batches.prefetch(min(max(fit, _LEAST_AHEAD), _MOST_AHEAD)).with_options(options)


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
