"""--mode=analyze and --mode=study on runs of a small network, and what a run records."""

import collections
import csv
import dataclasses
import json
import shutil
import signal

import numpy as np
import PIL.Image
import pytest
import small
import tensorflow as tf

from larq_adambnn import models
from larq_adambnn.commands import analyze, study
from larq_adambnn.commands.study import matrices, tables
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets, training
from larq_adambnn.runs.config import Config, load_run, parse
from larq_adambnn.runs.directory import Run, open_run
from larq_adambnn.runs.recording import Snapshot, snapshots
from larq_adambnn.runs.students import build_student, load_student


def config(output_dir, data_dir, *flags):
    return parse(
        [
            *small.FLAGS,
            "--nodeterministic",  # it holds for the whole process
            "--loss=cross_entropy",
            f"--data_dir={data_dir}",
            f"--output_dir={output_dir}",
            *flags,
        ]
    )


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setitem(models._NETWORKS, "reactnet18", small.network)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A finished run with its own teacher, of three epochs a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._NETWORKS, "reactnet18", small.network)
        directory = tmp_path_factory.mktemp("analyzed") / "run"
        flags = ("--epochs=3", "--loss=distribution", "--teacher=self", "--teacher_epochs=1")
        training.train(config(directory, data_dir, *flags))
    return Run(directory)


@pytest.fixture(scope="module")
def other(tmp_path_factory, data_dir):
    """A run in one step, with another learning rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._NETWORKS, "reactnet18", small.network)
        directory = tmp_path_factory.mktemp("compared") / "other"
        flags = ("--order=one_step", "--learning_rate=0.1")
        training.train(config(directory, data_dir, *flags))
    return Run(directory)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# What a run records


def test_each_layer_and_epoch_has_a_row(run):
    found = rows(run.measurements)
    names = ("block1_conv3x3", "block2_conv3x3")
    assert [(r["step"], r["epoch"], r["layer"]) for r in found] == [
        (step, epoch, name) for step in "12" for epoch in "123" for name in names
    ]
    for epoch, metrics in enumerate(run.read_metrics()):
        layers = found[2 * epoch : 2 * epoch + 2]
        for column in ("ff_ratio", "c2i_ratio", "c2i_step_ratio", "dead_weights", "update_size"):
            # Both layers are of the same size, so the total is the mean.
            mean = np.mean([float(layer[column]) for layer in layers])
            assert metrics[column] == pytest.approx(mean, rel=1e-6), column
        squares = sum(float(layer["gradient_norm"]) ** 2 for layer in layers)
        assert metrics["gradient_norm"] == pytest.approx(squares**0.5)


def test_metrics_and_layers_have_their_curves_for_tensorboard(run):
    curves = collections.defaultdict(dict)
    for path in run.tensorboard.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                curves[value.tag][event.step] = value.simple_value
    metrics = run.read_metrics()
    for column in ("loss", "val_accuracy", "learning_rate", "saturation"):
        expected = [row[column] for row in metrics]
        assert list(curves[column]) == list(range(len(metrics)))
        np.testing.assert_allclose(list(curves[column].values()), expected, rtol=1e-6)
    of_layer = [
        float(row["sdam"]) for row in rows(run.measurements) if row["layer"] == "block2_conv3x3"
    ]
    np.testing.assert_allclose(list(curves["sdam/block2_conv3x3"].values()), of_layer, rtol=1e-6)


def test_snapshots_are_the_weights_at_the_start_and_at_the_ends_of_a_step(run, data_dir):
    found = snapshots(run)
    assert [(s.step, s.epoch) for s in found] == [(1, 0), (1, 1), (1, 3), (2, 1), (2, 3)]
    settings = load_run(run.directory)
    model = load_student(run, settings, datasets.load(settings))
    expected = [variable.numpy() for variable in model.weights]
    found[-1].load(model)
    for variable, weights in zip(model.weights, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weights)
    # The first layer's last update is at most the last steps' small learning rate.
    update = found[-1].update()
    assert update.shape == model.get_layer("block1_conv3x3").kernel.shape
    assert 0 < np.abs(update).max() < 2.5e-3 / 10
    assert np.abs(found[1].update()).max() > np.abs(update).max()


# --mode=analyze


def test_analyze_draws_all_that_a_run_allows(run, other, data_dir, capsys):
    training.report.write(run, load_run(run.directory))
    before = run.report.read_text()
    analyze.main(
        parse(
            [
                "--mode=analyze",
                f"--run={run.directory}",
                f"--compare={other.directory}",
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
    assert capsys.readouterr().out.split() == [str(path) for path in [*paths, run.report]]
    report = run.report.read_text()
    assert "## Analyses" in report and "## Analyses" not in before
    for path in paths:
        with PIL.Image.open(path) as image:
            assert min(image.size) > 400
        assert f"](plots/{path.name})" in report
    captions = {entry["plot"]: entry["caption"] for entry in json.loads(run.analysis.read_text())}
    assert captions["loss_surface.png"].count("network:") == 2  # real-valued and binary
    last = 100 * run.read_metrics()[-1]["val_accuracy"]
    assert f"run {last:.2f} %" in captions["compared_accuracy.png"]
    shares = [float(r["saturation"]) for r in rows(run.measurements)[::2]]
    assert len(shares) == 6
    assert "step 2, epoch 3" in captions["activations.png"]


def test_analyze_without_snapshots_draws_the_rest(other, data_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(other.directory, copy, ignore=shutil.ignore_patterns("snapshots"))
    flags = ["--mode=analyze", f"--run={copy}", "--resolution=3"]
    analyze.main(parse([*flags, f"--data_dir={data_dir}"]))
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.split()]
    assert names == ["loss_surface.png", "toy.png", "final_weights.png", "report.md"]


def test_damaged_snapshots_are_named(run, data_dir, tmp_path):
    settings = load_run(run.directory)
    model = build_student(settings, datasets.load(settings))
    good = run.snapshots / "step1_epoch0001.npz"
    path = tmp_path / good.name
    for content in (b"", b"no archive", good.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected a snapshot"):
            Snapshot(path).load(model)
    shutil.copy(run.snapshots / "step1_epoch0000.npz", path)  # which has no update
    with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected a snapshot"):
        Snapshot(path).update()
    np.savez(path, **{f"weights/{index}": np.zeros(3) for index in range(len(model.weights))})
    with pytest.raises(UsageError, match=r"step1_epoch0001\.npz: expected weights of small"):
        Snapshot(path).load(model)


def test_analyze_of_an_unfinished_run(run, tmp_path):
    (tmp_path / "flags.cfg").write_text(run.flags.read_text())
    with pytest.raises(UsageError, match="expected a run with a finished step"):
        analyze.main(parse(["--mode=analyze", f"--run={tmp_path}"]))


# --mode=study


def names(study_name, **changes):
    base = parse(["--mode=study", f"--study={study_name}", "--output_dir=x", "--epochs=4"])
    return matrices.rows(dataclasses.replace(base, **changes))


def test_the_matrix_of_weight_decays_is_table_1():
    found = [
        (row.changes["order"], row.changes["weight_decay"], row.paper["top1"])
        for row in names("weight_decay")
    ]
    assert found == [
        ("one_step", (1e-5, 1e-5), 61.73),
        ("one_step", (5e-6, 5e-6), 61.89),
        ("one_step", (0.0, 0.0), 61.49),
        ("one_step", (-1e-4, -1e-4), 26.21),
        ("activations_first", (1e-5, 0.0), 62.63),
        ("activations_first", (5e-6, 0.0), 63.23),
    ]


def test_one_step_and_two_steps_have_the_same_number_of_epochs():
    base = parse(["--mode=study", "--study=order", "--output_dir=x", "--epochs=4"])
    for row in matrices.rows(base):
        cell = row.config(base, 7, "self")
        assert cell.epochs * len(cell.steps) == 8
        assert cell.seed == 7 and cell.mode == "train" and not cell.export
    orders = [row.changes["order"] for row in names("order")]
    assert orders == ["activations_first", "weights_first", "one_step"]


def test_optimizers_need_a_sweep_and_take_their_best_rates(tmp_path):
    with pytest.raises(UsageError, match="--sweep: expected the directory of a learning_rate"):
        names("optimizers")
    lines = ["optimizer,learning_rate,top1"]
    for optimizer, rates in matrices.OPTIMIZERS.items():
        for index, rate in enumerate(rates):
            lines += [f"{optimizer},{rate},{80 - abs(index - 1)}"] * 2
    lines += ["adam,0.5,", "adam,0.5,99", "adam,0.25,99", "adam,0.25,1"]  # one seed is not enough
    (tmp_path / "study.csv").write_text("\n".join(lines))
    found = names("optimizers", sweep=str(tmp_path))
    assert len(found) == 10
    for row in found:
        best = matrices.OPTIMIZERS[row.changes["optimizer"]][1]
        assert row.changes["learning_rate"] == best
    (row,) = (row for row in names("weight_decay", sweep=str(tmp_path))[:1])
    assert row.changes["learning_rate"] == matrices.OPTIMIZERS["adam"][1]
    (tmp_path / "study.csv").write_text("optimizer,learning_rate,top1\nadam,1,80")
    with pytest.raises(UsageError, match="lacks sgd"):
        names("optimizers", sweep=str(tmp_path))


@dataclasses.dataclass
class Ended:
    """Stands for a process that has ended."""

    exitcode: int

    def is_alive(self):
        return False


def accuracy(settings):
    """What the runs below reach in their last epoch."""
    return (settings.learning_rate * 37 + settings.seed * 0.011) % 1


@pytest.fixture
def copied(run, other, monkeypatch):
    """Makes a study's runs by copying finished ones; gives the names of those it made."""
    made = []

    def start(settings, log, jobs):
        del jobs
        made.append(settings.output_dir.rpartition("runs/")[2])
        log.parent.mkdir(parents=True, exist_ok=True)
        if settings.learning_rate > 1:
            log.write_text(
                "error: training: expected a finite loss; received another at iteration 3"
            )
            return Ended(1)
        template = run if len(settings.steps) == 2 else other
        try:
            with open_run(settings) as new:
                for name in ("metrics.csv", "measurements.csv", "checkpoints"):
                    source = template.directory / name
                    copy = shutil.copytree if source.is_dir() else shutil.copy
                    copy(source, new.directory / name)
                metrics = new.read_metrics()
                metrics[-1]["val_accuracy"] = accuracy(settings)
                new.write_metrics(metrics)
        except UsageError as error:
            log.write_text(f"error: {error}\n")
            return Ended(1)
        return Ended(0)

    monkeypatch.setattr(study.run, "_start", start)
    monkeypatch.setattr(study.run, "_POLL_SECONDS", 0)
    return made


def test_a_study_from_the_sweep_to_the_table(copied, monkeypatch, data_dir, tmp_path, capsys):
    rates = {"adam": (1e-3, 1e-2), "sgd": (1e-2, 1e30)}
    monkeypatch.setattr(matrices, "OPTIMIZERS", rates)
    flags = ("--mode=study", "--seeds=2", "--seed=5", "--loss=distribution", "--teacher=self")
    flags += ("--teacher_epochs=1",)

    sweep = tmp_path / "sweep"
    settings = config(sweep, data_dir, *flags, "--study=learning_rate")
    study.main(settings)
    found = rows(sweep / "study.csv")
    assert [(r["row"], r["seed"]) for r in found] == [
        (name, seed)
        for name in ("adam 0.001", "adam 0.01", "sgd 0.01", "sgd 1e+30")
        for seed in "56"
    ]
    assert [row["status"] for row in found] == ["finished"] * 6 + ["diverged"] * 2
    assert len(copied) == 9 and copied[0].endswith("teacher")
    assert copied[1:5] == [
        f"{n}/seed5" for n in ("adam_0.001", "adam_0.01", "sgd_0.01", "sgd_1e+30")
    ]
    assert [float(row["top1"]) for row in found[:2]] == [
        pytest.approx(100 * (0.037 + 0.011 * seed)) for seed in (5, 6)
    ]
    report = (sweep / "study.md").read_text()
    assert "| sgd 1e+30 (2 of 2 diverged) | 1e+30 |  |" in report
    assert "(plots/learning_rate.png)" in report
    with PIL.Image.open(sweep / "plots/learning_rate.png") as image:
        assert min(image.size) > 400

    # A second time only what diverged is tried again, and the table is the same.
    copied.clear()
    study.main(settings)
    assert copied == ["sgd_1e+30/seed5", "sgd_1e+30/seed6"]
    assert (sweep / "study.md").read_text() == report

    optimizers = tmp_path / "optimizers"
    capsys.readouterr()
    study.main(
        config(
            optimizers,
            data_dir,
            *flags,
            "--study=optimizers",
            f"--sweep={sweep}",
            f"--teacher={sweep}/teacher",
        )
    )
    found = rows(optimizers / "study.csv")
    assert len(found) == 8
    for row in found:
        run = Run(optimizers / row["directory"])
        best = 0.01
        assert float(row["learning_rate"]) == best
        assert float(row["top1"]) == pytest.approx(100 * (37 * best + 0.011 * int(row["seed"])))
        saturation = [
            100 * float(r["saturation"])
            for r in rows(run.measurements)
            if r["layer"] == "block1_conv3x3" and int(r["step"]) == run.last_step()
        ]
        assert float(row["saturation_first"]) == pytest.approx(saturation[0])
        assert float(row["saturation_last"]) == pytest.approx(saturation[-1])
        last = [epoch for epoch in run.read_metrics() if epoch["step"] == run.last_step()]
        assert float(row["ff_ratio"]) == pytest.approx(np.mean([e["ff_ratio"] for e in last]))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| adam one")]
    values = [float(row["top1"]) for row in found if row["row"] == "adam one step"]
    assert f"| {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in table[0]
    assert table[0].rstrip(" |").endswith("61.49 | 35.5 | 23.8 | 5.60e-03")
    drawn = {path.stem for path in (optimizers / "plots").iterdir()}
    assert drawn == {
        "accuracy_one_step",
        "accuracy_two_steps",
        "activations",
        "weights",
        "updates",
        "final_weights",
    }


def test_claims_are_differences_of_runs_with_the_same_seed():
    settings = Config(mode="summary", study="order", seeds=3)
    top1 = {
        "activations first": [80.0, 82.0, 84.0],
        "weights first": [79.0, 83.0, None],  # diverged
        "one step": [70.0, 71.0, 75.0],
    }
    measured = {
        name: [{} if value is None else {"top1": value} for value in values]
        for name, values in top1.items()
    }
    table = tables._claims(settings, matrices.rows(settings), measured)
    weights, one = (line for line in table if line.startswith("| activations first is above"))
    assert weights.endswith("weights first | top-1 (%) | 0.00 ± 1.41 | 1 of 2 | 2.93 |")
    assert one.endswith("one step | top-1 (%) | 10.00 ± 1.00 | 3 of 3 | 1.74 |")


@pytest.mark.parametrize("name", ["optimizers", "weight_decay", "order"])
def test_claims_are_of_rows_that_there_are(name, tmp_path):
    lines = [f"{optimizer},1e-3,80" for optimizer in matrices.OPTIMIZERS]
    (tmp_path / "study.csv").write_text("\n".join(["optimizer,learning_rate,top1", *lines]))
    found = {row.name for row in names(name, sweep=str(tmp_path))}
    assert {row for claim in matrices.CLAIMS[name] for row in (claim.higher, claim.lower)} <= found


def test_a_run_that_fails_stops_the_study(copied, data_dir, tmp_path):
    settings = config(tmp_path / "study", data_dir, "--mode=study", "--study=order", "--seeds=1")
    blocked = tmp_path / "study/runs/weights_first/seed0"
    blocked.mkdir(parents=True)
    (blocked / "thesis.txt").write_text("mine")
    (tmp_path / "study/flags.cfg").write_text("\n".join(settings.lines()))
    with pytest.raises(UsageError, match="weights_first/seed0 to finish; its last line is 'error"):
        study.main(settings)
    assert len(copied) == 2


def test_other_settings_in_the_directory_of_a_study_are_refused(copied, data_dir, tmp_path):
    flags = ("--mode=study", "--study=order", "--seeds=1", "--epochs=1")
    study.main(config(tmp_path / "study", data_dir, *flags))
    copied.clear()
    with pytest.raises(UsageError, match="--epochs"):
        study.main(config(tmp_path / "study", data_dir, *flags[:3], "--epochs=2"))
    assert not copied
    study.main(config(tmp_path / "study", data_dir, *flags[:2], "--seeds=2", "--epochs=1"))
    assert len(copied) == 3  # the second seed


def test_a_stopped_study_stops_its_run_which_can_resume(server, data_dir, tmp_path):
    arguments = config(tmp_path / "study", data_dir, "--mode=study", "--study=order", "--seeds=1")
    arguments = dataclasses.replace(arguments, width=0.05, stem_stride=2, epochs=200)
    process = server.start(*arguments.lines())
    path = tmp_path / "study/runs/activations_first/seed0"
    process.wait_until((path / "metrics.csv").is_file)
    process.send_signal(signal.SIGTERM)
    status, _, err = process.finish(timeout=60)
    assert status == 143, err
    log = (tmp_path / "study/logs/activations_first_seed0.txt").read_text()
    assert "give the same command again to resume" in log.splitlines()[-1]
    assert list((path / "checkpoints").glob("[0-9]*.npz"))
    assert not (tmp_path / "study/runs/one_step").exists()
