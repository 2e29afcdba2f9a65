"""Runs that are killed, stopped, damaged or crowded out, as real processes."""

import csv
import hashlib
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from small import flags_of

from larq_adambnn import weights
from larq_adambnn.errors import UsageError
from larq_adambnn.runs import datasets, training
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run, locked

KILLS = 5
FEW = ("--train_images=256", "--batch_size=64", "--split=test[:64]")


@pytest.fixture(scope="module")
def start(server):
    """Starts a run of few images: start(output_dir, data_dir, *flags)."""
    return lambda *args, **kwargs: server.start(*flags_of(*args, *FEW), eager=True, **kwargs)


def rows(run):
    """metrics.csv without its two columns of time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def newest_checkpoint(run):
    return max((run / "checkpoints").glob("[0-9]*.npz"))


def state(run):
    """All arrays of the newest checkpoint but the time of the epoch."""
    with np.load(newest_checkpoint(run)) as file:
        return {name: file[name] for name in file if not name.endswith("/seconds")}


def assert_same_end(run, reference):
    assert rows(run) == rows(reference)
    received, expected = state(run), state(reference)
    assert received.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(received[name], expected[name], err_msg=name)
    best = "checkpoints/step2.best.weights.h5"
    assert (run / best).read_bytes() == (reference / best).read_bytes()


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory, data_dir):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    status, _, err = start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3").finish()
    assert status == 0, err
    return run


def test_killed_at_random_moments_ends_like_the_undisturbed_run(server, reference, tmp_path):
    """Traced, as a user's are, and by a flags.cfg, which is the same run in another directory."""
    flags_file = reference / "flags.cfg"
    assert f"--output_dir={reference}" in flags_file.read_text()

    def begin(run):
        return server.start(f"--flagfile={flags_file}", f"--output_dir={run}")

    reference = tmp_path / "undisturbed"
    status, _, err = begin(reference).finish()
    assert status == 0, err
    # From the first file to the last: without the imports, which `start` has behind it.
    begun, ended = ((reference / name).stat().st_mtime for name in ("flags.cfg", "report.md"))
    seconds = ended - begun
    moments, killed, run = random.Random(0), 0, tmp_path / "run"
    while killed < KILLS:
        process = begin(run)
        # Enough to come past the start of a process, little enough to need many.
        time.sleep(moments.uniform(0.1, 0.4) * seconds)
        process.kill()
        if process.status == 0:
            assert_same_end(run, reference)
            run = tmp_path / f"run{killed}"
        else:
            assert process.status == -signal.SIGKILL, process.err
            killed += 1
    status, _, err = begin(run).finish()
    assert status == 0, err
    assert_same_end(run, reference)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_saves_says_how_to_resume_and_resumes(
    start, number, status, data_dir, tmp_path
):
    flags = ("--loss=cross_entropy", "--epochs=200")
    run = tmp_path / "run"
    process = start(run, data_dir, *flags)
    process.wait_for("epoch 1/")
    process.send_signal(number)
    code, _, err = process.finish()
    assert code == status
    assert err.startswith("stopped at iteration ")
    assert err.rstrip().endswith("give the same command again to resume")
    assert err.count("\n") == 1
    step = int(err.split()[3].rstrip(";"))
    assert int(newest_checkpoint(run).name.split("-")[0]) == step

    process = start(run, data_dir, *flags)
    assert process.wait_for("resuming after").endswith(f"(iteration {step})")
    process.kill()


def test_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    start, reference, data_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "step2.weights.h5").unlink()  # as if killed just before its end
    newest = newest_checkpoint(run)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, out, err = start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3").finish()
    assert code == 0, err
    assert err.strip() == f"checkpoint {newest.name} is damaged; using the one before"
    assert "resuming after 3 of 4 epochs" in out
    assert_same_end(run, reference)


def test_killed_after_any_write_of_the_end_ends_like_the_undisturbed_run(start, data_dir, tmp_path):
    """A kill leaves what was written until then, which copies of the run show."""
    run, copies = tmp_path / "run", tmp_path / "copies"
    flags = ("--loss=cross_entropy", "--reload_best", "--validate_every=2")
    environment = {"COPIES_OF": str(run), "COPIES_IN": str(copies)}
    status, _, err = start(run, data_dir, *flags, environment=environment).finish()
    assert status == 0, err
    states = sorted(copies.iterdir())
    names = [state.name.split(" ")[1] for state in states]
    (end_of_step1,) = (i for i, name in enumerate(names) if name == "step1.weights.h5")
    last_epoch = max(i for i, name in enumerate(names) if name == "metrics.csv")
    assert names[last_epoch:] == [
        "metrics.csv",
        "step2.best.weights.h5",
        "step2_epoch0002.npz",
        "measurements.csv",
        "000000016.npz",
        "step2.weights.h5",
        "examination.json",
        "accuracy.png",
        "loss.png",
        "report.md",
        "report.html",
    ]
    for state in (states[end_of_step1], *(states[last_epoch + i] for i in (0, 1, 3, 4, 5))):
        status, _, err = start(state, data_dir, *flags).finish()
        assert status == 0, err
        assert_same_end(state, run)
        # The checkpoints' names are not the same, whose sums are of the seconds too.
        for path in (*run.glob("checkpoints/*.h5"), run / "measurements.csv"):
            assert (state / path.relative_to(run)).read_bytes() == path.read_bytes(), path
        for folder in ("checkpoints/snapshots", "plots", "."):
            expected = {path.name for path in (run / folder).iterdir()}
            assert {path.name for path in (state / folder).iterdir()} == expected


def test_damaged_final_weights_are_made_again_from_the_last_checkpoint(
    start, reference, data_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    path = run / "checkpoints" / "step2.weights.h5"
    expected = path.read_bytes()
    assert weights.is_whole(path)
    changed = expected[:3000] + b"?" + expected[3001:]
    for damaged in (b"", expected[:1000], expected[:-100], changed[:1000], changed):
        path.write_bytes(damaged)
        assert not weights.is_whole(path)
    code, out, err = start(run, data_dir, "--teacher=self", "--checkpoint_iterations=3").finish()
    assert code == 0, err
    assert err.startswith(f"{path} is damaged") and err.count("\n") == 1
    assert "resuming after 4 of 4 epochs" in out
    assert path.read_bytes() == expected


def test_finished_run_is_only_reported_again(start, reference, data_dir):
    before = rows(reference)
    code, out, err = start(reference, data_dir, "--teacher=self").finish()
    assert code == 0, err
    assert "epoch" not in out
    assert "step 2 (binary)" in out
    assert rows(reference) == before


def test_other_settings_in_the_same_directory_are_refused(start, reference, data_dir):
    before = (reference / "flags.cfg").read_bytes()
    code, _, err = start(reference, data_dir, "--teacher=self", "--epochs=3").finish()
    assert code == 2
    assert "--epochs" in err
    assert err.count("\n") == 1
    assert (reference / "flags.cfg").read_bytes() == before


def test_directory_with_something_else_is_refused(start, data_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = start(tmp_path, data_dir, "--loss=cross_entropy").finish()
    assert code == 2
    assert "--output_dir" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_process_on_a_run_is_refused_until_the_first_has_ended(start, reference, data_dir):
    with locked(Run(reference)):
        code, _, err = start(reference, data_dir, "--teacher=self").finish()
        assert code == 2
        assert "another process is working on" in err
    code, _, err = start(reference, data_dir, "--teacher=self").finish()
    assert code == 0, err


def test_full_disk_stops_the_run_with_the_last_good_checkpoint(start, data_dir, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=154k", "tmpfs", disk])
    assert mounted.returncode == 0, "this test mounts a small tmpfs and needs the right to"
    try:
        run = disk / "run"
        flags = ("--loss=cross_entropy", "--epochs=3")
        code, _, err = start(run, data_dir, *flags).finish()
        assert code == 2
        assert "no space left" in err
        assert err.count("\n") == 1
        kept = sorted((run / "checkpoints").glob("[0-9]*.npz"))
        assert kept, err
        assert (
            f"The last good checkpoint is at iteration {int(kept[-1].name.split('-')[0])}." in err
        )
        roomy = tmp_path / "roomy"
        shutil.copytree(run, roomy)
    finally:
        subprocess.run(["umount", disk], check=True)
    code, out, err = start(roomy, data_dir, *flags).finish()
    assert code == 0, err
    assert "resuming after" in out
    assert "damaged" not in err


def test_loss_that_is_not_finite_stops_the_run(start, data_dir, tmp_path):
    run = tmp_path / "run"
    flags = ("--loss=cross_entropy", "--optimizer=sgd", "--learning_rate=1e30")
    code, _, err = start(run, data_dir, *flags, "--checkpoint_iterations=1").finish()
    assert code == 2
    assert err.count("\n") == 1
    assert "expected a finite loss; received another at iteration " in err
    step = int(err.split("at iteration ")[1].split(".")[0])
    assert f"The last good checkpoint is at iteration {step - 1}." in err or "no checkpoint" in err
    assert "--learning_rate" in err
    for path in (run / "checkpoints").glob("[0-9]*.npz"):
        with np.load(path) as file:
            assert all(np.isfinite(file[name]).all() for name in file if "callback" not in name)


# The directory of a run, while it is trained


def removed(run, other):
    shutil.rmtree(run)


def moved(run, other):
    run.rename(run.with_name("moved"))


def begun_anew(run, other):
    shutil.rmtree(run)
    shutil.copytree(other, run)


@pytest.mark.parametrize("change", [removed, moved, begun_anew])
def test_a_run_whose_directory_is_another_stops_and_writes_nothing_there(
    change, start, reference, data_dir, tmp_path
):
    run = tmp_path / "run"
    flags = ("--loss=cross_entropy", "--epochs=200")
    process = start(run, data_dir, *flags)
    process.wait_until(lambda: list((run / "checkpoints").glob("0*.npz")))
    process.send_signal(signal.SIGSTOP)  # so that there is one thing at a time
    change(run, reference)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} if run.exists() else None
    process.send_signal(signal.SIGCONT)
    status, _, err = process.finish()
    assert status == 2, err
    assert err.startswith(f"error: --output_dir: expected {run} to stay the run that it was")
    assert err.count("\n") == 1
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} if run.exists() else None
    assert after == before
    if change is moved:
        process = start(tmp_path / "moved", data_dir, *flags)
        process.wait_for("resuming after")
        process.kill()


# Checkpoints and weights that are not what they should be


def rewritten(change):
    """The newest checkpoint with other content, and the sum of that in its name."""

    def damage(run):
        path = newest_checkpoint(run)
        with np.load(path) as file:
            state = dict(file)
        change(state)
        path.unlink()
        new = run / "checkpoints" / "new.npz"
        np.savez(new, **state)
        digest = hashlib.sha256(new.read_bytes()).hexdigest()[:32]
        return new.rename(path.with_name(f"{path.name.split('-')[0]}-{digest}.npz"))

    return damage


def flipped(run):
    path = newest_checkpoint(run)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def cut(run):
    path = newest_checkpoint(run)
    path.write_bytes(path.read_bytes()[:1000])
    return path


def set_to(name, value):
    return rewritten(lambda state: state.update({name: value(state[name])}))


def not_finite(array):
    return np.full_like(array, np.nan)


@pytest.fixture(scope="module")
def restored(reference, small_network):
    """restored(run) is the checkpoint of a copy of the reference after its model was restored."""
    dataset = datasets.load(load_run(reference))  # the same of each copy

    def restore(directory):
        settings, run = load_run(directory), Run(directory)
        model = training.compiled(settings, dataset, None)
        callbacks = training.run_callbacks(settings, run, dataset, (settings.epochs,) * 2)
        for callback in callbacks:
            callback.set_model(model)
        callbacks[-1].restore(model)
        return callbacks[-1]

    return restore


DAMAGES = {
    "flipped": (flipped, "is damaged"),
    "cut": (cut, "is damaged"),
    "no such weight": (rewritten(lambda state: state.pop("model/3")), "is of another training"),
    "no such metric": (rewritten(lambda state: state.pop("metric/0")), "is of another training"),
    "no such callback": (
        rewritten(lambda state: state.pop("callback/0/flips")),
        "is of another training (callback/0/flips)",
    ),
    "shape": (set_to("optimizer/5", lambda array: array[None]), "is of another training"),
    "type": (set_to("model/1", lambda array: array.astype(float)), "is of another training"),
    "not finite": (set_to("model/0", not_finite), "has weights that are not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_what_was_written_gives_way_to_the_one_before(
    damage, reference, restored, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    make, reason = DAMAGES[damage]
    path = make(run)
    (before,) = (p for p in (run / "checkpoints").glob("*.npz") if p != path)
    foreign = run / "checkpoints" / "000000099-abcdef (copy).npz"
    foreign.write_bytes(b"mine")
    checkpoint = restored(run)
    assert checkpoint.iteration == int(before.name.split("-")[0]) == 15
    err = capsys.readouterr().err
    assert err.startswith(f"checkpoint {path.name} {reason}")
    assert err.endswith("; using the one before\n") and err.count("\n") == 1
    assert path.with_suffix(".damaged").is_file()
    assert foreign.read_bytes() == b"mine"


@pytest.mark.parametrize("table", ["metrics.csv", "measurements.csv"])
def test_a_copy_of_a_training_goes_on_from_what_all_its_files_know(
    table, reference, restored, tmp_path, capsys
):
    """It has a checkpoint that is newer than its tables."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    lines = (run / table).read_text().splitlines()
    rows = [line for line in lines if not line.startswith("2,2,")]  # of the last epoch
    (run / table).write_text("\n".join(rows))
    assert restored(run).iteration == 15
    err = capsys.readouterr().err
    assert f"{run / table}: expected a row of each of the 4 epochs before checkpoint" in err
    assert err.endswith("; it has 3; using the one before\n")
    (run / table).write_text(lines[0])
    names = sorted((run / "checkpoints").iterdir())
    with pytest.raises(UsageError, match="the 3 epochs before checkpoint"):
        restored(run)
    assert sorted((run / "checkpoints").iterdir()) == names


def test_without_a_good_checkpoint_the_training_begins_anew(reference, restored, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for path in (run / "checkpoints").glob("*.npz"):
        path.write_bytes(b"no checkpoint")
    assert restored(run).iteration == 0
    assert capsys.readouterr().err.endswith("there is none before; the training begins anew\n")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(value, reference, restored, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    before = set((run / "checkpoints").iterdir())
    checkpoint = restored(run)
    checkpoint.on_train_begin()
    try:
        variable = checkpoint.model.student.trainable_variables[-1]
        variable.assign(np.where(np.arange(10) == 3, value, variable.numpy()))
        with pytest.raises(
            UsageError, match=r"not finite after iteration 16\..* at iteration 16\."
        ):
            checkpoint.on_epoch_end(3)
    finally:
        checkpoint.on_train_end()
    assert set((run / "checkpoints").iterdir()) == before
