"""--mode=summary: the layers of a network and the paper's count of its work."""

from larq_adambnn import models
from larq_adambnn.runs import datasets, students
from larq_adambnn.runs.config import Config

__all__ = ["main"]


def main(config: Config) -> None:
    """Prints Larq's summary of the network and the paper's count."""
    class_names, channels = datasets.describe(config)
    models.summary(students.build(config, channels, len(class_names)))
