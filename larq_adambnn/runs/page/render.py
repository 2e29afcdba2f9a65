"""From the facts about a run or a study to the text of report.html."""

import collections
import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import jinja2

from larq_adambnn.export.description import Description
from larq_adambnn.runs.examination import Examination
from larq_adambnn.runs.page import charts
from larq_adambnn.runs.page.facts import Layer, Rows, RunFacts, StudyFacts

__all__ = ["Cell", "Column", "Figure", "Table", "library", "run_page", "study_page"]

# What page.js draws with
_BUNDLE = """import sys, vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode())
"""
_MATRIX_CLASSES = 40  # of a confusion matrix that can be read; of more there is a list
_CONFUSIONS = 20
# Titles of the columns of metrics.csv besides accuracy and loss
_COLUMNS = {
    "ff_ratio": "flip-flop ratio",
    "c2i_ratio": "correlation to the initial weights",
    "c2i_step_ratio": "correlation to the start of the step",
    "saturation": "activation saturation",
    "dead_weights": "dead weights",
    "cam": "CAM",
    "sdam": "SDAM",
    "gradient_norm": "norm of the gradients",
    "update_size": "size of the updates",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "val_top5_accuracy": "top-5 accuracy of the split that is evaluated",
    "images_per_second": "images per second",
    "seconds": "seconds an epoch",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and what it sorts by."""

    text: str
    value: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table that sorts: its heading, what that means, and the texts in it."""

    heading: str
    help: str
    text: Callable[..., str]

    def cell(self, value) -> Cell:
        return Cell("-") if value is None else Cell(self.text(value), value)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that sorts by the column whose heading is clicked."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A Vega-Lite figure with its title and a text below it."""

    title: str
    spec: dict
    caption: str = ""


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


_LAYER_COLUMNS = {
    "name": Column("layer", "Name of the binary layer", str),
    "bits": Column("bits", "Binary weights, one bit each", "{:,}".format),
    "ff_ratio": Column(
        "flips", "Share of the weights whose sign changes in an iteration", "{:.2e}".format
    ),
    "c2i_ratio": Column(
        "C2I (%)", "Share of the weights that have the sign they began with", _percent
    ),
    "saturation": Column(
        "saturated (%)",
        "Share of its inputs beyond ±1 or --activation_clip, which pass no gradient",
        _percent,
    ),
    "dead_weights": Column(
        "dead (%)", "Share of its weights that cannot change their sign any more", _percent
    ),
    "signs": Column(
        "signs kept (%)",
        "Share of its input signs that are the same in Keras and in the .tflite",
        lambda share: f"{100 * share:.4f}",
    ),
    "milliseconds": Column("ms", "Estimated time of one image", "{:.3f}".format),
}
_CONFUSION_COLUMNS = (
    Column("class", "What the images show", str),
    Column("taken for", "What the network says", str),
    Column("images", "How many", "{:,}".format),
)


def run_page(facts: RunFacts) -> str:
    """The page of a run."""
    examined = facts.examination
    return _page(
        "run.html",
        facts=facts,
        figures=_curves(facts.metrics, facts.split),
        layers=_layers(facts.layers, facts.device),
        exports=[
            (export, _proof(export.description), _signs(export.description))
            for export in facts.exports
        ],
        matrix=_matrix(examined) if examined else None,
        confused=_confused(examined) if examined else None,
        table=_head_and_rows(facts.results),
    )


def study_page(facts: StudyFacts) -> str:
    """The page of a study."""
    if facts.rates:
        figure = Figure(
            "Accuracy by learning rate",
            charts.accuracy_by_rate(facts.rates),
            "Means over the seeds with one standard deviation.",
        )
    else:
        figure = Figure(
            "Validation accuracy",
            charts.means(facts.accuracies, title="validation accuracy (%)"),
            "Means over the seeds with bands of one standard deviation.",
        )
    return _page(
        "study.html",
        facts=facts,
        figure=figure,
        table=_head_and_rows(facts.results),
        claims=_head_and_rows(facts.claims) if facts.claims else None,
    )


def _page(template: str, **content) -> str:
    return _environment().get_template(template).render(library=library(), **content)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["percent"] = _percent
    return environment


@functools.cache
def library() -> str:
    """Vega-Lite's script.

    It is made in a process of its own, with which its threads and its 150 MB go.
    """
    made = subprocess.run([sys.executable, "-c", _BUNDLE], capture_output=True, check=True)
    return made.stdout.decode()


def _head_and_rows(rows: Rows) -> tuple[Sequence[str], Rows]:
    head, *others = rows
    return head, others


def _curves(metrics: Mapping[str, Sequence[Mapping[str, float]]], split: str) -> list[Figure]:
    if not metrics:
        return []
    line = f"Solid: {split} images; dashed: training." if len(metrics) > 1 else ""
    return [
        Figure(
            "Accuracy",
            charts.curves(metrics, "accuracy", split=split, title="accuracy (%)", percent=True),
            line,
        ),
        Figure("Loss", charts.curves(metrics, "loss", split=split, title="loss"), line),
        Figure(
            "Measurements",
            charts.column_curves(metrics, _COLUMNS, first="ff_ratio"),
            "Means over the binary layers, each epoch.",
        ),
    ]


def _layers(layers: Sequence[Layer], device: str) -> Table | None:
    """The columns that a layer has something in."""
    present = {
        name: column
        for name, column in _LAYER_COLUMNS.items()
        if any(getattr(layer, name) is not None for layer in layers)
    }
    if not layers:
        return None
    if "milliseconds" in present:
        column = present["milliseconds"]
        present["milliseconds"] = dataclasses.replace(column, help=f"{column.help} on a {device}")
    rows = [
        [column.cell(getattr(layer, name)) for name, column in present.items()] for layer in layers
    ]
    return Table(list(present.values()), rows)


def _proof(export: Description) -> list[tuple[str, str]]:
    """What the comparison with Keras gave, as (what, value)."""
    check, counts = export.check, export.binary_convolutions
    of = f" of {check.of:,}" if check.of and check.of > check.images else ""
    lines = [
        ("size", f"{export.bytes:,} bytes; the float32 weights have {export.float_bytes:,}"),
        ("binary layers in LCE's operator", f"{counts.converted} of {counts.expected}"),
        ("compared on", f"{check.images:,}{of} {check.on}"),
    ]
    if check.keras_accuracy is not None:
        lines.append(
            (
                "top-1",
                f"Keras {100 * check.keras_accuracy:.2f} %, "
                f".tflite {100 * check.tflite_accuracy:.2f} %",
            )
        )
    lines += [
        ("same top-1 class", f"{100 * check.agreement:.2f} %"),
        (
            "logits differ by",
            f"{check.largest_difference:.2g} at most, {check.mean_difference:.2g} on average; "
            f"given the same signs {check.same_signs_difference:.2g} at most",
        ),
    ]
    if check.signs:
        worst = min(check.signs, key=check.signs.get)
        lines.append(
            (
                "worst layer",
                f"{worst}: {100 * check.signs[worst]:.4f} % of the signs before it agree, given "
                "the same signs before",
            )
        )
    if check.channels:
        worst = min(check.channels, key=check.channels.get)
        lines.append(
            (
                "worst channel",
                f"in {worst}: {100 * check.channels[worst]:.4f} % agree, counted by their "
                "distance from 0",
            )
        )
    if check.not_compared:
        lines.append(("not compared", ", ".join(check.not_compared)))
    if check.kernels:
        lines.append(("run with", ", ".join(check.kernels)))
    if export.calibrated_on:
        lines.append(("ranges from", export.calibrated_on))
    return lines


def _signs(export: Description) -> Figure | None:
    check = export.check
    if not check.signs:
        return None
    layers = [
        {
            "layer": name,
            "differing": 100 * (1 - share),
            "free": 100 * (1 - check.free_signs.get(name, share)),
        }
        for name, share in check.signs.items()
    ]
    worst = min(check.signs, key=check.signs.get)
    return Figure("Signs that differ from Keras", charts.signs(layers, worst))


def _names(examined: Examination) -> list[str]:
    """The class names, those that are there twice with their label."""
    counts = collections.Counter(examined.class_names)
    return [
        name if counts[name] == 1 else f"{name} ({label})"
        for label, name in enumerate(examined.class_names)
    ]


def _matrix(examined: Examination) -> Figure | None:
    names = _names(examined)
    if len(names) > _MATRIX_CLASSES:
        return None
    cells = [
        {"label": names[c.label], "predicted": names[c.predicted], "images": c.images}
        for c in examined.confusions
    ]
    return Figure("Confusion matrix", charts.confusions(cells, names))


def _confused(examined: Examination) -> Table | None:
    """The most frequent confusions, where the classes are too many for a matrix."""
    names = _names(examined)
    if len(names) <= _MATRIX_CLASSES:
        return None
    wrong = [c for c in examined.confusions if c.label != c.predicted]
    wrong.sort(key=lambda c: -c.images)
    rows = [
        [
            column.cell(value)
            for column, value in zip(
                _CONFUSION_COLUMNS, (names[c.label], names[c.predicted], c.images), strict=True
            )
        ]
        for c in wrong[:_CONFUSIONS]
    ]
    return Table(_CONFUSION_COLUMNS, rows)
