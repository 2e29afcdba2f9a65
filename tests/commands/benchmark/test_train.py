"""The PyTorch twin computes what the published code does, and the benchmark measures it."""

import dataclasses
import functools

import numpy as np
import pytest
import seeded
import small
import tensorflow as tf
import torch
from torch.utils.checkpoint import checkpoint

from larq_adambnn import models
from larq_adambnn.commands.benchmark import train, twin
from larq_adambnn.errors import UsageError
from larq_adambnn.kernels import winograd
from larq_adambnn.runs import config

SMALL = config.Config(
    dataset="digits", image_size=32, width=0.1, batch_size=16, crop="padded", flip=False
)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", ["adambnn_step1", "adambnn_step2"])
def test_twin_is_the_published_network(case, double):
    first = case.endswith("step1")
    golden = np.load(seeded.HERE / f"{case}_seed0.npz")
    network = twin.ReActNetA(binary=not first)
    state_dict = seeded.state_dict(case, 0)
    network.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()})
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(seeded.images(0, 2))).numpy()
    expected = golden["eval_logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())

    for block in network.feature:  # computed again in the backward pass, to save memory
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    step = twin.Training(network, 2.5e-3, 5e-6 if first else 0.0)
    batch = [torch.from_numpy(x) for x in (seeded.images(1, 4), seeded.teacher_logits(0, 4))]
    received = [step(*batch) for _ in range(3)]
    np.testing.assert_allclose(received, golden["train_losses"], rtol=1e-10)


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
