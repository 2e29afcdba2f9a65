"""--mode=study: its runs, one after the other, and what they are put together to."""

import concurrent.futures
import dataclasses
import shutil
import signal

import numpy as np
import PIL.Image
import pytest
import small

from larq_adambnn import processes
from larq_adambnn.commands import study
from larq_adambnn.commands.study import matrices
from larq_adambnn.errors import UsageError
from larq_adambnn.files import read_rows
from larq_adambnn.runs.config import parse
from larq_adambnn.runs.directory import Run, open_run

pytestmark = pytest.mark.usefixtures("small_network")


def config(output_dir, data_dir, *flags):
    flags = ("--loss=cross_entropy", "--held_out=128", *flags)
    return parse(small.flags_of(output_dir, data_dir, *flags))


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
def copied(two_step_run, one_step_run, monkeypatch):
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
        template = two_step_run if len(settings.steps) == 2 else one_step_run
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
    monkeypatch.setattr(processes, "pool", lambda: concurrent.futures.ThreadPoolExecutor(1))
    return made


def test_a_study_from_the_sweep_to_the_table(
    copied, one_step_run, two_step_run, browser, monkeypatch, data_dir, tmp_path, capsys, eager
):
    rates = {"adam": (1e-3, 1e-2), "sgd": (1e-2, 1e30)}
    monkeypatch.setattr(matrices, "OPTIMIZERS", rates)
    flags = ("--mode=study", "--seeds=2", "--seed=5", "--loss=distribution", "--teacher=self")
    flags += ("--teacher_epochs=1",)

    sweep = tmp_path / "sweep"
    settings = config(sweep, data_dir, *flags, "--study=learning_rate")
    study.main(settings.replace(seeds=1))
    names = ("adam_0.001", "adam_0.01", "sgd_0.01", "sgd_1e+30")
    assert copied[0].endswith("teacher")
    assert copied[1:] == [f"{name}/seed5" for name in names]
    # With another seed what diverged is tried again, too.
    copied.clear()
    study.main(settings)
    assert copied == ["sgd_1e+30/seed5", *(f"{name}/seed6" for name in names)]
    found = read_rows(sweep / "study.csv")
    assert [(r["row"], r["seed"]) for r in found] == [
        (name, seed)
        for name in ("adam 0.001", "adam 0.01", "sgd 0.01", "sgd 1e+30")
        for seed in "56"
    ]
    assert [row["status"] for row in found] == ["finished"] * 6 + ["diverged"] * 2
    assert [float(row["validation"]) for row in found[:2]] == [
        pytest.approx(100 * (0.037 + 0.011 * seed)) for seed in (5, 6)
    ]
    assert {row["top1"] for row in found} == {""}  # the test images are not looked at
    report = (sweep / "study.md").read_text()
    assert "| sgd 1e+30 (2 of 2 diverged) | 1e+30 |  |" in report
    assert "(plots/learning_rate.png)" in report
    with PIL.Image.open(sweep / "plots/learning_rate.png") as image:
        assert min(image.size) > 400
    browser.open(sweep / "report.html")
    assert browser.messages() == []
    assert browser.texts("h1") == ["Study of learning rate on digits"]
    best = np.array([37.0 + 1.1 * seed for seed in (5, 6)])
    assert f"adam 0.01 is the best of 4 rows: {best.mean():.2f} ± 0.78 %" in " ".join(
        browser.texts(".headline")
    )
    assert browser.texts("#result tr")[-1].startswith("sgd 1e+30 (2 of 2 diverged)")
    assert browser.texts(".role-legend-label text") == ["adam", "sgd"]
    assert browser.run("return document.querySelectorAll('.mark-symbol path').length") == 3 + 2

    # A second time only what diverged is tried again, and the table is the same.
    copied.clear()
    study.main(settings)
    assert copied == ["sgd_1e+30/seed5", "sgd_1e+30/seed6"]
    assert (sweep / "study.md").read_text() == report

    # Neither does a look at one row take away what the others gave.
    copied.clear()
    table = (sweep / "study.csv").read_bytes()
    study.main(settings.replace(rows=("adam_0.001",)))
    assert copied == []
    assert (sweep / "study.csv").read_bytes() == table

    optimizers = tmp_path / "optimizers"
    capsys.readouterr()
    chosen = ("--study=optimizers", f"--sweep={sweep}", f"--teacher={sweep}/teacher")
    study.main(config(optimizers, data_dir, *flags, *chosen, "--rows=sgd_two_steps"))
    assert [path.stem for path in (optimizers / "plots").iterdir()] == ["accuracy_two_steps"]
    capsys.readouterr()
    study.main(config(optimizers, data_dir, *flags, *chosen))
    found = read_rows(optimizers / "study.csv")
    assert len(found) == 10
    test = {}
    for row in found:
        run = Run(optimizers / row["directory"])
        best = 0.01
        assert float(row["learning_rate"]) == best
        validation = 100 * (37 * best + 0.011 * int(row["seed"]))
        assert float(row["validation"]) == pytest.approx(validation)
        steps = max(int(epoch["step"]) for epoch in run.read_metrics())
        test.setdefault(steps, set()).add(float(row["top1"]))
        saturation = [
            100 * float(r["saturation"])
            for r in read_rows(run.measurements)
            if r["layer"] == "block1_conv3x3" and int(r["step"]) == run.last_step()
        ]
        assert float(row["saturation_first"]) == pytest.approx(saturation[0])
        assert float(row["saturation_last"]) == pytest.approx(saturation[-1])
        last = [epoch for epoch in run.read_metrics() if epoch["step"] == run.last_step()]
        assert float(row["ff_ratio"]) == pytest.approx(np.mean([e["ff_ratio"] for e in last]))
    for steps, template in ((1, one_step_run), (2, two_step_run)):  # whose weights were copied
        (top1,) = test[steps]
        last = template.read_metrics()[-1]["val_accuracy"]  # of the test images
        assert top1 == pytest.approx(100 * last)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed=2147483647", "--seeds=2"), "--seed: expected"),
        (("--init_from=gone",), "--init_from: expected a run"),
        (("--microbatches=3",), "--microbatches: expected a divisor"),
        (("--loss=distribution", "--teacher=gone"), "--teacher: expected self"),
        (("--held_out=2000",), "held_out: expected at most 1,437"),
        (("--held_out=1400", "--train_images=0"), "batch_size: expected at most the 37 training"),
        (("--train_images=1400",), "train_images: expected"),
        (("--dataset=nosuch",), "dataset: expected"),
        (("--dataset=idx", "--data_dir=gone"), "data_dir: expected"),
        (("--num_classes=7",), "--num_classes: expected 10"),
        (("--strategy=multi_worker",), "--strategy: expected one or mirrored"),
        (("--strategy=mirrored", "--devices=GPU:7"), "--devices: expected"),
    ],
)
def test_what_does_not_fit_a_study_is_said_before_anything_is_written(
    copied, data_dir, tmp_path, flags, message
):
    with pytest.raises(UsageError, match=message):
        study.main(config(tmp_path / "study", data_dir, "--mode=study", "--study=order", *flags))
    assert copied == [] and not (tmp_path / "study").exists()


def test_a_run_that_fails_stops_the_study(copied, data_dir, tmp_path):
    settings = config(tmp_path / "study", data_dir, "--mode=study", "--study=order", "--seeds=1")
    blocked = tmp_path / "study/runs/weights_first/seed0"
    blocked.mkdir(parents=True)
    (blocked / "thesis.txt").write_text("mine")
    (tmp_path / "study/flags.cfg").write_text("\n".join(settings.lines()))
    with pytest.raises(UsageError, match="weights_first/seed0 to finish; its last line is 'error"):
        study.main(settings)
    assert len(copied) == 2


def test_other_settings_in_the_directory_of_a_study_are_refused(copied, data_dir, tmp_path, eager):
    flags = ("--mode=study", "--study=order", "--seeds=1")
    study.main(config(tmp_path / "study", data_dir, *flags, "--epochs=1"))
    assert len(copied) == 3
    with pytest.raises(UsageError, match="--epochs"):
        study.main(config(tmp_path / "study", data_dir, *flags, "--epochs=2"))
    assert len(copied) == 3


def test_a_stopped_study_stops_its_run_which_can_resume(server, data_dir, tmp_path):
    arguments = config(tmp_path / "study", data_dir, "--mode=study", "--study=order", "--seeds=1")
    arguments = dataclasses.replace(arguments, model="small:network", epochs=200)
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
