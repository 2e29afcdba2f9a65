"""The PyTorch twin computes what the published code does, and the benchmark measures it."""

import dataclasses

import numpy as np
import pytest
import seeded
import tensorflow as tf
import torch

import larq_adambnn
from larq_adambnn import checkpoints, losses, models, optimizers
from larq_adambnn.commands.benchmark import roofline, train, twin
from larq_adambnn.errors import UsageError
from larq_adambnn.kernels import winograd
from larq_adambnn.runs import config

SMALL = config.Config(
    model="small:network",
    dataset="digits",
    image_size=32,
    width=0.03,  # of the twin
    batch_size=4,
    crop="padded",
    flip=False,
)


def as_arrays(network):
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def test_twin_is_the_published_network():
    """In both steps, which have the same weights."""
    state_dict = seeded.state_dict("adambnn_step1", 0)
    state_dict = {k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()}
    image = torch.from_numpy(seeded.images(0, 2))[:1]
    for step in (1, 2):
        with torch.device("meta"):  # without weights of its own
            network = twin.ReActNetA(binary=step == 2)
        network.load_state_dict(state_dict, assign=True)
        with torch.no_grad():
            logits = network.eval()(image).numpy()
        expected = np.load(seeded.HERE / f"adambnn_step{step}_seed0.npz")["eval_logits"]
        atol = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected[:1], rtol=0, atol=atol)


def test_twin_trains_as_our_network_does(float64):
    """Which `test_golden` holds to the published training."""
    model = models.reactnet_a((64, 64, 3), num_classes=10, width=0.125)
    random = np.random.default_rng(0)
    images, target = random.normal(size=(4, 64, 64, 3)), random.normal(size=(4, 10))
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(target)
    for step, decay in ((1, 5e-6), (2, 0.0)):
        torch.manual_seed(0)
        network = twin.ReActNetA(width=0.125, num_classes=10, binary=step == 2).double()
        checkpoints.load_state_dict(model, as_arrays(network))
        larq_adambnn.binarize(model, True, step == 2)
        optimizer = optimizers.Adam(2.5e-3, weight_decay=decay)
        model.compile(optimizer, losses.DistributionLoss(), run_eagerly=True)
        training = twin.Training(network, 2.5e-3, decay)
        received = [training(*batch) for _ in range(2)]
        expected = [model.train_on_batch(images, target) for _ in range(2)]
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
    with train.contenders(dataclasses.replace(SMALL, batch_size=8), 2, names) as found:
        train.take_turns(found.values(), rounds=2)
        assert list(found) == names
        for contender in found.values():
            assert len(contender.seconds) == 2
            assert min(*contender.seconds, contender.first) > 0
            assert 2**28 < contender.ask("memory") < 2**33
        times = found[train._IN_LINE].ask("operators")
        flops, size = found[train._IN_LINE].ask("work")
    assert {"ResourceApplyAdam", "BiasAdd"} <= set(times)
    assert all(seconds > 0 for seconds in times.values())
    convolutions = [kind for kind in times if "Conv2DBackprop" in kind]
    assert len(convolutions) == 2
    assert all(train._multiplies(kind) for kind in convolutions)
    assert flops > 1e6 and size > 1e6


def test_the_work_of_a_graph_is_counted_by_hand():
    """Also that of functions which it calls, and of gradients."""

    @tf.function
    def called(x):
        return tf.nn.relu(x) + tf.constant(1, x.dtype)

    @tf.function
    def step(x, kernel, taps, matrix):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel, taps])
            y = tf.nn.conv2d(x, kernel, strides=2, padding="SAME")
            y = tf.nn.depthwise_conv2d(y, taps, [1, 1, 1, 1], "SAME")
            y = tf.reshape(y, [2, 4 * 4 * 5])
        return tape.gradient(y, [x, kernel, taps]), called(tf.matmul(y, matrix, transpose_b=True))

    for dtype in (tf.float32, tf.bfloat16):
        x, kernel = tf.ones([2, 8, 8, 3], dtype), tf.ones([3, 3, 3, 5], dtype)
        taps, matrix = tf.ones([3, 3, 5, 1], dtype), tf.ones([7, 80], dtype)
        graph = step.get_concrete_function(x, kernel, taps, matrix).graph
        flops, size = roofline.work(graph)
        convolution = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
        depthwise = 2 * (2 * 4 * 4 * 5) * (3 * 3)
        assert flops == 3 * convolution + 3 * depthwise + 2 * (2 * 80 * 7)
        # Of 14 values relu reads and writes each, the sum reads each and a 1, and writes each.
        assert size == (2 * 14 + 14 + 1 + 14) * dtype.size


def test_an_optimizer_moves_its_variables_and_what_is_not_executed_moves_nothing():
    weights = tf.Variable(tf.ones(1000))
    moments = [tf.Variable(tf.zeros(1000)) for _ in range(2)]

    @tf.function
    def step(gradient):
        tf.raw_ops.ResourceApplyAdam(
            var=weights.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=0.9,
            beta2_power=0.999,
            lr=0.01,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            grad=gradient,
        )
        return tf.ones([7, 11]) * 2  # a constant once the graph is optimized

    gradient = tf.ones(1000)
    graph = step.get_concrete_function(gradient).graph
    names = {name for name, _, _ in train._executed(lambda: step(gradient))}
    adam = 4 * (3 * 2 * 1000 + 1000 + 6)  # each variable read and written, the gradient, scalars
    assert roofline.work(graph, names) == (0, adam)
    assert roofline.work(graph)[1] >= adam + 4 * 2 * 77


def test_what_xla_compiles_is_one_operator():
    @tf.function(jit_compile=True)
    def compiled(x, y):
        return tf.nn.relu(x + y) * x

    @tf.function
    def step(x, y):
        return compiled(x, y)

    def steps():  # of the last one the profiler may end before its event does
        for _ in range(100):
            step(x, x + 1)

    x = tf.ones([7, 11])
    assert ("", "XlaLaunch") in [(name, kind) for name, kind, _ in train._executed(steps)]
    graph = step.get_concrete_function(x, x).graph
    assert roofline.work(graph) == roofline.work(graph, set()) == (0, 3 * 4 * 7 * 11)


def test_products_of_an_unknown_size_are_left_out():
    def product(x, kernel):
        return tf.nn.conv2d(x, kernel, 1, "SAME"), tf.matmul(x, x, output_type=tf.float32)

    for channels, flops in (
        (None, 0),
        (4, 2 * (2 * 4 * 4 * 5) * (9 * 4) + 2 * (2 * 4 * 4 * 4) * 4),
    ):
        shapes = [2, 4, 4, channels], [3, 3, channels, 5]
        traced = tf.function(product).get_concrete_function(*map(tf.TensorSpec, shapes))
        assert roofline.work(traced.graph) == (flops, 0)


def test_the_limits_of_a_machine_are_work_by_time(monkeypatch):
    monkeypatch.setattr(roofline, "_SIDE", 8)
    monkeypatch.setattr(roofline, "_LARGE", 1000)
    monkeypatch.setattr(roofline, "_fastest", lambda function: float(function()) / 4)
    # 8 products of 1 give 8, so 2 s; 1 + 1 gives 2, so half a second
    assert roofline.limits(tf.bfloat16) == (2 * 8**3 / 2, 2 * 1000 * 2 / 0.5)


def test_winograds_convolution_counts_as_a_convolution():
    x, w = tf.ones([2, 8, 8, 128]), tf.ones([3, 3, 128, 128])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = tf.reduce_sum(winograd.conv2d(x, w, "SAME") ** 2)
        return tape.gradient(loss, [x, w])

    flops, size = roofline.work(step.get_concrete_function().graph)
    direct = 3 * 2 * (2 * 8 * 8 * 128) * (9 * 128)  # with both gradients
    assert direct / 4 < flops < direct
    image = 2 * 8 * 8 * 128 * 4
    assert 4 * image < size < 16 * image  # the square, its sum and their gradients
    times = train.operator_times(step)
    assert times["WinogradConv2D"] > 0
    assert train._multiplies("WinogradConv2D")
    assert not any("MatMul" in kind or "Transpose" in kind for kind in times)


def test_a_process_that_ends_is_reported():
    """Here before its imports, since it does not know its network."""
    with (
        pytest.raises(UsageError, match="the process of nothing ended; expected memory"),
        train.contenders(SMALL, 1, ["nothing"]),
    ):
        pass


def test_costs_of_an_epoch(data_dir, eager):
    config = dataclasses.replace(SMALL, width=1.0, data_dir=data_dir, batch_size=720)
    times, iterations = train.epoch_times(config)
    assert iterations == 1
    assert {"iterations", "evaluation", "Checkpoint", "Log", "FlipFlopRatio"} <= set(times)
    assert min(times.values()) >= 0
