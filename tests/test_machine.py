"""What the machine has."""

import pathlib
import subprocess
import sys

import pytest

from larq_adambnn import machine

ROOT = pathlib.Path(__file__).parents[1]


def says(text, status=0):
    return [sys.executable, "-S", "-c", f"print({text!r}); raise SystemExit({status})"]


@pytest.mark.parametrize(
    "node, command, expected",
    [
        ("nvidia0", ["no-such-command"], True),
        ("nvidiactl", ["no-such-command"], False),  # a driver without a card
        (None, says("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)"), True),
        (None, says("NVIDIA-SMI has failed because it couldn't communicate", 9), False),
        (None, says("No devices found.", 6), False),
    ],
)
def test_an_nvidia_card_is_found(tmp_path, node, command, expected):
    if node:
        (tmp_path / node).touch()
    assert machine.has_nvidia_card(f"{tmp_path}/nvidia[0-9]*", command) is expected


PROGRAM = """
import os, sys
from larq_adambnn import machine
with machine.notes_aside():
    os.write(2, b"Corrupt JPEG data: 3 extraneous bytes before marker 0xd9\\n")
    print("of Python", file=sys.stderr)
    with machine.quiet():
        print("unheard", file=sys.stderr)
    {end}
"""


@pytest.mark.parametrize(
    "end, told",
    [
        ("pass", ["of Python"]),
        ("sys.exit('the reason')", ["of Python", "the reason"]),
        ("os.abort()", ["of Python", "Corrupt JPEG data: 3 extraneous bytes before marker 0xd9"]),
    ],
)
def test_what_c_code_writes_is_told_if_the_process_ends(end, told):
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.splitlines() == told


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "model name\t: Xeon: 4\nflags\t\t: fpu avx2 avx512f amx_tile amx_bf16\n",
            "Xeon: 4, AVX2, AVX-512, AMX, AMX BF16",
        ),
        ("model name : Cortex-A76\nFeatures\t: fp asimd\n", "Cortex-A76, NEON"),
        ("model name : 486\n", "486"),
    ],
)
def test_the_processor_and_its_units(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.processor(str(tmp_path / "cpuinfo")) == expected


def test_the_processor_is_always_called_something(tmp_path):
    assert machine.processor(str(tmp_path / "none"))
    assert machine.processor()
