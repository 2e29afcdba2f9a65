"""TFDS's data sets: the same examples as TFDS's own reading, from shards and from tar files."""

import io
import pathlib
import re
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from photographs import crops, encoded, opened

from larq_adambnn import data
from larq_adambnn.data import records
from larq_adambnn.data.digits import Digits
from larq_adambnn.errors import UsageError


def load(name, directory, **options):
    return data.load(name, directory, image_size=32, batch_size=4, crop="none", **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The digits in three files a split, and TFDS's builder of them."""
    directory = tmp_path_factory.mktemp("tfds")
    builder = Digits(data_dir=str(directory))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    )
    return str(directory), builder


def tfds_examples(builder, split):
    """(encoded image, label) pairs as TFDS reads them, in the order of the files."""
    examples = builder.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    return [(e["image"], e["label"]) for e in examples.as_numpy_iterator()]


@pytest.mark.parametrize("split", ["train", "test", "train[:10%]", "train[40%:70%]", "train+test"])
def test_examples_are_those_of_tfds(shards, split):
    directory, builder = shards
    assert len(builder.info.splits["train"].file_instructions) == 3
    source = records.open_tfds("digits", split, directory)
    expected = tfds_examples(builder, split)
    assert len(source) == len(expected)
    images, labels = source.lookup(tf.range(len(source), dtype=tf.int64))
    assert images.numpy().tolist() == [image for image, _ in expected]
    assert labels.numpy().tolist() == [label for _, label in expected]
    assert source.class_names == tuple(map(str, range(10)))
    assert source.channels == 1


def test_any_example_in_any_order(shards):
    directory, builder = shards
    source = records.open_tfds("digits", "test", directory)
    expected = tfds_examples(builder, "test")
    order = np.random.default_rng(0).permutation(len(expected))[:50]
    images, _ = source.lookup(tf.constant(order))
    assert images.numpy().tolist() == [expected[index][0] for index in order]


@pytest.mark.parametrize(
    ("dataset", "name", "split"),
    [
        ("digits", "digits", "train"),
        ("digits:test", "digits", "test"),
        ("digits:train[:50%]", "digits", "train[:50%]"),
        ("emnist/balanced:test", "emnist/balanced", "test"),
        ("mnist:3.0.1", "mnist:3.0.1", "train"),
        ("mnist:3.*.*:train[10:20]", "mnist:3.*.*", "train[10:20]"),
    ],
)
def test_name_and_split(dataset, name, split):
    assert records.split_name(dataset) == (name, split)


def test_training_on_a_part_and_evaluating_on_another(shards):
    directory, builder = shards
    dataset = load("digits:train[:80%]", directory, split="train[80%:]")
    total = builder.info.splits["train"].num_examples
    assert len(dataset.train_source) + len(dataset.source()) == total
    whole = [label for _, label in tfds_examples(builder, "train[80%:]")]
    labels = np.concatenate([labels for _, labels in dataset.evaluation().as_numpy_iterator()])
    assert labels.tolist() == whole


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("nothing_like_it", "train", "dataset: expected digits, image_folder, idx or a name in"),
        ("digits", "tset", "split: expected one of train, test of digits.*'tset'"),
        ("digits", "train[:0]", "split: expected examples in train"),
        ("natural_questions", "train", "dataset: expected images with one class each"),
    ],
)
def test_names_that_do_not_exist(shards, dataset, split, message):
    with pytest.raises(UsageError, match=message) as raised:
        records.open_tfds(dataset, split, shards[0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["cut", "length", "more"])
def test_damaged_files(tmp_path, damage):
    builder = Digits(data_dir=str(tmp_path))
    builder.download_and_prepare()
    path = builder.info.splits["test"].file_instructions[0].filename
    content = bytearray(pathlib.Path(path).read_bytes())
    if damage == "cut":
        content = content[:-3]
    elif damage == "length":
        content[0] += 1
    else:
        content += content[:100]
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(UsageError, match=f"expected a TFRecord file of 360 examples; {path}"):
        records.open_tfds("digits", "test", str(tmp_path))


def test_a_damaged_image_in_a_record_has_a_name(tmp_path):
    builder = Digits(data_dir=str(tmp_path))
    builder.download_and_prepare()
    path = builder.info.splits["test"].file_instructions[0].filename
    content = pathlib.Path(path).read_bytes()
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    with open(path, "wb") as file:
        file.write(content[:second] + b"\0\0\0\0" + content[second + 4 :])
    dataset = load("digits", tmp_path)
    with pytest.raises(tf.errors.OpError) as raised:
        list(dataset.evaluation())
    assert data.bad_example(raised.value).startswith(
        "digits test example 1 is not an image: it begins with b'\\x89PNG"
    )


def tar(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def test_imagenet_from_its_official_archives(tmp_path):
    """Three synsets, with the PNG and one of the CMYK images that ImageNet is known for."""
    pictures = [image.resize((60, 40)) for image in crops(9, seed=30)]
    jpegs = [encoded(image) for image in pictures]
    synsets = {
        "n01440764": {f"n01440764_{i}.JPEG": jpegs[i] for i in range(4)},
        "n01739381": {"n01739381_1309.JPEG": encoded(pictures[4].convert("CMYK"))},
        "n02105855": {"n02105855_2933.JPEG": encoded(pictures[5], "PNG")},
    }
    train = tar({f"{name}.tar": tar(files) for name, files in synsets.items()})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(train)
    for kind, name in (("val", "val"), ("test", "test")):
        files = {f"ILSVRC2012_{kind}_{i:08d}.JPEG": jpegs[5 + i] for i in range(1, 4)}
        (tmp_path / f"ILSVRC2012_img_{name}.tar").write_bytes(tar(files))
    dataset = load("imagenet2012", tmp_path)
    assert len(dataset.class_names) == 1000
    assert dataset.splits == ("validation",)  # the test images have no labels
    assert dataset.split_name() == "validation"
    source = dataset.train_source
    images, labels = source.lookup(tf.range(len(source), dtype=tf.int64))
    names = [dataset.class_names[label] for label in labels]
    assert sorted(names) == ["n01440764"] * 4 + ["n01739381", "n02105855"]
    expected = {opened(data).tobytes() for data in jpegs[:4]}
    assert expected == {
        opened(image).tobytes()
        for image, name in zip(images.numpy(), names, strict=True)
        if name == "n01440764"
    }
    assert len(list(dataset.train().take(3))) == 3
    ((_, labels),) = dataset.evaluation(batch_size=10).as_numpy_iterator()
    assert sorted(dataset.class_names[label] for label in labels) == sorted(
        # of the first three validation images
        ["n01751748", "n09193705", "n02105855"]
    )


@pytest.mark.parametrize("exists", [False, True])
def test_archives_that_are_missing(tmp_path, exists):
    directory = tmp_path / "data"
    if exists:
        directory.mkdir()
    with pytest.raises(UsageError) as raised:
        load("imagenet2012", directory)
    message = str(raised.value)
    assert re.match(rf"data_dir: expected imagenet2012, .* in '{directory}'", message)
    assert "ILSVRC2012_img_train.tar" in message and "\n" not in message
    assert directory.exists() == exists
    assert not exists or not list(directory.iterdir())


def test_the_archive_of_one_split_is_missing(tmp_path):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar({}))
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_val.tar.*should contain two files"):
        load("imagenet2012", tmp_path)
