"""Files that are written whole or not at all, their sums, and tables and JSON in them."""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dacite

from larq_adambnn.errors import UsageError

__all__ = [
    "add_sum",
    "check_regular",
    "explain",
    "has_right_sum",
    "is_temporary",
    "naming",
    "printable",
    "read_bytes",
    "read_json",
    "read_rows",
    "replace_file",
    "sha256",
    "shipped",
    "write_rows",
]

_MOST_BYTES = 2**31
_BLOCK = 2**20  # bytes that are read at a time for a checksum
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-.+", re.DOTALL)
_SUM = re.compile(rb"sha256 ([0-9a-f]{64})\n")
_SUM_BYTES = 72


def shipped(folder: str) -> pathlib.Path:
    """A folder that comes with the package: in it once installed, beside it in a checkout."""
    package = pathlib.Path(__file__).parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def printable(path: str | bytes | os.PathLike) -> str:
    r"""A path as text that can be printed and written: bytes that are not UTF-8 as \xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def explain(error: OSError) -> str:
    """An error of a file in words: its name and the reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{printable(error.filename)}: {reason[0].lower()}{reason[1:]}"


def check_regular(path: pathlib.Path) -> None:
    """Raises UsageError if what is there is no regular file, such as a pipe that never ends."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UsageError(f"{path}: expected a file; it is {kind}")


@contextlib.contextmanager
def naming(path: pathlib.Path, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of reading or writing a file become OSErrors with its name.

    Those of h5py and TensorFlow have neither the name nor the number, only its text.

    Args:
        path: of the file.
        kinds: of errors besides OSError and RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError, *kinds) as error:
        name = getattr(error, "filename", None)
        named = name is not None and not is_temporary(os.path.basename(os.fsdecode(name)))
        number = getattr(error, "errno", None) or next(
            (n for n in errno.errorcode if os.strerror(n) in str(error)), None
        )
        if named or number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def replace_file(
    path: pathlib.Path, *, name: Callable[[pathlib.Path], str] | None = None
) -> Iterator[pathlib.Path]:
    """Gives a path to write to, and renames it to `path` once that is done.

    Args:
        path: of the file.
        name: gives the file another name than `path` has, made from what was written.

    Raises:
        OSError: it cannot be written; with the file's name, whatever library wrote it.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path.with_name(name(temporary)) if name else path)
        finally:
            temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a name is of a file that `replace_file` has not finished."""
    return bool(_TEMPORARY.fullmatch(name))


def read_bytes(path: pathlib.Path) -> bytes:
    """The bytes of a file of less than 2 GiB, the most that a .tflite can have.

    Raises:
        OSError: it is larger, or cannot be read; with its name also where the disk fails within.
    """
    with naming(path):
        if path.stat().st_size >= _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return path.read_bytes()


def sha256(path: pathlib.Path, *, but_last: int = 0) -> str:
    """The checksum of a file's bytes, but for the last ones, in hexadecimal digits."""
    digest = hashlib.sha256()
    left = path.stat().st_size - but_last
    with naming(path), path.open("rb") as file:
        while block := file.read(min(left, _BLOCK)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def add_sum(path: pathlib.Path) -> None:
    """Appends a file's checksum to it, as a line of text; readers of HDF5 pass over that."""
    line = f"sha256 {sha256(path)}\n"
    with path.open("ab") as file:
        file.write(line.encode())


def has_right_sum(path: pathlib.Path) -> bool:
    """Whether a file is as `add_sum` left it, or never got a sum."""
    with naming(path), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _SUM_BYTES))
        found = _SUM.fullmatch(file.read())
    return found is None or found[1].decode() == sha256(path, but_last=_SUM_BYTES)


def read_rows(
    path: pathlib.Path, *, required: Collection[str] = (), known: Collection[str] = ()
) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none where there is no file.

    Args:
        path: of the file.
        required: columns that every row has a value in.
        known: all columns that it may have; any, if there are none here.

    Raises:
        UsageError: the file holds something else.
        OSError: it cannot be read.
    """
    check_regular(path)
    if not path.exists():
        return []
    try:
        with naming(path), path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = reader.fieldnames or [], list(reader)
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path}: expected a table (CSV in UTF-8); {error}") from None
    lacking = [column for column in required if column not in columns]
    foreign = [column for column in columns if known and column not in known]
    broken = [
        number
        for number, row in enumerate(rows, start=1)
        if None in row or None in row.values() or not all(map(row.get, required))
    ]
    if not columns or lacking or foreign or broken:
        found = (
            "it is empty"
            if not columns
            else f"it has no column {lacking[0]!r}"
            if lacking
            else f"it has a column {foreign[0]!r}"
            if foreign
            else f"row {broken[0]} has too few or too many cells, or an empty one"
        )
        raise UsageError(f"{path}: expected the table that was written; {found}")
    return rows


def write_rows(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Writes a CSV file; what a row lacks is left empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: pathlib.Path, kind: Any, what: str) -> Any:
    """What a JSON file holds, as a type of dataclasses, lists, dictionaries and values.

    Args:
        path: of the file.
        kind: the type, such as `list[Plot]`.
        what: is expected in it, for the message.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    check_regular(path)
    holder = dataclasses.make_dataclass("Holder", [("content", kind)])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = dacite.Config(cast=[tuple, float], check_types=True)
        return dacite.from_dict(holder, {"content": content}, config).content
    except (
        OSError,
        ValueError,
        TypeError,  # where a cast cannot be done
        OverflowError,  # of a number that no float can be
        AttributeError,
        RecursionError,
        dacite.DaciteError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{path}: expected {what}: {reason}") from error
