"""What the workers of a job compare, by the flags and the files of each."""

import dataclasses
import shutil

import pytest

from larq_adambnn.runs import agreement, datasets, provenance
from larq_adambnn.runs.config import parse
from larq_adambnn.runs.directory import Run

DIGITS = ("--dataset=digits", "--model=reactnet18", "--image_size=32", "--batch_size=8")
DIGITS += ("--output_dir=new", "--loss=cross_entropy")

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def dataset(data_dir):
    return datasets.load(parse([*DIGITS, f"--data_dir={data_dir}"]))


@pytest.fixture(scope="module")
def places(tmp_path_factory, digits_run, dataset):
    """A finished run, a copy of it elsewhere, and others that differ in a file."""
    folder = tmp_path_factory.mktemp("agreement")
    names = ("run", "copy", "normalization", "weights", "network")
    found = {name: shutil.copytree(digits_run, folder / name) for name in names}
    known = provenance.of(dataset)
    for place in found.values():
        provenance.write(Run(place), known)
    other = dataclasses.replace(known, mean=(0.25,))
    provenance.write(Run(found["normalization"]), other)
    weights = Run(found["weights"])
    with weights.weights(weights.last_step()).open("ab") as file:
        file.write(b"another")
    with Run(found["network"]).flags.open("a") as file:
        file.write("--pad_values=1\n")
    return found


TAUGHT = ("--loss=distribution", "--teacher={run}")
INITIAL, TEACHER = {"network of --init_from"}, {"network of --teacher"}
# Flags of the chief and of another worker, and what differs
TRAININGS = {
    "the same": (TAUGHT, TAUGHT, set()),
    "a run elsewhere": (["--init_from={run}"], ["--init_from={copy}"], set()),
    "a teacher elsewhere": (TAUGHT, ["--teacher={copy}", TAUGHT[0]], set()),
    "a rate": ([], ["--learning_rate=0.5"], {"--learning_rate"}),
    "no run": (["--init_from={run}"], [], INITIAL | {"--init_from"}),
    "no teacher's weights": ([*TAUGHT, "--init_from=teacher"], TAUGHT, INITIAL | {"--init_from"}),
    "its own teacher": (
        ["--teacher=self", TAUGHT[0]],
        ["--teacher=ResNet50", "--teacher_weights=imagenet", TAUGHT[0]],
        {"--teacher", "--teacher_weights"},
    ),
    "another name": (
        ["--teacher=ResNet101", "--teacher_weights=imagenet", TAUGHT[0]],
        ["--teacher=ResNet50", "--teacher_weights=imagenet", TAUGHT[0]],
        {"--teacher"},
    ),
    **{
        f"{name} at the start": (["--init_from={run}"], [f"--init_from={{{name}}}"], INITIAL)
        for name in ("normalization", "weights", "network")
    },
    "normalization of the teacher": (TAUGHT, ["--teacher={normalization}", TAUGHT[0]], TEACHER),
    "one of several teachers elsewhere": (
        ["--teacher=self,{run},{network}", TAUGHT[0]],
        ["--teacher=self,{copy},{network}", TAUGHT[0]],
        set(),
    ),
    "one of several teachers": (
        ["--teacher=self,{run}", TAUGHT[0]],
        ["--teacher=self,{network}", TAUGHT[0]],
        TEACHER,
    ),
    "the order of teachers": (
        ["--teacher=self,{run}", TAUGHT[0]],
        ["--teacher={run},self", TAUGHT[0]],
        {"--teacher"},
    ),
    "weights of the teacher": (TAUGHT, ["--teacher={weights}", TAUGHT[0]], TEACHER | {"teacher"}),
}


def differing(*of_workers):
    facts = [{name: fact() for name, fact in found.items()} for found in of_workers]
    names = {name for found in facts for name in found}
    return {name for name in names if len({found.get(name, "none") for found in facts}) > 1}


@pytest.mark.parametrize("name", TRAININGS)
def test_what_the_trainings_of_two_workers_differ_in(name, places, dataset):
    *of_workers, expected = TRAININGS[name]
    configs = [parse([*DIGITS, *(flag.format(**places) for flag in flags)]) for flags in of_workers]
    facts = [agreement.flags(c) | agreement.data(c, dataset) for c in configs]
    assert differing(*facts) == expected


def test_what_the_evaluations_of_two_workers_differ_in(places, dataset):
    def facts(name, *flags):
        config = parse(["--mode=evaluate", f"--run={places[name]}", *flags])
        return agreement.evaluation(config, config.run, dataset, "test")

    assert differing(facts("run"), facts("copy")) == set()
    for name in ("normalization", "weights", "network"):
        assert differing(facts("run"), facts(name)) == {"network of --run"}
    assert differing(facts("run"), facts("run", "--split=train")) == {"--split"}
