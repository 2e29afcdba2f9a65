"""Files written whole or not at all, with the name in every error; sums; tables; JSON."""

import contextlib
import dataclasses
import errno
import os

import pytest

from larq_adambnn import files
from larq_adambnn.errors import UsageError


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with files.replace_file(path) as first, files.replace_file(path) as second:
        assert first != second  # two processes at once do not meet
        assert files.is_temporary(first.name) and first.name.endswith("a.txt")
        for temporary in (first, second):
            temporary.write_text(temporary.name)
        assert not path.exists()
    assert path.read_text() == first.name
    with contextlib.suppress(KeyError), files.replace_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == first.name
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert not any(map(files.is_temporary, ("a.txt", ".a.txt", ".tmp-notes", "x.tmp-0123abcd-y")))


def test_a_name_can_be_made_of_what_was_written(tmp_path):
    with files.replace_file(tmp_path / "x", name=lambda path: path.read_text()) as path:
        path.write_text("y")
    assert (tmp_path / "y").read_text() == "y"


def raising(error):
    def fail(path):
        raise error

    return fail


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), "no space left on device"),
        (raising(RuntimeError("h5py: errno = 28, No space left on device")), "no space left on"),
        (raising(OSError("unable to open file: errno = 30, Read-only file system")), "read-only"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.open("rb"), "no such file or directory"),
    ],
)
def test_an_error_names_the_file(write, reason, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError) as caught, files.replace_file(path) as temporary:
        write(temporary)
    assert files.explain(caught.value).startswith(f"{path}: {reason}")
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/a.txt", "file: file exists"),
        ("file/folder/a.txt", "folder: not a directory"),
        ("x" * 300, "x: file name too long"),
        ("folder", "folder: is a directory"),
    ],
)
def test_impossible_paths_are_named(name, reason, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, files.replace_file(tmp_path / name) as path:
        path.touch()
    assert files.explain(caught.value).endswith(reason)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}


def test_every_flipped_bit_of_a_file_with_a_sum_is_noticed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    assert files.has_right_sum(path)  # it has none yet
    files.add_sum(path)
    content = path.read_bytes()
    assert files.has_right_sum(path)
    assert content[:200] == bytes(range(200)) and len(content) == 272
    for bit in range(8 * 200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not files.has_right_sum(path), bit
    path.write_bytes(content[:10])
    assert files.has_right_sum(path)  # what reads it has to notice


COLUMNS = {"required": ("step", "loss"), "known": ("step", "loss", "extra")}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe\x00", "CSV in UTF-8"),
        (b'step,loss\n"1,2', "CSV in UTF-8"),
        (b"step\n1\n", "no column 'loss'"),
        (b"name,step,loss\na,1,2\n", "a column 'name'"),
        (b"step,loss\n1\n", "row 1 has too few"),
        (b"step,loss\n1,2\n1,\n", "row 2 has too few"),
        (b"step,loss\n1,2,3\n", "row 1 has too few or too many"),
    ],
)
def test_tables_that_are_none_are_named(content, reason, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{path}: .*{reason}"):
        files.read_rows(path, **COLUMNS)


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    assert files.read_rows(path, **COLUMNS) == []
    files.write_rows(path, ("step", "loss", "extra"), [{"step": 1, "loss": 0.5}])
    assert files.read_rows(path, **COLUMNS) == [{"step": "1", "loss": "0.5", "extra": ""}]
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="expected a file; it is a folder"):
        files.read_rows(path, **COLUMNS)


@dataclasses.dataclass
class Entry:
    name: str
    count: int


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"{}",
        b"null",
        b"[1]",
        b'[{"name": "a"}]',
        b'[{"name": 1, "count": 1}]',
        b"[" * 100_000,
        b"[" + b"1" * 5000 + b"]",
    ],
)
def test_json_that_is_another_is_named(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{path}: expected entries"):
        files.read_json(path, list[Entry], "entries")


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"name": "a", "count": 1, "later": 2}]')
    assert files.read_json(path, list[Entry], "entries") == [Entry("a", 1)]
    with pytest.raises(UsageError, match=r"^.*nowhere: expected entries"):
        files.read_json(tmp_path / "nowhere", list[Entry], "entries")


def test_numbers_that_no_float_can_be_are_refused(tmp_path):
    (tmp_path / "a.json").write_text(f"[1{'0' * 400}]")
    with pytest.raises(UsageError, match="expected numbers: int too large"):
        files.read_json(tmp_path / "a.json", list[float], "numbers")
