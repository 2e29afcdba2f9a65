"""Command line of larq_adambnn: parses the flags and runs the mode they name."""

import importlib
import sys

from larq_adambnn.config import UsageError, parse
from larq_adambnn.terminal import quiet

# The function that each mode calls with the Config.
_MODES = {
    "train": "larq_adambnn.training:train",
    "evaluate": "larq_adambnn.evaluation:main",
    "predict": "larq_adambnn.prediction:main",
    "export": "larq_adambnn.export:main",
    "import": "larq_adambnn.importing:main",
    "summary": "larq_adambnn.models:main",
    "benchmark": "larq_adambnn.benchmarks:main",
    "check_data": "larq_adambnn.data.check:main",
    "analyze": "larq_adambnn.analysis.analyze:main",
    "study": "larq_adambnn.analysis.study:main",
}


def main(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    debug = "--debug" in arguments
    try:
        config = parse(arguments)
        if isinstance(config, str):
            print(config)
            return 0
        module, function = _MODES[config.mode].split(":")
        with quiet():
            importlib.import_module("tensorflow").get_logger().setLevel("ERROR")
        getattr(importlib.import_module(module), function)(config)
        return 0
    except UsageError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        bad_example = importlib.import_module("larq_adambnn.data").bad_example(error)
        if bad_example:
            print(f"error: {bad_example}", file=sys.stderr)
            return 2
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {type(error).__name__}: {reason} (--debug shows more)", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
