"""The figures of report.html, as Vega-Lite specifications that hold their data.

What comes from data is a value of these, never the name or title of a field, so that any text
will do.
Colours of texts and lines are those of the page's style sheet; here are those of the data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["accuracy_by_rate", "column_curves", "confusions", "curves", "means", "signs"]

Spec = dict
Row = Mapping[str, float]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded
# Read well on white and on black, also by the colour-blind (Okabe and Ito, 2008)
_COLORS = ["#2f7fd6", "#e07a1f", "#1f9e77", "#c9519c", "#8a6fd1", "#a5761d", "#6b7885"]
_MARK = "#d1495b"  # what is to be seen first


def curves(
    runs: Mapping[str, Sequence[Row]], column: str, *, split: str, title: str, percent: bool = False
) -> Spec:
    """A column of metrics.csv over the epochs of all steps, in training and on a split.

    Args:
        runs: the rows by the name of the run, this one first.
        column: accuracy or loss.
        split: that was evaluated after each epoch.
        title: of the vertical axis.
        percent: show 100 times the values.
    """
    factor = 100 if percent else 1
    lines, data = [], []
    for number, (name, rows) in enumerate(runs.items()):
        for kind, of_kind in ((split, f"val_{column}"), ("training", column)):
            label = f"{name}, {kind}" if len(runs) > 1 else f"{kind} {column}"
            dashed = kind == "training"
            lines.append(_Line(label, number if len(runs) > 1 else int(dashed), dashed))
            data += _points(lines, rows, of_kind, factor)
    return _over_epochs(data, lines, _begins(runs), title=title)


def column_curves(
    runs: Mapping[str, Sequence[Row]], columns: Mapping[str, str], *, first: str
) -> Spec:
    """One of several columns of metrics.csv over the epochs, which the reader chooses.

    Args:
        runs: as for `curves`.
        columns: title by column.
        first: the column that is shown at first.
    """
    present = [
        column for column in columns if any(column in row for rows in runs.values() for row in rows)
    ]
    lines, data = [], []
    for number, (name, rows) in enumerate(runs.items()):
        lines.append(_Line(name, number))
        for column in present:
            data += [{**point, "column": column} for point in _points(lines, rows, column)]
    chosen = first if first in present else next(iter(present), first)
    chooser = {
        "name": "column",
        "value": chosen,
        "bind": {
            "input": "select",
            "options": present,
            "labels": [columns[column] for column in present],
            "name": "Show ",
        },
    }
    spec = _over_epochs(data, lines, _begins(runs), title=None)
    return {**spec, "params": [chooser], "transform": [{"filter": "datum.column === column"}]}


def means(rows: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> Spec:
    """Means over the seeds of a study's rows, with bands of one standard deviation.

    Args:
        rows: by name, for each seed the values of its epochs.
        title: of the vertical axis.
    """
    lines, data = [], []
    for number, (name, seeds) in enumerate(rows.items()):
        lines.append(_Line(name, number))
        for epoch, values in enumerate(zip(*seeds, strict=False), start=1):
            mean = sum(values) / len(values)
            squares = sum((value - mean) ** 2 for value in values)
            spread = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
            point = {"value": mean, "low": mean - spread, "high": mean + spread}
            if all(_finite(value) is not None for value in point.values()):
                data.append({"series": name, "key": f"s{number}", "epoch": epoch, **point})
    spec = _over_epochs(data, lines, (), title=title)
    band = {
        "mark": {"type": "area", "opacity": 0.18},
        "encoding": {
            "y": {"field": "low", "type": "quantitative", "title": title},
            "y2": {"field": "high"},
            "color": _color(lines),
        },
    }
    return {**spec, "layer": [band, *spec["layer"]]}


def accuracy_by_rate(points: Sequence[Mapping]) -> Spec:
    """Accuracy against the learning rate, a line an optimizer with the spread of its seeds.

    Args:
        points: of each optimizer and rate `series`, `rate`, `value`, `low`, `high`.
    """
    names = dict.fromkeys(point["series"] for point in points)
    lines = [_Line(name, number) for number, name in enumerate(names)]
    axis = {
        "field": "rate",
        "type": "quantitative",
        "title": "initial learning rate",
        "scale": {"type": "log", "nice": False},
        "axis": {"format": "~g", "tickCount": 6},
    }
    tooltip = [
        {"field": "series", "type": "nominal", "title": "row"},
        {"field": "rate", "type": "quantitative", "title": "learning rate", "format": "~g"},
        {"field": "value", "type": "quantitative", "title": "top-1 (%)", "format": ".2f"},
    ]
    value = {"field": "value", "type": "quantitative", "title": "validation accuracy (%)"}
    value["scale"] = {"zero": False}
    return {
        **_frame(list(points)),
        "encoding": {"x": axis, "color": _color(lines)},
        "layer": [
            {
                "mark": {"type": "rule", "opacity": 0.6},
                "encoding": {"y": {**value, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "params": [_legend()],
                "mark": {"type": "line", "point": {"size": 60, "filled": True}},
                "encoding": {"y": value, "tooltip": tooltip, "opacity": _chosen()},
            },
        ],
    }


def signs(layers: Sequence[Mapping], worst: str) -> Spec:
    """The share of signs that differ between Keras and the .tflite before each layer.

    Args:
        layers: of each `layer`, `differing` (given the same signs before) and `free`
            (each running freely), in per cent.
        worst: the layer to mark.
    """
    tooltip = [
        {"field": "layer", "type": "nominal"},
        {"field": "differing", "type": "quantitative", "title": "given the same signs (%)"},
        {"field": "free", "type": "quantitative", "title": "each by itself (%)"},
    ]
    return {
        **_frame(list(layers), height=16 * len(layers)),
        "mark": {"type": "bar", "minBandSize": 2},
        "encoding": {
            "y": {"field": "layer", "type": "nominal", "sort": None, "title": None},
            "x": {
                "field": "differing",
                "type": "quantitative",
                "title": "signs that differ, given the same signs before (%)",
                "axis": {"tickCount": 5, "format": "~g"},
            },
            "color": {
                "condition": {"test": {"field": "layer", "equal": worst}, "value": _MARK},
                "value": _COLORS[0],
            },
            "tooltip": tooltip,
        },
    }


def confusions(cells: Sequence[Mapping], class_names: Sequence[str]) -> Spec:
    """A confusion matrix.

    Args:
        cells: of each pair with an image `label`, `predicted` (both names) and `images`.
        class_names: in the order of the axes.
    """
    names = list(class_names)
    domain = {"domain": names}
    tooltip = [
        {"field": "label", "type": "nominal", "title": "class"},
        {"field": "predicted", "type": "nominal", "title": "taken for"},
        {"field": "images", "type": "quantitative"},
    ]
    largest = max((cell["images"] for cell in cells), default=1)
    right = {"test": "datum.label === datum.predicted", "value": _COLORS[0]}
    return {
        **_frame(list(cells), height=(26 if len(names) <= 20 else 16) * len(names)),
        "encoding": {
            "x": {
                "field": "predicted",
                "type": "nominal",
                "scale": domain,
                "title": "taken for",
                "axis": {"labelLimit": 80, "labelAngle": 0 if len(names) <= 12 else -90},
            },
            "y": {"field": "label", "type": "nominal", "scale": domain, "title": "class"},
            "tooltip": tooltip,
        },
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "color": {"condition": right, "value": _MARK},
                    "opacity": {
                        "field": "images",
                        "type": "quantitative",
                        "scale": {"type": "sqrt", "domain": [0, largest], "range": [0.08, 0.8]},
                        "legend": None,
                    },
                },
            },
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {"text": {"field": "images", "type": "quantitative"}},
            },
        ],
    }


class _Line(NamedTuple):
    """A line in a figure: its name, the number of its colour, whether it is dashed."""

    name: str
    color: int
    dashed: bool = False


def _points(lines: Sequence[_Line], rows: Sequence[Row], column: str, factor: float = 1.0) -> list:
    """The points of the last line: a column of metrics.csv, but for what is not finite."""
    line = {"series": lines[-1].name, "key": f"s{len(lines) - 1}"}
    return [
        {**line, "epoch": epoch, "value": factor * value}
        for epoch, row in enumerate(rows, start=1)
        if (value := _finite(row.get(column))) is not None
    ]


def _over_epochs(data, lines: Sequence[_Line], begins, *, title: str | None) -> Spec:
    """Lines with a rule at the pointer that shows every value of its epoch."""
    last = max((point["epoch"] for point in data), default=1)
    x = {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "scale": {"nice": False},
        "axis": {"tickCount": min(10, max(1, last - 1)), "format": "d", "grid": False},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False},
    }
    # Vega-Lite makes code of titles here; page.js puts in the names
    names = {f"s{number}": line.name for number, line in enumerate(lines)}
    tooltip = [{"field": "epoch", "type": "quantitative", "title": "epoch"}] + [
        {"field": key, "type": "quantitative", "title": key, "format": ".5~g"} for key in names
    ]
    at_pointer = {
        "name": "pointer",
        "select": {
            "type": "point",
            "fields": ["epoch"],
            "nearest": True,
            "on": "pointermove",
            "clear": "pointerout",
        },
    }
    seen = {"condition": {"param": "pointer", "empty": False, "value": 0.6}, "value": 0}
    return {
        **_frame(data),
        "usermeta": {"names": names},
        "encoding": {"x": x},
        "layer": [
            {
                "params": [_legend()],
                "mark": {
                    "type": "line",
                    "strokeWidth": 2,
                    "point": {"size": 18, "filled": True},
                },
                "encoding": {
                    "y": y,
                    "color": _color(lines),
                    "strokeDash": _dashes(lines),
                    "opacity": _chosen(),
                },
            },
            *_steps(begins),
            {
                "params": [at_pointer],
                "transform": [{"pivot": "key", "value": "value", "groupby": ["epoch"]}],
                "mark": {"type": "rule", "strokeWidth": 1, "tooltip": True},
                "encoding": {"opacity": seen, "tooltip": tooltip},
            },
        ],
    }


def _steps(begins: Sequence[int]) -> list[Spec]:
    """Dashed rules where a step begins, with a text."""
    data = {"values": [{"epoch": begin - 0.5, "text": "step 2"} for begin in begins]}
    if not begins:
        return []
    x = {"field": "epoch", "type": "quantitative"}
    rule = {"type": "rule", "strokeDash": [2, 2], "opacity": 0.7}
    text = {"type": "text", "align": "left", "dx": 4, "y": 6, "fontSize": 11}
    return [
        {"data": data, "mark": rule, "encoding": {"x": x}},
        {"data": data, "mark": text, "encoding": {"x": x, "text": {"field": "text"}}},
    ]


def _begins(runs: Mapping[str, Sequence[Row]]) -> list[int]:
    """The epochs, counted from 1 over the whole training, that runs begin step 2 with."""
    begins = {
        next((epoch for epoch, row in enumerate(rows, start=1) if row["step"] == 2), 0)
        for rows in runs.values()
    }
    return sorted(begin for begin in begins if begin > 1)


def _frame(data: list, height: int = 260) -> Spec:
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": data},
    }


def _color(lines: Sequence[_Line]) -> Spec:
    return _of_each(lines, [_COLORS[line.color % len(_COLORS)] for line in lines])


def _dashes(lines: Sequence[_Line]) -> Spec:
    return _of_each(lines, [[4, 3] if line.dashed else [1, 0] for line in lines])


def _of_each(lines: Sequence[_Line], values: list) -> Spec:
    """What each line has, with a legend of several; a click on a name there dims the others."""
    legend = {
        "title": None,
        "orient": "top",
        "columns": 2,
        "labelLimit": 240,
        "symbolType": "stroke",
        "symbolSize": 300,
        "symbolStrokeWidth": 2,
    }
    return {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": [line.name for line in lines], "range": values},
        "legend": legend if len(lines) > 1 else None,
    }


def _legend() -> Spec:
    return {"name": "chosen", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}


def _chosen() -> Spec:
    return {"condition": {"param": "chosen", "value": 1}, "value": 0.12}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
