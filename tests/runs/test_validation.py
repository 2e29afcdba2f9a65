"""When a run is evaluated, what it says then, and its best weights."""

import contextlib
import csv
import io
import json
import re

import numpy as np
import pytest
import small
import tensorflow as tf

import main
from larq_adambnn import weights
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import report, training
from larq_adambnn.runs.config import Config, load_run, parse
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.recording import evaluated

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        ((3, 3), 1, [1, 2, 3, 4, 5, 6]),
        ((3, 3), 2, [2, 3, 5, 6]),
        ((4, 4), 2, [2, 4, 6, 8]),
        ((3, 3), 3, [3, 6]),
        ((3, 3), 9, [3, 6]),
        ((5,), 2, [2, 4, 5]),
    ],
)
def test_every_so_many_epochs_of_a_step_and_its_last_are_evaluated(epochs, every, expected):
    assert evaluated(epochs, every) == expected


@pytest.fixture(scope="module")
def trained(small_network, data_dir, tmp_path_factory):
    """A run of one step, evaluated on images held out after every second epoch; its lines."""
    directory = tmp_path_factory.mktemp("validation") / "run"
    flags = ("--epochs=3", "--validate_every=2", "--held_out=300", "--split=held_out")
    flags += ("--loss=cross_entropy", "--order=one_step", "--snapshots=0", "--nodeterministic")
    tf.config.run_functions_eagerly(True)  # most of so short a training would be tracing
    with contextlib.redirect_stdout(io.StringIO()) as out:
        training.train(parse(small.flags_of(directory, data_dir, *flags)))
    tf.config.run_functions_eagerly(False)
    return Run(directory), out.getvalue()


def test_the_epochs_between_have_no_evaluation(trained):
    run, out = trained
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("val_loss", "val_accuracy", "val_top5_accuracy")
    assert [[bool(row[name]) for name in columns] for row in rows] == [
        [has] * 3 for has in (False, True, True)
    ]
    lines = [line for line in out.splitlines() if line.startswith("step 1  epoch")]
    for line, row in zip(lines, rows, strict=True):
        told = re.findall(r"  (\w*) ?accuracy (\S+) %", line)
        expected = [("", row["accuracy"]), ("held_out", row["val_accuracy"])]
        assert told == [(of, f"{100 * float(value):.2f}") for of, value in expected if value]
    heading = "| network         | held_out top-1 |"
    assert heading in out and heading in run.report.read_text()


def test_the_report_shows_what_there_is(trained):
    run, _ = trained
    rows = run.read_metrics()
    text, page = run.report.read_text(), run.page.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| step 1 "))
    assert f"{100 * rows[-1]['val_accuracy']:.2f} %" in line
    best = max(rows[1:], key=lambda row: row["val_accuracy"])
    told = (
        f"Best weights of step 1: after epoch {best['epoch']:.0f}, with held_out top-1 "
        f"{100 * best['val_accuracy']:.2f} %."
    )
    assert told in text and told in page
    assert f"Trained on {run.read_devices()[0]}." in page
    figure = json.loads(page.split('<script type="application/json">')[1].split("<")[0])
    points = [p for p in figure["data"]["values"] if p["series"] == "held_out accuracy"]
    assert [point["epoch"] for point in points] == [2, 3]


def test_before_its_first_evaluation_a_run_can_be_reported(trained, tmp_path):
    run, _ = trained
    early = Run(tmp_path / "run")
    early.directory.mkdir()
    early.write_metrics(run.read_metrics()[:1])
    report.write(early, load_run(run.directory))
    assert "Trained for 1 epochs, and not evaluated yet." in early.page.read_text()


def test_the_best_weights_are_evaluated_with_the_accuracy_that_chose_them(trained, capsys):
    run, _ = trained
    flags = ("--mode=evaluate", f"--run={run.directory}", "--best", "--split=held_out")
    assert main.main(list(flags)) == 0
    accuracy = weights.about(run.weights(1, best=True))["val_accuracy"]
    expected = f"held_out top-1 {100 * accuracy:.2f} %"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("reload", [False, True])
def test_the_first_of_the_best_epochs_is_kept(reload, tmp_path):
    """Of the last step and, where step 2 begins from them, of step 1."""
    run, epochs = Run(tmp_path), (3, 5)
    config = Config(batch_size=1, reload_best=reload)
    dataset = type("Dataset", (), {"iterations_per_epoch": 1})
    log = training._Log(run, config, dataset, epochs)
    network = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
    network.build((None, 1))
    log.set_model(type("Distiller", (), {"student": network}))
    log.on_train_begin()
    accuracies = [0.9, 0.95, 0.8, 0.3, None, 0.6, 0.6, 0.5]
    for epoch, accuracy in enumerate(accuracies):
        network.set_weights([np.full((1, 1), epoch, np.float32)])
        log.on_epoch_begin(epoch)
        logs = {} if accuracy is None else {"val_loss": 1.0, "val_accuracy": accuracy}
        log.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 0.5, **logs})
    log.on_train_end()
    for step, kept, value in ((1, reload, 1), (2, True, 5)):
        path = run.weights(step, best=True)
        assert path.is_file() == kept
        if kept:
            row = run.read_metrics()[value]
            told = {name: row[name] for name in ("epoch", "val_accuracy")}
            assert weights.about(path) == told
            weights.load(network, path)
            assert network.get_weights()[0].item() == value
    assert run.weights(1).is_file()


def test_half_an_evaluation_is_named(trained, tmp_path):
    run = Run(tmp_path)
    run.write_metrics(trained[0].read_metrics())
    text = run.metrics.read_text().splitlines()
    cells = text[2].split(",")
    text[2] = ",".join([*cells[:4], "", *cells[5:]])
    run.metrics.write_text("\n".join(text) + "\n")
    with pytest.raises(UsageError, match="expected val_loss and val_accuracy, or neither; row 2"):
        run.read_metrics()
