"""The command line: a module for each mode, and `main`, which runs the one that is asked for."""

import importlib
import sys

from larq_adambnn.errors import UsageError
from larq_adambnn.machine import quiet
from larq_adambnn.runs.config import parse

__all__ = ["main", "run"]

# The module in here of each mode whose name is another
_MODULES = {"import": "import_checkpoint"}


def run() -> None:
    """The command `larq-adambnn`."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    debug = "--debug" in arguments
    try:
        config = parse(arguments)
        if isinstance(config, str):
            print(config)
            return 0
        with quiet():
            importlib.import_module("tensorflow").get_logger().setLevel("ERROR")
        from larq_adambnn import progress

        progress.show()
        module = _MODULES.get(config.mode, config.mode)
        importlib.import_module(f"{__name__}.{module}").main(config)
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
