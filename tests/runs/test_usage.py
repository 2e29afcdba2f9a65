"""--help: every flag once, in groups, as wide as the terminal."""

import dataclasses
import re
import subprocess
import sys

import pytest

from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import _FORMER_NAMES, Config, parse
from larq_adambnn.runs.usage import FIRST_STEPS, TOPICS


def flags_in(text):
    return re.findall(r"^  --(?:\[no\])?(\w+)", text, re.MULTILINE)


def test_every_flag_is_in_the_help_once_with_its_text():
    text = parse(["--help"])
    names = [field.name for field in dataclasses.fields(Config)]
    assert sorted(flags_in(text)) == sorted([*names, "flagfile"])
    flat = " ".join(text.split())
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith(".")
        assert field.metadata["help"] in flat
    assert "--optimizer=TEXT" in flat
    assert "One of adam, adamw, amsgrad, sgd, rmsprop, diode. Default: adam." in flat
    assert "--weight_decay=LIST Weight decay of step 1 and step 2. Default: 5e-06,0.0." in flat
    assert "--[no]flip Flip training images horizontally at random. Default: yes." in flat


def test_ten_flags_come_first_then_the_topics():
    text = parse(["-h"])
    assert flags_in(text)[:10] == [
        "mode", "flagfile", "output_dir", "run", "dataset", "data_dir", "model", "width",
        "epochs", "batch_size",
    ]  # fmt: skip
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert titles == ["Most used", *TOPICS.values()]


@pytest.mark.parametrize("topic", TOPICS)
def test_one_topic_has_its_flags_only(topic):
    names = flags_in(parse([f"--help={topic}"]))
    fields = dataclasses.fields(Config)
    assert names == [field.name for field in fields if field.metadata["topic"] == topic]


def test_another_topic_is_refused():
    with pytest.raises(UsageError, match=r"--help: expected one of .*recipe.*; received 'cooking'"):
        parse(["--help=cooking"])


def test_former_names_are_not_shown():
    assert not set(_FORMER_NAMES) & set(flags_in(parse(["--help"])))


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_help_is_as_wide_as_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    body = parse(["--help"]).split("Most used:")[1]
    assert columns - 10 < max(map(len, body.splitlines())) <= columns


def test_the_help_needs_no_tensorflow():
    code = (
        "import sys; from larq_adambnn.commands import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'numpy', 'larq')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_without_a_flag_it_tells_what_to_do_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse([]) == FIRST_STEPS
    commands = re.findall(r"^    larq-adambnn (.*)", FIRST_STEPS, re.MULTILINE)
    quickstart, *others = (parse(command.split()) for command in commands[:1] + commands[2:])
    (tmp_path / quickstart.output_dir).mkdir(parents=True)
    (tmp_path / quickstart.output_dir / "flags.cfg").write_text("\n".join(quickstart.lines()))
    predict = parse(commands[1].split())
    own, shown = others
    assert (quickstart.mode, predict.mode, own.dataset) == ("train", "predict", "image_folder")
    assert shown == parse(["--help"])
    assert max(map(len, FIRST_STEPS.splitlines())) <= 100
