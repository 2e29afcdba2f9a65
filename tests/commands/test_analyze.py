"""--mode=analyze on runs of a small network."""

import json
import pathlib
import re
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from larq_adambnn.commands import analyze
from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows
from larq_adambnn.runs import report
from larq_adambnn.runs.config import load_run, parse
from larq_adambnn.runs.directory import Run

pytestmark = pytest.mark.usefixtures("small_network")


def test_analyze_draws_all_that_a_run_allows(
    two_step_run, one_step_run, data_dir, tmp_path, capsys
):
    run = Run(shutil.copytree(two_step_run.directory, tmp_path / "run"))
    report.write(run, load_run(run.directory))
    before = run.report.read_text()
    analyze.main(
        parse(
            [
                "--mode=analyze",
                f"--run={run.directory}",
                f"--compare={one_step_run.directory}",
                "--resolution=3",
                f"--data_dir={data_dir}",
            ]
        )
    )
    names = [
        "loss_surface",
        "trajectory",
        "compared_accuracy",
        "activations",
        "weights",
        "updates",
        "toy",
        "final_weights",
        "learning_rate",
    ]
    paths = [run.plots / f"{name}.png" for name in names]
    out, err = capsys.readouterr()
    assert out.split() == [str(path) for path in [*paths, run.report, run.page]]
    assert err.startswith("devices: CPU (")
    compared = {"one_step_run": one_step_run.read_metrics()}
    assert json.loads(run.compared.read_text()) == compared
    page = run.page.read_text()
    assert "one_step_run, test" in page and page.count('class="plot"') == len(paths)
    text = run.report.read_text()
    assert "## Analyses" in text and "## Analyses" not in before
    for path in paths:
        with PIL.Image.open(path) as image:
            assert min(image.size) > 400
        assert f"](plots/{path.name})" in text
    captions = {entry["plot"]: entry["caption"] for entry in json.loads(run.analysis.read_text())}
    assert captions["loss_surface.png"].count("network:") == 2  # real-valued and binary
    last = 100 * run.read_metrics()[-1]["val_accuracy"]
    assert f"run {last:.2f} %" in captions["compared_accuracy.png"]
    shares = [float(r["saturation"]) for r in read_rows(run.measurements)[::2]]
    assert len(shares) == 6
    assert "step 2, epoch 3" in captions["activations.png"]


def test_analyze_without_snapshots_draws_the_rest(one_step_run, data_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(one_step_run.directory, copy, ignore=shutil.ignore_patterns("snapshots"))
    flags = ["--mode=analyze", f"--run={copy}", "--resolution=3"]
    analyze.main(parse([*flags, f"--data_dir={data_dir}"]))
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.split()]
    assert names == ["loss_surface.png", "toy.png", "final_weights.png", "report.md", "report.html"]


def test_analyze_of_an_unfinished_run(two_step_run, tmp_path):
    (tmp_path / "flags.cfg").write_text(two_step_run.flags.read_text())
    with pytest.raises(UsageError, match="expected a run with a finished step"):
        analyze.main(parse(["--mode=analyze", f"--run={tmp_path}"]))


def test_the_peaks_that_are_told_are_those_that_are_drawn(monkeypatch):
    """Of weights that gather beyond a wide clip, where an axis of the usual length has its end."""
    weights = np.random.default_rng(0).normal(0, 0.05, 9000) + np.tile([-1.6, 1.6], 4500)
    monkeypatch.setattr(analyze, "load_student", lambda *args, **options: None)
    monkeypatch.setattr(analyze, "latent_weights", lambda model: (weights, 1.5))
    run = types.SimpleNamespace(last_step=lambda: 1, weights=lambda step: pathlib.Path(__file__))
    analysis = types.SimpleNamespace(run=run, config=None, dataset=None, spare=None, others={})
    [(_, caption, _)] = analyze._Analysis.weights(analysis)
    peaks = re.search(r"end of step 1: peaks at (.*)\.$", caption)[1].split(", ")
    assert [float(peak) for peak in peaks] == pytest.approx([-1.6, 1.6], abs=0.05)
