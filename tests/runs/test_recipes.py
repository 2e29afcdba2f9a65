"""Every part of a recipe, through all that a training has to be able to."""

import csv
import json

import exports
import parts
import pytest
import small

import larq_adambnn
from larq_adambnn import export
from larq_adambnn.runs import recipes
from larq_adambnn.runs.students import load_student

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


def test_parts_resume_on_two_replicas(server):
    status, out, err = server.start(program=parts.__file__).finish()
    assert status == 0, err
    differences = json.loads(out.splitlines()[-1])
    assert differences and not any(differences)


def test_a_part_has_a_name_of_its_own_and_flags():
    assert len({part.name for part in recipes.PARTS}) == len(recipes.PARTS)
    assert all(part.settings and part.source for part in recipes.PARTS)
