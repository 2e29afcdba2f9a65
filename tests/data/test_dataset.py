"""Data sets as streams: order, resuming, sharing among workers, and what the network sees."""

import dataclasses
import io
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import NAMES, crops, encoded, write_folder

from larq_adambnn import data
from larq_adambnn.data import augmentation, sources
from larq_adambnn.data import dataset as dataset_module
from larq_adambnn.data.sources import array_source
from larq_adambnn.errors import UsageError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


SETTINGS = {"image_size": 32, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), train=7, val=3)


def load(folder, **changes):
    return data.load("image_folder", folder, **{**SETTINGS, **changes})


def batches(stream, count):
    return list(stream.take(count).as_numpy_iterator())


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


MIXED = {"mixup": 0.4, "cutmix": 1.0}


def test_a_pipeline_is_made_once_and_can_be_read_again(folder):
    dataset, _ = numbered(20)
    assert dataset.train() is dataset.train(0) is dataset.train(first_iteration=0, shard=(0, 1))
    assert dataset.evaluation() is dataset.evaluation("", None)
    assert dataset.train() is not dataset.train(1)
    assert dataset.train() is not dataclasses.replace(dataset, name="other").train()
    dataset = load(folder)
    assert_same(batches(dataset.evaluation(), 9), batches(dataset.evaluation(), 9))
    first = batches(dataset.train(), 1)
    images = np.concatenate([images for images, _ in batches(dataset.evaluation(), -1)])
    np.testing.assert_array_equal(dataset.probe(), images[:64])
    assert_same(first, batches(dataset.train(), 1))


@pytest.mark.parametrize(
    ("changes", "firsts"),
    [
        ({}, (0, 1, 10)),
        ({"crop": "padded"}, (3,)),
        ({**MIXED, "randaugment": 1, "lighting_range": 255}, (5,)),
    ],
)
def test_stream_from_a_step_is_the_tail_of_the_stream(folder, changes, firsts):
    """Also of a data set that was loaded again."""
    dataset, again = load(folder, **changes), load(folder, **changes)
    assert dataset.iterations_per_epoch == 3
    whole = batches(dataset.train(), 11)
    for first in firsts:
        assert_same(whole[first:], batches(again.train(first), 11 - first))


def test_another_seed_is_another_stream(folder):
    one, other = (batches(load(folder, seed=seed).train(), 1) for seed in (0, 1))
    assert np.abs(one[0][0] - other[0][0]).max() > 0.1


def numbered(count, **changes):
    """A data set whose image i is of the value i, with the indices that are looked up."""
    looked_up = []
    pixels = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 9, 9, 1)
    )
    array = array_source(pixels, np.arange(count) % 5, tuple("abcde"), "numbers")

    def note(indices):
        looked_up.extend(indices.tolist())
        return indices

    def lookup(indices):
        noted = tf.numpy_function(note, [indices], tf.int64, stateful=False)
        return array.lookup(tf.ensure_shape(noted, indices.shape))

    source = dataclasses.replace(array, lookup=lookup)
    options = {"image_size": 32, "crop": "none", "flip": False, "batch_size": 5, **changes}
    dataset = data.Dataset(
        name="numbers",
        settings=data.Settings(**options),
        class_names=tuple("abcde"),
        preparation=data.Preparation(32, "none", 1, (0.0,), (1 / 255,)),
        splits=("test",),
        open_split=lambda _: (source, ()),
    )
    return dataset, looked_up


def values(batch):
    """The numbers of a batch of `numbered`."""
    return np.round(batch[0][:, 0, 0, 0]).astype(int).tolist()


def test_every_epoch_has_all_images_once_in_its_own_order():
    dataset, _ = numbered(40)
    epochs = np.array([values(batch) for batch in batches(dataset.train(), 24)]).reshape(3, 40)
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # no trace of the old order: neighbours in the files are seldom neighbours in an epoch
    assert (np.abs(np.diff(epochs)) == 1).mean() < 0.2


def test_an_incomplete_last_batch_is_left_out_but_not_always_the_same_images():
    dataset, _ = numbered(43)
    epochs = np.array([values(batch) for batch in batches(dataset.train(), 24)]).reshape(3, 40)
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("cores", [1, 100])
def test_what_is_read_ahead_does_not_grow_with_the_cores(cores, monkeypatch):
    monkeypatch.setattr(dataset_module, "cores", lambda: cores)
    monkeypatch.setattr(dataset_module, "_AHEAD_BYTES", 3 * 200 * 32 * 32 * 4)
    dataset, looked_up = numbered(20_000, batch_size=200)
    stream = iter(dataset.train())
    next(stream)
    before = -1
    for _ in range(600):
        read, before = before, len(looked_up)
        if before == read and before >= 3 * 200:
            break
        time.sleep(0.5)
    else:
        pytest.fail(f"after five minutes {before} images are read, and no end")
    # the first batch, two that are ready and one that is put together; what four readers have;
    # an image a core
    assert 3 * 200 <= before <= 4 * 200 + 2 * 4 * 64 + 2 * cores


def test_nothing_before_the_first_step_is_read():
    dataset, looked_up = numbered(2000)
    batches(dataset.train(), 100)
    before = set(looked_up[:500])
    assert len(before) == 500
    del looked_up[:]
    batches(dataset.train(100), 1)
    # what follows the step is read ahead, but not so far as the next epoch
    assert 5 <= len(looked_up) <= 1500
    assert not before & set(looked_up)


def test_shards_together_are_the_batches_of_one_process(folder):
    count = 4
    dataset = load(folder, batch_size=8, **MIXED)
    whole = batches(dataset.train(1), 4)
    shards = [batches(dataset.train(1, shard=(index, count)), 4) for index in range(count)]
    together = [
        tuple(np.concatenate(parts) for parts in zip(*step, strict=True))
        for step in zip(*shards, strict=True)
    ]
    assert_same(whole, together)


def test_a_shard_reads_only_its_part():
    dataset, looked_up = numbered(2000, batch_size=8)
    batches(dataset.train(), 250)
    own = np.reshape(looked_up[:2000], (250, 8))[:, 2:4]
    del looked_up[:]
    batches(dataset.train(shard=(1, 4)), 5)
    assert 10 <= len(looked_up) <= 500
    assert set(looked_up) <= set(own.ravel())


@pytest.mark.parametrize("shard", [(0, 3), (2, 2), (-1, 2)])
def test_impossible_shards(folder, shard):
    with pytest.raises(ValueError, match=r"Expected (a shard|shard to be)"):
        load(folder).train(shard=shard)


def test_mixup_needs_pairs_on_every_worker(folder):
    dataset = load(folder, mixup=0.2, batch_size=6)
    with pytest.raises(UsageError, match="even number"):
        dataset.train(shard=(0, 2))


@pytest.mark.parametrize("size", [1, 4, 7, 10, 64])
def test_evaluation_gives_every_image_once_in_order(size):
    dataset, looked_up = numbered(23)
    received = batches(dataset.evaluation("test", size), -1)
    assert [len(labels) for _, labels in received] == [size] * (23 // size) + (
        [23 % size] if 23 % size else []
    )
    assert [value for batch in received for value in values(batch)] == list(range(23))
    np.testing.assert_array_equal(
        np.concatenate([labels for _, labels in received]), np.arange(23) % 5
    )
    assert sorted(set(looked_up)) == list(range(23))


def test_shards_of_an_evaluation_are_its_batches():
    dataset, _ = numbered(23)
    whole = batches(dataset.evaluation("test", 4), -1)
    shards = [batches(dataset.evaluation("test", 4, shard=(index, 2)), -1) for index in (0, 1)]
    assert_same(whole[::2], shards[0])
    assert_same(whole[1::2], shards[1])


def test_two_epochs_of_an_evaluation_are_the_same(folder):
    stream = load(folder).evaluation("val")
    assert_same(batches(stream, -1), batches(stream, -1))


def test_evaluation_is_pillows(tmp_path):
    """50 JPEGs of odd sizes, decoded, resized and cropped by Pillow."""
    for index, image in enumerate(crops(50, seed=8)):
        for split in ("train", "val"):
            path = tmp_path / split / "a" / f"{index:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image, quality=85))
    dataset = load(tmp_path, image_size=224, batch_size=10)
    received = np.concatenate([images for images, _ in batches(dataset.evaluation("val"), -1)])
    for index, pixels in enumerate(received):
        image = PIL.Image.open(tmp_path / "val" / "a" / f"{index:02d}.jpg")
        short, long = sorted(image.size)
        other = int(256 * long / short)
        image = image.resize(
            (256, other) if image.width <= image.height else (other, 256), PIL.Image.BILINEAR
        )
        left, top = (round((side - 224) / 2) for side in image.size)
        expected = np.asarray(image.crop((left, top, left + 224, top + 224))) / 255
        difference = np.abs(pixels * STD + MEAN - expected)
        assert difference.mean() < 0.6 / 255
        assert difference.max() < 2 / 255


def test_training_images_are_pillows(folder):
    """Crop, resize, flip and lighting of a batch, made again from the keys by Pillow."""
    dataset = load(folder, image_size=64)
    source = dataset.train_source
    order = tf.random.experimental.stateless_shuffle(tf.range(14, dtype=tf.int64), [0, -1]).numpy()
    images, labels = batches(dataset.train(), 1)[0]
    flips = 0
    for position, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        image = PIL.Image.open(source.name(int(order[position])))
        assert NAMES[label] in image.filename
        keys = [tf.constant([0, position + (part << 48)], tf.int64) for part in range(3)]
        top, left, height, width = augmentation.crop_window(image.height, image.width, keys[0])
        image = image.crop((int(left), int(top), int(left + width), int(top + height)))
        image = image.resize((64, 64), PIL.Image.BILINEAR)
        if augmentation.flip(keys[1]):
            flips += 1
            image = image.transpose(PIL.Image.FLIP_LEFT_RIGHT)
        expected = np.asarray(image) / 255 + augmentation.lighting(keys[2], 0.1)
        difference = np.abs(pixels * STD + MEAN - expected)
        # the outer columns of a crop are decoded without their neighbours' colours
        assert difference[:, 2:-2].max() < 3 / 255
        assert difference.max() < 12 / 255
    assert 0 < flips < 4


def test_lighting_on_0_to_255_does_nearly_nothing(folder):
    plain, bright, published = (
        batches(load(folder, **changes).train(), 1)[0][0] * STD
        for changes in ({"lighting": 0.0}, {}, {"lighting_range": 255})
    )
    assert np.abs(bright - plain).max() > 0.5 / 255
    assert 0 < np.abs(published - plain).max() < 0.5 / 255
    np.testing.assert_allclose((bright - plain) / 255, published - plain, atol=1e-6)


def test_op_determinism_changes_nothing(folder):
    dataset = load(folder, randaugment=1)
    expected = batches(dataset.train(2), 2)
    tf.config.experimental.enable_op_determinism()
    assert_same(expected, batches(dataset.train(2), 2))


# What cannot be read


def stop(stream):
    with pytest.raises(tf.errors.OpError) as raised:
        for _ in stream.take(60):
            pass
    return data.bad_example(raised.value)


def test_a_bad_image_stops_with_its_name_and_the_reason(tmp_path):
    folder = write_folder(tmp_path, train=7, val=7)
    victims = {"train": "001.JPEG", "val": "013.JPEG"}  # the last one, in an incomplete batch
    for split, victim in victims.items():
        path = folder / split / "flower" / victim
        path.write_bytes(path.read_bytes()[:300])
    dataset = load(folder)
    for split, stream in (
        ("train", dataset.train()),
        ("train", load(folder, mixup=0.2).train()),
        ("train", dataset.train(1, shard=(0, 2)).concatenate(dataset.train(1, shard=(1, 2)))),
        ("val", dataset.evaluation()),
        ("val", dataset.evaluation(batch_size=100)),
    ):
        line = stop(stream)
        assert line.startswith(f"{folder}/{split}/flower/{victims[split]} is truncated or damaged")
        assert "\n" not in line


def test_the_line_survives_odd_names(tmp_path):
    folder = write_folder(tmp_path / 'it\'s [a] "test" of é')
    path = folder / "val" / "china" / "x] [y'.jpg"
    path.write_bytes(b"")
    assert stop(load(folder).evaluation()).startswith(f"{path} is empty (0 bytes)")


def test_a_folder_of_nothing_but_bad_images_stops(tmp_path):
    folder = write_folder(tmp_path)
    for path in folder.glob("*/*/*"):
        path.write_text("version https://git-lfs.github.com/spec/v1")
    dataset = load(folder)
    for stream in (dataset.train(), dataset.evaluation()):
        assert "is not an image: it begins with b'version" in stop(stream)


def test_a_file_that_went_away(tmp_path):
    folder = write_folder(tmp_path)
    dataset = load(folder)
    dataset.source()
    (folder / "val" / "china" / "000.JPEG").unlink()
    assert "000.JPEG cannot be read: No such file or directory" in stop(dataset.evaluation())


def test_other_errors_are_not_bad_examples():
    assert data.bad_example(ValueError("something [else]\n\t [[here]]")) == ""


# A user's own tf.data.Dataset


def own(count=20, kind="uint8", labels=None):
    pixels = np.stack([np.asarray(image.resize((20, 16))) for image in crops(count, seed=12)])
    labels = np.arange(count) % 3 if labels is None else labels
    if kind == "float32":
        pixels = pixels.astype(np.float32) / 255
    if kind == "encoded":
        pixels = [encoded(PIL.Image.fromarray(image), "PNG") for image in pixels]
    return tf.data.Dataset.from_tensor_slices((pixels, labels))


def from_own(train, **changes):
    options = {**SETTINGS, "shuffle": 8, "crop": "padded", **changes}
    return data.from_datasets(train, own(7), tuple("abc"), **options)


def test_own_datasets_of_all_kinds_are_the_same():
    streams = [
        batches(from_own(own(kind=kind)).train(), 12) for kind in ("uint8", "float32", "encoded")
    ]
    for stream in streams[1:]:
        for (images, labels), (expected, expected_labels) in zip(stream, streams[0], strict=True):
            np.testing.assert_allclose(images, expected, atol=1e-5)
            np.testing.assert_array_equal(labels, expected_labels)


def test_own_datasets_resume_share_and_evaluate():
    dataset = from_own(own(22))
    assert dataset.iterations_per_epoch == 5
    whole = batches(dataset.train(), 12)
    for first in (5, 8):
        assert_same(whole[first:], batches(dataset.train(first), 12 - first))
    shards = [batches(dataset.train(3, shard=(index, 2)), 3) for index in (0, 1)]
    for step, parts in enumerate(zip(*shards, strict=True), start=3):
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), whole[step][0])
    evaluation = batches(dataset.evaluation(batch_size=3), -1)
    assert [len(labels) for _, labels in evaluation] == [3, 3, 1]
    assert np.concatenate([labels for _, labels in evaluation]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    shards = [batches(dataset.evaluation(batch_size=3, shard=(i, 2)), -1) for i in (0, 1)]
    assert_same(evaluation[::2], shards[0])
    assert_same(evaluation[1::2], shards[1])


def test_own_datasets_are_shuffled_each_epoch_in_another_way():
    plain = {"flip": False, "lighting": 0.0, "crop": "none"}

    def epochs(shuffle):
        stream = batches(from_own(own(), shuffle=shuffle, **plain).train(), 10)
        return [np.concatenate([images for images, _ in part]) for part in (stream[:5], stream[5:])]

    first, second = epochs(shuffle=8)
    flat = [{image.tobytes() for image in epoch} for epoch in (first, second)]
    assert len(flat[0]) == 20 and flat[0] == flat[1]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(*epochs(shuffle=0))


def test_labels_of_own_datasets_out_of_range_stop(monkeypatch):
    """Those behind the first, which are looked at before."""
    monkeypatch.setattr(sources, "_LABELS", 8)
    for bad in (3, -1):
        labels = np.arange(20) % 3
        labels[13] = bad
        dataset = from_own(own(labels=labels))
        assert f"training example 13 has label {bad}; expected 0 to 2" in stop(dataset.train())


@pytest.mark.parametrize("scale", [255.0, -1.0, np.nan])
def test_own_pixels_of_another_range(scale):
    scaled = own(kind="float32").map(lambda image, label: (image * scale, label))
    with pytest.raises(ValueError, match=r"Expected float32 pixels on 0..1 \(divide by 255"):
        from_own(scaled)


def test_own_mean_and_deviation():
    preparation = from_own(own(), mean=np.full(3, 0.25), std=[0.5] * 3).preparation
    assert (preparation.mean, preparation.std) == ((0.25,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="std to be 3 values, each a finite number above 0"):
        from_own(own(), std=[0.0] * 3)


def test_own_datasets_of_something_else():
    good = own()
    for wrong, message in (
        (good.batch(2), r"Expected a tf.data.Dataset of \(image, label\)"),
        (good.map(lambda image, label: image), r"Expected a tf.data.Dataset of \(image, label\)"),
        (good.map(lambda i, label: (i, tf.cast(label, tf.float32))), "and an integer"),
        (good.map(lambda i, label: (i[..., :2], label)), "1 or 3 channels"),
        (good.repeat(), "known number"),
        (good.filter(lambda image, label: label > 0), "known number"),
        (good.map(lambda i, label: (i[..., :1], label)), "as many channels"),
    ):
        with pytest.raises(ValueError, match=message):
            from_own(wrong)
    with pytest.raises(UsageError, match="batch_size: expected at most the 20 training images"):
        from_own(good, batch_size=21)


# Names


def test_split_names(folder, tmp_path, capsys):
    dataset = load(folder)
    assert dataset.split_name("test") == "val"
    assert dataset.split_name("validation") == "val"
    assert dataset.split_name("train") == "train"
    assert "split=test: image_folder has none; taking val" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"expected one of train, val of image_folder.*'testing'"):
        dataset.split_name("testing")
    (folder / "test" / "china").mkdir(parents=True)
    try:
        assert load(folder).split_name("test") == "test"
        assert load(folder, split="val").split_name() == "val"
    finally:
        (folder / "test" / "china").rmdir()
        (folder / "test").rmdir()


def test_a_split_is_opened_once(folder):
    dataset = load(folder)
    assert dataset.source("val") is dataset.source("test")


def test_batches_larger_than_the_data(folder):
    with pytest.raises(UsageError, match="batch_size: expected at most the 14 training images"):
        load(folder, batch_size=15).train()


def test_a_part_of_the_training_images_shows_every_class(folder):
    whole, part = load(folder), load(folder, train_images=5)
    assert len(whole.train_source) == 14
    assert (len(part.train_source), part.iterations_per_epoch) == (5, 1)
    assert len(part.test_source) == len(whole.test_source)
    every = batches(whole.evaluation("train", 1), -1)
    assert_same(batches(part.evaluation("train", 1), -1), [every[i] for i in (0, 2, 5, 8, 11)])
    with pytest.raises(UsageError, match=r"train_images: expected at most 14, .*received 15"):
        load(folder, train_images=15).train()


def test_what_is_held_out_is_not_trained_on_and_can_be_evaluated(folder):
    dataset = load(folder, held_out=3, train_images=5, split="held_out")
    every = batches(load(folder).evaluation("train", 1), -1)
    assert_same(batches(dataset.evaluation(batch_size=1), -1), [every[i] for i in (0, 4, 9)])
    rest = [every[i] for i in (1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13)]
    assert_same(batches(dataset.evaluation("train", 1), -1), [rest[i] for i in (0, 2, 4, 6, 8)])
    assert len(dataset.source("test")) == len(load(folder).test_source)
    assert dataset.source("held_out") is dataset.source()
    with pytest.raises(UsageError, match=r"expected one of train, val of image_folder.*'held_out'"):
        load(folder, split="held_out")
    with pytest.raises(UsageError, match=r"held_out: expected at most 14, .*received 15"):
        load(folder, held_out=15).train()


def test_normalization_of_each_data_set():
    imagenet = (tuple(MEAN), tuple(STD))
    for name, expected in (
        ("digits", ((0.3055,), (0.3235,))),
        ("digits:train[:50%]", ((0.3055,), (0.3235,))),
        ("cifar10", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
        ("imagenet2012", imagenet),
        ("stanford_dogs", imagenet),
    ):
        found = data.describe(name)
        assert (found.mean, found.std) == expected


def test_digits_have_the_statistics_that_they_are_normalized_with(data_dir):
    dataset = data.load("digits", data_dir, crop="none", **SETTINGS)
    images = np.concatenate([images for images, _ in batches(dataset.evaluation("train"), -1)])
    assert images.mean() == pytest.approx(0, abs=2e-3)
    assert images.std() == pytest.approx(1, abs=1e-3)


def test_png_under_another_name_is_read(tmp_path):
    folder = write_folder(tmp_path)
    image = next(crops(1, seed=20)).resize((32, 32))
    file = io.BytesIO()
    image.save(file, "PNG")
    (folder / "val" / "china" / "000.JPEG").write_bytes(file.getvalue())
    images, _ = batches(load(folder, crop="none").evaluation(), 1)[0]
    np.testing.assert_allclose(images[0] * STD + MEAN, np.asarray(image) / 255, atol=1e-6)
