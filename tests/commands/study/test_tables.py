"""The tables of a study."""

from larq_adambnn.commands.study import matrices, tables
from larq_adambnn.runs.config import Config


def test_claims_are_differences_of_runs_with_the_same_seed():
    settings = Config(mode="summary", study="order", seeds=3)
    top1 = {
        "activations first": [80.0, 82.0, 84.0],
        "weights first": [79.0, 83.0, None],  # diverged
        "one step": [70.0, 71.0, 75.0],
    }
    measured = {
        name: [{} if value is None else {"top1": value} for value in values]
        for name, values in top1.items()
    }
    table = tables.differences("order", matrices.rows(settings), measured)
    weights, one = (line for line in table if line.startswith("| activations first is above"))
    # Student's t of 97.5 % is 12.706 with 1 degree of freedom and 4.303 with 2
    assert weights.endswith("weights first | test top-1 (%) | 0.00 ± 12.71 | 1 of 2 | 2.93 |")
    assert one.endswith("one step | test top-1 (%) | 10.00 ± 2.48 | 3 of 3 | 1.74 |")
