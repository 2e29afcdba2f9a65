"""The rows of a study, and what it claims about them."""

import dataclasses

import pytest

from larq_adambnn.commands.study import matrices
from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import parse


def names(study_name, **changes):
    base = parse(["--mode=study", f"--study={study_name}", "--output_dir=x", "--epochs=4"])
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
    base = parse(["--mode=study", "--study=order", "--output_dir=x", "--epochs=4"])
    for row in matrices.rows(base):
        cell = row.config(base, 7, "self")
        assert cell.epochs * len(cell.steps) == 8
        assert cell.seed == 7 and cell.mode == "train" and not cell.export
    orders = [row.changes["order"] for row in names("order")]
    assert orders == ["activations_first", "weights_first", "one_step"]


def test_optimizers_need_a_sweep_and_take_their_best_rates(tmp_path):
    with pytest.raises(UsageError, match="--sweep: expected the directory of a learning_rate"):
        names("optimizers")
    lines = ["optimizer,learning_rate,top1"]
    for optimizer, rates in matrices.OPTIMIZERS.items():
        for index, rate in enumerate(rates):
            lines += [f"{optimizer},{rate},{80 - abs(index - 1)}"] * 2
    lines += ["adam,0.5,", "adam,0.5,99", "adam,0.25,99", "adam,0.25,1"]  # one seed is not enough
    (tmp_path / "study.csv").write_text("\n".join(lines))
    found = names("optimizers", sweep=str(tmp_path))
    assert len(found) == 10
    for row in found:
        best = matrices.OPTIMIZERS[row.changes["optimizer"]][1]
        assert row.changes["learning_rate"] == best
    (row,) = (row for row in names("weight_decay", sweep=str(tmp_path))[:1])
    assert row.changes["learning_rate"] == matrices.OPTIMIZERS["adam"][1]
    (tmp_path / "study.csv").write_text("optimizer,learning_rate,top1\nadam,1,80")
    with pytest.raises(UsageError, match="lacks sgd"):
        names("optimizers", sweep=str(tmp_path))


@pytest.mark.parametrize("name", ["optimizers", "weight_decay", "order"])
def test_claims_are_of_rows_that_there_are(name, tmp_path):
    lines = [f"{optimizer},1e-3,80" for optimizer in matrices.OPTIMIZERS]
    (tmp_path / "study.csv").write_text("\n".join(["optimizer,learning_rate,top1", *lines]))
    found = {row.name for row in names(name, sweep=str(tmp_path))}
    assert {row for claim in matrices.CLAIMS[name] for row in (claim.higher, claim.lower)} <= found
