"""--mode=export as a user types it: what it writes, prints, refuses and leaves alone."""

import contextlib
import functools
import hashlib
import io
import json
import shutil

import exports
import numpy as np
import pytest

import main
from larq_adambnn import export, models
from larq_adambnn.export import description, exporter
from larq_adambnn.runs import datasets, report, students
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


@pytest.fixture(scope="module")
def exported(digits_run, tiny_network, tmp_path_factory):
    """A run after --mode=export, which is left as it is, and what that printed."""
    run = shutil.copytree(digits_run, tmp_path_factory.mktemp("exported") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main.main(["--mode=export", f"--run={run}"]) == 0
    return run, out.getvalue()


@pytest.fixture(scope="module")
def digits(digits_run, tiny_network):
    """The network, the 360 test and the 1,437 training images, their labels and its classes."""
    config = load_run(digits_run)
    dataset = datasets.load(config)
    student = students.load_student(Run(digits_run), config, dataset)
    parts = [exports.arrays(dataset, split) for split in ("test", "train")]
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    return student, images, labels, student.predict(images, verbose=0).argmax(-1)


def files(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(capsys, directory, *flags, mode="export"):
    """The one line of a command that fails and writes nothing."""
    before = files(directory)
    status = main.main([f"--mode={mode}", f"--run={directory}", *flags])
    err = capsys.readouterr().err
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert files(directory) == before
    return err


def test_export(exported, digits):
    run, out = exported
    tflite = (run / "model.tflite").read_bytes()
    info = exports.read_json(run / "export.json")
    assert info["bytes"] == len(tflite)
    assert info["sha256"] == hashlib.sha256(tflite).hexdigest()
    assert info["input"] == {"shape": [1, 32, 32, 1], "type": "float32"}
    assert info["output"] == {"shape": [1, 10], "type": "float32"}
    assert info["class_names"] == list("0123456789")
    layers = info["binary_convolutions"]["layers"]
    assert list(layers) == ["conv1", "conv2"]
    assert all(layer["converted"] for layer in layers.values())
    assert {k: v["count"] for k, v in info["operators"].items()} == export.operators(tflite)
    check = info["check"]
    assert check["passed"]
    assert check["on"] == "test images"
    assert check["images"] == check["of"] == 360
    assert check["agreement"] >= 0.99

    student, *of_all = digits
    images, labels, classes = (of_each[:360] for of_each in of_all)
    assert info["float_bytes"] == 4 * student.count_params()
    accuracy = np.mean(export.predict(tflite, images).argmax(-1) == labels)
    assert info["accuracy"]["tflite"] == accuracy > 0.95
    assert info["accuracy"]["keras"] == np.mean(classes == labels)

    report = (run / "report.md").read_text()
    for line in export.describe(description.read(run / "export.json")):
        assert line in out
        assert line in report
    assert "2 of 2 binary layers are LceBconv2d" in report
    assert "check: passed on 360 test images" in report


def test_the_table_says_of_how_many_images_an_accuracy_is(exported, run):
    def row(run):
        (line,) = [s for s in report.table(Run(run), load_run(run)).splitlines() if ".tfl" in s]
        return line.split("|")[1].strip()

    assert row(exported[0]) == ".tflite"
    assert main.main(["--mode=export", f"--run={run}", "--split=train"]) == 0
    assert row(run) == ".tflite (first 1,000 train images)"


def test_preprocessing_can_be_followed_by_hand(exported, digits):
    """An image prepared by the words of export.json is what the data set gives."""
    run, _ = exported
    steps = exports.read_json(run / "export.json")["preprocessing"]
    assert steps["formula"] == "(pixel / 255 - mean) / std"
    assert steps["layout"] == "image, row, column, channel"
    assert (steps["size"], steps["channel_order"]) == (32, "grey")
    _, images, *_ = digits
    pixels = 255 * (images * np.array(steps["std"]) + np.array(steps["mean"]))
    assert pixels.min() == pytest.approx(0, abs=1e-3)
    assert pixels.max() == pytest.approx(255, abs=1)


@pytest.mark.parametrize(("io_type", "epochs"), [("float", 1), ("int8", 0)])
def test_int8_keeps_the_accuracy(io_type, epochs, run, digits):
    """Checked on the training images, and here on all: half a point of the test images is one."""
    flags = (f"--run={run}", "--int8", f"--io_type={io_type}", f"--int8_epochs={epochs}")
    assert main.main(["--mode=export", *flags, "--split=train", "--check_images=1437"]) == 0
    info = exports.read_json(run / "export_int8.json")
    assert info["check"]["passed"]
    assert (info["check"]["on"], info["check"]["images"]) == ("train images", 1437)
    assert info["calibrated_on"] == "training images"
    assert info["input"]["type"] == {"float": "float32"}.get(io_type, io_type)
    assert len(info["stays_float32"]) == 2
    assert "2 LceBconv2d give float32" in (run / "report.md").read_text()
    assert not (run / "model.tflite").exists()

    _, images, labels, keras = digits
    assert len(images) == 1797
    own = export.predict((run / "model_int8.tflite").read_bytes(), images).argmax(-1)
    assert np.mean(own == labels) >= np.mean(keras == labels) - 0.005
    if io_type == "int8":
        scale, zero = info["input"]["scale"], info["input"]["zero_point"]
        assert scale * (-128 - zero) <= images.min() + scale
        assert scale * (127 - zero) >= images.max() - scale


def test_without_the_data_set_images_are_random(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    imported = exports.make_run(tmp_path / "run", "--dataset=imagenet2012")
    arguments = ["--mode=export", f"--run={imported}", f"--data_dir={empty}", "--check_images=10"]
    assert main.main(arguments) == 0
    check = exports.read_json(imported / "export.json")["check"]
    assert check["on"].startswith("random images (data_dir: expected imagenet2012")
    assert check["images"] == 10
    assert check["keras_accuracy"] is None
    assert main.main([*arguments, "--int8"]) == 0
    assert exports.read_json(imported / "export_int8.json")["calibrated_on"] == "random images"
    assert list(empty.iterdir()) == []


def test_a_network_of_the_first_step_stays_float(run, capsys):
    (run / "checkpoints" / "step2.weights.h5").rename(run / "checkpoints" / "step1.weights.h5")
    line = refused(capsys, run)
    assert "has no binary layer" in line
    assert "--allow_float_fallback" in line
    flags = (f"--run={run}", "--allow_float_fallback", "--check_images=100")
    assert main.main(["--mode=export", *flags]) == 0
    info = exports.read_json(run / "export.json")
    assert "LceBconv2d" not in info["operators"]
    assert info["operators"]["LceQuantize"]["count"] == 2
    assert set(info["check"]["signs"]) == {"conv1", "conv2"}
    assert min(info["check"]["signs"].values()) > 0.9999


def test_a_layer_that_stays_float_fails_by_name(monkeypatch, tmp_path, data_dir, capsys):
    grouped = functools.partial(exports.tiny, groups=(1, 2, 4))
    monkeypatch.setitem(models._NETWORKS, "reactnet18", grouped)
    run = exports.make_run(tmp_path / "run", "--dataset=digits", f"--data_dir={data_dir}")
    line = refused(capsys, run)
    assert "conv2" in line
    assert "it has 2 groups" in line
    assert "--allow_float_fallback" in line
    assert "(1 more such layers)" in line
    flags = (f"--run={run}", "--allow_float_fallback", "--check_images=10")
    assert main.main(["--mode=export", *flags]) == 0
    layers = exports.read_json(run / "export.json")["binary_convolutions"]["layers"]
    assert {name: layer["converted"] for name, layer in layers.items()} == {
        "conv1": True,
        "conv2": False,
        "conv3": False,
    }
    assert "4 groups" in layers["conv3"]["reason"]
    report = (run / "report.md").read_text()
    assert "1 of 3 binary layers are LceBconv2d" in report
    assert "`conv3` stays real: it has 4 groups" in report


def test_a_check_that_fails(run, monkeypatch, capsys):
    """The files are there to look at, and the status says that they are not to be used."""
    convert = exporter.convert_as_is

    def convert_another(folded):
        weights = folded.get_layer("classifier").get_weights()
        folded.get_layer("classifier").set_weights([-weights[0], weights[1]])
        return convert(folded)

    monkeypatch.setattr(exporter, "convert_as_is", convert_another)
    assert main.main(["--mode=export", f"--run={run}", "--check_images=10"]) == 2
    assert "does not compute what the network computes: given the same signs" in (
        capsys.readouterr().err
    )
    assert not exports.read_json(run / "export.json")["check"]["passed"]
    assert "check: FAILED" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--io_type=int8"], "--int8"),
        (["--int8_epochs=2"], "--int8"),
        (["--check_images=-1"], "--check_images"),
        (["--io_type=uint8"], "--io_type"),
        (["--split=nosuch"], "--split"),
    ],
)
def test_flags_that_do_not_fit(flags, expected, run, capsys):
    assert expected in refused(capsys, run, *flags)


def test_runs_without_weights(run, tmp_path, capsys):
    shutil.rmtree(run / "checkpoints")
    assert "a finished step" in refused(capsys, run)
    (tmp_path / "nothing").mkdir()
    assert "--run: expected a run directory" in refused(capsys, tmp_path / "nothing")


def test_a_damaged_weights_file(run, capsys):
    weights = run / "checkpoints" / "step2.weights.h5"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot read" in refused(capsys, run)


def test_a_mixed_precision_run_is_exported_in_float32(run):
    """Its weights are float32, and so is the network that is built for the export."""
    flags = run / "flags.cfg"
    text = flags.read_text()
    assert "--precision=float32" in text
    flags.write_text(text.replace("--precision=float32", "--precision=bfloat16"))
    assert main.main(["--mode=export", f"--run={run}", "--check_images=10"]) == 0
    info = exports.read_json(run / "export.json")
    assert info["check"]["passed"]
    assert info["input"]["type"] == "float32"
    assert "- trained in bfloat16; this file" in (run / "report.md").read_text()


def test_json_is_strict(exported):
    run, _ = exported
    text = (run / "export.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
