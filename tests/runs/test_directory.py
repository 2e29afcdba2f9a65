"""A run belongs to one process, which notices when its directory is another's."""

import shutil

import pytest

from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import Config
from larq_adambnn.runs.directory import Run, locked, open_run


def config(directory, **changes):
    return Config(output_dir=str(directory), dataset="digits", **changes)


def files(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def removed(directory):
    shutil.rmtree(directory)


def moved(directory):
    directory.rename(directory.with_name("moved"))


def a_file(directory):
    shutil.rmtree(directory)
    directory.touch()


def another_run(directory):
    shutil.rmtree(directory)
    with open_run(config(directory, seed=1)):
        pass


def the_same_run_again(directory):
    shutil.rmtree(directory)
    with open_run(config(directory)):
        pass


def other_flags(directory):
    with (directory / "flags.cfg").open("a") as file:
        file.write("--seed=1\n")


CHANGES = [removed, moved, a_file, another_run, the_same_run_again, other_flags]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_written_once_the_directory_is_another(change, when, tmp_path):
    directory = tmp_path / "run"
    with open_run(config(directory)) as run:
        with run.replace(run.report) as path:
            path.write_text("mine")
        if when == "before":
            change(directory)
            before = files(tmp_path)
        with (
            pytest.raises(UsageError, match=f"^--output_dir: expected {directory} to stay"),
            run.replace(run.weights(1)) as path,
        ):
            assert when == "meanwhile"
            path.write_text("half")
            change(directory)
            before = {p: c for p, c in files(tmp_path).items() if c != b"half"}
            if path.parent.exists():
                path.write_text("whole")
        with pytest.raises(UsageError, match="to stay"):
            run.check()
    after = files(tmp_path)
    assert after.keys() - before.keys() <= {p for p in after if ".tmp-" in p.name}
    assert {path: after[path] for path in before} == before
    assert when == "meanwhile" or after == before
    if change is moved:
        with open_run(config(tmp_path / "moved")) as run:
            assert run.report.read_text() == "mine"
        assert not list((tmp_path / "moved").rglob(".tmp-*"))


def test_a_run_that_stays_can_be_written_again_and_again(tmp_path):
    for _ in range(2):
        with open_run(config(tmp_path / "run")) as run:
            moved(run.directory)
            (tmp_path / "moved").rename(run.directory)
            run.check()
    with locked(run):
        run.check()
        with pytest.raises(UsageError, match="another process"), locked(Run(run.directory)):
            pass


@pytest.mark.parametrize(
    "left_over",
    [".lock", ".flags.cfg", ".tmp-0123abcd-flags.cfg", ".tmp-ffffffff-step2.weights.h5"],
)
def test_what_a_killed_start_left_is_no_other_run(left_over, tmp_path):
    (tmp_path / left_over).write_text("half")
    with open_run(config(tmp_path)) as run:
        assert run.flags.read_text().count("--output_dir=") == 1
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", [".tmp-notes", "x.tmp-0123abcd-y", ".tmp-0123abcd-", "a.txt"])
def test_files_of_others_stay_and_make_a_directory_anothers(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds something else"), open_run(config(tmp_path)):
        pass
    (tmp_path / "flags.cfg").write_text("\n".join(config(tmp_path).lines()))
    with open_run(config(tmp_path)):
        assert (tmp_path / name).read_text() == "mine"


def test_two_starts_at_the_same_moment(tmp_path, monkeypatch):
    """The second saw an empty directory before the first wrote its flags, and waits for no lock."""
    mkdir = type(tmp_path).mkdir

    def overtaken(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        monkeypatch.undo()
        with open_run(config(tmp_path / "run", seed=1)):
            pass

    monkeypatch.setattr(type(tmp_path), "mkdir", overtaken)
    with (
        pytest.raises(UsageError, match="holds a run with --seed=1"),
        open_run(config(tmp_path / "run")),
    ):
        pass


ROW = "step,epoch,loss,accuracy,val_loss,val_accuracy,seconds\n1,1,2,0.5,2,0.5,3\n"


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", ROW.replace("0.5", "half"), ROW + "1,2\n", ROW + "\udcff"]
)
def test_metrics_that_are_none_are_named(content, tmp_path):
    run = Run(tmp_path)
    run.metrics.write_text(ROW)
    assert run.read_metrics()[0]["val_accuracy"] == 0.5
    run.metrics.write_text(content, errors="surrogateescape")
    with pytest.raises(UsageError, match=f"^{run.metrics}: expected"):
        run.read_metrics()


def test_devices_are_kept_in_the_order_in_which_they_trained(tmp_path):
    run = Run(tmp_path)
    assert run.read_devices() == []
    for line in ("CPU (2 cores)", "CPU (2 cores)", "GPU:0 (NVIDIA A100)", "CPU (2 cores)"):
        run.add_devices(line)
    assert run.read_devices() == ["CPU (2 cores)", "GPU:0 (NVIDIA A100)", "CPU (2 cores)"]
