"""What there is to say about a run, gathered from its directory into plain records.

What is missing or cannot be read leaves its part empty, with the reason in `RunFacts.notes`.
"""

import base64
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from larq_adambnn.data import Problem
from larq_adambnn.errors import UsageError
from larq_adambnn.export.description import Description
from larq_adambnn.export.device_times import (
    Device,
    features,
    operator_work,
    published_devices,
)
from larq_adambnn.export.tflite import Graph
from larq_adambnn.files import read_bytes, read_json, sha256
from larq_adambnn.runs import examination, exporting
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.examination import Examination
from larq_adambnn.runs.recording import read_layers
from larq_adambnn.runs.usage import flag_text

__all__ = [
    "Exported",
    "Layer",
    "Picture",
    "RunFacts",
    "Setting",
    "StudyFacts",
    "gather",
    "pictures",
    "settings",
]

Rows = Sequence[Sequence[str]]  # of a table; the first has the headings
Metrics = Sequence[Mapping[str, float]]  # rows of metrics.csv


@dataclasses.dataclass(frozen=True)
class Layer:
    """A binary layer at the end of the training; None is what is not known of it.

    Attributes:
        name: of the layer.
        bits: of its binary weights.
        ff_ratio, c2i_ratio, saturation, dead_weights: of the last epoch, from 0 to 1.
        signs: share of the signs before it that are the same in Keras and in the .tflite.
        milliseconds: an estimate of its time on `RunFacts.device`.
    """

    name: str
    bits: int | None = None
    ff_ratio: float | None = None
    c2i_ratio: float | None = None
    saturation: float | None = None
    dead_weights: float | None = None
    signs: float | None = None
    milliseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """A .tflite of a run: what is known about it, or why that is not of the files there."""

    description: Description
    outdated: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG in base64 and what it shows."""

    png: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """A flag with its value and its default, as texts."""

    name: str
    value: str
    default: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """Everything that the page of a run shows.

    Attributes:
        title: the network and the data set.
        directory: of the run.
        headline: the result in one line.
        results: the table of report.md.
        best: which epoch's weights are the best, in one sentence; empty if none are kept.
        devices: that trained it, one after the other.
        split: that is evaluated.
        metrics: the rows of metrics.csv by run, this one first, then those it is compared with.
        layers: the binary layers in the network's order.
        device: whose time is estimated.
        exports: the .tflite files.
        examination: what the network makes of test images.
        pictures: the figures of --mode=analyze.
        left_out: what --bad_images=skip left out, by split.
        settings: every flag.
        notes: by part, why it is empty.
    """

    title: str
    directory: str
    headline: str
    results: Rows
    best: str
    devices: Sequence[str]
    split: str
    metrics: Mapping[str, Metrics]
    layers: Sequence[Layer]
    device: str
    exports: Sequence[Exported]
    examination: Examination | None
    pictures: Sequence[Picture]
    left_out: Mapping[str, Sequence[Problem]]
    settings: Sequence[Setting]
    notes: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class StudyFacts:
    """Everything that the page of a study shows.

    Attributes:
        title: the study and the data set.
        directory: of the study.
        headline: the result in one line.
        results, claims: the tables of study.md; claims may be empty.
        claims_note: what the claims are.
        note: what the tables do not say.
        accuracies: by row, for each seed the validation accuracy of each epoch in per cent.
        rates: of each optimizer and learning rate `series`, `rate`, `value`, `low`, `high`;
            empty where the rows differ in something else.
        pages: by row, the path of each run's own page from the study's directory.
        pictures: the study's figures.
        settings: every flag.
    """

    title: str
    directory: str
    headline: str
    results: Rows
    claims: Rows
    claims_note: str
    note: str
    accuracies: Mapping[str, Sequence[Sequence[float]]]
    rates: Sequence[Mapping]
    pages: Mapping[str, Sequence[str]]
    pictures: Sequence[Picture]
    settings: Sequence[Setting]


def gather(
    run: Run,
    config: Config,
    *,
    results: Rows,
    best: str,
    exports: Sequence[Description],
    plots: Mapping[str, str],
    left_out: Mapping[str, Sequence[Problem]],
) -> RunFacts:
    """What a run's page shows.

    Args:
        run, config: the run.
        results: the table of report.md.
        best: which epoch's weights are the best.
        exports: what is known about its .tflite files.
        plots: captions of the figures in plots/ by file name.
        left_out: what was left out of the data set, by split.
    """
    notes: dict[str, str] = {}
    rows = run.read_metrics()
    metrics = {run.directory.resolve().name: rows} if rows else {}
    try:
        metrics |= _compared(run, metrics)
    except UsageError as error:
        notes["compared"] = f"{error}; --mode=analyze --compare=RUN makes it again."
    exported = [Exported(found, exporting.outdated(run, found)) for found in exports]
    current = [export.description for export in exported if not export.outdated]
    try:
        examined = _examination(run)
    except UsageError as error:
        notes["examination"] = f"{error}. --mode=analyze --run={run.directory} makes it."
        examined = None
    try:
        measured = _measured(run)
    except UsageError as error:
        notes["measurements"], measured = str(error), {}
    first = current[0] if current else None
    device, times = _times(run, config, first) if first else ("", {})
    if not rows:
        notes["metrics"] = "There are no curves: the network was not trained in this run."
    if not exports:
        notes["export"] = f"There is no .tflite; --mode=export --run={run.directory} makes one."
    if not measured:
        notes.setdefault("measurements", "Nothing was measured: the network was not trained here.")
    return RunFacts(
        title=f"{config.model} on {config.dataset}",
        directory=str(run.directory),
        headline=_headline(rows, config.split, first),
        results=results,
        best=best,
        devices=run.read_devices(),
        split=config.split,
        metrics=metrics,
        layers=list(_layers(measured, examined, first, times)),
        device=device,
        exports=exported,
        examination=examined,
        pictures=pictures(run.plots, plots),
        left_out=left_out,
        settings=settings(config),
        notes=notes,
    )


def settings(config: Config) -> list[Setting]:
    """Every flag with its value."""
    return [
        Setting(field.name, flag_text(getattr(config, field.name)), flag_text(field.default))
        for field in dataclasses.fields(Config)
    ]


def pictures(folder: pathlib.Path, captions: Mapping[str, str]) -> list[Picture]:
    """The figures of a folder by their captions; those that are not there are left out."""
    return [
        Picture(base64.b64encode(read_bytes(folder / name)).decode(), caption)
        for name, caption in captions.items()
        if (folder / name).is_file()
    ]


def _headline(rows: Metrics, split: str, export: Description | None) -> str:
    if export is not None and export.accuracy.tflite is not None:
        times = export.float_bytes / export.bytes
        line = (
            f"The .tflite names {100 * export.accuracy.tflite:.2f} % of the "
            f"{export.check.images:,} {export.check.on} right in {export.bytes / 1e3:,.0f} kB, "
            f"{times:.1f} times smaller than the network's float32 weights."
        )
        if not export.check.passed:
            line += " But it does not compute what the network computes."
        return line
    if not rows:
        return "The weights of this network come from elsewhere."
    for number, row in reversed(list(enumerate(rows, start=1))):
        if "val_accuracy" in row:
            return (
                f"{100 * row['val_accuracy']:.2f} % of the {split} images are named right after "
                f"{number} epochs."
            )
    return f"Trained for {len(rows)} epochs, and not evaluated yet."


def _compared(run: Run, taken: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The rows of the runs that --mode=analyze compared this one with."""
    if not run.compared.exists():
        return {}
    found = read_json(
        run.compared, dict[str, list[dict[str, float]]], "the curves that --mode=analyze compared"
    )
    for rows in found.values():
        if any(name not in row for row in rows for name in ("step", "epoch")):
            raise UsageError(f"{run.compared}: expected a step and an epoch in every row")
    return {f"{name} (compared)" if name in taken else name: r for name, r in found.items() if r}


def _examination(run: Run) -> Examination:
    if not run.examination.exists():
        raise UsageError("The test images were not looked at")
    found = examination.read(run)
    step = run.last_step()
    if not step or sha256(run.weights(step)) != found.weights_sha256:
        raise UsageError("The test images were looked at with other weights than the run has now")
    return found


def _measured(run: Run) -> dict[str, dict[str, float]]:
    """The last row of measurements.csv of each binary layer."""
    try:
        return {
            row["layer"]: {
                name: float(text)
                for name, text in row.items()
                if name not in ("step", "epoch", "layer") and text
            }
            for row in read_layers(run)
        }
    except ValueError as error:
        raise UsageError(f"{run.measurements}: expected numbers: {error}") from None


def _layers(
    measured: Mapping[str, Mapping[str, float]],
    examined: Examination | None,
    export: Description | None,
    times: Mapping[str, float],
) -> Iterator[Layer]:
    bits = examined.binary_weights if examined else {}
    signs = export.check.signs if export else {}
    converted = export.binary_convolutions.layers if export else {}
    for name in dict.fromkeys((*measured, *bits, *converted)):
        row = measured.get(name, {})
        columns = ("ff_ratio", "c2i_ratio", "saturation", "dead_weights")
        yield Layer(
            name,
            bits=bits.get(name),
            **{c: row[c] for c in columns if c in row and math.isfinite(row[c])},
            signs=signs.get(name),
            milliseconds=times.get(name),
        )


def _times(run: Run, config: Config, export: Description) -> tuple[str, dict[str, float]]:
    """A device, and an estimate of the time there of each binary layer in milliseconds."""
    path = run.directory / export.file
    device = _device(config, export, path)
    if device is None:
        return "", {}
    graph = Graph(read_bytes(path))
    times = {}
    for name, layer in export.binary_convolutions.layers.items():
        if layer.operator is not None and layer.operator < len(graph.operators):
            work = operator_work(graph, graph.operators[layer.operator])
            times[name] = float(features([work]) @ device.costs)
    return device.name, times


def _device(config: Config, export: Description, path: pathlib.Path) -> Device | None:
    """The first device that the export has an estimate for, if its costs are known here."""
    names = [estimate.device for estimate in export.estimates]
    try:
        known = exporting.devices(config, path) or published_devices()
    except UsageError:  # the profile is no longer there
        known = published_devices()
    return next((device for device in known if device.name in names), None)
