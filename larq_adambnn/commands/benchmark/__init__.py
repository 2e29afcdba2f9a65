"""--mode=benchmark: what --benchmark names is measured on this machine."""

import importlib

from larq_adambnn.runs.config import Config

__all__ = ["main"]


def main(config: Config) -> None:
    """Runs the module of this package that --benchmark names."""
    importlib.import_module(f"larq_adambnn.commands.benchmark.{config.benchmark}").main(config)
