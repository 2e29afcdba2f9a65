"""The PyTorch twin computes what the published code does, and the benchmark measures it."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest
import small
import tensorflow as tf

from larq_adambnn import models
from larq_adambnn.commands.benchmark import train
from larq_adambnn.errors import UsageError
from larq_adambnn.kernels import winograd
from larq_adambnn.runs import config

SMALL = config.Config(
    dataset="digits", image_size=32, width=0.1, batch_size=16, crop="padded", flip=False
)


@pytest.mark.parametrize("case", ["adambnn_step1", "adambnn_step2"])
def test_twin_is_the_published_network(case):
    """In a process of its own, which has gigabytes for itself."""
    program = pathlib.Path(__file__).with_name("golden_twin.py")
    ended = subprocess.run([sys.executable, program, case], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_contenders_take_turns_and_are_measured():
    names = [train._IN_LINE, train._TWIN]
    with train.contenders(SMALL, 2, names) as found:
        train.take_turns(found.values(), rounds=2)
        assert list(found) == names
        for contender in found.values():
            assert len(contender.seconds) == 2
            assert min(*contender.seconds, contender.first) > 0
            assert 2**28 < contender.ask("memory") < 2**33
        times = found[train._IN_LINE].ask("operators")
    assert {"ResourceApplyAdam", "BiasAdd"} <= set(times)
    assert all(seconds > 0 for seconds in times.values())
    convolutions = [kind for kind in times if "Conv2DBackprop" in kind]
    assert len(convolutions) == 2
    assert all(train._multiplies(kind) for kind in convolutions)


def test_winograds_convolution_counts_as_a_convolution():
    x, w = tf.ones([2, 8, 8, 128]), tf.ones([3, 3, 128, 128])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = tf.reduce_sum(winograd.conv2d(x, w, "SAME") ** 2)
        return tape.gradient(loss, [x, w])

    step()
    times = train.operator_times(step)
    assert times["WinogradConv2D"] > 0
    assert train._multiplies("WinogradConv2D")
    assert not any("MatMul" in kind or "Transpose" in kind for kind in times)


def test_a_process_that_ends_is_reported():
    with (
        pytest.raises(UsageError, match="PyTorch ended"),
        train.contenders(dataclasses.replace(SMALL, batch_size=-1), 1, [train._TWIN]),
    ):
        pass


def test_costs_of_an_epoch(data_dir, monkeypatch):
    monkeypatch.setitem(models._NETWORKS, "reactnet18", small.network)
    times, iterations = train.epoch_times(
        dataclasses.replace(SMALL, model="reactnet18", data_dir=data_dir, batch_size=720)
    )
    assert iterations == 1
    assert {"iterations", "evaluation", "Checkpoint", "Log", "FlipFlopRatio"} <= set(times)
    assert min(times.values()) >= 0
