"""main.py as a user types it: the modes, and mistakes in one line with nothing written."""

import os
import pathlib
import subprocess
import sys

import PIL.Image
import pytest
import small

import main

ROOT = pathlib.Path(__file__).parents[1]


def run(*flags, **kwargs):
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def test_the_garbage_collector_leaves_out_what_is_imported():
    code = (
        "import gc, sys; from larq_adambnn.commands import main; before = gc.get_freeze_count();"
        "status = main(sys.argv[1:]);"
        "print(status, gc.isenabled(), gc.get_freeze_count() - before > 100_000)"
    )
    command = [sys.executable, "-c", code, "--mode=summary", "--dataset=nowhere"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert found.stdout == "2 True True\n", found.stderr


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
def test_mistakes_give_one_line_a_status_and_no_files(flags, expected, server, tmp_path, data_dir):
    process = server.start(*flags, f"--data_dir={data_dir}", cwd=tmp_path)
    status, _, err = process.finish()
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "--mode=evaluate", "--run=nowhere", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_help_lists_the_flags():
    result = run("--help")
    assert result.returncode == 0
    assert "--weight_decay" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("value", ["x" * 600, "x y" * 200, "x'" * 300, "x' y\"" * 120])
def test_long_values_are_cut_in_messages(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--mode=evaluate", f"--run={value}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --run: expected a run directory (with flags.cfg);")
    assert "..." in err
    assert len(err) < 250


def test_network_of_larq_zoo_without_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "larq_zoo", None)
    assert main.main(["--mode=summary", "--model=QuickNet"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert 'pip install "larq_adambnn[zoo]"' in err


SMALL = ROOT / "tests" / "small.py"


def piped(reader, *flags, program=SMALL, unbuffered=""):
    """(status, output, errors) of main.py before a command of the shell."""
    command = f'"$0" "$@" | {reader}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", command, sys.executable, program, *flags],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        timeout=300,
    )
    return result.returncode, result.stdout, result.stderr.decode()


SUMMARY = ("--mode=summary", "--model=reactnet18", "--dataset=digits", "--image_size=32")


@pytest.mark.parametrize(
    ("program", "flags", "unbuffered"),
    [
        (ROOT / "main.py", ("--help",), ""),
        (ROOT / "main.py", ("--help",), "1"),
        (SMALL, SUMMARY, "1"),  # predictions, below, are buffered
    ],
    ids=["help", "help unbuffered", "summary unbuffered"],
)
def test_output_survives_a_reader_that_stops(program, flags, unbuffered):
    status, out, err = piped("head -3", *flags, program=program, unbuffered=unbuffered)
    assert status in (0, 141)  # all was written before, or the reader was gone
    assert (out.count(b"\n"), err) == (3, "")


def test_output_without_a_reader_ends_as_in_other_programs():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, ROOT / "main.py", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory, data_dir):
    """A run with its .tflite, and what its training printed."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    flags = [flag for flag in small.FLAGS if flag != "--noexport"]
    places = (f"--data_dir={data_dir}", f"--output_dir={directory}")
    status, out, err = server.start(*flags, "--teacher=self", "--epochs=3", *places).finish()
    assert status == 0, err
    return directory, out


def test_training_writes_the_run_directory(trained):
    directory, _ = trained
    for name in (
        "flags.cfg",
        "metrics.csv",
        "model.tflite",
        "export.json",
        "report.md",
        "report.html",
        "examination.json",
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


def test_evaluate_agrees_with_the_training_and_the_tflite_with_keras(trained, server, data_dir):
    directory, _ = trained
    last = (directory / "metrics.csv").read_text().splitlines()[-1].split(",")
    flags = ("--mode=evaluate", f"--run={directory}", f"--data_dir={data_dir}")
    printed = []
    for more in ([], [f"--tflite={directory}/model.tflite"]):
        status, out, err = server.start(*flags, *more).finish()
        assert status == 0, err
        printed.append(out)
    assert f"top-1 {100 * float(last[5]):.2f} %" in printed[0]
    top1 = [float(out.split("top-1 ")[1].split(" %")[0]) for out in printed]
    assert abs(top1[0] - top1[1]) <= 0.3


def test_predictions_survive_a_reader_that_stops(trained, tmp_path, data_dir):
    directory, _ = trained
    for name in ("first.png", "second.png"):
        PIL.Image.new("L", (8, 8)).save(tmp_path / name)
    flags = ("--mode=predict", f"--run={directory}", f"--images={tmp_path}")
    status, out, err = piped("head -1", *flags, f"--data_dir={data_dir}")
    assert status in (0, 141)
    assert out.count(b"\n") == 1
    assert err.startswith("devices: ") and err.count("\n") == 1
