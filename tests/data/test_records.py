"""TFDS's data sets: the same examples as TFDS's own reading, from shards and from tar files."""

import io
import itertools
import os
import re
import shutil
import struct
import tarfile
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from photographs import crops, encoded, opened

from larq_adambnn import data
from larq_adambnn.data import check, records
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


@pytest.mark.parametrize("split", ["test", "train[:10%]", "train[40%:70%]", "train+test"])
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


def test_where_records_begin_is_kept_while_the_files_stay(shards, tmp_path, monkeypatch):
    directory = shutil.copytree(shards[0], tmp_path / "copy")
    monkeypatch.setattr(records, "_INDEXED", 1)
    scanned = []
    scan = records._record_starts
    monkeypatch.setattr(records, "_record_starts", lambda i: scanned.append(i.filename) or scan(i))

    def images(split):
        source = records.open_tfds("digits", split, str(directory))
        return source.lookup(tf.range(len(source), dtype=tf.int64))[0].numpy().tolist()

    part, whole = images("train[40%:70%]"), images("train")
    assert part == whole[len(images("train[:40%]")) :][: len(part)]
    assert images("train") == whole
    assert len(scanned) == len(set(scanned)) == 3
    (index,) = directory.rglob(".digits-train.starts.npz")
    os.utime(scanned[0], ns=(1, 1))
    assert images("train") == whole
    assert len(scanned) == 4
    index.write_bytes(index.read_bytes()[:-100])
    assert images("train") == whole
    assert len(scanned) == 7
    index.unlink()
    index.mkdir()  # where it cannot be written
    assert images("train") == whole


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
        ("/", "train", "dataset: expected digits, image_folder, idx or a name in TFDS.*'/'"),
        ("digits", "tset", "split: expected one of train, test of digits.*'tset'"),
        ("digits", "train[:0]", "split: expected examples in train"),
        ("natural_questions", "train", "dataset: expected images with one class each"),
    ],
)
def test_names_that_do_not_exist(shards, dataset, split, message):
    with pytest.raises(UsageError, match=message) as raised:
        records.open_tfds(dataset, split, shards[0])
    assert "\n" not in str(raised.value)


@pytest.fixture
def prepared(shards, tmp_path):
    """A copy of the digits in three files a split: its directory, and that of the files."""
    shutil.copytree(shards[0], tmp_path / "tfds")
    return str(tmp_path / "tfds"), tmp_path / "tfds" / "digits" / "1.0.0"


@pytest.mark.parametrize("damage", ["cut", "length", "more", "missing"])
def test_damaged_files(prepared, damage):
    directory, folder = prepared
    path = sorted(folder.glob("*test*"))[1]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "length":
        content[0] += 1
        path.write_bytes(content)
    elif damage == "more":
        path.write_bytes(content + content[:100])
    else:
        path.unlink()
    line = f"cannot read {path}: No such" if damage == "missing" else f"examples; {path} is damaged"
    with pytest.raises(UsageError, match=line) as raised:
        records.open_tfds("digits", "test", directory)
    assert "\n" not in str(raised.value)


def frames(content):
    """Where each record begins in a file."""
    starts = [0]
    while starts[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, starts[-1])
        starts.append(starts[-1] + length + 16)
    return starts


def damage_checksum_of_length(content, start):
    content[start + 8] ^= 1


def damage_data(content, start):
    place = content.index(b"image", start) - 9
    content[place : place + 4] = b"\xff\xfe\xfd\xfc"


def damage_label(content, start):
    content[content.index(b"label", start) + 11] ^= 1


@pytest.mark.parametrize("damage", [damage_checksum_of_length, damage_data, damage_label])
def test_a_damaged_record_is_left_out_alone_and_by_name(prepared, damage):
    """Of the second of three files; the other records of its batch are whole."""
    directory, folder = prepared
    paths = sorted(folder.glob("*test*"))
    first, content = len(frames(paths[0].read_bytes())) - 1, bytearray(paths[1].read_bytes())
    damage(content, frames(content)[7])
    paths[1].write_bytes(content)
    index, line = first + 7, f"is damaged: its bytes in {paths[1]} have another checksum"
    source = records.open_tfds("digits", "test", directory)
    (problem,), _ = check.defects(source, "test")
    assert str(problem) == f"digits test example {index} {line}"
    assert problem.index == index
    with pytest.raises(tf.errors.OpError) as raised:
        list(load("digits", directory).evaluation())
    assert data.bad_example(raised.value).startswith(str(problem))
    dataset = load("digits", directory, bad_images="skip")
    labels = np.concatenate([labels for _, labels in dataset.evaluation().as_numpy_iterator()])
    _, whole = source.lookup(tf.range(len(source), dtype=tf.int64))
    np.testing.assert_array_equal(labels, np.delete(whole, index))


def test_a_record_that_is_no_example(prepared):
    """Its checksum is right."""
    directory, folder = prepared
    path = min(folder.glob("*test*"))
    content = path.read_bytes()
    starts = frames(content)
    examples = [content[a + 12 : b - 4] for a, b in itertools.pairwise(starts)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, example in enumerate(examples):
            writer.write(b"\xff\xfe" if number == 5 else example)
    source = records.open_tfds("digits", "test", directory)
    ((problem,), _) = check.defects(source, "test")
    assert str(problem).startswith(
        f"digits test example 5 is damaged: it cannot be parsed in {path} ("
    )


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("dataset_info.json", lambda text: text[:99], "dataset_info.json.* is damaged"),
        ("dataset_info.json", lambda text: None, "beside it is damaged: .*dataset_info.json"),
        ("dataset_info.json", lambda text: "[]", "dataset_info.json.* is damaged"),
        (
            "dataset_info.json",
            lambda text: text.replace('Lengths": [', 'Lengths": ["x",'),
            "info.json.* is damaged",
        ),
        ("label.labels.txt", lambda text: "\udcff", "a file beside it is damaged: 'utf-8'"),
        (
            "dataset_info.json",
            lambda text: text.replace('"name"', '"futureField": 1, "name"', 1),
            r"dataset_info.json was written by a newer tensorflow-datasets than \d.*futureField.*"
            "pip install -U tensorflow-datasets",
        ),
    ],
)
def test_damaged_or_newer_descriptions(prepared, name, change, line):
    directory, folder = prepared
    path = folder / name
    content = change(path.read_text() if path.is_file() else "")
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=line) as raised:
        load("digits", directory)
    assert "\n" not in str(raised.value)
    assert "delete" not in str(raised.value)


def pipe_as_description(folder):
    (folder / "dataset_info.json").unlink()
    os.mkfifo(folder / "dataset_info.json")


def nothing_in_it(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pipe_as_records(folder):
    path = min(folder.glob("*test*"))
    path.unlink()
    os.mkfifo(path)


FOREIGN = {
    pipe_as_description: "dataset_info.json: expected a file; it is no regular file",
    nothing_in_it: r"tensorflow-datasets prepared in .*/digits; there is no dataset_info.json",
    pipe_as_records: r"cannot read .*/digits-test.tfrecord-00000-of-00003: it is no file",
}


@pytest.mark.parametrize("change", FOREIGN)
def test_what_tfds_did_not_prepare(prepared, change):
    directory, folder = prepared
    change(folder)
    with pytest.raises(UsageError, match=FOREIGN[change]) as raised:
        load("digits", directory).source()
    assert "\n" not in str(raised.value)
    assert "delete" not in str(raised.value)


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


def test_the_growth_of_what_is_prepared_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("larq_adambnn.progress._QUIET_SECONDS", 0.0)
    looked = threading.Event()
    sizes = iter([0, 2**20])  # of the data set and its downloads, at the start

    def size(directory):
        found = next(sizes, None)
        if found is None:
            looked.set()
            found = 5 * 2**20
        return found

    monkeypatch.setattr(records, "_size", size)
    monkeypatch.setattr(records, "_LOOKS_SECONDS", 0.01)
    with records._growth("digits", types.SimpleNamespace(data_dir=tmp_path / "digits" / "1.0.0")):
        assert looked.wait(60)
    out = capsys.readouterr().out
    assert f"preparing digits in {tmp_path}/digits: " in out and "9 MB" in out
