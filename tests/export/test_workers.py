"""Files that would end the process that runs them end only their own."""

import os
import signal
import threading
import types

import exports
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import export, layers
from larq_adambnn.export import interpreter
from larq_adambnn.export.tflite import Graph
from larq_adambnn.export.workers import FileError, Worker


@pytest.fixture(scope="module")
def model():
    images = x = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(32, 3, name="real")(x)
    x = layers.BinaryConv2D(32, 3, name="binary")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return exports.randomized(tf.keras.Model(images, tf.keras.layers.Dense(3)(x)))


@pytest.fixture(scope="module")
def file(model):
    return export.convert(model)


def test_the_outputs_are_those_of_the_network(model, file):
    images = exports.images(model, 5)
    process = Worker(file)
    assert [tuple(shape) for shape in process.input_shapes] == [(1, 8, 8, 3)]
    assert process.input_types == [np.float32]
    (outputs,) = process.predict(images)
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), rtol=1e-4, atol=1e-4)
    assert 0 < process.seconds([images[:1]]) < 1
    process.open(export.tflite.single_operator(file, 0, 1))
    assert process.predict(images)[0].shape == (5, 6, 6, 32)


def writes_a_constant(graph):
    first = graph.graph.operators[0]
    first.outputs = [first.inputs[1]]


def writes_twice(graph):
    first, second, *_ = graph.graph.operators
    second.outputs = list(first.outputs)


def no_output(graph):
    graph.graph.outputs = [-1]


def no_bias(graph):
    first = graph.graph.operators[0]
    first.inputs = list(first.inputs)[:2]


def no_inputs(graph):
    for operator in graph.graph.operators:
        operator.inputs = []


def no_weights(graph):
    graph.model.buffers[graph.graph.tensors[graph.graph.operators[0].inputs[1]].buffer].data = None


def many_channels(graph):
    shape = np.array([100_000, 3, 3, 3], np.int32)
    graph.graph.tensors[graph.graph.operators[0].inputs[1]].shape = shape


def large_input(graph):
    shape = np.array([1, 30_000, 30_000, 3], np.int32)
    graph.graph.tensors[graph.inputs[0]].shape = shape


def another_type(graph):
    graph.graph.tensors[graph.outputs[0]].type = 4


def unknown_operator(graph):
    for code in graph.model.operatorCodes:
        code.customCode = b"Unknown"
        code.builtinCode = code.deprecatedBuiltinCode = 32


SCHEMA = {
    writes_a_constant: "refused: Tensor 7 is both input 1 and output 0",
    writes_twice: "refused: .*Node number 1",
    no_output: "ended with SIGSEGV",
    no_bias: "refused: .*has_bias",
    no_inputs: "refused: .*Node number 0",
    no_weights: "refused: .*lacks data",
    many_channels: "refused: .*required_bytes",
    large_input: "which take too much memory",
    another_type: "refused: .*INT64",
    unknown_operator: "refused: .*Unknown",
}


@pytest.mark.parametrize("change", SCHEMA, ids=lambda change: change.__name__)
def test_a_schema_that_cannot_be_run(file, change):
    graph = Graph(file)
    change(graph)
    with pytest.raises(FileError, match=SCHEMA[change]) as raised:
        interpreter.predict(graph.to_bytes(), np.zeros((1, 8, 8, 3), np.float32))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("Expected a TFLite model that LCE's interpreter can run. ")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGALRM, "take more than 60 s"), (signal.SIGSEGV, "process .* ended with SIGSEGV")],
)
def test_a_process_that_ends_is_told(file, number, reason):
    process = Worker(file)
    os.kill(process._process.pid, number)
    with pytest.raises(FileError, match=reason):
        process.predict(np.zeros((1, 8, 8, 3), np.float32))
    assert process._process.returncode == -number


def test_no_process_is_left(file):
    process = Worker(file)
    number = process._process.pid
    del process
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_at_most_eight_work_and_start_side_by_side(monkeypatch):
    started, together = [], threading.Barrier(7)

    def load(tflite, **kernels):
        started.append(tflite)
        if len(started) > 1:  # besides the one that goes on meanwhile
            together.wait(60)
        return types.SimpleNamespace(tflite=tflite, kernels=kernels)

    monkeypatch.setattr(interpreter, "load", load)
    monkeypatch.setattr(interpreter, "run", lambda worker, batch: [batch])
    monkeypatch.setattr(interpreter, "_ALONE_SECONDS", 0.0)
    batches = list(range(50))
    found = interpreter.predictions(b"file", iter(batches), processes=100)
    assert [outputs for (outputs,) in found] == batches
    assert started == [b"file"] * 8
