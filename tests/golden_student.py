"""Trains a network of the golden vectors as the published code did: python golden_student.py.

In a process of its own, since float64 at 224 x 224 takes memory that TensorFlow keeps.  So that
a laptop has enough, ReActNet-A's convolutions and RPReLUs are computed again in the backward
pass, by TensorFlow's plain operations; ReActNet-18 runs as a training does.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # it has no float64, but an allocator of its own
os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden"))

import numpy as np
import seeded
import tensorflow as tf

import larq_adambnn
from larq_adambnn import checkpoints, kernels, layers, losses, models, optimizers

SEED = 0
RATE = 2.5e-3
BINARY = {"step1": (True, False), "step2": (True, True)}
# The iterations of training in each case: gradients come from the first, the optimizer's state
# and the running statistics from the third.  `reactnet_a_step2` differs from `adambnn_step2` in
# the names and shapes of its checkpoint, so that inference is enough.
ITERATIONS = {
    "reactnet18": {"reactnet18_step1": 1, "reactnet18_step2": 3},
    "reactnet_a": {"adambnn_step1": 3, "adambnn_step2": 1, "reactnet_a_step2": 0},
}


def built(network):
    return models.build(network, input_shape=(224, 224, 3), num_classes=1000)


def load(model, case):
    """Gives a model the seeded weights of a case; the state_dict, and the golden arrays."""
    state_dict = seeded.state_dict(case, SEED)
    checkpoints.load_state_dict(model, state_dict)
    with np.load(seeded.HERE / f"{case}_seed{SEED}.npz") as golden:
        return state_dict, dict(golden)


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


def save_memory(model):
    kernels.tuned = lambda: False
    for layer in model.layers:
        if isinstance(layer, layers.BinaryConv2D | layers.RPReLU):
            object.__setattr__(layer, "call", tf.recompute_grad(layer.call))


def check(model, case, iterations):
    """Inference, the round trip of the weights, and iterations of compile's training.

    The first moment after the first iteration is (1 - beta_1) times the gradient, decay included.
    """
    state_dict, golden = load(model, case)
    larq_adambnn.binarize(model, *BINARY[case[-5:]])
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)
    state_dict = dict.fromkeys(state_dict)  # the names
    if not iterations:
        return

    decay = 5e-6 if case.endswith("step1") else 0.0
    model.compile(
        optimizer=optimizers.Adam(learning_rate=RATE, weight_decay=decay),
        loss=losses.DistributionLoss(),
        run_eagerly=True,  # what is computed again is not traced
    )
    model.optimizer.build(model.trainable_variables)
    batch = channels_last(seeded.images(SEED + 1, 4)), seeded.teacher_logits(SEED, 4)
    received = [model.train_on_batch(*batch)]
    norms = {}
    for variable, moment in zip(model.trainable_variables, model.optimizer._momentums, strict=True):
        gradient = moment.numpy() / (1 - model.optimizer.beta_1)
        if decay and optimizers.published_decay(variable):
            # Adam's first update is the rate times the gradient's sign, but for epsilon.
            update = RATE * gradient / (np.abs(gradient) + model.optimizer.epsilon)
            gradient -= decay * (variable.numpy() + update)
        norms[id(variable)] = np.linalg.norm(gradient)
    names = golden["param_names"]
    variables = {
        name if name in state_dict else f"{name}s": id(parameter.variable)
        for name, parameter in checkpoints._parameters(model).items()
    }
    norms = [norms[variables[name]] for name in names]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-8)

    received += [model.train_on_batch(*batch) for _ in range(iterations - 1)]
    np.testing.assert_allclose(received, golden["train_losses"][:iterations], rtol=1e-10)
    if iterations == 1:
        return

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


if __name__ == "__main__":
    tf.keras.backend.set_floatx("float64")
    for network, cases in ITERATIONS.items():
        student = built(network)
        if network == "reactnet_a":
            save_memory(student)
        for case, iterations in cases.items():
            check(student, case, iterations)
