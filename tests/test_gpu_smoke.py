"""The script for machines with a card, where there is none."""

import gpu_smoke
import numpy as np
import pytest
import small


def test_without_a_card_it_says_so(capsys):
    assert gpu_smoke.main(["float64"], build=lambda: small.network((32, 32, 3), 10)) == 0
    out = capsys.readouterr().out
    assert "devices: CPU" in out and "sees no GPU: the processor is compared with itself" in out
    assert "| float64 | 0 | 1e-07 | 1.0000 |" in out and out.endswith("all are good\n")


@pytest.mark.parametrize("row", ["float64", "float32, XLA"])
@pytest.mark.parametrize("off", [np.inf, np.nan, 0.06, None])
def test_a_card_that_computes_something_else_is_told(monkeypatch, capsys, row, off):
    results = [0.0, off]

    def train(*arguments):
        difference = results.pop(0)
        if difference is None:
            raise RuntimeError("no such kernel\nstack")
        return np.ones(4) + difference, 0.5, 10.0

    monkeypatch.setattr(gpu_smoke, "train", train)
    monkeypatch.setattr(gpu_smoke, "environment", list)
    assert gpu_smoke.main([row]) == 1
    out = capsys.readouterr().out
    assert "| WRONG |" in out and out.endswith("1 of 1 are wrong\n")
    assert "stack" not in out
