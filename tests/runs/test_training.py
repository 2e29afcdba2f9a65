"""A run on a data set of one's own, through the Python functions."""

import numpy as np
import pytest
import tensorflow as tf

from larq_adambnn import data, inference
from larq_adambnn.errors import UsageError
from larq_adambnn.export import description
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
