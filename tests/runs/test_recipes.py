"""Every part of a recipe, through all that a training has to be able to."""

import csv
import json
import pathlib
import subprocess
import sys

import exports
import parts
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import export, models
from larq_adambnn.runs import recipes


def operators(model):
    """Of its export, by kind."""
    return export.operators(export.convert(larq_adambnn.binarize(model)))


@pytest.fixture(scope="module")
def without():
    """The operators of the network."""
    found = operators(exports.randomized(small.network((32, 32, 1), 2)))
    assert found["LceBconv2d"] == 2
    return found


@pytest.mark.parametrize("part", recipes.PARTS, ids=lambda part: part.name)
def test_a_part_learns_resumes_and_leaves_the_network_as_it_is(
    part, without, tmp_path, monkeypatch
):
    """In both steps and in bfloat16; resumed bit for bit in the middle of the last step."""
    monkeypatch.setitem(models._NETWORKS, "reactnet18", small.network)
    flags = (*parts.flags_of(part.settings), "--precision=bfloat16")
    tf.config.run_functions_eagerly(True)  # most of so short trainings would be tracing
    try:
        run, differences = parts.train(tmp_path, *flags)
    finally:
        tf.config.run_functions_eagerly(False)
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_accuracy"]) > 0.9
    assert differences == 0
    model = small.network((32, 32, 1), 2)
    parts.weights(run, model)
    assert operators(model) == without


def test_parts_together_resume_on_two_replicas():
    script = pathlib.Path(parts.__file__)
    process = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    differences = json.loads(process.stdout.splitlines()[-1])
    assert differences and not any(differences)


def test_a_part_has_a_name_of_its_own_and_flags():
    assert len({part.name for part in recipes.PARTS}) == len(recipes.PARTS)
    assert all(part.settings and part.source for part in recipes.PARTS)
