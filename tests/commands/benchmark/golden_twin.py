"""Holds the PyTorch twin to the golden vectors, in float64: python golden_twin.py CASE."""

import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "golden"))

import numpy as np
import seeded
import torch
from torch.utils.checkpoint import checkpoint

from larq_adambnn.commands.benchmark import twin


def check(case):
    """Logits, and the losses of three iterations."""
    first = case.endswith("step1")
    golden = np.load(seeded.HERE / f"{case}_seed0.npz")
    network = twin.ReActNetA(binary=not first)
    state_dict = seeded.state_dict(case, 0)
    network.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()})
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(seeded.images(0, 2))).numpy()
    expected = golden["eval_logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())

    for block in network.feature:  # computed again in the backward pass, to save memory
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    train = twin.Training(network, 2.5e-3, 5e-6 if first else 0.0)
    batch = [torch.from_numpy(x) for x in (seeded.images(1, 4), seeded.teacher_logits(0, 4))]
    received = [train(*batch) for _ in range(3)]
    np.testing.assert_allclose(received, golden["train_losses"], rtol=1e-10)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    check(sys.argv[1])
