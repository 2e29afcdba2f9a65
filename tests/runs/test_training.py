"""A run on a data set of one's own, through the Python functions."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import data, inference
from larq_adambnn.errors import UsageError
from larq_adambnn.export import description
from larq_adambnn.quantizers import scaled_sign
from larq_adambnn.runs import training
from larq_adambnn.runs.config import load_run, parse
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.students import load_student

FLAGS = (
    "--model=reactnet18",
    "--image_size=32",
    "--crop=none",
    "--noflip",
    "--lighting=0",
    "--batch_size=16",
    "--epochs=2",
    "--learning_rate=1e-2",
    "--teacher=self",
    "--nodeterministic",
)


pytestmark = pytest.mark.usefixtures("tiny_network")


def own(count):
    """Dark and bright pictures."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(count).integers(0, 100, (count, 32, 32, 1))
    pixels = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices((pixels, labels))


def test_own_data_train_evaluate_predict_and_export(tmp_path):
    config = parse([*FLAGS, f"--output_dir={tmp_path}/run"])
    options = {"image_size": 32, "batch_size": 16, "crop": "none", "flip": False, "lighting": 0.0}
    dataset = data.from_datasets(own(64), own(40), ("dark", "bright"), **options)
    training.train(config, dataset)
    run = Run(tmp_path / "run")
    (devices,) = run.read_devices()
    assert devices.startswith("CPU (")
    assert f"Trained on {devices}." in run.report.read_text()
    exported = description.read(run.export)
    assert exported.class_names == ["dark", "bright"]
    assert exported.check.passed and exported.check.images == exported.check.of == 40
    student = load_student(run, load_run(run.directory), dataset)
    accuracy = inference.evaluate(student, dataset)
    assert accuracy.top1 == exported.accuracy.keras > 0.9
    assert inference.evaluate(run.tflite.read_bytes(), dataset) == accuracy
    bright = tf.io.encode_png(np.full((9, 9, 1), 200, np.uint8)).numpy()
    (tmp_path / "bright.png").write_bytes(bright)
    for network in (student, run.tflite.read_bytes()):
        ((best, *_),) = inference.classify(
            network, [tmp_path / "bright.png"], dataset.preparation, dataset.class_names
        )
        assert best.name == "bright"


def test_other_settings_than_the_configs_are_refused(tmp_path):
    config = parse([*FLAGS, f"--output_dir={tmp_path}/run"])
    dataset = data.from_datasets(own(64), own(40), ("dark", "bright"), image_size=32, batch_size=8)
    with pytest.raises(UsageError, match="--batch_size: expected 8, as the given data set has"):
        training.train(config, dataset)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("clip", [0.5, 1.0, 1.5])
def test_sign_descent_keeps_a_kernel_where_its_sign_has_a_gradient(clip):
    flags = ("--optimizer=diode", "--diode_momenta=0.5,0.5", f"--weight_clip={clip}")
    diode = training._optimizer(parse([*FLAGS, *flags, "--output_dir=none"]), None)
    kernel = tf.Variable(np.full((3, 3, 2, 2), 0.1, np.float32))
    kernel = lq.quantized_variable.QuantizedVariable.from_variable(kernel, precision=1)
    for _ in range(30):
        diode.apply_gradients([(tf.ones(kernel.shape), kernel)])
    weights = tf.constant(kernel.numpy())
    np.testing.assert_allclose(weights, -min(clip, 1.0) * np.ones_like(weights), rtol=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        signs = scaled_sign(weights, clip)
    np.testing.assert_array_equal(tape.gradient(signs, weights), np.ones_like(weights))
