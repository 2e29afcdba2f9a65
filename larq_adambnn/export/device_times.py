"""An estimate of the time that a .tflite takes on a device, from published times of others.

What a file computes is counted in its graph; the time is taken to be

    ms = a binary MACs + b real MACs + c bytes + d operators

with the bytes that its operators read and write, without constants, and no negative cost.
The Pixel 1 with one thread has a, b and c from the published times of larq-zoo's networks;
whole times do not tell d from c.  Of the other devices only the QuickNets' times are
published; each has the Pixel's costs times one number.
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from larq_adambnn.export.doctor import macs
from larq_adambnn.export.tflite import Graph, Operator
from larq_adambnn.models.complexity import Complexity

__all__ = [
    "COUNTS",
    "REFERENCE",
    "TIMES",
    "WORK",
    "Device",
    "Estimate",
    "complexity",
    "estimates",
    "features",
    "fit",
    "leave_one_out",
    "operator_work",
    "published",
    "published_costs",
    "published_devices",
    "table",
    "work",
]

# The published times, and what the networks compute: see --benchmark=device_times
TIMES = pathlib.Path(__file__).with_name("published_times.csv")
WORK = TIMES.with_name("published_work.csv")

REFERENCE = "Pixel 1, 1 thread"  # the device with the most published networks
# MobileNetV1 and ResNet-18 take 72 and 176 ms in float32, 40 and 98 ms in int8 on a Raspberry
# Pi 4B with 4 threads (Tencent/ncnn, issue 3485).
_INT8_SPEED = 1.8

# What is counted of operators
COUNTS = ("count", "binary_macs", "float_macs", "int8_macs", "bytes")
Work = Mapping[str, int]  # each of these


@dataclasses.dataclass(frozen=True)
class Device:
    """How fast a device is.

    Attributes:
        name: with the number of threads.
        costs: milliseconds that each of `features` takes.
        error: of its estimates, relative; see `basis`.
        basis: what the error is.
    """

    name: str
    costs: tuple[float, ...]
    error: float
    basis: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time that a network takes on a device, as it is estimated; see `Device`."""

    device: str
    milliseconds: float
    error: float
    basis: str


def operator_work(graph: Graph, operator: Operator) -> dict[str, int]:
    """The multiply-accumulates of an operator, and the bytes that it reads and writes."""
    binary, real = macs(graph, operator)
    int8 = real > 0 and graph.dtype(operator.inputs[1]) == np.int8
    tensors = [t for t in operator.inputs if t >= 0 and graph.constant(t) is None]
    sizes = [
        int(np.prod(graph.shape(tensor), dtype=np.int64)) * graph.dtype(tensor).itemsize
        for tensor in (*tensors, *operator.outputs)
    ]
    values = 1, binary, 0 if int8 else real, real if int8 else 0, sum(sizes)
    return dict(zip(COUNTS, values, strict=True))


def work(graph: Graph) -> dict[str, dict[str, int]]:
    """The sums of `operator_work` by kind of operator, the most frequent first."""
    sums: dict[str, dict[str, int]] = {}
    for operator in graph.operators:
        row = sums.setdefault(operator.kind, dict.fromkeys(COUNTS, 0))
        for name, value in operator_work(graph, operator).items():
            row[name] += value
    return dict(sorted(sums.items(), key=lambda item: -item[1]["count"]))


def features(rows: Iterable[Work]) -> np.ndarray:
    """Binary MACs, real MACs (as float32 ones), bytes and operators of all rows together."""
    return sum(
        (
            np.array(
                [
                    row["binary_macs"],
                    row["float_macs"] + row["int8_macs"] / _INT8_SPEED,
                    row["bytes"],
                    row["count"],
                ],
                np.float64,
            )
            for row in rows
        ),
        start=np.zeros(4),
    )


def complexity(sums: Mapping[str, Work]) -> Complexity:
    """The usual counts of a file's work; int8 MACs have 8 bits in ACE."""
    _, binary, real, int8, _ = (sum(row[name] for row in sums.values()) for name in COUNTS)
    return Complexity(bops=binary, flops=real + int8, ace=binary + 16 * 16 * real + 8 * 8 * int8)


def fit(matrix: np.ndarray, times: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """The costs, none negative, with the least sum of squared relative errors.

    Args:
        matrix: (n, k), of each network what it has of k features.
        times: (n,).
        scales: (n,) what each error is divided by; the times by default.

    Returns:
        (k,).
    """
    from scipy.optimize import nnls

    scales = times if scales is None else scales
    rows = matrix / scales[:, np.newaxis]
    units = np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
    return nnls(rows / units, times / scales)[0] / units


@functools.cache
def published() -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Milliseconds by device and network, and the `features` of each network."""
    milliseconds: dict[str, dict[str, float]] = {}
    for row in _rows(TIMES):
        device = f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] != '1')}"
        milliseconds.setdefault(device, {})[row["network"]] = float(row["milliseconds"])
    networks: dict[str, np.ndarray] = {}
    for row in _rows(WORK):
        counted = features([{name: int(row[name]) for name in COUNTS}])
        networks[row["network"]] = networks.get(row["network"], 0) + counted
    return milliseconds, networks


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_costs(device: str, without: str = "") -> np.ndarray:
    """What a device's features cost, fitted without the times of one network."""
    milliseconds, networks = published()

    def data(device):
        names = [name for name in milliseconds[device] if name != without]
        times = np.array([milliseconds[device][name] for name in names])
        return np.array([networks[name] for name in names]), times

    matrix, times = data(REFERENCE)
    costs = np.append(fit(matrix[:, :3], times), 0.0)
    if device != REFERENCE:
        matrix, times = data(device)
        costs *= fit((matrix @ costs)[:, np.newaxis], times)
    return costs


def leave_one_out(device: str) -> dict[str, tuple[float, float]]:
    """By network: its published time, and the estimate of a fit without that network."""
    milliseconds, networks = published()
    return {
        name: (time, float(published_costs(device, name) @ networks[name]))
        for name, time in milliseconds[device].items()
    }


@functools.cache
def published_devices() -> tuple[Device, ...]:
    """The devices with published times; their error is the median of `leave_one_out`."""
    devices = []
    for name in published()[0]:
        pairs = leave_one_out(name).values()
        error = float(np.median([abs(estimate / time - 1) for time, estimate in pairs]))
        basis = f"leave-one-out, {len(pairs)} networks"
        devices.append(Device(name, tuple(published_costs(name)), error, basis))
    return tuple(devices)


def estimates(sums: Mapping[str, Work], devices: Sequence[Device] = ()) -> list[Estimate]:
    """The time that a file takes on each device.

    Args:
        sums: its `work`.
        devices: by default those with published times.
    """
    counted = features(sums.values())
    return [
        Estimate(device.name, float(counted @ device.costs), device.error, device.basis)
        for device in devices or published_devices()
    ]


def table(found: Sequence[Estimate]) -> list[str]:
    """Lines of Markdown with estimates."""
    rows = [
        (e.device, f"{_digits(e.milliseconds)} ms", f"{100 * e.error:.0f} % ({e.basis})")
        for e in found
    ]
    return [
        "| device | time, an estimate | median error of the estimate |",
        "|---|--:|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
