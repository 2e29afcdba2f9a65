"""The command line: a module for each mode, and `main`, which runs the one that is asked for."""

import contextlib
import dataclasses
import gc
import importlib
import os
import re
import select
import signal
import sys
from collections.abc import Iterator

from larq_adambnn.errors import UsageError
from larq_adambnn.files import explain
from larq_adambnn.machine import import_tensorflow, notes_aside, quiet
from larq_adambnn.runs.config import Config, parse

__all__ = ["main", "run"]

# The module in here of each mode whose name is another
_MODULES = {"import": "import_checkpoint"}
# The modes that decode images in this process
_DECODING = ("train", "evaluate", "predict", "export", "check_data", "analyze")
# A value of more than 200 characters in a message: quoted, or without a blank
_LONG = re.compile(r"(?<!\w)(['\"])(?:\\.|(?!\1)[^\\]){200,}\1(?!\w)|\S{201,}")
_LONGEST = 300  # characters of the reason of an error that is not the user's
# Of an error in a graph: the heads of its parts, lines of a stack, and names of nodes
_PLACE = re.compile(
    r"Graph execution error:|Detected at node .*|<stack traces .*|File \".*|Hint: .*|\[\[.*|"
    r"\[Op:.*|\{\{.*?\}\} ?"
)
# The library's messages name arguments: at the beginning, and with a value anywhere
_NAMES = "|".join(field.name for field in dataclasses.fields(Config))
_ARGUMENT = re.compile(rf"(?:^|(?<![-\w./])(?=\w+=))({_NAMES})(?=: |=)")


def run() -> None:
    """The command `larq-adambnn`."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if "--debug" in arguments:
            raise
        error.filename = "standard output"
        _discard_output()
        return _fail(explain(error))


def _discard_output() -> None:
    """What is still to be written, at the end of Python too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Whether it is standard output whose pipe broke, as it does before `| head`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always told
    return bool(poll.poll(0))


def _main(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        config = parse(arguments)
        if isinstance(config, str):
            print(config)
            return 0
        _check_texts(config)
        module = _MODULES.get(config.mode, config.mode)
        with _uncollected():
            import_tensorflow()
            from larq_adambnn import progress
            from larq_adambnn.runs import strategies

            command = importlib.import_module(f"{__name__}.{module}")
        with quiet():  # what CUDA says where there is none
            strategies.prepare(config)
        progress.show()
        aside = config.mode in _DECODING and not debug
        with notes_aside() if aside else contextlib.nullcontext():
            command.main(config)
        return 0
    except UsageError as error:
        if debug:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        if isinstance(error, OSError):
            if error.filename is not None:
                return _fail(explain(error))
            print(flush=True)  # raises if that is what cannot be written, for `main` to tell
        bad_example = importlib.import_module("larq_adambnn.data").bad_example(error)
        if bad_example:
            return _fail(bad_example)
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            return _fail(
                "out of memory; expected a smaller --batch_size, more --microbatches or a smaller "
                f"--image_size ({_reason(error)})"
            )
        return _fail(f"{type(error).__name__}: {_reason(error)} (--debug shows more)", status=1)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Spares what is imported the garbage collector, now and later.

    These are half a million objects that stay until the end: going through them again and again
    takes longer than a second.  Where TensorFlow is there already it is too late for it.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _reason(error: Exception) -> str:
    """What an exception says, without where in a graph of TensorFlow it happened."""
    lines = (_PLACE.sub("", line).strip() for line in str(error).splitlines())
    reason = " ".join(line for line in lines if line) or type(error).__name__
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."


def _check_texts(config: Config) -> None:
    """Raises UsageError for a text that no file and no data set can have as its name."""
    for name, value in dataclasses.asdict(config).items():
        for text in value if isinstance(value, tuple) else (value,):
            try:
                valid = not isinstance(text, str) or b"\0" not in os.fsencode(text)
            except UnicodeEncodeError:
                valid = False
            if not valid:
                raise UsageError(f"--{name}: expected text that can be a name; received {text!r}")


def _fail(message: str, status: int = 2) -> int:
    """Prints an error as one line: an argument as its flag, a very long value cut."""
    line = _ARGUMENT.sub(r"--\1", " ".join(message.split()))
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    line = _LONG.sub(lambda value: f"{value[0][:80]}...{value[0][-40:]}", line)
    print(f"error: {line}", file=sys.stderr)
    return status
