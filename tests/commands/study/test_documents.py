"""docs/recipes.md and docs/study.md: their tables, made again from the runs in docs/studies/."""

import csv
import itertools
import pathlib

import numpy as np
import pytest
import scipy.stats

from larq_adambnn.commands.study import matrices, tables
from larq_adambnn.runs.config import parse

DOCS = pathlib.Path(__file__).parents[3] / "docs"
RECIPE = ("epochs", "order", "schedule", "activation_clip", "label_weight", "init_from")


def lines_of(name):
    with (DOCS / "studies" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def interval(values):
    """Mean and half of the 95 % confidence interval of the mean, by SciPy's own."""
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    return f"{np.mean(values):.2f} ± {(high - low) / 2:.2f}"


def row(name, values, last):
    return f"| {name} | {interval(values)} | {values.min():.2f} to {values.max():.2f} | {last} |"


def pair():
    found = {}
    for line in lines_of("recipe_pair.csv"):
        found.setdefault(line["recipe"], {})[line["seed"]] = line
    paper, best = found["paper"], found["best"]
    assert paper.keys() == best.keys()

    def column(recipe, name):
        return np.array([float(recipe[seed][name]) for seed in sorted(recipe)])

    teacher = column(paper, "teacher")
    np.testing.assert_array_equal(teacher, column(best, "teacher"))  # the same network
    for name, recipe in (("the paper's recipe", paper), ("the best recipe", best)):
        minutes = [float(run["cpu_minutes"]) for run in recipe.values() if run["cpu_minutes"]]
        yield row(name, column(recipe, "top1"), f"{np.mean(minutes):.1f}")
    yield row("the real-valued teacher", teacher, "")
    for name, other in (("the paper's", column(paper, "top1")), ("the teacher", teacher)):
        difference = column(best, "top1") - other
        errors = difference.mean() / scipy.stats.sem(difference)
        yield row(f"the best above {name}", difference, f"{errors:.1f}")


def choice():
    lines = lines_of("recipe_choice.csv")

    def recipe(line):
        return tuple(line[name] for name in (*RECIPE, "learning_rate"))

    for _, runs in itertools.groupby(lines, recipe):
        by_seed = {run["seed"]: run for run in runs}
        first = next(iter(by_seed.values()))
        cells = [
            *(first[name] for name in RECIPE[:-1]),
            "the teacher's weights" if first["init_from"] else "random weights",
            first["learning_rate"],
            *(f"{float(by_seed[s]['validation']):.2f}" if s in by_seed else "" for s in "01"),
        ]
        yield "| " + " | ".join(cells) + " |"


def parts_of_the_weights():
    found = {}
    for line in lines_of("recipe_looks_weights.csv"):
        runs = found.setdefault((line["part"], line["setting"]), {})
        runs[line["recipe"], line["seed"]] = f"{float(line['validation']):.2f}"
    for about, runs in found.items():
        cells = [runs.get(run, "") for run in itertools.product(("best", "paper"), "01")]
        yield "| " + " | ".join([*about, *cells]) + " |"


def teachers():
    lines = lines_of("recipe_looks_teachers.csv")
    top1 = {}
    for line in lines:
        key = line["recipe"], line["part"], line["setting"]
        top1.setdefault(key, {})[line["seed"]] = float(line["validation"])
    baseline = {recipe: runs for (recipe, part, _), runs in top1.items() if part == "none"}
    for (recipe, part, setting), runs in top1.items():
        if part in ("none", "the teacher"):
            above = ""
        else:
            differences = [value - baseline[recipe][seed] for seed, value in runs.items()]
            above = f"{np.mean(differences):+.2f}"
        cells = [f"{runs[seed]:.2f}" if seed in runs else "" for seed in "01"]
        yield "| " + " | ".join([recipe, part, setting, *cells, above]) + " |"


def every_part():
    """Each recipe at each rate, and at its best above the paper's at its own."""
    top1 = {}
    for line in lines_of("study_recipe_rates.csv"):
        rates = top1.setdefault(line["arm"], {})
        rates.setdefault(line["learning_rate"], []).append(float(line["validation"]))
    best = {name: max(rates.values(), key=np.mean) for name, rates in top1.items()}
    for name, rates in top1.items():
        cells = [f"{value:.2f}" for values in rates.values() for value in values]
        differences = np.subtract(best[name], best["paper"])
        above = "" if name == "paper" else f"{differences.mean():+.2f}"
        yield "| " + " | ".join([name, *cells, above]) + " |"


@pytest.mark.parametrize("table", [pair, choice, parts_of_the_weights, teachers, every_part])
def test_the_tables_are_what_the_runs_gave(table):
    document = (DOCS / "recipes.md").read_text().splitlines()
    expected = list(table())
    start = document.index(expected[0])
    found = list(itertools.takewhile(lambda line: line.startswith("|"), document[start:]))
    for line in expected:
        assert line in document
    assert table is pair or found == expected


@pytest.mark.parametrize(
    "study, table, page",
    [
        ("learning_rate", "learning_rate", "study"),
        ("optimizers", "optimizers", "study"),
        ("weight_decay", "weight_decay", "study"),
        ("order", "order", "study"),
        ("order", "order_20_epochs", "study"),
        ("recipes", "recipes", "recipes"),
        ("recipe_rates", "recipe_rates_digits", "recipes"),
        ("recipes", "recipes_digits", "recipes"),
        ("recipe_rates", "recipe_rates_reactnet_a", "recipes"),
        ("recipes", "recipes_reactnet_a", "recipes"),
    ],
)
def test_the_tables_of_a_study_are_what_its_runs_gave(study, table, page):
    measured = tables.read(DOCS / "studies" / f"study_{table}.csv")
    rows = matrices.rows(parse([f"--flagfile=study_{study}"]))
    rows = [row for row in rows if study == table or row.name in measured]
    runs = [line for lines in measured.values() for line in lines]
    sums = [len(runs), sum(int(run["epochs"]) for run in runs)]
    sums.append(f"{sum(run['minutes'] for run in runs):.0f}")
    time = f"| {table.replace('_', ' ')} | {' | '.join(map(str, sums))} |"
    document = (DOCS / f"{page}.md").read_text()
    claims = [line for line in tables.differences(study, rows, measured) if line.startswith("|")]
    times = [time] if page == "study" else []
    for lines in (tables.table(study, rows, measured), claims, times):
        assert "\n".join(["", *lines, ""]) in document
