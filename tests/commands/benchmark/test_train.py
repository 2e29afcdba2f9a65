"""The PyTorch twin computes what the published code does, and the benchmark measures it."""

import dataclasses

import numpy as np
import pytest
import seeded
import small
import tensorflow as tf
import torch

import larq_adambnn
from larq_adambnn import checkpoints, losses, models, optimizers
from larq_adambnn.commands.benchmark import train, twin
from larq_adambnn.errors import UsageError
from larq_adambnn.kernels import winograd
from larq_adambnn.runs import config

SMALL = config.Config(
    dataset="digits", image_size=32, width=0.1, batch_size=16, crop="padded", flip=False
)


def as_arrays(network):
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("case", ["adambnn_step1", "adambnn_step2"])
def test_twin_is_the_published_network(case):
    golden = np.load(seeded.HERE / f"{case}_seed0.npz")
    network = twin.ReActNetA(binary=case.endswith("step2")).double()
    state_dict = seeded.state_dict(case, 0)
    network.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()})
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(seeded.images(0, 2))).numpy()
    expected = golden["eval_logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(("step", "decay"), [(1, 5e-6), (2, 0.0)])
def test_twin_trains_as_our_network_does(step, decay, float64):
    """Which `test_golden` holds to the published training."""
    torch.manual_seed(0)
    network = twin.ReActNetA(width=0.125, num_classes=10, binary=step == 2).double()
    model = models.reactnet_a((64, 64, 3), num_classes=10, width=0.125)
    checkpoints.load_state_dict(model, as_arrays(network))
    larq_adambnn.binarize(model, True, step == 2)
    model.compile(
        optimizers.Adam(2.5e-3, weight_decay=decay), losses.DistributionLoss(), run_eagerly=True
    )
    random = np.random.default_rng(0)
    images, target = random.normal(size=(4, 64, 64, 3)), random.normal(size=(4, 10))
    training = twin.Training(network, 2.5e-3, decay)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(target)
    received = [training(*batch) for _ in range(3)]
    expected = [model.train_on_batch(images, target) for _ in range(3)]
    np.testing.assert_allclose(received, expected, rtol=1e-10)
    final = checkpoints.to_state_dict(model)
    for name, value in network.named_parameters():
        np.testing.assert_allclose(value.detach(), final[name], rtol=0, atol=1e-8, err_msg=name)


def losses_of(dtype=torch.float64, **options):
    torch.manual_seed(0)
    network = twin.ReActNetA(width=0.125, num_classes=10).to(dtype)
    images, target = torch.randn(4, 3, 64, 64, dtype=dtype), torch.randn(4, 10, dtype=dtype)
    training = twin.Training(network, 2.5e-3, 0.0, **options)
    return [training(images, target) for _ in range(3)]


def test_channels_last_trains_the_same():
    np.testing.assert_allclose(losses_of(channels_last=True), losses_of(), rtol=1e-10)


def test_autocast_trains_nearly_the_same():
    """Rounding turns some of the signs."""
    received = losses_of(torch.float32, channels_last=True, autocast=True)
    exact = losses_of(torch.float32)
    assert received != exact
    np.testing.assert_allclose(received, exact, rtol=0.05)


@pytest.mark.slow
def test_the_compiled_network_trains_the_same():
    compiled = losses_of(channels_last=True, compiled=True)
    np.testing.assert_allclose(compiled, losses_of(), rtol=1e-10)


@pytest.mark.parametrize(
    "first, seconds, expected",
    [
        (1.0, 2.0, 1),
        (4.0, 3.0, None),
        (4.0, 2.0, None),
        (4.0, 1.5, 5),
        (4.5, 1.5, 6),
        (2.0, 2.5, 1),
    ],
)
def test_iterations_that_pay_for_the_first_one(first, seconds, expected):
    other = train.Contender(None, 2.0, [2.0, 2.0, 9.0])
    contender = train.Contender(None, first, [seconds])
    assert train.pays_after(contender, other) == expected
    if expected:  # as counted one by one
        totals = [(first + n * seconds, 2.0 + n * 2.0) for n in range(expected)]
        assert [ours <= theirs for ours, theirs in totals] == [False] * (expected - 1) + [True]


def test_contenders_take_turns_and_are_measured():
    names = [train._IN_LINE, train._PUBLISHED]
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
        pytest.raises(UsageError, match="as published ended"),
        train.contenders(dataclasses.replace(SMALL, batch_size=-1), 1, [train._PUBLISHED]),
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
