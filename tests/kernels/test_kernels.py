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
