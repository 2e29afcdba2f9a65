"""report.html of a study."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from larq_adambnn.commands.study.matrices import SWEEPS
from larq_adambnn.files import replace_file
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.page import facts, render

__all__ = ["write"]


def write(
    config: Config,
    runs: Mapping[str, Sequence[Config]],
    measured: Mapping[str, Sequence[Mapping]],
    *,
    table: Sequence[str],
    claims: Sequence[str],
    note: str,
    captions: Mapping[str, str],
) -> None:
    """Writes the page of a study whose runs have ended.

    Args:
        config: of the study.
        runs: by row, those of each seed.
        measured: by row, the lines of study.csv.
        table, claims: the tables of study.md, as lines of Markdown; after the claims what they
            are.
        note: what the tables do not say.
        captions: of the figures in plots/, by file name.
    """
    run, sweep = Run(config.output_dir), config.study in SWEEPS.values()
    column = "validation" if sweep else "top1"
    accuracies = {name: _values(cells, column) for name, cells in measured.items()}
    found = facts.StudyFacts(
        title=f"Study of {config.study.replace('_', ' ')} on {config.dataset}",
        directory=config.output_dir,
        headline=_headline(accuracies, "validation" if sweep else "test"),
        results=_cells(table),
        claims=_cells(claims),
        claims_note=claims[-1] if claims else "",
        note=note,
        accuracies={name: found for name, of_row in runs.items() if (found := _curves(of_row))},
        rates=_rates(measured, accuracies) if sweep else (),
        pages={
            name: [f"{cell['directory']}/{run.page.name}" for cell in cells]
            for name, cells in measured.items()
        },
        pictures=facts.pictures(run.plots, captions),
        settings=facts.settings(config),
    )
    with replace_file(run.page) as path:
        path.write_text(render.study_page(found), encoding="utf-8", errors="backslashreplace")


def _headline(accuracies: Mapping[str, np.ndarray], split: str) -> str:
    means = {name: values.mean() for name, values in accuracies.items() if len(values)}
    if not means:
        return "Every run diverged."
    best = max(means, key=means.get)
    values = accuracies[best]
    top1 = f"{values.mean():.2f} ± {_spread(values):.2f} % {split} top-1"
    return f"{best} is the best of {len(accuracies)} rows: {top1} over {len(values)} seeds."


def _values(cells: Sequence[Mapping], column: str) -> np.ndarray:
    """A column of a row's runs that finished."""
    return np.array([cell[column] for cell in cells if column in cell])


def _spread(values: np.ndarray) -> float:
    """Their standard deviation."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _curves(runs: Sequence[Config]) -> list[list[float]]:
    every = (Run(run.output_dir).read_metrics() for run in runs)
    return [[100 * row.get("val_accuracy", math.nan) for row in rows] for rows in every if rows]


def _rates(
    measured: Mapping[str, Sequence[Mapping]], accuracies: Mapping[str, np.ndarray]
) -> list[dict]:
    """The points of `charts.accuracy_by_rate`."""
    return [
        {
            "series": measured[name][0]["arm"],
            "rate": measured[name][0]["learning_rate"],
            "value": float(values.mean()),
            "low": float(values.mean() - _spread(values)),
            "high": float(values.mean() + _spread(values)),
        }
        for name, values in accuracies.items()
        if len(values)
    ]


def _cells(lines: Sequence[str]) -> list[list[str]]:
    """The texts of a table in Markdown, without its rule."""
    rows = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
