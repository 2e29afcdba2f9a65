"""Batch norms whose statistics are computed anew, against PyTorch."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn.batch_norm import reestimate_batch_norm


def network():
    """Two batch norms, and a third that is frozen."""
    images = x = tf.keras.Input((5, 5, 3))
    for index in (1, 2):
        x = tf.keras.layers.Conv2D(4, 1, use_bias=False, name=f"conv{index}")(x)
        x = tf.keras.layers.BatchNormalization(epsilon=1e-5, name=f"bn{index}")(x)
        x = tf.keras.layers.ReLU()(x)
    frozen = tf.keras.layers.BatchNormalization(name="frozen", trainable=False)
    return tf.keras.Model(images, frozen(x))


def batches():
    generator = np.random.default_rng(0)
    return [generator.normal(1, 2, (size, 5, 5, 3)).astype("float32") for size in (8, 8, 3)]


def test_statistics_are_those_of_pytorchs_update_bn():
    torch = pytest.importorskip("torch")
    model = network()
    norms = [torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)]
    theirs = torch.nn.Sequential()
    for index, norm in enumerate(norms, start=1):
        convolution = torch.nn.Conv2d(3 if index == 1 else 4, 4, 1, bias=False)
        kernel = model.get_layer(f"conv{index}").get_weights()[0]
        convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
        theirs.extend([convolution, norm, torch.nn.ReLU()])
    images = [torch.tensor(batch.transpose(0, 3, 1, 2)) for batch in batches()]
    torch.optim.swa_utils.update_bn(images, theirs)
    momentums = [layer.momentum for layer in model.layers if hasattr(layer, "momentum")]
    assert reestimate_batch_norm(model, [(batch, "label") for batch in batches()]) is model
    for index, norm in enumerate(norms, start=1):
        *_, mean, variance = model.get_layer(f"bn{index}").get_weights()
        np.testing.assert_allclose(mean, norm.running_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, norm.running_var, rtol=1e-5)
    _, _, mean, variance = model.get_layer("frozen").get_weights()
    assert (mean == 0).all() and (variance == 1).all()
    assert [layer.momentum for layer in model.layers if hasattr(layer, "momentum")] == momentums


def test_it_needs_a_model_and_a_batch():
    with pytest.raises(ValueError, match=r"Expected one batch or more\. Received: none"):
        reestimate_batch_norm(network(), [])
    with pytest.raises(ValueError, match=r"Expected model to be a Keras model"):
        reestimate_batch_norm("network", batches())
