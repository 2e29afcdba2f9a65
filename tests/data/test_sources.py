"""Fingerprints: the same for the same examples wherever they are, another for others."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from photographs import write_folder

from larq_adambnn.data import catalog, sources
from larq_adambnn.data.digits import Digits


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An image folder, IDX files and a TFDS data set."""
    path = tmp_path_factory.mktemp("sources")
    write_folder(path)
    for prefix, count in (("train", 20), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.full((count, 8, 8), labels[:, None, None], np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (path / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    Digits(data_dir=str(path)).download_and_prepare()
    return path


def fingerprint(name, directory, split="train"):
    class_names = catalog.describe(name, str(directory)).class_names
    return catalog.open_source(name, str(directory), split, class_names).fingerprint()


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def grow(path):
    path.write_bytes(path.read_bytes() + b" ")


RECORDS = "digits/1.0.0/digits-train.tfrecord-00000-of-00001"
# Name, the file that changes, how, and the parts of the fingerprint that tell
CHANGES = (
    ("image_folder", "train/china/000.JPEG", grow, {"file sizes", "contents"}),
    ("image_folder", "train/china/000.JPEG", lambda path: flip(path, 99), {"contents"}),
    ("idx", "train-images-idx3-ubyte", lambda path: flip(path, -1), {"images"}),
    ("digits", RECORDS, grow, {"record files"}),
    ("digits", RECORDS, lambda path: flip(path, 99), {"contents"}),
)


@pytest.mark.parametrize(("name", "file", "change", "parts"), CHANGES)
def test_files(name, file, change, parts, directory, tmp_path):
    expected = fingerprint(name, directory)
    assert expected["examples"] == {"image_folder": 12, "idx": 20, "digits": 1437}[name]
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    assert fingerprint(name, copy) == expected
    other = fingerprint(name, copy, "val" if name == "image_folder" else "test")
    assert all(other[part] != value for part, value in expected.items() if part != "version")
    (copy / file).touch()
    assert fingerprint(name, copy) == expected
    source = None
    if name == "digits":  # a record file that grew is damaged for reading
        source = catalog.open_source(name, str(copy), "train", tuple("0123456789"))
    change(copy / file)
    received = source.fingerprint() if source else fingerprint(name, copy)
    assert {key for key, value in received.items() if value != expected[key]} == parts


def test_the_fingerprint_is_of_what_was_there_before_examples_were_left_out(directory):
    source = catalog.open_source("image_folder", str(directory), "train", ("china", "flower"))
    assert source.without([0, 5]).fingerprint() == source.fingerprint()


def test_a_label_more(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    expected = fingerprint("idx", directory)
    flip(copy / "train-labels-idx1-ubyte", -1)
    received = fingerprint("idx", copy)
    assert {key for key in received if received[key] != expected[key]} == {"labels"}


def own(pixels, **options):
    labels = np.arange(len(pixels)) % 2
    dataset = tf.data.Dataset.from_tensor_slices((pixels, labels))
    if options:
        dataset = dataset.shuffle(len(pixels), **options)
    return sources.dataset_source(dataset, ("a", "b"), "own", 0).fingerprint()


def test_ones_own_dataset():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1)).astype(np.uint8)
    expected = own(pixels)
    assert own(pixels) == expected
    assert own(pixels[:299]) == {**expected, "examples": 299}
    assert own(pixels[..., :1] / np.float32(255))["form"] != expected["form"]
    other = pixels.copy()
    other[255] ^= 1
    assert own(other)["first examples"] != expected["first examples"]
    assert own(pixels, seed=1, reshuffle_each_iteration=False)["first examples"]


def test_ones_own_dataset_that_differs_each_time_is_known_by_its_number_and_form():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1)).astype(np.uint8)
    expected = own(pixels)
    del expected["first examples"]
    assert own(pixels, reshuffle_each_iteration=True) == expected
