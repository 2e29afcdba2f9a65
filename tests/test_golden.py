"""The networks against what the published PyTorch code computed, in float64."""

import pathlib
import subprocess
import sys

from golden_student import assert_logits, assert_same_bits, built, load

from larq_adambnn import checkpoints

PROGRAM = pathlib.Path(__file__).with_name("golden_student.py")


def test_teacher(float64):
    model = built("resnet34")
    state_dict, golden = load(model, "resnet34")
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == 21_797_672
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)


def test_students():
    """Inference, the round trip of the weights, and training."""
    process = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
