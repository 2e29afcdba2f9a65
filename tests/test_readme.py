"""The README's Python does what it says."""

import pathlib
import re

import numpy as np
import pytest

import larq_adambnn
from larq_adambnn.export import description

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    block.splitlines()[0]: block for block in re.findall(r"```python\n(.*?)```", README, re.S)
}


def run(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[title], title, "exec"), names)
    return names


def test_every_block_is_run_here():
    assert list(BLOCKS) == [
        "# Two steps in one fit: binary activations for two epochs, then binary weights too",
        "# Data, training and export in a notebook",
    ]


def test_two_steps_in_one_fit(tmp_path, monkeypatch):
    names = run(next(iter(BLOCKS)), tmp_path, monkeypatch)
    assert larq_adambnn.binarization(names["model"]) == (True, True)
    assert len(names["model"].history.epoch) == 4


def test_a_notebook(tmp_path, monkeypatch, data_dir, capsys):
    load = larq_adambnn.data.load
    monkeypatch.setattr(larq_adambnn.data, "load", lambda name, **kw: load(name, data_dir, **kw))
    names = run("# Data, training and export in a notebook", tmp_path, monkeypatch)
    assert len(BLOCKS["# Data, training and export in a notebook"].splitlines()) <= 30
    assert larq_adambnn.binarization(names["model"]) == (True, True)
    found = description.read(tmp_path / "digits.json")
    assert found == names["exported"].description
    assert found.binary_convolutions.converted == 31
    assert description.find(tmp_path / "digits.tflite", names["exported"].tflite) == found
    assert names["exported"].report.failures == (), capsys.readouterr().out
    accuracy = larq_adambnn.inference.evaluate(names["exported"].tflite, names["digits"])
    assert accuracy.images == 360
    images, labels = names["digits"].examples(360)
    right = names["model"].predict(images, verbose=0).argmax(-1) == labels
    assert accuracy.top1 == pytest.approx(np.mean(right), abs=0.02)
