"""What the machine has."""

import sys

import pytest

from larq_adambnn import machine


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
