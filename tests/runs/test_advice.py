"""Settings that make a training bad are told before it begins, and those that leave nothing."""

import re

import exports
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import data, models
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import advice
from larq_adambnn.runs.config import parse

FLAGS = ("--output_dir=x", "--loss=cross_entropy", "--model=reactnet18", "--image_size=32")


def notes(*flags, images=640, classes=2, replicas=1):
    """Of a training on so many images, in batches of 32 if the flags say nothing else."""
    config = parse([*FLAGS, "--batch_size=32", "--epochs=20", *flags])
    pixels, labels = np.zeros((images, 32, 32, 1), np.uint8), np.arange(images) % classes
    examples = tf.data.Dataset.from_tensor_slices((pixels, labels))
    names = tuple(map(str, range(classes)))
    options = {"image_size": 32, "batch_size": config.batch_size}
    return advice.notes(config, data.from_datasets(examples, examples, names, **options), replicas)


NOTES = {
    # 20 epochs of 20 iterations: 0.99 ** 400 is 1.8 %, 0.993 ** 400 6 %
    "none": ([], {}, None),
    "average of 400 iterations": (["--ema=0.99"], {}, None),
    "average of more": (["--ema=0.993"], {}, r"--ema: expected at most 0\.992 .* 6\.0 %"),
    "average of 80": (
        ["--ema=0.999", "--epochs=4"],
        {},
        r"--ema: expected at most 0\.963 .* 92\.3",
    ),
    "full batches": ([], {"images": 640 + 31}, None),
    "half of an epoch left out": ([], {"images": 63}, r"--batch_size: .* here 31 of 63 images"),
    "a class without images": ([], {"images": 32, "classes": 33}, r"--train_images: .*32 of 33"),
    "nothing to freeze": (["--freeze_backbone"], {}, "--freeze_backbone: expected --init_from"),
    "one image, maps of 64 pixels": (["--microbatches=32"], {}, None),
    "two images, maps of one": (
        ["--microbatches=16", "--stem_stride=2"],
        {},
        r"--microbatches: batch norm has 2 values .* in 5 of 20 layers",
    ),
    "one image on each device": (
        ["--stem_stride=2"],
        {"replicas": 32},
        r"--microbatches: batch norm has 1 value of",
    ),
    "its statistics shared": (["--stem_stride=2", "--sync_batch_norm"], {"replicas": 32}, None),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes(name, monkeypatch):
    flags, options, expected = NOTES[name]
    if "--stem_stride=2" in flags:
        flags = [*flags, "--width=0.02"]
    else:
        monkeypatch.setitem(models._NETWORKS, "reactnet18", exports.tiny)
    found = notes(*flags, **options)
    assert len(found) == (expected is not None), found
    if expected:
        assert re.search(expected, found[0]), found


def test_one_class_is_nothing_to_learn():
    with pytest.raises(UsageError, match=r"--dataset: expected two classes .* has '0' only"):
        notes(classes=1)


def test_the_rate_of_the_only_epoch_is_not_0():
    with pytest.raises(UsageError, match="--epochs: expected 2 or more with --published_schedule"):
        parse([*FLAGS, "--published_schedule", "--epochs=1"])
