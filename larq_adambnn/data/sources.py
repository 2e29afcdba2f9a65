"""Where examples come from: each source gives undecoded images and labels in any order."""

import contextlib
import dataclasses
import logging
import os

import tensorflow as tf

from larq_adambnn.config import UsageError

__all__ = ["Source", "tfds_description", "tfds_source"]


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set, with random access to its undecoded examples.

    Attributes:
        images: string tensor (N,), every image encoded as PNG, JPEG, GIF or BMP.
        labels: int64 tensor (N,).
        class_names: one name a label.
        channels: channels of the images: 1 or 3.
    """

    images: tf.Tensor
    labels: tf.Tensor
    class_names: tuple[str, ...]
    channels: int

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def example(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(image, label) at an index; works in a tf.data function."""
        return tf.gather(self.images, index), tf.gather(self.labels, index)


def tfds_source(name: str, split: str, data_dir: str = "") -> Source:
    """A split of a TFDS image-classification data set, prepared on first use.

    Raises:
        UsageError: no such data set or split, no image and label in it, or its
            preparation failed (no network, files to be downloaded by hand).
    """
    builder = _prepared(name, data_dir)
    if split not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UsageError(f"--split: expected one of {splits} of {name}; received {split!r}")
    import tensorflow_datasets as tfds

    examples = builder.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    batch = examples.batch(max(1, builder.info.splits[split].num_examples)).get_single_element()
    features = builder.info.features
    return Source(
        images=batch["image"],
        labels=tf.cast(batch["label"], tf.int64),
        class_names=tuple(features["label"].names),
        channels=features["image"].shape[-1],
    )


def tfds_description(name: str, data_dir: str = "") -> tuple[tuple[str, ...], int]:
    """(class names, channels) of a TFDS data set, which need not be prepared."""
    features = _builder(name, data_dir).info.features
    return tuple(features["label"].names), features["image"].shape[-1]


def _builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    from larq_adambnn.data import digits  # noqa: F401  (registers its builder)

    tfds.disable_progress_bar()
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--dataset: expected digits or a name in TFDS; {reason}") from error
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(
        features
    ):
        raise UsageError(f"--dataset: expected images with labels; {name} has {features}")
    return builder


def _prepared(name: str, data_dir: str):
    """The TFDS builder of a data set, downloaded and prepared."""
    builder = _builder(name, data_dir)
    try:
        with _quiet():
            builder.download_and_prepare()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--dataset: {name} could not be prepared: {reason}") from error
    return builder


@contextlib.contextmanager
def _quiet():
    """Keeps absl's and TFDS's notes about preparation off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
