"""Taking a network over for other classes: what is copied, what is frozen, and at which rate."""

import numpy as np
import pytest
import small
import tensorflow as tf

from larq_adambnn import backbone, callbacks, models, optimizers


def network(num_classes=4, seed=0):
    tf.keras.utils.set_random_seed(seed)
    return small.network((32, 32, 3), num_classes)


def split(model):
    """The values of (the backbone's weights, the classifier's)."""
    values = {weight.name: weight.numpy() for weight in model.weights}
    own = {name: values.pop(name) for name in list(values) if name.startswith("classifier/")}
    return values, own


def assert_equal(received, expected):
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(received[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["reactnet_a", "reactnet18", "resnet34"])
def test_the_classifier_is_what_depends_on_the_classes(name):
    model = models.build(name, input_shape=(32, 32, 1), num_classes=11, width=0.02)
    expected = {weight.name for weight in model.weights if 11 in weight.shape}
    assert {w.name for layer in backbone.classifier(model) for w in layer.weights} == expected


def test_what_follows_the_last_kernel_is_the_classifiers():
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Dense(3, input_shape=(2,), name="hidden"),
            layers.Dense(2, name="last"),
            layers.BatchNormalization(name="norm"),
            layers.Softmax(),
        ]
    )
    assert [layer.name for layer in backbone.classifier(model)] == ["last", "norm"]
    with pytest.raises(ValueError, match="Expected a model of layers with kernels"):
        backbone.classifier(tf.keras.Sequential([layers.PReLU(input_shape=(2,))]))


def test_copy_takes_all_but_the_classifier():
    source, model = network(10, seed=1), network(4, seed=2)
    for weight in source.weights:  # the statistics too
        weight.assign(weight + 1)
    before = split(model)[1]
    assert backbone.copy(source, model) is model
    assert_equal(split(model)[0], split(source)[0])
    assert_equal(split(model)[1], before)


def test_copy_of_another_network_changes_nothing():
    source, model = small.network((32, 32, 1), 4), network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="Expected a source with the backbone of small"):
        backbone.copy(source, model)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def fit(model, optimizer, epochs=2):
    random = np.random.default_rng(0)
    images = random.normal(1, 2, (24, 32, 32, 3)).astype("float32")
    labels = random.integers(0, 4, 24)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    switch = callbacks.TwoStepSwitch(epoch=1)
    model.fit(images, labels, 8, epochs=epochs, shuffle=False, callbacks=[switch], verbose=0)


def test_a_frozen_backbone_stays_to_the_bit_through_both_steps(eager):
    model = backbone.freeze(network())
    kept, own = split(model)
    fit(model, optimizers.Adam(0.1, weight_decay=0.1))
    assert_equal(split(model)[0], kept)
    for name, value in split(model)[1].items():
        assert np.abs(value - own[name]).min() > 1e-3


def test_rates_of_a_network(eager):
    """A rate of 0 moves nothing but statistics; 1 is an optimizer without rates, to the bit."""
    model = network()
    kept, own = split(model)
    fit(model, optimizers.Adam(0.1, rates=backbone.rates(model, 0.0)))
    now, classifier = split(model)
    for name, value in kept.items():
        assert np.array_equal(now[name], value) == ("moving" not in name), name
    assert not np.array_equal(classifier["classifier/kernel:0"], own["classifier/kernel:0"])
    one, none = network(), network()
    fit(one, optimizers.Adam(0.1, rates=backbone.rates(one, 1.0)))
    fit(none, optimizers.Adam(0.1))
    assert_equal(dict(enumerate(one.get_weights())), dict(enumerate(none.get_weights())))
