"""Image folders: what torchvision would read, what is wrong with them, and a million names."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from photographs import encoded, opened, photograph, write_folder

from larq_adambnn import data
from larq_adambnn.data import folder
from larq_adambnn.errors import UsageError

# The full size, of ImageNet, is 1,300,000: LARQ_ADAMBNN_FILES=1300000 pytest -k million
FILES = int(os.environ.get("LARQ_ADAMBNN_FILES", 65_000))
MEBIBYTES = 400  # that 1.3 million files may take


def touch(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(source):
    return [source.name(index) for index in range(len(source))]


def torchvision_names(directory):
    """(path, class) pairs in the order of torchvision's make_dataset."""
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    found = []
    for name in sorted(entry.name for entry in os.scandir(directory) if entry.is_dir()):
        for root, _, files in sorted(os.walk(directory / name, followlinks=True)):
            for file in sorted(files):
                if file.lower().endswith(extensions):
                    found.append((os.path.join(root, file), name))
    return found


@pytest.fixture
def tree(tmp_path):
    for name in ("zebra", "ape", "Lion", "ünïcode class"):
        for file in ("b.JPEG", "a.jpg", "c.PnG", "d.webp", "deep/er/x.bmp", "deep/a.tif", "é.jpeg"):
            touch(tmp_path / "train" / name / file, b"not read")
        touch(tmp_path / "val" / name / "v.jpg")
    touch(tmp_path / "train" / "ape" / "notes.txt")
    touch(tmp_path / "train" / "zebra" / "deep" / "LICENSE")
    touch(tmp_path / "train" / "README")
    return tmp_path


def test_names_labels_and_classes_are_torchvisions(tree, capsys):
    source = folder.open_folder(tree, "train")
    expected = torchvision_names(tree / "train")
    assert source.class_names == ("Lion", "ape", "zebra", "ünïcode class")
    assert folder.class_names(tree) == source.class_names
    assert names(source) == [path for path, _ in expected]
    paths, labels = source.lookup(tf.range(len(source), dtype=tf.int64))
    assert [os.fsdecode(path) for path in paths.numpy()] == names(source)
    assert [source.class_names[label] for label in labels] == [name for _, name in expected]
    assert source.load(paths[0]).numpy() == b"not read"
    assert source.problems == ()
    line = capsys.readouterr().out
    assert "28 images, 4 classes; 2 files ignored by their names (no extension, .txt)" in line


def test_val_has_the_labels_of_train(tree):
    for name in ("Lion", "ape"):
        for path in (tree / "val" / name).iterdir():
            path.unlink()
        (tree / "val" / name).rmdir()
    source = folder.open_folder(tree, "val")
    _, labels = source.lookup(tf.range(2, dtype=tf.int64))
    assert labels.numpy().tolist() == [2, 3]


def test_links_are_followed_but_not_in_circles(tree, monkeypatch):
    """By relative paths too, by two links that lead to each other, and beside a name like it."""
    monkeypatch.chdir(tree)
    for link, target in (
        ("apes", "ape"),
        ("zebra/lions", "../Lion"),
        ("Lion/zebras", "../zebra"),
        ("Lion/all", "../.."),
    ):
        (tree / "train" / link).symlink_to(target)
    source = folder.open_folder(pathlib.Path(), "train")
    circle = "is a link to a folder that holds it"
    circles = ("Lion/all", "Lion/zebras/lions", "zebra/lions/all", "zebra/lions/zebras")
    assert problems(source) == {f"train/{name}": circle for name in circles}
    assert source.class_names == ("Lion", "ape", "apes", "zebra", "ünïcode class")
    assert len(source) == 7 * (2 + 1 + 1 + 2 + 1)


def problems(source):
    return {problem.name: problem.reason for problem in source.problems}


def test_what_is_no_image_is_a_problem_and_left_out(tree):
    train = tree / "train"
    (train / "empty").mkdir()
    (train / "zebra" / "link.jpg").symlink_to("/nowhere")
    os.mkfifo(train / "zebra" / "pipe.jpg")
    (train / "zebra" / "loop").symlink_to(train / "zebra")
    (train / "zebra" / "circle.jpg").symlink_to("circle.jpg")
    (train / "zebra" / "good.jpg").symlink_to(train / "ape" / "a.jpg")
    source = folder.open_folder(tree, "train")
    assert problems(source) == {
        f"{train}/empty": "is a class without images",
        f"{train}/zebra/link.jpg": "is a broken link",
        f"{train}/zebra/circle.jpg": "is a broken link",
        f"{train}/zebra/pipe.jpg": "is no regular file",
        f"{train}/zebra/loop": "is a link to a folder that holds it",
    }
    assert len(source) == 4 * 7 + 1
    assert f"{train}/zebra/good.jpg" in names(source)
    assert "empty" not in source.class_names


def test_classes_of_val_that_train_lacks(tree):
    touch(tree / "val" / "unicorn" / "u.jpg")
    touch(tree / "val" / "unicorn" / "v.jpg")
    (tree / "val" / "ape" / "v.jpg").unlink()
    source = folder.open_folder(tree, "val")
    assert problems(source) == {
        f"{tree}/val/unicorn": "is no class of the training (2 images)",
        f"{tree}/val/ape": "is a class without images",
    }
    assert len(source) == 3


@contextlib.contextmanager
def unprivileged():
    """Not as root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_files_and_folders_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        root = write_folder(pathlib.Path(directory) / "data")
        secret = root / "train" / "china" / "000.JPEG"
        closed = root / "train" / "flower" / "closed"
        touch(closed / "x.jpg")
        secret.chmod(0)
        closed.chmod(0)
        try:
            with unprivileged():
                source = folder.open_folder(root, "train")
                assert problems(source) == {f"{closed}/": "cannot be read: Permission denied"}
                index = names(source).index(str(secret))
                assert source.defect(index) == "cannot be read: Permission denied"
        finally:
            closed.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "expected a folder with a folder of images for each class"),
        (lambda root: touch(root / "train" / "x.jpg"), "train", "holds 1 images without class"),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "train", "there are none"),
        (lambda root: touch(root / "train" / "a" / "x.jpg"), "val", "received '.*val': No such"),
        (lambda root: touch(root / "train"), "train", "Not a directory"),
    ],
)
def test_folders_that_hold_nothing(tmp_path, make, split, message):
    make(tmp_path)
    with pytest.raises(UsageError, match=f"data_dir: .*{message}") as raised:
        folder.open_folder(tmp_path, split)
    assert "\n" not in str(raised.value)


def test_splits(tree):
    (tree / "test").mkdir()
    touch(tree / "test" / "1.jpg")
    assert folder.splits(tree) == ("train", "val")  # test has images without classes
    with pytest.raises(UsageError, match="data_dir: expected a directory"):
        folder.splits(tree / "missing")


MEASURE = """
import os, sys
import larq_adambnn
import tensorflow as tf
from larq_adambnn import data

def open_data(directory):
    dataset = data.load("image_folder", directory, batch_size=2)
    # the order of an epoch, and where its first images are
    order = tf.random.experimental.stateless_shuffle(
        tf.range(len(dataset.train_source), dtype=tf.int64), [0, 0])
    dataset.train_source.lookup(order[:256])
    return len(dataset.train_source)

def mebibytes(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024

open_data(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = mebibytes("VmRSS")
count = open_data(sys.argv[2])
print("measured", count, mebibytes("VmHWM") - before)
"""


def test_a_million_names_take_little_memory(tmp_path):
    """In a process of its own: what it needs beyond a small data set."""
    write_folder(tmp_path / "small")
    classes = 50
    for index in range(classes):
        directory = tmp_path / "large" / "train" / f"n{index:08d}"
        directory.mkdir(parents=True)
        for number in range(FILES // classes):
            (directory / f"n{index:08d}_{number}.JPEG").touch()
    touch(tmp_path / "large" / "val" / "n00000000" / "x.JPEG")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=300,
    )
    line = next(line for line in run.stdout.splitlines() if line.startswith("measured"))
    count, mebibytes = map(float, line.split()[1:])
    assert count == FILES // classes * classes
    share = FILES / 1_300_000
    assert mebibytes < MEBIBYTES * share


def test_a_folder_is_listed_once_until_it_changes(tree, monkeypatch):
    a_while_ago = 1_000_000_000
    for path in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
        os.utime(path, ns=(a_while_ago, a_while_ago))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(
        folder.os, "scandir", lambda path: listed.append(os.fsdecode(path)) or scandir(path)
    )

    def load():
        known = data.describe("image_folder", str(tree))
        dataset = data.load("image_folder", str(tree), description=known, batch_size=1)
        return len(dataset.train_source), len(dataset.test_source)

    assert load() == load() == (28, 4)
    assert len(listed) == len(set(listed))
    assert {str(tree / "train"), str(tree / "train/ape/deep/er")} < set(listed)
    touch(tree / "train" / "ape" / "new.jpg")
    os.utime(tree / "train" / "ape", ns=(a_while_ago, a_while_ago + 1))
    assert load() == (29, 4)
    assert [path for path in listed if listed.count(path) > 1] == 2 * [f"{tree}/train/ape"]


def test_progress_is_shown_while_scanning(tree, monkeypatch, capsys):
    monkeypatch.setattr("larq_adambnn.progress._QUIET_SECONDS", 0.0)
    folder.open_folder(tree, "train")
    out = capsys.readouterr().out
    assert f"reading names in {tree}/train: " in out
    assert "images" in out


def test_without_leaves_out_and_keeps_the_names(tree):
    source = folder.open_folder(tree, "train")
    rest = source.without([0, 3, 27])
    expected = [name for index, name in enumerate(names(source)) if index not in (0, 3, 27)]
    assert names(rest) == expected
    paths, labels = rest.lookup(tf.constant([0, 24], tf.int64))
    assert [os.fsdecode(path) for path in paths.numpy()] == [expected[0], expected[24]]
    assert labels.numpy().tolist() == [0, 3]
    assert np.array_equal(
        source.without([]).lookup(tf.constant([5]))[0], source.lookup(tf.constant([5]))[0]
    )


HIDDEN = {
    "Jupyter's copies": ".ipynb_checkpoints/a.jpg",
    "macOS's folders": ".DS_Store",
    "macOS's archives": "__MACOSX/ape/._a.jpg",
    "Synology's thumbnails": "@eaDir/a.jpg/SYNOPHOTO_THUMB_S.jpg",
    "Windows's thumbnails": "Thumbs.db",
    "a file that begins with a dot": "._a.jpg",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_systems_and_programs_leave_is_no_class_no_split_and_no_image(tree, name):
    expected = {split: names(folder.open_folder(tree, split)) for split in ("train", "val")}
    classes, splits = folder.class_names(tree), folder.splits(tree)
    for place in ("", "train", "train/ape", "train/ape/deep", "val", "val/ape"):
        touch(tree / place / HIDDEN[name])
    assert folder.class_names(tree) == classes
    assert folder.splits(tree) == splits
    for split, files in expected.items():
        source = folder.open_folder(tree, split)
        assert names(source) == files
        assert source.problems == ()


@pytest.mark.parametrize("name", ["val", "validation"])
def test_validation_images_without_class_folders(tmp_path, name):
    """As Kaggle gives ImageNet: train/CLASS/*, val/*, test/*."""
    write_folder(tmp_path)
    for path in sorted((tmp_path / "val").glob("*/*")):
        touch(tmp_path / name / f"ILSVRC2012_{path.name}")
        path.unlink()
    for path in (tmp_path / "val").iterdir():
        if path.is_dir():
            path.rmdir()
    if name != "val":
        (tmp_path / "val").rmdir()
    touch(tmp_path / "test" / "1.JPEG")
    for split in ("test", "val"):
        with pytest.raises(UsageError) as raised:
            data.load("image_folder", tmp_path, split=split, batch_size=2).source()
        assert f"{tmp_path}/{name} holds 4 images without class folders" in str(raised.value)
        assert "expected a folder of images for each class" in str(raised.value)
        assert "valprep.sh" in str(raised.value)
        assert "\n" not in str(raised.value)


def mixed(side=32):
    """Pictures of every kind that a folder may hold, with their pixels in Pillow's mode RGB."""
    picture = photograph("china").resize((side, side))
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    for name, mode, kind in (
        ("colour.jpg", "RGB", "JPEG"),
        ("grey.JPG", "L", "JPEG"),
        ("cmyk.jpeg", "CMYK", "JPEG"),
        ("palette.png", "P", "PNG"),
        ("clear.PNG", "RGBA", "PNG"),
        ("clear_grey.png", "LA", "PNG"),
        ("bits.bmp", "1", "BMP"),
        ("clear.webp", "RGBA", "WEBP"),
    ):
        data = encoded(picture.convert(mode), kind)
        yield name, data, PIL.Image.fromarray(opened(data))
    for name, kind in (("deep.png", "PNG"), ("deep.tif", "TIFF")):
        yield name, encoded(PIL.Image.fromarray(deep), kind), picture.convert("L").convert("RGB")


@pytest.mark.parametrize(("channels", "mode"), [(0, "RGB"), (1, "L")])
def test_mixed_images_have_the_channels_asked_for(tmp_path, channels, mode):
    files = sorted(mixed())
    for split in ("train", "val"):
        for name, content, _ in files:
            touch(tmp_path / split / "all" / name, content)
    settings = {"image_size": 32, "crop": "none", "flip": False, "lighting": 0.0}
    dataset = data.load("image_folder", tmp_path, channels=channels, batch_size=5, **settings)
    depth = channels or 3
    assert dataset.input_shape == (32, 32, depth)
    mean, std = dataset.preparation.mean, dataset.preparation.std
    assert len(mean) == len(std) == depth
    received, _ = dataset.examples(20)
    pixels = received * std + mean
    for index, (name, _, picture) in enumerate(files):
        expected = np.asarray(picture.convert(mode)).reshape(32, 32, depth)
        tolerance = 1.01 if name == "cmyk.jpeg" else 0.01  # see test_images
        assert np.abs(255 * pixels[index] - expected).max() <= tolerance, name
    batch, _ = next(iter(dataset.train()))
    assert batch.shape == (5, 32, 32, depth)


def test_names_that_are_not_utf8(tmp_path, capsys):
    write_folder(tmp_path)
    train = os.fsencode(tmp_path / "train")
    os.rename(train + b"/china/000.JPEG", train + b"/china/caf\xe9.JPEG")
    os.symlink(b"nowhere", train + b"/china/\xff.jpg")
    for split in ("train", "val"):
        directory = os.fsencode(tmp_path / split)
        os.rename(directory + b"/flower", directory + b"/fleur\xe9")
    source = folder.open_folder(tmp_path, "train")
    assert source.class_names == folder.class_names(tmp_path) == ("china", r"fleur\xe9")
    assert problems(source) == {rf"{tmp_path}/train/china/\xff.jpg": "is a broken link"}
    assert rf"{tmp_path}/train/china/caf\xe9.JPEG" in names(source)
    for index in range(len(source)):
        assert source.defect(index) == ""
    "".join(names(source)).encode()  # what can be printed and written


def test_a_run_on_names_that_are_not_utf8(server, tmp_path):
    write_folder(tmp_path / "data", train=8)
    for split in ("train", "val"):
        directory = os.fsencode(tmp_path / "data" / split)
        os.rename(directory + b"/flower", directory + b"/fleur\xe9")
        touch(pathlib.Path(os.fsdecode(directory + b"/fleur\xe9/\xff.jpg")), b"no image")
    flags = ["--model=reactnet18", "--image_size=32", "--noexport", "--batch_size=8"]
    flags += ["--epochs=1", "--loss=cross_entropy", "--order=one_step", "--dataset=image_folder"]
    flags += [f"--data_dir={tmp_path}/data", f"--output_dir={tmp_path}/run"]
    status, _, err = server.start(*flags, "--bad_images=skip").finish()
    assert status == 0, err
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert r"train/fleur\xe9/\xff.jpg` is not an image" in report
    status, out, err = server.start(
        "--mode=check_data", "--dataset=image_folder", f"--data_dir={tmp_path}/data"
    ).finish()
    assert status == 2
    assert r"val/fleur\xe9/\xff.jpg is not an image" in out
