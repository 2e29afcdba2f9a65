"""Files that are written whole or not at all, their checksums, and tables in them."""

import contextlib
import csv
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["printable", "read_rows", "replace_file", "sha256", "write_rows"]

_BLOCK = 2**20  # bytes that are read at a time for a checksum


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


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
