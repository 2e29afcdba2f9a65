"""The text of --help, written from the fields of `Config`."""

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Mapping

__all__ = ["FIRST_STEPS", "TOPICS", "flag_text", "usage"]

TOPICS = {
    "task": "What to do",
    "network": "Network",
    "data": "Data",
    "recipe": "Recipe",
    "run": "Run",
    "export": "Export",
}

# What a command line without a flag prints
FIRST_STEPS = """\
Trains binary networks in two steps and converts them for ARM. What to do first, without a download:

    larq-adambnn --flagfile=quickstart
        trains on handwritten digits in minutes and leaves everything in runs/quickstart
    larq-adambnn --mode=predict --run=runs/quickstart --images=FILES_OR_FOLDER
        names what images show
    larq-adambnn --flagfile=image_folder --data_dir=FOLDER --output_dir=runs/own
        trains on images of your own in FOLDER/train/CLASS and FOLDER/val/CLASS
    larq-adambnn --help
        shows every flag, and the other configs

Begin a run's results with its report.html. In a checkout, python main.py is the same."""

# What most people need comes first
_FIRST = (
    "mode",
    "flagfile",
    "output_dir",
    "run",
    "dataset",
    "data_dir",
    "model",
    "width",
    "epochs",
    "batch_size",
)
_KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", tuple: "LIST"}
_COLUMN = 26  # where the texts begin


def flag_text(value) -> str:
    """A value as a flag has it."""
    if isinstance(value, tuple):
        return ",".join(map(flag_text, value))
    return repr(value) if isinstance(value, float) else str(value)


def usage(fields: Mapping[str, dataclasses.Field], configs: Iterable[str], topic: str = "") -> str:
    """The help of all flags, or of one of `TOPICS`, as wide as the terminal.

    Args:
        fields: of each flag, as `config` makes them.
        configs: names of the shipped configs.
        topic: the only one to show.
    """
    entries = {name: _entry(name, field) for name, field in fields.items()}
    entries["flagfile"] = (
        "--flagfile=FILE",
        "Read flags from a file, a line each, or from a config that comes with the program: "
        f"{', '.join(configs)}. Flags after it win.",
    )
    groups = {
        key: [name for name, field in fields.items() if field.metadata["topic"] == key]
        for key in TOPICS
    }
    if topic:
        sections = {TOPICS[topic]: groups[topic]}
    else:
        rest = {
            title: [name for name in groups[key] if name not in _FIRST]
            for key, title in TOPICS.items()
        }
        sections = {"Most used": _FIRST, **rest}
    lines = [
        "usage: larq-adambnn [--flagfile=CONFIG] [--FLAG=VALUE ...]",
        f"       larq-adambnn --help[={'|'.join(TOPICS)}]",
        "In a checkout, python main.py is the same. A LIST has commas between its items;",
        "an item that holds a comma itself is put into double quotes.",
    ]
    width = max(50, shutil.get_terminal_size().columns)
    for title, names in sections.items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += _wrapped(*entries[name], width)
    return "\n".join(lines)


def _entry(name: str, field: dataclasses.Field) -> tuple[str, str]:
    """How a flag is written, and what is said about it."""
    default, text = field.default, field.metadata["help"]
    if field.metadata["choices"]:
        text += f" One of {', '.join(str(c) for c in field.metadata['choices'] if c != '')}."
    if isinstance(default, bool):
        return f"--[no]{name}", f"{text} Default: {'yes' if default else 'no'}."
    if default not in ("", ()):
        text += f" Default: {flag_text(default)}."
    return f"--{name}={_KINDS[type(default)]}", text


def _wrapped(flag: str, text: str, width: int) -> list[str]:
    indent = " " * _COLUMN
    start = f"  {flag}  ".ljust(_COLUMN)
    wrap = textwrap.TextWrapper(width, subsequent_indent=indent, break_on_hyphens=False)
    if len(start) > _COLUMN:
        wrap.initial_indent = indent
        return [start.rstrip(), *wrap.wrap(text)]
    wrap.initial_indent = start
    return wrap.wrap(text)
