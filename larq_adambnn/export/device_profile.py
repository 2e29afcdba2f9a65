"""A device of one's own, from what LCE's benchmark tool measures of a .tflite's operators.

The tool prints a table with --enable_op_profiling=true, and writes it as CSV with
--profiling_output_csv_file=FILE too.  A row has: node type, (start,) first and average time in
ms, share, cumulated share, kB, times called, name; the name ends with the operator's number in
the .tflite (tensorflow/core/util/stats_calculator.cc).  What XNNPACK has taken over is in rows
of its own.
"""

import dataclasses
import pathlib
import re

import numpy as np

from larq_adambnn.errors import UsageError
from larq_adambnn.export.device_times import (
    REFERENCE,
    Device,
    features,
    fit,
    operator_work,
    published_costs,
)
from larq_adambnn.export.tflite import Graph

__all__ = ["Row", "fit_device", "read_device", "rows"]

_BEFORE = "Operator-wise Profiling Info"  # what comes before it is of the initialization
_TABLE = "= Run Order ="
_ROW = re.compile(r"(\S.*?)[,\s]\s*((?:[-+.\de]+%?[,\s]+){6,7})(\S.*)")
_OPERATOR = re.compile(r"[A-Z\d_]+|Lce\w+")  # other kinds are a delegate's
_GRAPH = re.compile(r"\bGraph: \[(.+)\]")
_THREADS = re.compile(r"\bthreads\b.*: \[(\d+)\]")
_PRIOR = 1e-3  # how much the reference's proportions count beside what was measured


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: what it timed, in one run.

    Attributes:
        kind: of operator, or what a delegate calls it.
        milliseconds: of all its calls.
        operator: the number in the .tflite of an operator that no delegate took over.
    """

    kind: str
    milliseconds: float
    operator: int | None


def rows(text: str) -> list[Row]:
    """The table of operators in what the tool printed, or wrote as CSV.

    Raises:
        ValueError: there is no such table, or a row of it is damaged.
    """
    _, _, table = text.partition(_BEFORE)
    _, _, table = (table or text).partition(_TABLE)
    found = []
    for line in map(str.strip, table.splitlines()[2:]):  # after the title and the header
        if not line:
            break
        found.append(_row(line))
    if not any(row.operator is not None for row in found):
        raise ValueError("it has no table of operators")
    return found


def _row(line: str) -> Row:
    match = _ROW.fullmatch(line)
    try:
        kind, numbers, name = match.groups()
        numbers = [float(number) for number in re.findall(r"[^,%\s]+", numbers)]
        milliseconds = numbers[-5] * numbers[-1]
        operator = int(name.rpartition(":")[2]) if _OPERATOR.fullmatch(kind) else None
    except (AttributeError, ValueError):
        raise ValueError(f"its row {line!r} is damaged") from None
    if not 0 <= milliseconds < np.inf:
        raise ValueError(f"its row {line!r} has no time")
    return Row(kind, milliseconds, operator)


def fit_device(found: list[Row], graph: Graph, name: str) -> Device:
    """How fast the device is that a table of a .tflite was measured on.

    Each operator's time is an equation of the costs, and so is the time of all that a delegate
    took over.  Where they leave costs open, these have the proportions of `REFERENCE`.

    Raises:
        ValueError: the table is of another file.
    """
    operators = dict(enumerate(graph.operators))
    matrix, times, rest = [], [], 0.0
    for row in found:
        if row.operator is None:
            rest += row.milliseconds
            continue
        operator = operators.pop(row.operator, None)
        if operator is None or operator.kind != row.kind:
            is_there = "is not there or timed twice" if operator is None else f"is {operator.kind}"
            raise ValueError(f"it timed another file: operator {row.operator} {is_there}")
        matrix.append(features([operator_work(graph, operator)]))
        times.append(row.milliseconds)
    if bool(operators) != (rest > 0):
        raise ValueError(f"it timed another file, or not all: {len(operators)} operators more")
    if operators:
        matrix.append(features(operator_work(graph, operator) for operator in operators.values()))
        times.append(rest)
    costs = _fit(np.array(matrix), np.array(times))
    error = abs(float(np.sum(matrix, axis=0) @ costs) / sum(times) - 1)
    return Device(name, tuple(costs), error, "on the file that was timed")


def _fit(matrix: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`fit` in shares of the whole time, with the reference's proportions as further equations."""
    sums, total = matrix.sum(axis=0), times.sum()
    reference = published_costs(REFERENCE)
    reference *= total / (reference @ sums)
    used = sums > 0
    shares = matrix[:, used] / sums[used]
    prior = _PRIOR * np.eye(used.sum())
    expected = reference[used] * sums[used] / total
    found = fit(
        np.vstack([shares, prior]),
        np.concatenate([times / total, _PRIOR * expected]),
        np.ones(len(shares) + len(prior)),
    )
    reference[used] = found * total / sums[used]
    return reference


def read_device(path: pathlib.Path, other: pathlib.Path | None = None) -> Device:
    """The device that a file with what the tool printed, or wrote as CSV, is about.

    The .tflite that it timed is beside it, under the name in the tool's line "Graph:" or, in a
    CSV, which has none, under that of the file.

    Args:
        path: the file.
        other: the .tflite that it timed where none is beside it.

    Raises:
        UsageError: the file holds something else, is damaged, or the .tflite is not there or
            another.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = rows(text)
        named = _GRAPH.search(text)
        beside = path.with_suffix(".tflite")
        if named:
            beside = path.with_name(pathlib.PurePosixPath(named[1]).name)
        tflite = beside if beside.is_file() or other is None else other
        if not tflite.is_file():
            raise ValueError(f"expected {tflite.name}, which it timed, beside it")
        threads = _THREADS.search(text)
        name = path.name + (f", {threads[1]} threads" if threads else "")
        return fit_device(found, Graph(tflite.read_bytes()), name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            "--device_profile: expected what LCE's benchmark tool prints with "
            f"--enable_op_profiling=true; {path}: {reason}"
        ) from error
