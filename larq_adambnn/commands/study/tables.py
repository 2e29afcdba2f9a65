"""The table, the CSV file and the plots of a study."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from larq_adambnn import inference
from larq_adambnn.analysis import figures, style
from larq_adambnn.callbacks.measurements import (
    binary_input,
    binary_kernels,
    latent_weights,
)
from larq_adambnn.commands.study import page
from larq_adambnn.commands.study.matrices import CLAIMS, SWEEPS, Row
from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows, replace_file, write_rows
from larq_adambnn.runs import datasets
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.recording import read_layers, snapshots
from larq_adambnn.runs.students import load_student

__all__ = ["differences", "read", "table", "write"]

# Columns of the table of each study
_COLUMNS = {
    "optimizers": (
        "top1",
        "validation",
        "validation_best",
        "saturation_first",
        "saturation_last",
        "sdam_first",
        "dead_weights",
        "peaks",
    ),
    "weight_decay": (
        "ff_ratio",
        "c2i_step_ratio",
        "c2i_ratio",
        "top1",
        "validation",
        "validation_best",
    ),
    "order": ("top1", "validation", "validation_best", "ff_ratio", "c2i_step_ratio"),
    "recipes": ("top1", "validation", "validation_best", "minutes"),
    "learning_rate": ("validation", "validation_best"),
    "recipe_rates": ("validation", "validation_best"),
}
# Heading and format of a column
_FORMATS = {
    "top1": ("test top-1 (%)", "{:.2f}"),
    "validation": ("validation top-1 (%)", "{:.2f}"),
    "validation_best": ("validation, best epoch (%)", "{:.2f}"),
    "ff_ratio": ("FF ratio", "{:.2e}"),
    "c2i_step_ratio": ("C2I ratio, step", "{:.3f}"),
    "c2i_ratio": ("C2I ratio, run", "{:.3f}"),
    "saturation_first": ("saturated, first epoch (%)", "{:.1f}"),
    "saturation_last": ("saturated, last epoch (%)", "{:.1f}"),
    "sdam_first": ("SDAM, first epoch", "{:.2e}"),
    "dead_weights": ("dead weights (%)", "{:.2f}"),
    "peaks": ("peaks of the weights", "{:.1f}"),
    "minutes": ("minutes", "{:.1f}"),
}
_CONFIDENCE = 0.95  # of the interval of a difference
_CSV = (
    "row",
    "arm",
    "optimizer",
    "order",
    "learning_rate",
    "weight_decay",
    "epochs",
    "seed",
    "status",
    *_FORMATS,
    "directory",
)
_NOTES = {
    "optimizers": (
        "Saturation and SDAM (of the weights) are those of the first binary layer in the last "
        "step, as in the paper."
    ),
    "weight_decay": (
        "FF is averaged over the epochs of the last step. C2I is at the end, against the weights "
        "at the start of the last step and of the run; the paper's is put beside the former."
    ),
    "order": (
        "The paper gives 2.93 points between activations first and weights first; its figure for "
        "weights first is the other one less these."
    ),
    "recipes": "Every recipe has as many epochs in all, the same teacher and operators.",
    "learning_rate": "The paper's best rates are 1e-3 for Adam and 5e-2 for SGD.",
    "recipe_rates": "Every recipe has as many epochs in all, the same teacher and operators.",
}


def write(config: Config, rows: Sequence[Row], runs: Mapping[str, Sequence[Config]]) -> None:
    """Writes study.csv, study.md and plots/*.png of a study whose runs have ended."""
    directory = pathlib.Path(config.output_dir)
    dataset = datasets.load(next(iter(runs.values()))[0])
    measured = {
        row.name: [_measure(config, row, run, dataset) for run in runs[row.name]] for row in rows
    }
    with replace_file(directory / "study.csv") as path:
        write_rows(path, _CSV, [cell for cells in measured.values() for cell in cells])
    plots, captions = [], {}
    for name, title, figure in _plots(config, runs, measured, dataset):
        with replace_file(directory / "plots" / f"{name}.png") as path:
            style.save(figure, path)
        plots += ["", f"![{title}](plots/{name}.png)", "", title]
        captions[f"{name}.png"] = title
    results = table(config.study, rows, measured)
    claims = differences(config.study, rows, measured)
    note = (
        f"Mean and standard deviation over the seeds {', '.join(map(str, _seeds(config)))} on "
        f"{config.dataset}; the paper's figures are ResNet-18's on ImageNet. {_protocol(config)} "
        f"{_note(config, measured)}"
    )
    lines = [
        f"# Study: {config.study}",
        "",
        *results,
        "",
        note,
        *claims,
        *plots,
        "",
        "## Settings",
        "",
        "```",
        *config.lines(),
        "```",
        "",
    ]
    with replace_file(directory / "study.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    page.write(config, runs, measured, table=results, claims=claims, note=note, captions=captions)
    print()
    print("\n".join(results))
    print(f"\n{directory / 'study.md'}, {directory / 'report.html'}")


def _is_sweep(study: str) -> bool:
    return study in SWEEPS.values()


def _protocol(config: Config) -> str:
    """What the accuracies are of."""
    text = f"Validation is on {config.held_out:,} training images that were held out."
    if _is_sweep(config.study):
        return f"{text} The test images were not looked at."
    return f"{text} The test images were looked at once, at the end of the last epoch."


def _note(config: Config, measured: Mapping[str, list[dict]]) -> str:
    """What the table does not say."""
    if not _is_sweep(config.study):
        return _NOTES[config.study]
    means: dict[str, dict[float, float]] = {}
    for cells in measured.values():
        accuracies = [cell.get("validation", -np.inf) for cell in cells]  # a rate diverges or not
        means.setdefault(cells[0]["arm"], {})[cells[0]["learning_rate"]] = np.mean(accuracies)
    best = []
    for name, rates in means.items():
        rate = max(rates, key=rates.get)
        edge = " (an end of the sweep)" if rate in (min(rates), max(rates)) else ""
        best.append(f"{name} {rate:g}{edge}")
    return f"{_NOTES[config.study]} Best here: {', '.join(best)}."


def _seeds(config: Config) -> range:
    return range(config.seed, config.seed + config.seeds)


def _measure(study: Config, row: Row, config: Config, dataset) -> dict:
    """A run's line of study.csv."""
    run = Run(config.output_dir)
    metrics = run.read_metrics()
    line = {
        "row": row.name,
        "arm": row.arm,
        "optimizer": config.optimizer,
        "order": config.order,
        "learning_rate": config.learning_rate,
        "weight_decay": ",".join(f"{value:g}" for value in config.weight_decay),
        "epochs": config.epochs * len(config.steps),
        "seed": config.seed,
        "minutes": round(sum(epoch["seconds"] for epoch in metrics) / 60, 2),
        "directory": run.directory.relative_to(study.output_dir),
    }
    if run.last_step() < len(config.steps):
        return {**line, "status": "diverged"}
    last_step = [epoch for epoch in metrics if epoch["step"] == len(config.steps)]
    accuracies = [epoch["val_accuracy"] for epoch in run.evaluated(len(config.steps))]
    if not accuracies:
        raise UsageError(f"{run.metrics}: expected an evaluation in the last step; it has none")
    line |= {
        "status": "finished",
        "validation": 100 * accuracies[-1],
        "validation_best": 100 * max(accuracies),
    }
    if _is_sweep(study.study):
        return line
    layer = _first_layer(run, len(config.steps))
    student = load_student(run, config, dataset)
    weights, _ = latent_weights(student)
    return {
        **line,
        "top1": 100 * inference.evaluate(student, dataset, "test").top1,
        "ff_ratio": np.mean([epoch["ff_ratio"] for epoch in last_step]),
        "c2i_step_ratio": metrics[-1]["c2i_step_ratio"],
        "c2i_ratio": metrics[-1]["c2i_ratio"],
        "saturation_first": 100 * layer["saturation"][0],
        "saturation_last": 100 * layer["saturation"][-1],
        "sdam_first": layer["sdam"][0],
        "dead_weights": 100 * metrics[-1]["dead_weights"],
        "peaks": len(figures.weight_peaks(weights)),
    }


def read(path: pathlib.Path) -> dict[str, list[dict]]:
    """The lines of a study.csv by row: the cells that are filled, as numbers where measured."""
    measured: dict[str, list[dict]] = {}
    for line in read_rows(path, required=("row", "status"), known=_CSV):
        cells = {name: value for name, value in line.items() if value}
        numbers = {name: float(cells[name]) for name in _FORMATS if name in cells}
        numbers["learning_rate"] = float(line["learning_rate"])
        measured.setdefault(line["row"], []).append({**cells, **numbers})
    return measured


def _first_layer(run: Run, step: int) -> dict[str, list[float]]:
    """The first binary layer's columns of measurements.csv in a step."""
    rows = read_layers(run)
    rows = [r for r in rows if r["layer"] == rows[0]["layer"] and int(r["step"]) == step]
    return {name: [float(row[name]) for row in rows] for name in ("saturation", "sdam")}


def table(study: str, rows: Sequence[Row], measured: Mapping[str, list[dict]]) -> list[str]:
    """The lines of a study's table in Markdown.

    Args:
        study: its name.
        rows: its rows (see `matrices.rows`).
        measured: by row, a dictionary a seed (see `read`).
    """
    columns = _COLUMNS[study]
    paper = [name for name in columns if any(name in row.paper for row in rows)]
    headings = ["run", "learning rate", *(_FORMATS[name][0] for name in columns)]
    headings += [f"paper: {_FORMATS[name][0]}" for name in paper]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for row in rows:
        cells = measured[row.name]
        texts = [row.name, f"{cells[0]['learning_rate']:g}"]
        texts += [_spread([c[name] for c in cells if name in c], name) for name in columns]
        texts += [_FORMATS[n][1].format(row.paper[n]) if n in row.paper else "" for n in paper]
        diverged = sum(cell["status"] == "diverged" for cell in cells)
        if diverged:
            texts[0] += f" ({diverged} of {len(cells)} diverged)"
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def differences(study: str, rows: Sequence[Row], measured: Mapping[str, list[dict]]) -> list[str]:
    """A table of a study's claims, with the differences between runs of the same seed.

    Args:
        study, rows, measured: as for `table`.
    """
    paper = {row.name: row.paper for row in rows}
    lines = []
    for claim in CLAIMS[study]:
        if not {claim.higher, claim.lower} <= paper.keys():
            continue  # --rows left one out
        column = claim.column
        pairs = zip(measured[claim.higher], measured[claim.lower], strict=True)
        found = [a[column] - b[column] for a, b in pairs if column in a and column in b]
        cells = [claim.text, _FORMATS[column][0], _interval(found, column)]
        cells += [f"{sum(value > 0 for value in found)} of {len(found)}"]
        theirs = [paper[name].get(column) for name in (claim.higher, claim.lower)]
        cells += ["" if None in theirs else _FORMATS[column][1].format(theirs[0] - theirs[1])]
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    return [
        "",
        "| claim | of | difference | with so many seeds | paper: difference |",
        "|---|---|---:|---:|---:|",
        *lines,
        "",
        "A difference is of runs with the same seed: mean and "
        f"{100 * _CONFIDENCE:.0f} % confidence interval of the mean (Student's t).",
    ]


def _interval(values: Sequence[float], column: str) -> str:
    """Mean and half of its confidence interval."""
    if not values:
        return ""
    text = _FORMATS[column][1].format(np.mean(values))
    if len(values) > 1:
        quantile = scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
        half = quantile * np.std(values, ddof=1) / len(values) ** 0.5
        text += f" ± {_FORMATS[column][1].format(half)}"
    return text


def _spread(values: list[float], column: str) -> str:
    if not values:
        return ""
    text = _FORMATS[column][1].format(np.mean(values))
    if len(values) > 1:
        text += f" ± {_FORMATS[column][1].format(np.std(values, ddof=1))}"
    return text


def _plots(config: Config, runs, measured, dataset):
    """(file name without its ending, title, figure) of each plot of a study."""
    finished = {
        name: [
            run
            for run, cell in zip(of_row, measured[name], strict=True)
            if cell["status"] == "finished"
        ]
        for name, of_row in runs.items()
    }
    finished = {name: of_row for name, of_row in finished.items() if of_row}
    if _is_sweep(config.study):
        found: dict[str, dict[float, list[float]]] = {}
        for cells in measured.values():
            for cell in cells:
                if "validation" in cell:
                    rates = found.setdefault(cell["arm"], {})
                    rates.setdefault(cell["learning_rate"], []).append(cell["validation"])
        _, figure = figures.learning_rates(found, label="validation accuracy (%)")
        yield "learning_rate", "Validation accuracy against the learning rate.", figure
        return

    def curves(column, label, factor=1.0, select=lambda name: name):
        chosen = [name for name in finished if select(name)]
        two_steps = any(len(finished[name][0].steps) == 2 for name in chosen)
        series = {
            select(name): np.array(
                [
                    [factor * row.get(column, np.nan) for row in Run(run.output_dir).read_metrics()]
                    for run in finished[name]
                ]
            )
            for name in chosen
        }
        boundaries = [config.epochs] if two_steps else []
        _, figure = figures.curves(series, label=label, boundaries=boundaries)
        return figure

    accuracy = ("val_accuracy", "validation accuracy (%)", 100.0)
    if config.study == "optimizers":
        for steps in ("one step", "two steps"):
            if not any(name.endswith(steps) for name in finished):
                continue

            def optimizer(name, steps=steps):
                return name.removesuffix(steps).strip() if name.endswith(steps) else ""

            title = f"Validation accuracy by epoch, in {steps}"
            yield (
                f"accuracy_{steps.replace(' ', '_')}",
                f"{title}: means with bands of one standard deviation.",
                curves(*accuracy, optimizer),
            )
        yield from _adam_and_sgd(finished, dataset)
    else:
        yield (
            "accuracy",
            "Validation accuracy by epoch: means with bands of one standard deviation.",
            curves(*accuracy),
        )
        yield "ff_ratio", "Flip-flop ratio by epoch.", curves("ff_ratio", "flip-flop ratio")
        yield (
            "c2i_step_ratio",
            "Correlation to the weights at the start of the step, by epoch.",
            curves("c2i_step_ratio", "C2I ratio"),
        )


def _adam_and_sgd(finished: Mapping[str, Sequence[Config]], dataset):
    """Figures 3, 4, 5 and 7 for Adam and SGD in one step, of the first seed."""
    inputs, clips, weights, updates, final = {}, {}, {}, {}, {}
    images = dataset.probe()
    for name in ("adam", "sgd"):
        if f"{name} one step" not in finished:
            continue
        config = finished[f"{name} one step"][0]
        run = Run(config.output_dir)
        model = load_student(run, config, dataset)
        kernels = binary_kernels(model)
        first = next(iter(kernels))
        final[name], clips[name] = latent_weights(model)
        ends = [snapshot for snapshot in snapshots(run) if snapshot.epoch]
        for snapshot in (ends[0], ends[-1]) if ends else ():
            title = f"{name}, epoch {snapshot.epoch}"
            snapshot.load(model)
            inputs[title], clips[title] = binary_input(model, images, first)
            weights[title], updates[title] = kernels[first].numpy(), snapshot.update()
    of_layer = "the first binary layer, in one step, first seed"
    if inputs:
        _, figure = figures.activation_histograms(inputs, clips=clips)
        yield "activations", f"Inputs of {of_layer}.", figure
        yield "weights", f"Latent weights of {of_layer}.", figures.kernel_values(weights)[1]
        yield (
            "updates",
            f"Last updates of an epoch in {of_layer}.",
            figures.kernel_values(updates, label="last update of the epoch (no unit)")[1],
        )
    if final:
        yield (
            "final_weights",
            "Latent weights of all binary layers at the end, in one step, first seed.",
            figures.weight_histograms(final, clips=clips)[1],
        )
