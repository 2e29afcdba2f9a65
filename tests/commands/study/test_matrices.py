"""The rows of a study, and what it claims about them."""

import dataclasses

import pytest

from larq_adambnn.commands.study import matrices, tables
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import recipes
from larq_adambnn.runs.config import parse


def names(study_name, **changes):
    base = parse(
        ["--mode=study", f"--study={study_name}", "--output_dir=x", "--epochs=4", "--held_out=9"]
    )
    return matrices.rows(dataclasses.replace(base, **changes))


def test_the_matrix_of_weight_decays_is_table_1():
    found = [
        (row.changes["order"], row.changes["weight_decay"], row.paper["top1"])
        for row in names("weight_decay")
    ]
    assert found == [
        ("one_step", (1e-5, 1e-5), 61.73),
        ("one_step", (5e-6, 5e-6), 61.89),
        ("one_step", (0.0, 0.0), 61.49),
        ("one_step", (-1e-4, -1e-4), 26.21),
        ("activations_first", (1e-5, 0.0), 62.63),
        ("activations_first", (5e-6, 0.0), 63.23),
    ]


def test_one_step_and_two_steps_have_the_same_number_of_epochs():
    flags = ["--mode=study", "--output_dir=x", "--epochs=4", "--held_out=9", "--teacher=self"]
    for name in ("order", "recipe_rates"):
        base = parse([*flags, f"--study={name}"])
        for row in matrices.rows(base):
            cell = row.config(base, 7, ())
            assert cell.epochs * len(cell.steps) == 8
            assert cell.seed == 7 and cell.mode == "train" and not cell.export
            assert (cell.split, cell.held_out) == ("held_out", 9)
    orders = [row.changes["order"] for row in names("order")]
    assert orders == ["activations_first", "weights_first", "one_step"]


def test_rows_have_the_teachers_that_the_study_trained():
    flags = ["--mode=study", "--study=order", "--output_dir=x", "--teacher=self", "--held_out=9"]
    study = parse(flags)
    own = ["x/teacher", "x/teacher2"]
    for changes, given, expected in (
        ({}, ("self",), ("x/teacher",)),
        ({}, ("run", "self"), ("run", "x/teacher")),
        ({"teacher": ("self", "self")}, ("self",), ("x/teacher", "x/teacher2")),
        ({"teacher": ("self", "run", "self")}, ("run",), ("x/teacher", "run", "x/teacher2")),
    ):
        row = matrices.Row("row", "arm", {**changes, "loss": "cross_entropy"})
        assert row.config(dataclasses.replace(study, teacher=given), 0, own).teacher == expected


def write_sweep(folder, arms):
    """A sweep in which the second rate of each arm is the best on validation."""
    lines = ["arm,learning_rate,validation"]
    for arm, rates in arms.items():
        for index, rate in enumerate(rates):
            lines += [f"{arm},{rate},{80 - abs(index - 1)}"] * 2
        # one seed is not enough
        lines += [f"{arm},0.5,", f"{arm},0.5,99", f"{arm},0.25,99", f"{arm},0.25,1"]
    (folder / "study.csv").write_text("\n".join(lines))


def test_a_study_takes_the_best_rates_of_its_sweep(tmp_path):
    with pytest.raises(UsageError, match="--sweep: expected the directory or"):
        names("optimizers")
    write_sweep(tmp_path, matrices.OPTIMIZERS)
    found = names("optimizers", sweep=str(tmp_path))
    assert len(found) == 9
    for row in found:
        best = matrices.OPTIMIZERS[row.changes["optimizer"].replace("adamw", "adam")][1]
        assert row.changes["learning_rate"] == best
    (row,) = (row for row in names("weight_decay", sweep=str(tmp_path / "study.csv"))[:1])
    assert row.changes["learning_rate"] == matrices.OPTIMIZERS["adam"][1]
    with pytest.raises(UsageError, match=r"expected a recipe_rates study .*has none for paper"):
        names("recipes", sweep=str(tmp_path))
    write_sweep(tmp_path, {"adam": (1, 2)})
    with pytest.raises(UsageError, match="has none for sgd one step"):
        names("optimizers", sweep=str(tmp_path))
    (row,) = names("optimizers", sweep=str(tmp_path), rows=("adamw_two_steps",))
    assert row.changes["learning_rate"] == 2
    write_sweep(tmp_path, {"adam": ("fast", 2)})
    with pytest.raises(UsageError, match=r"study\.csv: expected numbers: .*'fast'"):
        names("optimizers", sweep=str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adam 0.1,adam,nan,80", "expected rates above 0 .* received nan with '80'"),
        ("adam 0,adam,0,80", "expected rates above 0 .* received 0 with '80'"),
        ("adam 0.1,adam,0.1,nan", "accuracies up to 100; received 0.1 with 'nan'"),
        ("adam 0.1,adam,0.1,inf", "accuracies up to 100; received 0.1 with 'inf'"),
        ("adam one step,adam,0.1,80", "learning_rate study, .* 'adam 0.1'; .* has 'adam one step'"),
        ("adam 0.1,adam,,80", "or an empty one"),
    ],
)
def test_rates_are_chosen_from_a_whole_table_of_the_right_study_alone(tmp_path, line, message):
    path = tmp_path / "rates.txt"
    path.write_text(f"row,arm,learning_rate,validation\nadam 0.2,adam,0.2,81\n{line}\n")
    with pytest.raises(UsageError, match=message):
        names("order", sweep=str(path))
    path.write_text("arm,learning_rate\nadam,-1\n")
    with pytest.raises(UsageError, match="received -1 with ''"):
        names("order", sweep=str(path))
    path.write_text("row,arm,learning_rate,validation\nadam 0.2,adam,0.2,81\n")
    assert {row.changes["learning_rate"] for row in names("order", sweep=str(path))} == {0.2}


def test_some_lines_of_a_study_can_be_named(tmp_path):
    write_sweep(tmp_path, matrices.OPTIMIZERS)
    chosen = ("two_steps_5e-06_0", "one_step_5e-06")
    found = names("weight_decay", sweep=str(tmp_path), rows=chosen)
    assert [row.name for row in found] == ["one step 5e-06", "two steps 5e-06, 0"]
    assert [row for row in names("weight_decay", sweep=str(tmp_path)) if row in found] == found
    flags = ["--mode=study", "--output_dir=x", "--rows=x", "--teacher=self", "--held_out=9"]
    study = parse([*flags, "--study=weight_decay"])
    assert study.rows == ("x",) and found[0].config(study, 0, ()).rows == ()
    measured = {row.name: [{"ff_ratio": 1.0, "top1": 2.0}] for row in found}
    table = tables.differences("weight_decay", found, measured)
    assert [line.split(" | ")[0] for line in table if " of 1 " in line] == [
        "| two steps flip less than one",
        "| two steps are above one",
    ]
    with pytest.raises(UsageError, match=r"--rows: expected some of .*'two steps'"):
        names("weight_decay", sweep=str(tmp_path), rows=("two steps",))


def test_adamw_is_only_where_its_decay_differs_from_adams(tmp_path):
    write_sweep(tmp_path, matrices.OPTIMIZERS)
    found = names("optimizers", sweep=str(tmp_path))
    decays = [row.changes["weight_decay"] for row in found if row.arm == "adamw"]
    assert decays == [(5e-6, 0.0)]


def test_every_recipe_is_the_papers_with_one_part_or_with_the_best(tmp_path):
    swept = names("recipe_rates")
    arms = list(dict.fromkeys(row.arm for row in swept))
    assert arms == ["paper", *(part.name for part in recipes.PARTS), "the best together"]
    write_sweep(tmp_path, dict.fromkeys(arms, (1e-2, 3e-2)))
    found = {row.name: row.changes for row in names("recipes", sweep=str(tmp_path))}
    assert list(found) == arms
    assert {changes.pop("learning_rate") for changes in found.values()} == {3e-2}
    paper = found["paper"]
    together = found["the best together"]
    for part in recipes.PARTS:
        expected = {**paper, **part.settings, "epochs": 8 if "order" in part.settings else 4}
        assert found[part.name] == expected
        if part.name in recipes.BEST:
            assert part.settings.items() <= together.items()
    assert together.pop("epochs") == 8
    shipped = parse(["--flagfile=recipe_best"])
    assert {name: getattr(shipped, name) for name in together} == together


@pytest.mark.parametrize("name", ["optimizers", "weight_decay", "order", "recipes"])
def test_claims_are_of_rows_that_there_are(name, tmp_path):
    arms = (*matrices.OPTIMIZERS, *(row.arm for row in names("recipe_rates")))
    write_sweep(tmp_path, dict.fromkeys(arms, (1e-3, 1e-2)))
    found = {row.name for row in names(name, sweep=str(tmp_path))}
    claims = matrices.CLAIMS[name]
    assert claims and {row for claim in claims for row in (claim.higher, claim.lower)} <= found
