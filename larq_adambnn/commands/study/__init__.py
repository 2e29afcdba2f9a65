"""--mode=study: one of the paper's experiments as a matrix of resumable runs."""

from larq_adambnn.commands.study.run import main

__all__ = ["main"]
