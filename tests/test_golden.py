"""The networks against what the published PyTorch code computed, in float64."""

import pathlib

import processes
import pytest
from golden_student import assert_logits, assert_same_bits, loaded

from larq_adambnn import checkpoints

PROGRAM = pathlib.Path(__file__).with_name("golden_student.py")


def test_teacher(float64):
    model, state_dict, golden = loaded("resnet34")
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == 21_797_672
    assert_same_bits(checkpoints.to_state_dict(model), state_dict)
    assert_logits(model, golden)


@pytest.fixture(scope="module")
def exact_server():
    """oneDNN has no float64, but an allocator of its own."""
    server = processes.Server({"TF_ENABLE_ONEDNN_OPTS": "0"})
    yield server
    server.close()


@pytest.mark.parametrize(
    "case",
    ["adambnn_step1", "adambnn_step2", "reactnet_a_step2", "reactnet18_step1", "reactnet18_step2"],
)
def test_student(case, exact_server):
    """Inference, the round trip of the weights, and three iterations of training."""
    status, _, err = exact_server.start(case, program=PROGRAM).finish(timeout=900)
    assert status == 0, err
