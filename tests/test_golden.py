"""The networks against what the published PyTorch code computed, in float64."""

import gc

import numpy as np
import pytest
import seeded

import larq_adambnn
from larq_adambnn import checkpoints, losses, models, optimizers

SEED = 0
RATE = 2.5e-3
BINARY = {"step1": (True, False), "step2": (True, True)}


@pytest.fixture(autouse=True)
def _collected():
    """Gigabytes of activations do not wait for the next test."""
    yield
    gc.collect()


def loaded(case):
    """The Keras model of a case with its seeded weights, the state_dict, and the golden arrays."""
    state_dict = seeded.state_dict(case, SEED)
    network, _, step = case.replace("adambnn", "reactnet_a").rpartition("_")
    model = models.build(network or case, input_shape=(224, 224, 3), num_classes=1000)
    checkpoints.load_state_dict(model, state_dict)
    if step in BINARY:
        larq_adambnn.binarize(model, *BINARY[step])
    with np.load(seeded.HERE / f"{case}_seed{SEED}.npz") as golden:
        return model, state_dict, dict(golden)


def channels_last(images):
    return images.transpose(0, 2, 3, 1)


def assert_same_bits(received, expected):
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        assert received[name].dtype == array.dtype, name
        assert received[name].shape == array.shape, name
        assert received[name].tobytes() == array.tobytes(), name


def assert_logits(model, golden):
    logits = model(channels_last(seeded.images(SEED, 2)), training=False).numpy()
    largest = np.abs(golden["eval_logits"]).max()
    assert np.abs(logits - golden["eval_logits"]).max() < 1e-9 * largest


def test_teacher(float64):
    model, state_dict, golden = loaded("resnet34")
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == 21_797_672
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)


@pytest.mark.parametrize(
    "case",
    ["adambnn_step1", "adambnn_step2", "reactnet_a_step2", "reactnet18_step1", "reactnet18_step2"],
)
def test_student(case, float64):
    """Inference, the round trip of the weights, and three steps through compile and train_on_batch.

    The first moment after the first step is (1 - beta_1) times the gradient, decay included.
    """
    model, state_dict, golden = loaded(case)
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)

    decay = 5e-6 if case.endswith("step1") else 0.0
    model.compile(
        optimizer=optimizers.Adam(learning_rate=RATE, weight_decay=decay),
        loss=losses.DistributionLoss(),
        run_eagerly=case.endswith("step2"),  # tracing takes as long as the steps
    )
    model.optimizer.build(model.trainable_variables)  # else a step is traced twice
    batch = channels_last(seeded.images(SEED + 1, 4)), seeded.teacher_logits(SEED, 4)
    start = {id(variable): variable.numpy() for variable in model.trainable_variables}
    received = [model.train_on_batch(*batch)]
    gradients = {}
    for variable, moment in zip(model.trainable_variables, model.optimizer._momentums, strict=True):
        decayed = decay * start[id(variable)] * optimizers.published_decay(variable)
        gradients[id(variable)] = moment.numpy() / (1 - model.optimizer.beta_1) - decayed
    received += [model.train_on_batch(*batch) for _ in range(2)]
    np.testing.assert_allclose(received, golden["train_losses"], rtol=1e-10)

    names = golden["param_names"]
    variables = {
        name if name in state_dict else f"{name}s": id(parameter.variable)
        for name, parameter in checkpoints._parameters(model).items()
    }
    norms = [np.linalg.norm(gradients[variables[name]]) for name in names]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-8)

    final = checkpoints.to_state_dict(model)
    norms = [np.linalg.norm(final[name]) for name in names]
    np.testing.assert_allclose(norms, golden["final_norms"], rtol=1e-8)
    sums = [final[name].sum() for name in names]
    np.testing.assert_allclose(sums, golden["final_sums"], rtol=0, atol=1e-6)

    for kind, tolerance in (("running_mean", 1e-6), ("running_var", 5e-3)):
        chosen = [i for i, name in enumerate(golden["buffer_names"]) if name.endswith(kind)]
        assert chosen
        buffers = [final[golden["buffer_names"][i]] for i in chosen]
        norms = [np.linalg.norm(buffer) for buffer in buffers]
        np.testing.assert_allclose(norms, golden["buffer_norms"][chosen], rtol=tolerance)
        sums = [buffer.sum() for buffer in buffers]
        np.testing.assert_allclose(sums, golden["buffer_sums"][chosen], rtol=tolerance)
