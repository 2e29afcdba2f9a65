"""--mode=train: trains the run of the flags, or goes on with it."""

from larq_adambnn.runs import training
from larq_adambnn.runs.config import Config

__all__ = ["main"]


def main(config: Config) -> None:
    """Trains, exports and reports; raises what `runs.training.train` does."""
    training.train(config)
