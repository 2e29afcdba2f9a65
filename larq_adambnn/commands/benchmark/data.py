"""--benchmark=data: images a second of the training pipeline, against a loop of Pillow.

Both run in a process that has one core from its start, in turns, on files that the system has in
memory.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import tensorflow as tf

from larq_adambnn import processes
from larq_adambnn.data import Dataset, images, mixing
from larq_adambnn.errors import UsageError
from larq_adambnn.machine import cores
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import Config

__all__ = ["compare", "main", "make_photographs", "measure", "pillow_batches"]

_ROUNDS = 5
_SECONDS = 2.0  # of each measurement in a round
_BATCH = 64
_PHOTOGRAPHS = 256
_QUALITY = 95  # about 80 kB at 500 x 375; the files of ImageNet have 110 kB on average
_DECODED = 16  # images that are held in memory to measure the augmentation alone
_PIPELINE = "pipeline: read, decode, crop, resize, flip, normalize"
_PILLOW = "Pillow loop that does the same"
# What the augmentation may have besides
_MORE = {
    "PCA lighting": {"lighting": 0.1},
    "RandAugment, 2 operations": {"randaugment": 2},
    "mixup or cutmix": {"mixup": 0.2, "cutmix": 1.0},
}


def main(config: Config) -> None:
    """Prints what each part of the pipeline takes, and how it compares with Pillow.

    Raises:
        UsageError: another data set than a folder, or a system without processes of one core.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS
        raise UsageError(
            "--benchmark: expected Linux for data, which is measured in a process of one core"
        )
    with contextlib.ExitStack() as stack:
        if not config.data_dir:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            size = make_photographs(pathlib.Path(folder), _PHOTOGRAPHS)
            config = config.replace(dataset="image_folder", data_dir=folder)
            print(
                f"{_PHOTOGRAPHS} JPEGs of 500 x 375 from two photographs, {size / 1e3:.0f} kB each"
            )
        if config.dataset != "image_folder":
            raise UsageError(
                "--dataset: expected image_folder with --benchmark=data (or no --data_dir, for "
                f"photographs that are made for it); received {config.dataset}"
            )
        speeds, ratio = compare(config)
    for name, speed in speeds.items():
        print(f"{name:<56}{speed:>8,.0f} images/s")
    print(f"{'pipeline / Pillow loop, each on the same one core':<56}{ratio:>8.2f}")


def make_photographs(directory: pathlib.Path, count: int, quality: int = _QUALITY) -> float:
    """Writes train/ and val/ with JPEGs of 500 x 375, cut out of scikit-learn's photographs.

    Returns:
        Their mean size in bytes.
    """
    import sklearn.datasets

    names = ("china", "flower")
    photographs = [sklearn.datasets.load_sample_image(f"{name}.jpg") for name in names]
    generator = np.random.default_rng(0)
    sizes = []
    for index in range(count):
        photograph = PIL.Image.fromarray(photographs[index % 2])
        height = int(generator.integers(345, photograph.height))
        width = height * 4 // 3
        left = int(generator.integers(0, photograph.width - width + 1))
        top = int(generator.integers(0, photograph.height - height + 1))
        image = photograph.crop((left, top, left + width, top + height))
        image = image.resize((500, 375), PIL.Image.LANCZOS)
        for split in ("train", "val") if index < 2 else ("train",):
            path = directory / split / names[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=quality)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def compare(
    config: Config, *, rounds: int = _ROUNDS, seconds: float = _SECONDS
) -> tuple[dict[str, float], float]:
    """Measures a folder's decoding, augmentations and pipeline, and the Pillow loop.

    Returns:
        Images a second by what was measured, and the median over the rounds of the
        pipeline's images a second over Pillow's.

    Raises:
        UsageError: the images do not fill a batch.
    """
    own = datasets.load(config)
    own.check_batch()
    plain = config.replace(
        crop="random_resized",
        flip=True,
        lighting=0.0,
        randaugment=0,
        mixup=0.0,
        cutmix=0.0,
        batch_size=min(config.batch_size, _BATCH),
    )
    with processes.pool(core=min(os.sched_getaffinity(0))) as process:
        speeds = process.submit(measure, plain, rounds, seconds).result()
    pairs = zip(speeds[_PIPELINE], speeds[_PILLOW], strict=True)
    ratio = statistics.median(ours / pillow for ours, pillow in pairs)
    result = {name: statistics.median(values) for name, values in speeds.items()}
    name = f"pipeline as the flags have it, on {cores()} cores"
    result[name] = _speed((len(labels) for _, labels in own.train()), seconds, time.perf_counter)
    return result, ratio


def measure(config: Config, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each part in each round."""
    dataset = datasets.load(config)
    measured = {
        "decode": _decoded(dataset),
        "augmentation: crop, resize, flip, normalize": _augmented(dataset),
        **{
            f"augmentation with {name}": _augmented(dataset, **changes)
            for name, changes in _MORE.items()
        },
        _PIPELINE: lambda: (len(labels) for _, labels in dataset.train()),
        _PILLOW: lambda: map(len, pillow_batches(dataset)),
    }
    speeds = {name: [] for name in measured}
    for _ in range(rounds):
        for name, start in measured.items():
            speeds[name].append(_speed(start(), seconds))
    return speeds


def _speed(counts: Iterator[int], seconds: float, clock=time.process_time) -> float:
    """Images a second of an iterator of numbers of images, after a first batch.

    The default clock counts what all threads of this process compute, so that neither
    other programs nor idle cores change the speed.
    """
    next(counts)
    done, start = 0, clock()
    while (elapsed := clock() - start) < seconds:
        done += next(counts)
    return done / elapsed


def _encoded(dataset: Dataset) -> tf.data.Dataset:
    """Some of the encoded training images, in memory, again and again."""
    source = dataset.train_source
    found, _ = source.lookup(tf.range(min(len(source), _PHOTOGRAPHS), dtype=tf.int64))
    return tf.data.Dataset.from_tensor_slices(found).map(source.load).cache().repeat()


def _whole(dataset: Dataset):
    def decode(encoded):
        return images.decode(
            encoded,
            dataset.preparation.channels,
            lambda height, width: tf.stack([0, 0, height, width]),
        )[0]

    return decode


def _decoded(dataset: Dataset) -> Callable[[], Iterator[int]]:
    """Starts decoding whole images; the numbers of images in its batches."""
    decode = _whole(dataset)
    corners = _encoded(dataset).map(lambda encoded: decode(encoded)[0, 0], tf.data.AUTOTUNE)
    batches = corners.batch(_BATCH).prefetch(1)
    return lambda: map(len, batches)


def _augmented(dataset: Dataset, **changes) -> Callable[[], Iterator[int]]:
    """Starts augmenting with other settings; the numbers of images in its batches."""
    settings = dataclasses.replace(dataset.settings, **changes)
    decoded = _encoded(dataset).map(_whole(dataset)).take(_DECODED).cache().repeat().enumerate()

    def augment(index, image):
        key = tf.stack([0, index])
        return dataset.preparation.for_training(image, key, settings), key

    def mix(images, keys):
        return mixing.mix(images, keys[0], mixup=settings.mixup, cutmix=settings.cutmix)

    images = decoded.map(augment, tf.data.AUTOTUNE)
    if settings.mixes:
        images = images.batch(2).map(mix, tf.data.AUTOTUNE).batch(_BATCH // 2)
        pairs = images.prefetch(1)
        return lambda: (2 * len(batch) for batch in pairs)
    batches = images.batch(_BATCH).prefetch(1)
    return lambda: (len(batch) for batch, _ in batches)


def pillow_batches(dataset: Dataset) -> Iterator[np.ndarray]:
    """Endless training batches (B, H, W, 3) made by Pillow and NumPy, one image at a time."""
    source, size = dataset.train_source, dataset.settings.image_size
    count = dataset.settings.batch_size
    mean, std = (
        np.array(values, np.float32)
        for values in (dataset.preparation.mean, dataset.preparation.std)
    )
    generator = np.random.default_rng(0)

    def image(path):
        with PIL.Image.open(path) as picture:
            picture = picture.convert("RGB")
        left, top, width, height = _crop(*picture.size, generator)
        picture = picture.crop((left, top, left + width, top + height))
        picture = picture.resize((size, size), PIL.Image.BILINEAR)
        if generator.random() < 0.5:
            picture = picture.transpose(PIL.Image.FLIP_LEFT_RIGHT)
        return (np.asarray(picture, np.float32) / 255 - mean) / std

    while True:
        order = generator.permutation(len(source))
        for start in range(0, len(order) - count + 1, count):
            yield np.stack([image(source.name(index)) for index in order[start : start + count]])


def _crop(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random resized crop, as torchvision samples it."""
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            return left, int(generator.integers(0, height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h
