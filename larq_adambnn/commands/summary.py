"""--mode=summary: the layers of a network and the paper's count of its work."""

from larq_adambnn import models
from larq_adambnn.runs import datasets, provenance, students
from larq_adambnn.runs.config import Config, load_run
from larq_adambnn.runs.directory import Run

__all__ = ["main"]


def main(config: Config) -> None:
    """Prints Larq's summary of the network, of a run or of the flags, and the paper's count."""
    known = None
    if config.run:
        known = provenance.read(Run(config.run))
        config = load_run(config.run, mode=config.mode, **config.given("data_dir"))
    class_names, channels = datasets.describe(config, known)
    models.summary(students.build(config, channels, len(class_names)))
