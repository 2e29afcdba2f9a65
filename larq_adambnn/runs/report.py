"""report.md, report.html, their plots, and the table that a training ends with."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from larq_adambnn import weights
from larq_adambnn.analysis import figures, style
from larq_adambnn.data import Problem
from larq_adambnn.export.description import Description, describe, read
from larq_adambnn.files import read_json
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.exporting import outdated
from larq_adambnn.runs.page import facts, render

__all__ = ["Plot", "table", "write"]


@dataclasses.dataclass(frozen=True)
class Plot:
    """An entry of analysis.json: a file in plots/ and what it shows."""

    plot: str
    caption: str


def table(run: Run, config: Config, seconds: float | None = None) -> str:
    """Test top-1 of the teacher, each step and the .tflite, with sizes and times."""
    rows = _rows(run, config)
    if seconds is not None:
        rows.append(("all", "", "", f"{seconds:.0f} s"))
    end = f"Everything is in {run.directory}; begin with report.html."
    return "\n".join([*_markdown(rows), "", end])


def _rows(run: Run, config: Config) -> list[tuple[str, str, str, str]]:
    """The rows of `table`, the headings first."""
    rows = [("network", f"{config.split} top-1", "size", "time")]
    for number in range(1, config.teacher.count("self") + 1):
        teacher = Run(run.teacher(number))
        if teacher.metrics.exists():
            rows.append(_row(f"{teacher.directory.name} (real-valued)", teacher, 1))
    names = {
        (True, False): "binary activations",
        (False, True): "binary weights",
        (True, True): "binary",
        (False, False): "real-valued",
    }
    for step, form in enumerate(config.steps, start=1):
        rows.append(_row(f"step {step} ({names[form]})", run, step))
    if run.export.exists():
        rows.append(_export_row(run, read(run.export)))
    return rows


def _markdown(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"| {row[0]:<{widths[0]}} | "
        + " | ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in rows
    ]
    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (w + 1)}:|" for w in widths[1:])
    return [lines[0], rule, *lines[1:]]


def _export_row(run: Run, export: Description) -> tuple[str, str, str, str]:
    reason = outdated(run, export)
    if reason:
        return (f".tflite ({reason})", "", "", "")
    accuracy, check = export.accuracy.tflite, export.check
    part = ""
    if accuracy is not None:
        some = f"first {check.images:,} " if check.images < (check.of or 0) else ""
        if some or check.on.startswith("train"):
            part = f" ({some}{check.on})"
    return (
        f".tflite{part}",
        "" if accuracy is None else f"{100 * accuracy:.2f} %",
        _size(export.bytes),
        f"{export.seconds:.0f} s",
    )


def _row(name: str, run: Run, step: int) -> tuple[str, str, str, str]:
    rows = [row for row in run.read_metrics() if row["step"] == step]
    if not rows:
        return (name, "", "", "")
    evaluated = run.evaluated(step)
    return (
        name,
        f"{100 * evaluated[-1]['val_accuracy']:.2f} %" if evaluated else "",
        _size(run.weights(step).stat().st_size) if run.weights(step).is_file() else "",
        f"{sum(row['seconds'] for row in rows):.0f} s",
    )


def _best(run: Run, config: Config) -> str:
    """One sentence on the best weights of the last step that is finished, if they are kept."""
    step = run.last_step()
    about = weights.about(run.weights(step, best=True))
    if not about:
        return ""
    return (
        f"Best weights of step {step}: after epoch {about['epoch']}, with {config.split} top-1 "
        f"{100 * about['val_accuracy']:.2f} %. They were chosen by these images; on others expect "
        "less. --best evaluates and exports them."
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def write(run: Run, config: Config) -> None:
    """Writes report.md, report.html and the curves of a run.

    Raises:
        UsageError: a file of the run that report.md tells of is damaged.
        OSError: they cannot be written.
    """
    exports = [read(path) for path in (run.export, run.export_int8) if path.exists()]
    left_out: dict[str, list[Problem]] = {}
    if run.left_out.exists():
        left_out = read_json(run.left_out, dict[str, list[Problem]], "what a training left out")
    analyses: list[Plot] = []
    if run.analysis.exists():
        analyses = read_json(run.analysis, list[Plot], "what --mode=analyze wrote")
    plots = []
    if run.metrics.exists():  # not of an imported network
        plots.append(_curves(run, config, "accuracy", 100, "accuracy (%)"))
        plots.append(_curves(run, config, "loss", 1, "loss"))
    best = _best(run, config)
    lines = [
        f"# {config.model} on {config.dataset}",
        "",
        table(run, config),
        "",
        *((best, "") if best else ()),
        *(f"![{path.stem}](plots/{path.name})" for path in plots),
    ]
    if run.devices.exists():
        lines += ["", f"Trained on {', then '.join(run.read_devices())}."]
    for export in exports:
        lines += ["", *_export(run, export)]
    lines += _left_out(left_out)
    if analyses:
        lines += ["", "## Analyses"]
        for entry in analyses:
            lines += ["", f"![{entry.caption}](plots/{entry.plot})", "", entry.caption]
    lines += ["", "## Settings", "", "```", *config.lines(), "```", ""]
    found = facts.gather(
        run,
        config,
        results=_rows(run, config),
        best=best,
        exports=exports,
        plots={entry.plot: entry.caption for entry in analyses},
        left_out=left_out,
    )
    page = render.run_page(found)
    for path, text in ((run.report, "\n".join(lines)), (run.page, page)):
        with run.replace(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _export(run: Run, export: Description) -> list[str]:
    """What export.json says, unless that is of other files than are there."""
    reason = outdated(run, export)
    told = [f"- {reason}: export it again"] if reason else describe(export)
    return [f"## {export.file}", "", *told]


def _left_out(left_out: Mapping[str, Sequence[Problem]]) -> list[str]:
    """What --bad_images=skip left out, of each split."""
    if not left_out:
        return []
    lines = ["", "## Images left out", ""]
    for split, problems in left_out.items():
        lines.append(f"- {split}: {len(problems):,}")
        lines += [f"    - `{problem.name}` {problem.reason}" for problem in problems]
    return lines


def _curves(run: Run, config: Config, name: str, factor: float, label: str) -> pathlib.Path:
    """Curves of the training and of --split over the epochs of all steps, as a PNG."""
    rows = run.read_metrics()
    series = {
        kind: np.array([factor * row.get(column, np.nan) for row in rows])
        for kind, column in (("training", name), (config.split, f"val_{name}"))
    }
    ends = [step * config.epochs for step in range(1, len(config.steps))]
    _, figure = figures.curves(series, label=label, boundaries=ends)
    path = run.plots / f"{name}.png"
    with run.replace(path) as temporary:
        style.save(figure, temporary)
    return path
