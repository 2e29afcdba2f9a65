"""Every part of a recipe, through all that a training has to be able to."""

import csv
import json

import exports
import numpy as np
import parts
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import export, layers, models
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import checkpoint, recipes, teachers, training
from larq_adambnn.runs.students import load_student
from larq_adambnn.weights import load

pytestmark = pytest.mark.usefixtures("small_network", "eager")


@pytest.mark.parametrize("part", recipes.PARTS, ids=lambda part: part.name)
def test_a_part_learns(part, tmp_path):
    """In both steps and in bfloat16."""
    flags = (*parts.flags_of(part.settings), "--precision=bfloat16")
    run = parts.train(parts.configure(tmp_path, *flags))
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_accuracy"]) > 0.9


def operators(model):
    """Of its export, by kind."""
    return export.operators(export.convert(larq_adambnn.binarize(model)))


@pytest.fixture(scope="module")
def without():
    """The operators of the network."""
    found = operators(exports.randomized(small.network((32, 32, 1), 2)))
    assert found["LceBconv2d"] == 2
    return found


@pytest.mark.parametrize("flags", parts.together(), ids=lambda flags: flags[0])
def test_parts_resume_bit_for_bit_and_leave_the_network_as_it_is(flags, without, tmp_path):
    """In the middle of the last step."""
    config = parts.configure(tmp_path, *flags, "--precision=bfloat16")
    run, differences = parts.resume(config)
    assert differences == 0
    assert operators(load_student(run, config, parts.pictures())) == without


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--ema=0.9",),
        ("--batch_norm_batches=2",),
        ("--ema=0.9", "--batch_norm_batches=2"),
        ("--ema=0.9", "--batch_norm_batches=2", "--reload_best", "--epochs=2"),
    ],
    ids=lambda flags: " ".join(flags) or "plain",
)
def test_step_2_is_taught_by_what_is_kept_of_step_1(flags, tmp_path, monkeypatch):
    """Also where a training goes on from the end of step 1."""
    monkeypatch.setattr(checkpoint, "_KEEP", 4)
    config = parts.configure(tmp_path, "--step2_teacher=step1", *flags)
    run = parts.train(config)
    network = small.network((32, 32, 1), 2)
    load(network, run.weights(1, best=config.reload_best))

    def newest():
        return max(run.checkpoints.glob("*.npz"))

    def taught():
        with np.load(newest()) as state:
            return [state[f"callback/0/{i}"] for i in range(len(network.weights))]

    for one, other in zip(taught(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    trained = parts.weights(run, network)
    while int(newest().name[:9]) > 4 * config.epochs:
        newest().unlink()
    run.weights(2).unlink()
    again = parts.train(config)
    for one, other in zip(parts.weights(again, network), trained, strict=True):
        np.testing.assert_array_equal(one, other)


def student_of_stride(stride):
    """As small.network, with maps of another size; 32 leaves none above a pixel."""

    def build(input_shape, num_classes, width=1.0):
        images = tf.keras.Input(input_shape)
        x = tf.keras.layers.Conv2D(8, 3, stride, "same")(images)
        y = layers.BinaryConv2D(8, 3)(layers.Shift()(x))
        x = tf.keras.layers.Add()([x, tf.keras.layers.BatchNormalization()(y)])
        x = tf.keras.layers.GlobalAveragePooling2D()(x)
        return tf.keras.Model(images, tf.keras.layers.Dense(num_classes)(x))

    return build


@pytest.mark.parametrize(
    "stride, teacher, message",
    [
        (32, "self", "--attention: Expected a model with feature maps"),
        (
            3,
            "MobileNetV2",
            "--attention: Expected a teacher .*sizes, 11x11. Received: 8x8, 4x4, 2x2",
        ),
    ],
)
def test_maps_that_cannot_be_compared_are_refused_before_any_work(
    stride, teacher, message, tmp_path, monkeypatch
):
    flags = ["--attention=30", "--noexport", f"--teacher={teacher}"]
    if teacher != "self":
        network = tf.keras.applications.MobileNetV2(
            weights=None, input_shape=(32, 32, 1), classes=2, classifier_activation=None
        )
        network.save_weights(tmp_path / "teacher.h5")
        flags.append(f"--teacher_weights={tmp_path}/teacher.h5")
        # One that has such maps teaches with them
        teach = teachers.load(parts.configure(tmp_path, *flags), parts.pictures(), teacher)
        images, _ = next(iter(parts.pictures().train()))
        logits, maps = teach(images)
        assert logits.shape == (16, 2) and maps["8x8"].shape[:3] == (16, 8, 8)
    monkeypatch.setitem(models._NETWORKS, "reactnet18", student_of_stride(stride))
    config = parts.configure(tmp_path, *flags)
    with pytest.raises(UsageError, match=message):
        training.train(config, parts.pictures())
    assert not (tmp_path / "unbroken").exists()


def test_parts_resume_on_two_replicas(server):
    status, out, err = server.start(program=parts.__file__).finish()
    assert status == 0, err
    differences = json.loads(out.splitlines()[-1])
    assert differences and not any(differences)


def test_a_part_has_a_name_of_its_own_and_flags():
    assert len({part.name for part in recipes.PARTS}) == len(recipes.PARTS)
    assert all(part.settings and part.source for part in recipes.PARTS)
