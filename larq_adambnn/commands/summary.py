"""--mode=summary: the layers of a network, the usual counts of its work and estimated times."""

import pathlib

from larq_adambnn import models
from larq_adambnn.errors import UsageError
from larq_adambnn.export import device_times
from larq_adambnn.export.layer_work import layer_work
from larq_adambnn.export.tflite import Graph
from larq_adambnn.files import read_bytes
from larq_adambnn.runs import datasets, exporting, provenance, students
from larq_adambnn.runs.config import Config, named_run
from larq_adambnn.runs.directory import Run

__all__ = ["main"]


def main(config: Config) -> None:
    """Prints Larq's summary of the network, of a run or of the flags, and what it takes.

    With --tflite it prints the operators of that file instead.  A network is not converted for
    it, which would take longer than all the rest: its estimate is made of its layers.
    """
    path = pathlib.Path(config.tflite) if config.tflite else None
    devices = exporting.devices(config, path)
    if path is None:
        known = None
        if config.run:
            known = provenance.read(Run(config.run))
            config = named_run(config)
        class_names, channels = datasets.describe(config, known)
        model = students.build(config, channels, len(class_names))
        models.summary(model)
        sums = layer_work(model)
    else:
        try:
            sums = device_times.work(Graph(read_bytes(path)))
        except ValueError as error:
            raise UsageError(f"--tflite: {path}: {error}") from None
        print("| operator | count | binary MACs | float MACs | int8 MACs | bytes |")
        print("|---|--:|--:|--:|--:|--:|")
        for kind, row in sums.items():
            print(f"| {kind} | {' | '.join(f'{row[name]:,}' for name in device_times.COUNTS)} |")
        print(f"\n{device_times.complexity(sums)}")
    print("\n".join(["", *device_times.table(device_times.estimates(sums, devices))]))
