"""The code blocks of the documents, and running the commands in them."""

import dataclasses
import pathlib
import re
import shlex

from larq_adambnn import commands

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?"
    r"(?:^```(?P<language>\w*)[^\n]*\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}\S.*\n)+))",
    re.M | re.S,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: of the fence; empty where there is none.
        text: what is in it.
        reason: why it is not run; empty if it is.
    """

    language: str
    text: str
    reason: str


def blocks(page: str) -> list[Block]:
    """The code blocks of a page, in order; the page's path is seen from the checkout."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(m["language"] or "", m["fenced"] or m["indented"], m["reason"] or "")
        for m in _BLOCK.finditer(text)
    ]


def programs(page: str) -> list[str]:
    """The Python of a page that is run."""
    return [b.text for b in blocks(page) if b.language == "python" and not b.reason]


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every command in a block."""
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", "").splitlines()]


def run_commands(page: str, *, first=(), training=(), others=()) -> int:
    """Runs the commands of a page, which are all of main.py; returns how many there were.

    Args:
        page: its path, seen from the checkout.
        first: flags before those of every command, which win over them.
        training: flags after those of the commands that train, by which they are short.
        others: flags after those of the commands of other modes.
    """
    count = 0
    for block in blocks(page):
        if block.language != "bash" or block.reason:
            continue
        for words in command_lines(block.text):
            assert words[:2] == ["python", "main.py"], words
            arguments = words[2:]
            trains = not any(word.startswith(("--mode=", "--help")) for word in arguments)
            last = training if trains else others
            assert commands.main([*first, *arguments, *last]) == 0, words
            count += 1
    return count
