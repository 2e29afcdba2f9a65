"""Where the tuned forms are used."""

import types

import pytest
import tensorflow as tf

from larq_adambnn import kernels


@pytest.mark.parametrize(
    "kinds, expected", [(["CPU"], True), (["CPU", "GPU"], False), (["CPU", "TPU"], False)]
)
def test_tuned_where_every_visible_device_is_a_cpu(monkeypatch, kinds, expected):
    devices = [types.SimpleNamespace(device_type=kind) for kind in kinds]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda: devices)
    assert kernels.tuned() is expected


@pytest.mark.parametrize("jit", [False, True])
def test_xla_gets_the_plain_operations(jit):
    """In functions, loops and gradients within what it compiles too."""
    asked = []

    def ask(x):
        asked.append((kernels.tuned(), kernels.compiled()))
        return x

    @tf.custom_gradient
    def operation(x):
        return ask(x), ask

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.function(operation)(tf.while_loop(lambda x: x < 1, ask, [x])[0])
        return tape.gradient(y, x)

    step.get_concrete_function(tf.constant(2.0))
    assert len(asked) >= 3
    assert set(asked) == {(not jit, jit)}
    assert not kernels.compiled()
