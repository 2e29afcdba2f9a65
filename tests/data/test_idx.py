"""IDX files: whole, gzipped, damaged and lying."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import data
from larq_adambnn.data import idx
from larq_adambnn.errors import UsageError


def encode(array, kind=0x08):
    """An IDX file: zero, zero, type, rank, big-endian sizes, then the elements."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


def write(directory, *, train=30, test=9, classes=3, names=("train", "t10k"), pack=None):
    """A data set whose pixels are random; returns its arrays by split."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, prefix, count in zip(("train", "test"), names, (train, test), strict=True):
        images = generator.integers(0, 256, (count, 7, 5), np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        arrays[split] = images, labels
        for kind, array in (("images", images), ("labels", labels)):
            name = f"{prefix}-{kind}-idx{array.ndim}-ubyte"
            content = encode(array)
            if pack:
                name, content = f"{name}.gz", gzip.compress(content)
            directory.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)
    return arrays


def everything(source):
    images, labels = source.lookup(tf.range(len(source), dtype=tf.int64))
    return images.numpy()[..., 0], labels.numpy()


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("names", [("train", "t10k"), ("train", "test")])
def test_files_are_read(tmp_path, pack, names):
    arrays = write(tmp_path, pack=pack, names=names)
    assert idx.splits(tmp_path) == ("train", "test")
    assert idx.class_names(tmp_path) == ("0", "1", "2")
    for split, (images, labels) in arrays.items():
        source = idx.open_idx(tmp_path, split)
        assert (len(source), source.channels, source.problems) == (len(labels), 1, ())
        np.testing.assert_array_equal(everything(source)[0], images)
        np.testing.assert_array_equal(everything(source)[1], labels)
        assert source.name(3) == f"{tmp_path} {split} image 3"


def test_names_with_a_dot(tmp_path):
    arrays = write(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    np.testing.assert_array_equal(everything(idx.open_idx(tmp_path, "test"))[0], arrays["test"][0])


def test_statistics_are_those_of_the_training_pixels(tmp_path):
    images, _ = write(tmp_path)["train"]
    (mean,), (std,) = idx.statistics(tmp_path)
    assert mean == pytest.approx((images / 255).mean(), abs=1e-4)
    assert std == pytest.approx((images / 255).std(), abs=1e-4)


def test_sizes_are_big_endian(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\0\0\x08\x01" + b"\0\0\x01\x02" + bytes(258))
    assert idx.read_idx(path, 1).shape == (258,)
    path.write_bytes(b"\0\0\x08\x01" + b"\x02\x01\0\0" + bytes(258))
    with pytest.raises(UsageError, match="its header says 33619968; expected 33,619,968 bytes"):
        idx.read_idx(path, 1)


GOOD = encode(np.zeros((4, 3, 2), np.uint8))
DAMAGED = {
    "empty": (b"", r"begins with two zero bytes; received b''"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(50), "begins with two zero bytes"),
    "floats": (encode(np.zeros((4, 3, 2), ">f4"), 0x0D), "type 0x08.*received 3 of type 0x0d"),
    "labels": (encode(np.zeros(9, np.uint8)), "expected 3 dimensions.*received 1"),
    "half a header": (GOOD[:9], "the file ends in its header"),
    "truncated": (GOOD[:-1], "header says 4 x 3 x 2; expected 24 bytes after it; received 23"),
    "too long": (GOOD + b"\0", "expected 24 bytes after it; received more"),
    "an impossible size": (
        b"\0\0\x08\x03" + b"\xff" * 12 + bytes(24),
        "expected 79,228,162,458,924,105,385,300,197,375 bytes after it; received 24",
    ),
}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_lying_files(tmp_path, name, pack):
    content, message = DAMAGED[name]
    path = tmp_path / ("x.gz" if pack else "x")
    path.write_bytes(gzip.compress(content) if pack else content)
    with pytest.raises(UsageError, match=message) as raised:
        idx.read_idx(path, 3)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot be read: Not a gzipped file"),
        (gzip.compress(GOOD)[:-9], "cannot be read: Compressed file ended"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 9, "cannot be read: .*invalid block type"),
        (gzip.compress(GOOD)[:-6] + b"\0" * 6, "cannot be read: CRC check failed"),
    ],
    ids=["no gzip", "cut off", "another block", "another sum"],  # the bytes hold the time
)
def test_damaged_gzip(tmp_path, content, message):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        idx.read_idx(path, 3)


def test_a_lying_header_takes_no_memory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 1 << 20, 1 << 10, 1 << 10) + bytes(100))
    with pytest.raises(UsageError, match="expected 1,099,511,627,776 bytes"):
        idx.read_idx(path, 3)


def test_missing_files(tmp_path):
    with pytest.raises(UsageError, match=r"data_dir: expected train-images-idx3-ubyte\[.gz\] in"):
        idx.open_idx(tmp_path, "train")
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match=r"expected t10k-labels-idx1-ubyte\[.gz\]"):
        idx.open_idx(tmp_path, "test")


def test_as_many_labels_as_images(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encode(np.zeros(8, np.uint8)))
    with pytest.raises(UsageError, match="received 9 images and 8 labels"):
        idx.open_idx(tmp_path, "test")


def relabel(directory, prefix, changes):
    path = directory / f"{prefix}-labels-idx1-ubyte"
    labels = idx.read_idx(path, 1).copy()
    for index, label in changes.items():
        labels[index] = label
    path.write_bytes(encode(labels))


def load(directory, **options):
    return data.load("idx", directory, image_size=32, batch_size=4, crop="none", **options)


def test_labels_that_training_lacks(tmp_path):
    arrays = write(tmp_path)
    relabel(tmp_path, "t10k", {4: 3, 7: 255})
    with pytest.raises(
        UsageError, match=r"test image 4 has label 3; expected one of training's, 0 to 2 \(2 such"
    ):
        load(tmp_path).source("test")
    dataset = load(tmp_path, bad_images="skip")
    images, labels = everything(dataset.source("test"))
    kept = [index for index in range(len(arrays["test"][1])) if index not in (4, 7)]
    np.testing.assert_array_equal(images, arrays["test"][0][kept])
    np.testing.assert_array_equal(labels, arrays["test"][1][kept])
    assert [problem.name for problem in dataset.left_out("test")] == [
        f"{tmp_path} test image {index}" for index in (4, 7)
    ]
    assert dataset.source("test").name(4) == f"{tmp_path} test image 5"


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 9), (7, 200, 255)])
def test_classes_are_the_labels_of_training(tmp_path, numbers):
    arrays = write(tmp_path)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = arrays[split][1]
        relabel(tmp_path, prefix, {i: numbers[label] for i, label in enumerate(labels)})
    assert idx.class_names(tmp_path) == tuple(map(str, numbers))
    for split, (images, labels) in arrays.items():
        source = idx.open_idx(tmp_path, split)
        assert source.problems == ()
        np.testing.assert_array_equal(everything(source)[0], images)
        np.testing.assert_array_equal(everything(source)[1], labels)


@pytest.mark.parametrize("pack", [False, True])
def test_names_as_emnists(tmp_path, pack):
    arrays = write(tmp_path, names=("emnist-letters-train", "emnist-letters-test"), pack=pack)
    assert idx.splits(tmp_path) == ("train", "test")
    for split, (images, _) in arrays.items():
        np.testing.assert_array_equal(everything(idx.open_idx(tmp_path, split))[0], images)
    write(tmp_path, names=("emnist-digits-train", "emnist-digits-test"))
    with pytest.raises(
        UsageError, match=r"one file of train images .*digits.*, .*letters"
    ) as raised:
        idx.open_idx(tmp_path, "train")
    assert "\n" not in str(raised.value)


def test_the_network_sees_resized_normalized_images(tmp_path):
    images, labels = write(tmp_path)["test"]
    dataset = load(tmp_path)
    (mean,), (std,) = dataset.preparation.mean, dataset.preparation.std
    received, received_labels = next(dataset.evaluation(batch_size=9).as_numpy_iterator())
    np.testing.assert_array_equal(received_labels, labels)
    expected = tf.image.resize(images[..., np.newaxis], (32, 32), antialias=True) / 255
    np.testing.assert_allclose(received * std + mean, expected, atol=1e-5)


def test_a_run_trains_on_idx_files_and_says_what_it_left_out(server, tmp_path):
    write(tmp_path / "data", train=40)
    relabel(tmp_path / "data", "t10k", {2: 77})
    flags = ["--model=reactnet18", "--image_size=32", "--noexport", "--crop=padded"]
    flags += ["--batch_size=8", "--epochs=1", "--loss=cross_entropy", "--order=one_step"]
    flags += ["--dataset=idx"]
    flags += [f"--data_dir={tmp_path}/data", f"--output_dir={tmp_path}/run"]
    status, out, err = server.start(*flags, "--bad_images=skip").finish()
    assert status == 0, err
    assert "bad_images=skip: 1 left out of test" in out
    report = (tmp_path / "run" / "report.md").read_text()
    assert "- train: 0\n- test: 1\n" in report
    assert "test image 2` has label 77; expected one of training's, 0 to 2" in report


def test_a_small_file_that_holds_gigabytes(tmp_path):
    """Zeros take a thousandth of their size."""
    path = tmp_path / "x.gz"
    header = b"\0\0\x08\x03" + np.array([2**16, 2**7, 2**7], ">u4").tobytes()
    path.write_bytes(gzip.compress(header) + gzip.compress(bytes(2**22)) * 256)
    with pytest.raises(UsageError, match="expected at most 268,435,456 bytes in a"):
        idx.read_idx(path, 3)
