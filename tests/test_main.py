"""main.py as a user types it: the modes, and mistakes in one line with nothing written."""

import pathlib
import subprocess
import sys

import pytest
import small

ROOT = pathlib.Path(__file__).parents[1]


def run(*flags, script=ROOT / "main.py", **kwargs):
    return subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=300, **kwargs
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nosuch=1"], "nosuch"),
        (["--output_dir=run", "--width=-1"], "--width"),
        (["--output_dir=run", "--dataset=nosuchset", "--teacher=self"], "--dataset"),
        (["--output_dir=run", "--dataset=digits", "--teacher=nowhere"], "--teacher"),
        (["--mode=evaluate", "--run=nowhere"], "--run"),
        (["--flagfile=nowhere.cfg"], "--flagfile"),
        (["--output_dir=run", "--strategy=multi_worker", "--teacher=self"], "TF_CONFIG"),
        (
            ["--output_dir=run", "--dataset=digits", "--teacher=self", "--batch_size=5000"],
            "--batch_size",
        ),
        (
            [
                "--output_dir=run",
                "--dataset=digits",
                "--teacher=self",
                "--strategy=mirrored",
                "--devices=GPU:7",
            ],
            "--devices",
        ),
    ],
)
def test_mistakes_give_one_line_a_status_and_no_files(flags, expected, tmp_path, data_dir):
    result = run(*flags, f"--data_dir={data_dir}", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "--mode=evaluate", "--run=nowhere", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_help_lists_the_flags():
    result = run("--help")
    assert result.returncode == 0
    assert "--weight_decay" in result.stdout


def test_summary_prints_the_papers_count():
    result = run("--mode=summary", "--model=reactnet_a", "--dataset=imagenet2012")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("BOPs 4.82e+09   FLOPs 1.19e+07   OPs 8.71e+07")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A run with its .tflite, and what its training printed."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    flags = [flag for flag in small.FLAGS if flag != "--noexport"]
    result = run(
        *flags,
        "--teacher=self",
        "--epochs=3",
        f"--data_dir={data_dir}",
        f"--output_dir={directory}",
        script=ROOT / "tests" / "small.py",
    )
    assert result.returncode == 0, result.stderr
    return directory, result.stdout


def test_training_writes_the_run_directory(trained):
    directory, _ = trained
    for name in (
        "flags.cfg",
        "metrics.csv",
        "model.tflite",
        "export.json",
        "report.md",
        "plots/accuracy.png",
        "plots/loss.png",
        "checkpoints/step1.weights.h5",
        "checkpoints/step2.weights.h5",
        "teacher/checkpoints/step1.weights.h5",
    ):
        assert (directory / name).stat().st_size > 0, name
    assert list((directory / "tensorboard").iterdir())
    header, *rows = (directory / "metrics.csv").read_text().splitlines()
    assert header.startswith(
        "step,epoch,loss,accuracy,val_loss,val_accuracy,val_top5_accuracy,learning_rate,"
        "weight_decay,ff_ratio,c2i_ratio,seconds,images_per_second"
    )
    assert [row.split(",")[:2] for row in rows] == [
        ["1", "1"], ["1", "2"], ["1", "3"], ["2", "1"], ["2", "2"], ["2", "3"]
    ]  # fmt: skip
    decays = [float(row.split(",")[8]) for row in rows]
    assert decays == [5e-6] * 3 + [0.0] * 3


def test_training_ends_with_the_table(trained):
    directory, out = trained
    table = out[out.index("| network") :]
    for name in ("teacher (real-valued)", "step 1 (binary activations)", "step 2 (binary)"):
        assert name in table
    assert ".tflite" in table
    assert str(directory) in table


def test_plain_lines_when_piped(trained):
    _, out = trained
    assert "\r" not in out
    assert "\x1b" not in out
    assert out.count("real-valued  epoch") == 3  # the teacher's
    assert out.count("step 1  epoch") == 3
    assert out.count("step 2  epoch") == 3


def test_evaluate_agrees_with_the_training_and_the_tflite_with_keras(trained, data_dir):
    directory, _ = trained
    last = (directory / "metrics.csv").read_text().splitlines()[-1].split(",")
    script = ROOT / "tests" / "small.py"
    keras = run("--mode=evaluate", f"--run={directory}", f"--data_dir={data_dir}", script=script)
    assert keras.returncode == 0, keras.stderr
    assert f"top-1 {100 * float(last[5]):.2f} %" in keras.stdout
    tflite = run(
        "--mode=evaluate",
        f"--run={directory}",
        f"--tflite={directory}/model.tflite",
        f"--data_dir={data_dir}",
        script=script,
    )
    assert tflite.returncode == 0, tflite.stderr
    top1 = [float(r.stdout.split("top-1 ")[1].split(" %")[0]) for r in (keras, tflite)]
    assert abs(top1[0] - top1[1]) <= 0.3
