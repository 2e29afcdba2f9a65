"""A run goes on to other classes: the backbone is taken and frozen, and it resumes and predicts."""

import json
import shutil

import h5py
import numpy as np
import pytest
from photographs import write_folder
from small import flags_of

from larq_adambnn import data, distillation
from larq_adambnn.runs import training
from larq_adambnn.runs.config import load_run

FLAGS = (
    "--dataset=image_folder",
    "--channels=1",
    "--batch_size=4",
    "--train_images=0",
    "--teacher=self",
    "--teacher_epochs=1",
    "--loss=weighted_sum",
    "--ema=0.4",
    "--freeze_backbone",
)
CLASSIFIER = "layers/dense/"  # in a file of weights


@pytest.fixture(scope="module")
def digits(server, tmp_path_factory, data_dir):
    """A run of ten classes and one channel."""
    run = tmp_path_factory.mktemp("digits") / "run"
    flags = ("--order=one_step", "--loss=cross_entropy", "--epochs=1")
    status, _, err = server.start(*flags_of(run, data_dir, *flags), eager=True).finish()
    assert status == 0, err
    return run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photographs"), train=4)


@pytest.fixture(scope="module")
def tuned(server, tmp_path_factory, digits, photographs):
    """(the run of two classes that began from it, its flags, what it printed as errors)."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    flags = flags_of(run, photographs, *FLAGS, f"--init_from={digits}")
    status, _, err = server.start(*flags).finish()
    assert status == 0, err
    return run, flags, err


def weights(run, step):
    """The arrays of a step's end by their names in the file."""
    found = {}
    with h5py.File(run / "checkpoints" / f"step{step}.weights.h5") as file:
        file.visititems(lambda name, x: found.update({name: x[()]} if hasattr(x, "shape") else {}))
    return found


def test_the_backbone_is_taken_and_stays_and_a_line_says_so(digits, tuned):
    run, _, err = tuned
    assert err.count("note: ") == 1
    assert f"note: --init_from: {digits} has other classes than image_folder" in err
    start = weights(digits, 1)
    for step in (1, 2):
        end = weights(run, step)
        assert end.keys() == start.keys()
        for name, value in end.items():
            if not name.startswith(CLASSIFIER):
                np.testing.assert_array_equal(value, start[name], err_msg=name)
    kernels = [weights(run, step)[f"{CLASSIFIER}vars/0"] for step in (1, 2)]
    assert kernels[0].shape == (8, 2)
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_it_resumes_to_the_bit(server, tuned, tmp_path):
    run, flags, _ = tuned
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step2.weights.h5").unlink()
    max((copy / "checkpoints").glob("[0-9]*.npz")).unlink()
    status, out, err = server.start(*flags, f"--output_dir={copy}").finish()
    assert status == 0, err
    assert "resuming after 3 of 4 epochs" in out
    expected = weights(run, 2)
    for name, value in weights(copy, 2).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_student_begins_with_the_weights_of_its_own_teacher(server, tmp_path, data_dir):
    run = tmp_path / "run"
    flags = ("--order=one_step", "--epochs=1", "--teacher=self", "--teacher_epochs=1")
    flags += ("--init_from=teacher", "--teacher_rate=0.01", "--learning_rate=1e-30")
    status, _, err = server.start(*flags_of(run, data_dir, *flags), eager=True).finish()
    assert status == 0, err
    start, end = weights(run / "teacher", 1), weights(run, 1)
    kernels = [name for name, value in start.items() if value.ndim > 1]
    assert len(kernels) == 4
    for name in kernels:  # at that rate nothing moves but the statistics of batch norm
        np.testing.assert_array_equal(end[name], start[name], err_msg=name)


def test_it_predicts_colour_photographs(server, tuned, photographs):
    run, *_ = tuned
    images = photographs / "val"
    status, out, err = server.start(
        "--mode=predict", f"--run={run}", f"--images={images}", "--json"
    ).finish()
    assert status == 0, err
    assert [{p["class"] for p in found["predictions"]} for found in json.loads(out)] == (
        [{"china", "flower"}] * 4
    )


def test_the_flag_sets_the_rates(tuned, photographs):
    """Of everything but the classifier, under the decay that the callbacks set."""
    config = load_run(tuned[0], freeze_backbone=False, backbone_rate=0.25, init_from="")
    settings = {"image_size": 32, "batch_size": 4, "crop": "padded", "flip": False, "channels": 1}
    dataset = data.load("image_folder", photographs, **settings)
    model = training.compiled(config, dataset, None)
    assert isinstance(model, distillation.Distiller)
    rates = {v.name: model.optimizer._rate(v) for v in model.student.trainable_variables}
    assert {rate for name, rate in rates.items() if name.startswith("classifier/")} == {1.0}
    assert {rate for name, rate in rates.items() if not name.startswith("classifier/")} == {0.25}
