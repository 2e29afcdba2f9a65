"""--mode=benchmark --benchmark=tflite: times of a file and of its operators."""

import exports
import numpy as np
import pytest
import tensorflow as tf

import main
from larq_adambnn import export, layers
from larq_adambnn.commands.benchmark import tflite as benchmark
from larq_adambnn.export.tflite import Graph, single_operator


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A large real convolution, a binary one and little else."""
    images = tf.keras.Input((32, 32, 64))
    x = tf.keras.layers.Conv2D(64, 5, name="large")(images)
    x = layers.BinaryConv2D(32, 1, name="binary")(x)
    x = tf.keras.layers.BatchNormalization(name="bn")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = exports.randomized(tf.keras.Model(images, tf.keras.layers.Dense(3, name="head")(x)))
    path = tmp_path_factory.mktemp("timed") / "model.tflite"
    path.write_bytes(export.convert(model))
    return path


def test_it_prints_the_times_and_what_they_are_not(file, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_WHOLE_SECONDS", 0.1)
    flags = ["--mode=benchmark", "--benchmark=tflite", f"--tflite={file}"]
    monkeypatch.setattr(benchmark.platform, "machine", lambda: "x86_64")
    assert main.main(flags) == 0
    out = capsys.readouterr().out
    assert f"{file} on x86_64, one thread: an image takes" in out
    assert "this is not the target" in out
    assert "lce_benchmark_model (docs/deploy.md)" in out
    for kind, count in export.operators(file.read_bytes()).items():
        assert f"{count:3} {kind}\n" in out
    assert out.index("CONV_2D") < out.index("LceBconv2d")
    monkeypatch.setattr(benchmark.platform, "machine", lambda: "aarch64")
    assert main.main(flags) == 0
    assert "not the target" not in capsys.readouterr().out


def test_the_times_are_those_of_the_operators(file, monkeypatch):
    """Where each operator takes what it is said to, and a file's input 3 s."""
    seconds = {"CONV_2D": 5.0, "LceBconv2d": 2.0}

    class Worker:
        input_shapes = input_types = ()

        def __init__(self, tflite):
            self.open(tflite)

        def open(self, tflite):
            self.takes = 3.0 + sum(seconds.get(op.kind, 0.5) for op in Graph(tflite).operators)

        def seconds(self, inputs):
            return self.takes

    monkeypatch.setattr(benchmark, "Worker", Worker)
    tflite = file.read_bytes()
    kinds = [op.kind for op in Graph(tflite).operators]
    assert {"CONV_2D", "LceBconv2d"} < set(kinds)
    assert benchmark.operator_times(tflite) == [seconds.get(kind, 0.5) for kind in kinds]
    assert set(benchmark.whole_times(tflite)) == {3.0 + sum(seconds.get(k, 0.5) for k in kinds)}


def test_every_operator_is_run(file):
    tflite = file.read_bytes()
    times = benchmark.operator_times(tflite)
    assert len(times) == len(Graph(tflite).operators)
    assert min(times) >= 0


def test_an_operator_alone_computes_what_it_does_in_the_file(file):
    tflite = file.read_bytes()
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 64)).astype(np.float32)
    inside = export.tflite.with_outputs(tflite, [Graph(tflite).operators[0].outputs[0]])
    _, expected = export.interpreter.run(export.interpreter.load(inside), images)
    for count in (1, 3):
        alone = single_operator(tflite, 0, count)
        assert export.operators(alone) == {"CONV_2D": count}
        (received,) = export.interpreter.run(export.interpreter.load(alone), images)
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


def test_without_a_file(tmp_path, capsys):
    flags = ["--mode=benchmark", "--benchmark=tflite"]
    for more in ([], [f"--tflite={tmp_path}/none.tflite"]):
        assert main.main(flags + more) == 2
        assert capsys.readouterr().err.startswith("error: --tflite: expected a")
    (tmp_path / "text.tflite").write_text("text")
    assert main.main([*flags, f"--tflite={tmp_path}/text.tflite"]) == 2
    assert "Expected a TFLite model" in capsys.readouterr().err


def test_a_small_file_is_run_so_often_and_no_more(file, monkeypatch):
    monkeypatch.setattr(benchmark, "_WHOLE_SECONDS", 1e9)
    monkeypatch.setattr(benchmark, "_MOST_RUNS", 7)
    assert len(benchmark.whole_times(file.read_bytes())) == 7
