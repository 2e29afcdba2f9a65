"""Networks in Keras's three formats: loaded in another process, they compute and train the same."""

import subprocess
import sys

import larq as lq
import numpy as np
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import distillation, losses, optimizers, quantizers

FORMATS = {"keras": "network.keras", "h5": "network.h5", "saved_model": "network"}


def ours():
    """Our layers, quantizers, loss and optimizer, in step 1."""
    model = small.network((32, 32, 1), 5, activation_clip=2.0, weight_clip=0.02)
    larq_adambnn.binarize(model, True, False)
    model.compile(
        optimizers.Adam(0.01, weight_decay=0.1, decoupled=True), losses.DistributionLoss()
    )
    return model


def in_larqs_layers():
    """Our quantizers and Larq's in Larq's layers, some of them switched off."""
    model = tf.keras.Sequential(
        [
            tf.keras.Input((32, 32, 1)),
            lq.layers.QuantConv2D(4, 3, strides=4, kernel_quantizer=quantizers.ScaledSign()),
            lq.layers.QuantSeparableConv2D(
                4,
                3,
                input_quantizer=quantizers.ApproxSign(),
                depthwise_quantizer="ste_sign",
                pointwise_quantizer=quantizers.Switchable("magnitude_aware_sign", on=False),
            ),
            tf.keras.layers.Flatten(),
            lq.layers.QuantDense(5, input_quantizer="approx_sign", kernel_quantizer="swish_sign"),
        ]
    )
    larq_adambnn.binarize(model, False, True)
    model.get_layer(index=1).pointwise_quantizer.on = False
    model.compile(optimizers.SGD(0.01), losses.DistributionLoss())
    return model


NETWORKS = {"ours": ours, "larqs": in_larqs_layers}


def batch():
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(8, 32, 32, 1)).astype(np.float32),
        generator.normal(size=(8, 5)).astype(np.float32),
    )


LOADED = """
import sys
import larq_adambnn
import numpy as np
import tensorflow as tf
images, targets = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("images", "targets"))
for path in sys.argv[2:]:
    model = tf.keras.models.load_model(path)
    result = {"logits": model(images).numpy(), "form": larq_adambnn.binarization(model)}
    model.train_on_batch(images, targets)
    result |= {f"weight{i}": w for i, w in enumerate(model.get_weights())}
    np.savez(f"{path}.npz", **result)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By network and format, what it gave here, and in a process that had loaded it."""
    folder = tmp_path_factory.mktemp("saved")
    images, targets = batch()
    np.save(folder / "images.npy", images)
    np.save(folder / "targets.npy", targets)
    paths, here = {}, {}
    for name, build in NETWORKS.items():
        model = build()
        model.train_on_batch(images, targets)
        for form, file in FORMATS.items():
            paths[name, form] = folder / name / file
            paths[name, form].parent.mkdir(exist_ok=True)
            model.save(paths[name, form])
        weights = model.get_weights()
        now = {"logits": model(images).numpy(), "form": larq_adambnn.binarization(model)}
        for forms in (("keras", "h5"), ("saved_model",)):
            if "saved_model" in forms:  # of which Keras restores no optimizer's variables
                model.set_weights(weights)
                optimizers.reset(model.optimizer, model.trainable_variables)
            model.train_on_batch(images, targets)
            after = {f"weight{i}": w for i, w in enumerate(model.get_weights())}
            here |= {(name, form): {**now, **after} for form in forms}
    process = subprocess.run(
        [sys.executable, "-c", LOADED, folder, *paths.values()], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    there = {key: dict(np.load(f"{path}.npz")) for key, path in paths.items()}
    return here, there


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_computes_and_trains_on_as_the_saved_one(name, form, loaded):
    here, there = loaded
    expected, received = here[name, form], there[name, form]
    assert tuple(received["form"]) == expected["form"]
    for key in expected:
        # Another process may add up in another order.
        np.testing.assert_allclose(received[key], expected[key], 1e-4, 1e-6, err_msg=key)


@tf.keras.utils.register_keras_serializable(package="tests")
def two_axes(variable):
    """A rule of `decays` that a saved optimizer finds again."""
    return variable.shape.rank == 2


def dense():
    return tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])


@pytest.mark.parametrize("form", FORMATS)
def test_an_optimizer_keeps_its_own_rule_of_decay(form, tmp_path):
    model = dense()
    model.compile(optimizers.Adam(0.01, decays=two_axes), "mse")
    path = tmp_path / FORMATS[form]
    model.save(path)
    assert tf.keras.models.load_model(path).optimizer.decays is two_axes


def distiller():
    return distillation.Distiller(dense(), lambda images: images)


def with_a_nameless_rule():
    model = dense()
    model.compile(optimizers.Adam(0.01, decays=lambda variable: True), "mse")
    return model


def with_a_nameless_quantizer():
    quantizer = quantizers.Switchable(lambda x: tf.sign(x))
    layer = lq.layers.QuantDense(5, input_quantizer=quantizer)
    return tf.keras.Sequential([tf.keras.Input((4,)), layer])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (distiller, r"Expected distiller\.student\.save"),
        (with_a_nameless_rule, "Expected decays to be a named function"),
        (with_a_nameless_quantizer, "Expected a Larq quantizer or a registered function"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(form, build, message, tmp_path):
    with pytest.raises((ValueError, NotImplementedError), match=message) as error:
        build().save(tmp_path / FORMATS[form])
    assert "\n" not in str(error.value)
