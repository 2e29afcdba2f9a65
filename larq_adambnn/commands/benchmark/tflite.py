"""--benchmark=tflite: how long a .tflite takes here, in all and by operator.

LCE's interpreter reports no times of its operators.  So each one is run alone: in a file
that holds it once, and in one that holds it several times; the difference of the two is its
time without that of moving its input and output.
"""

import collections
import pathlib
import platform
import statistics

import numpy as np

from larq_adambnn.commands import evaluate
from larq_adambnn.errors import UsageError
from larq_adambnn.export.tflite import Graph, single_operator
from larq_adambnn.export.workers import Worker
from larq_adambnn.progress import progress
from larq_adambnn.runs.config import Config

__all__ = ["main", "operator_times", "whole_times"]

_WHOLE_SECONDS, _WHOLE_RUNS = 3.0, 5  # at least
_MOST_RUNS = 1000
_REPEATED = 8  # times an operator is in the larger of its two files
_TRIES = 3
_LISTED = 10
_NATIVE = ("aarch64", "arm64")


def main(config: Config) -> None:
    """Prints the time of a file (--tflite, or a run's model.tflite) and of its operators.

    Raises:
        UsageError: there is no such file, or LCE's interpreter cannot run it.
    """
    path = config.tflite or pathlib.Path(config.run or config.output_dir) / "model.tflite"
    if not pathlib.Path(path).is_file():
        raise UsageError(f"--tflite: expected a .tflite file or a run with one; {path} is none")
    tflite = evaluate.read_tflite(path)[0].tflite
    with evaluate.naming(path, ValueError):
        graph, times, of_operators = Graph(tflite), whole_times(tflite), operator_times(tflite)
    print(
        f"{path} on {platform.machine()}, one thread: an image takes "
        f"{1e3 * statistics.median(times):.2f} ms (median), at least {1e3 * min(times):.2f} ms"
    )
    if platform.machine() not in _NATIVE:
        print(
            "this is not the target: LCE is fast on 64-bit ARM and only right elsewhere; measure "
            "there with lce_benchmark_model (docs/deploy.md)"
        )
    kinds, counts = collections.Counter(), collections.Counter()
    for operator, seconds in zip(graph.operators, of_operators, strict=True):
        kinds[operator.kind] += seconds
        counts[operator.kind] += 1
    total = sum(of_operators)
    print(f"\noperators, each timed alone: {1e3 * total:.2f} ms in all")
    for kind, seconds in kinds.most_common():
        print(f"{1e3 * seconds:9.3f} ms {100 * seconds / total:5.1f} %  {counts[kind]:3} {kind}")
    print("\nthe slowest:")
    ranking = sorted(range(len(of_operators)), key=lambda index: -of_operators[index])
    for index in ranking[:_LISTED]:
        operator = graph.operators[index]
        name = graph.name(operator.outputs[0]).split(";")[0]
        print(f"{1e3 * of_operators[index]:9.3f} ms  {operator.kind} {index}: {name}")


def whole_times(tflite: bytes) -> list[float]:
    """Seconds that a file takes for an image, several times."""
    return _times(Worker(tflite), _WHOLE_SECONDS, _WHOLE_RUNS)


def operator_times(tflite: bytes) -> list[float]:
    """The least seconds that each operator of a file takes, alone and on random input."""
    graph, worker = Graph(tflite), Worker(tflite)
    times = []
    with progress("timing operators", "operators", len(graph.operators)) as bar:
        for index in range(len(graph.operators)):
            least = []
            for count in (1, 1 + _REPEATED):
                worker.open(single_operator(tflite, index, count))
                least.append(min(_times(worker, 0.0, _TRIES)))
            times.append(max(0.0, least[1] - least[0]) / _REPEATED)
            bar.update(1)
    return times


def _times(worker: Worker, seconds: float, runs: int) -> list[float]:
    """Seconds of each run on random input; opening the file was one that is not counted."""
    random = np.random.default_rng(0)
    inputs = []
    for shape, kind in zip(worker.input_shapes, worker.input_types, strict=True):
        values = random.normal(size=shape)
        inputs.append((values if kind == np.float32 else 50 * values).astype(kind))
    times = []
    while len(times) < runs or (sum(times) < seconds and len(times) < _MOST_RUNS):
        times.append(worker.seconds(inputs))
    return times
