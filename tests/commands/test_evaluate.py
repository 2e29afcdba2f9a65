"""--mode=evaluate: a run and its .tflite on a split."""

import shutil

import exports
import numpy as np
import pytest
import tensorflow as tf

import main
from larq_adambnn import export, inference
from larq_adambnn.export import workers
from larq_adambnn.machine import quiet
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import load_run

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits_run, tiny_network):
    """A run that knows the digits, with its float and int8 files."""
    directory = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(digits_run, directory)
    for flags in ([], ["--int8", "--io_type=int8"]):
        flags = [f"--run={directory}", "--check_images=36", *flags]
        assert main.main(["--mode=export", *flags]) == 0
    return directory


@pytest.fixture(scope="module")
def arrays(run):
    """(images, labels) by split."""
    dataset = datasets.load(load_run(run))
    return {split: exports.arrays(dataset, split) for split in ("test", "train")}


@pytest.fixture
def opened(monkeypatch):
    """A number for each file that is opened."""
    opened = []
    open_file = workers.Worker.open
    monkeypatch.setattr(
        workers.Worker, "open", lambda worker, *given: opened.append(1) or open_file(worker, *given)
    )
    return opened


def evaluated(capsys, *flags):
    """(name, split, top-1, top-5, images) as printed."""
    assert main.main(["--mode=evaluate", *flags]) == 0
    out = capsys.readouterr().out
    by_keras = not any(flag.startswith("--tflite") for flag in flags)
    assert out.count("devices: CPU (") == by_keras
    line = out.strip().splitlines()[-1]  # after those of a progress bar
    name, _, rest = line.rpartition(": ")
    words = rest.split()
    return name, words[0], float(words[2]), float(words[5]), int(words[8])


def accuracies(tflite, images, labels):
    ranking = np.argsort(-export.predict(tflite, images), axis=-1, kind="stable")
    return [100 * np.mean((ranking[:, :k] == labels[:, None]).any(-1)) for k in (1, 5)]


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_run_and_its_file_agree(split, run, arrays, capsys):
    keras = evaluated(capsys, f"--run={run}", f"--split={split}")
    file = run / "model.tflite"
    tflite = evaluated(capsys, f"--run={run}", f"--tflite={file}", f"--split={split}")
    assert keras[0] == str(run)
    assert tflite[0] == str(file)
    assert keras[1] == tflite[1] == split
    assert keras[4] == tflite[4] == {"test": 360, "train": 1437}[split]
    assert tflite[2:4] == pytest.approx(keras[2:4], abs=100 / 360)  # one image
    expected = accuracies(file.read_bytes(), *arrays[split])
    assert tflite[2:4] == pytest.approx(expected, abs=0.005)
    assert tflite[2] > 60


@pytest.mark.parametrize("name", ["model", "model_int8"])
def test_a_file_by_itself_is_prepared_as_its_json_says(name, run, arrays, data_dir, capsys, opened):
    flags = ("--dataset=digits", f"--data_dir={data_dir}", "--image_size=48")
    file = run / f"{name}.tflite"
    received = evaluated(capsys, f"--tflite={file}", *flags)
    assert len(opened) == 1
    expected = accuracies(file.read_bytes(), *arrays["test"])
    assert received[2:4] == pytest.approx(expected, abs=0.005)


def test_a_file_without_json_takes_the_flags(run, arrays, data_dir, tmp_path, capsys, opened):
    file = shutil.copy(run / "model.tflite", tmp_path)
    flags = ("--dataset=digits", f"--data_dir={data_dir}")
    received = evaluated(capsys, f"--tflite={file}", *flags)
    assert len(opened) == 1
    expected = accuracies((run / "model.tflite").read_bytes(), *arrays["test"])
    assert received[2:4] == pytest.approx(expected, abs=0.005)


def test_over_several_processes(run, capsys, monkeypatch):
    file = run / "model.tflite"
    alone = evaluated(capsys, f"--run={run}", f"--tflite={file}")
    monkeypatch.setattr(export.interpreter, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(inference, "cores", lambda: 2)
    assert evaluated(capsys, f"--run={run}", f"--tflite={file}") == alone


def test_the_step_before_the_last_and_the_best_weights(run, data_dir, tmp_path, capsys):
    """They are binary ones of another training, the last ones are random; all stay apart."""
    both = tmp_path / "both"
    flags = ("--dataset=digits", f"--data_dir={data_dir}", "--order=weights_first")
    exports.make_run(both, *flags)
    assert "--step: expected a finished step" in refused(capsys, f"--run={both}", "--step=1")
    assert "--best: expected a step with its best" in refused(capsys, f"--run={both}", "--best")
    for name in ("step1.weights.h5", "step2.best.weights.h5"):
        shutil.copy(run / "checkpoints" / "step2.weights.h5", both / "checkpoints" / name)
    last, trained = (evaluated(capsys, f"--run={directory}") for directory in (both, run))
    for flag, name in (("--step=1", "model_step1.tflite"), ("--best", "model_best.tflite")):
        found = evaluated(capsys, f"--run={both}", flag)
        assert found[2] != last[2]
        assert (found[2:] == trained[2:]) == (flag == "--best")
        flags = ("--mode=export", f"--run={both}", flag, "--allow_float_fallback")
        assert main.main([*flags, "--check_images=36"]) == 0
        out = capsys.readouterr().out
        assert "top-1 of Keras" in out and out.count("devices: CPU (") == 1
        assert not (both / "model.tflite").exists()
        file = both / name
        of_file = (f"--tflite={file}", f"--data_dir={data_dir}", "--dataset=digits")
        assert evaluated(capsys, *of_file)[2:4] == pytest.approx(found[2:4], abs=100 / 360)
        asked = flag.split("=")[0]
        assert f"{asked}: only" in refused(capsys, f"--tflite={file}", f"--run={both}", flag)


def refused(capsys, *flags):
    assert main.main(["--mode=evaluate", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


def test_what_is_no_tflite(run, tmp_path, capsys):
    path = tmp_path / "model.tflite"
    assert "does not exist" in refused(capsys, f"--run={run}", f"--tflite={path}")
    path.write_bytes(b"no model")
    assert "Expected a TFLite model" in refused(capsys, f"--run={run}", f"--tflite={path}")
    path.write_bytes((run / "model.tflite").read_bytes()[:-3000])
    line = refused(capsys, f"--run={run}", f"--tflite={path}")
    assert line.startswith(f"error: --tflite: {path}: Expected a TFLite model that")


def test_what_does_not_fit(run, tmp_path, data_dir, capsys):
    other = exports.make_run(
        tmp_path / "other", "--dataset=digits", f"--data_dir={data_dir}", "--image_size=40"
    )
    line = refused(capsys, f"--run={other}", f"--tflite={run}/model.tflite")
    assert "expected an input of [40, 40, 1]" in line
    assert "has [32, 32, 1]" in line
    assert "--split" in refused(capsys, f"--run={run}", "--split=nosuch")


def means(images):
    return tf.reduce_mean(images, axis=(1, 2))


# The shape of the input, the outputs, and what is said about it
ODD = {
    "any size": ((1, None, None, 1), means, "expected an input of [1, SIZE, SIZE, CHANNELS]"),
    "vectors": ((1, 32), lambda x: x[:, :10], "has [1, 32]"),
    "two at a time": ((2, 32, 32, 1), means, "takes one image at a time"),
    "a number": ((1, 32, 32, 1), tf.reduce_mean, "expected an output of [10]"),
    "NaN": (
        (1, 32, 32, 1),
        lambda x: tf.tile(tf.math.log(-1 - tf.abs(means(x))), [1, 10]),
        "Expected numbers as the network's outputs. Received: NaN",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs(name, tmp_path, data_dir, capsys):
    shape, function, line = ODD[name]
    traced = tf.function(function).get_concrete_function(tf.TensorSpec(shape))
    path = tmp_path / "odd.tflite"
    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
        path.write_bytes(converter.convert())
    err = refused(capsys, f"--tflite={path}", f"--data_dir={data_dir}", "--dataset=digits")
    assert str(path) in err and line in err
