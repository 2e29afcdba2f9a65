"""The networks against what the published PyTorch code computed, in float64."""

import pathlib
import subprocess
import sys

import pytest
from golden_student import assert_logits, assert_same_bits, loaded

from larq_adambnn import checkpoints

PROGRAM = pathlib.Path(__file__).with_name("golden_student.py")


def test_teacher(float64):
    model, state_dict, golden = loaded("resnet34")
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == 21_797_672
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)


@pytest.mark.parametrize(
    "case",
    ["adambnn_step1", "adambnn_step2", "reactnet_a_step2", "reactnet18_step1", "reactnet18_step2"],
)
def test_student(case):
    """Inference, the round trip of the weights, and three iterations of training."""
    ended = subprocess.run([sys.executable, PROGRAM, case], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
