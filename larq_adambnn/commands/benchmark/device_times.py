"""--benchmark=device_times: what the networks compute whose times on devices are published."""

import csv
import sys

import numpy as np

from larq_adambnn import models
from larq_adambnn.export.convert import convert_as_is
from larq_adambnn.export.device_times import COUNTS, published, work
from larq_adambnn.export.tflite import Graph
from larq_adambnn.runs.config import Config

__all__ = ["main"]


def main(config: Config) -> None:
    """Converts each of them and prints the lines of larq_adambnn/export/published_work.csv.

    They are not folded, since those that were timed were not: a batch norm that follows no
    convolution is a multiplication and an addition.
    """
    writer = csv.DictWriter(sys.stdout, ["network", "operator", *COUNTS], lineterminator="\n")
    writer.writeheader()
    names = [name for times in published()[0].values() for name in times]
    for name in sorted(set(names)):
        model = models.build(name, input_shape=(224, 224, 3), num_classes=1000)
        random = np.random.default_rng(0)
        for weight in model.weights:  # as in a trained network none is 0 or 1, which costs nothing
            if weight.shape.rank == 1:
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
        for kind, row in work(Graph(convert_as_is(model))).items():
            writer.writerow({"network": name, "operator": kind, **row})
