"""Files that are written whole or not at all, and tables in them."""

import contextlib
import csv
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["printable", "read_rows", "replace_file", "write_rows"]


def printable(path: str | bytes | os.PathLike) -> str:
    r"""A path as text that can be printed and written: bytes that are not UTF-8 as \xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextlib.contextmanager
def replace_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, and renames it to `path` once that is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Replaces a CSV file, whole or not at all; what a row lacks is left empty."""
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
