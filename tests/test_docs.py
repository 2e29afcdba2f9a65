"""The documents: every program and every command in them runs, or says why it does not."""

import collections
import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys

import documents
import exports
import numpy as np
import photographs
import pytest
import small

import larq_adambnn
from larq_adambnn import checkpoints, export, models
from larq_adambnn.export import description
from larq_adambnn.runs import config

NAVIGATION = (documents.ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "pretrained/README.md",
    *(f"docs/{page}" for page in re.findall(r": (\S+\.md)$", NAVIGATION, re.M)),
]
PROGRAMS = [
    "docs/guides/fit.md",
    "docs/guides/checkpoints.md",
    "docs/design.md",
    "pretrained/README.md",
]
# In this order, in one folder; and how many
NEWCOMER = {"README.md": 4, "docs/guides/images.md": 3}
COMMANDS = {
    "docs/get_started.md": 10,
    "docs/guides/resume.md": 2,
    "docs/device_times.md": 2,
    "pretrained/README.md": 2,
}
ELSEWHERE = {"docs/deploy.md": "test_deploy.py", "docs/guides/networks.md": "test_own_network.py"}
SHORT = ("--epochs=1", "--batch_size=32", "--image_size=32", "--loss=cross_entropy")
SHORT += ("--init_from=",)  # which needs a teacher
FIT = documents.programs("docs/guides/fit.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for block in documents.blocks(page):
        assert block.language, f"expected a fence with a language: {block.text}"
        pages = {"python": [*PROGRAMS, "README.md"], "bash": [*NEWCOMER, *COMMANDS]}
        runs_here = pages.get(block.language, ())
        if not block.reason and block.language != "text" and page not in ELSEWHERE:
            assert page in runs_here, block.text
        if block.language == "bash":
            for words in documents.command_lines(block.text):
                if words[:2] == ["python", "main.py"]:  # its flags and its config exist
                    config._read([word for word in words[2:] if not word.startswith("--flagfile")])
                    for file in re.findall(r"--flagfile=(configs/\S+)", block.text):
                        assert (documents.ROOT / file).is_file(), file
    if page == "README.md":
        assert documents.programs(page) == FIT[:1]


def test_the_navigation_names_pages():
    for page in PAGES:
        assert (documents.ROOT / page).is_file(), page


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    """Where the commands run one after the other, with small networks and photographs."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "configs").symlink_to(documents.ROOT / "configs")
    for number, image in enumerate(photographs.crops(50)):
        name = photographs.NAMES[number % 2]
        path = folder / "photos" / ("val" if number < 8 else "train") / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((40, 40)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("reactnet_a", "reactnet18"):
            patch.setitem(models._NETWORKS, name, small.network)
        yield folder


def run_commands(page, data_dir):
    images = ["--check_images=8"]
    return documents.run_commands(
        page, first=[f"--data_dir={data_dir}"], training=[*SHORT, *images], others=images
    )


@pytest.fixture(scope="module")
def newcomer(folder, data_dir):
    """What the commands of a newcomer's pages print, and how many there are by page."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        counts = {page: run_commands(page, data_dir) for page in NEWCOMER}
    return out.getvalue(), counts


def test_a_newcomers_path(newcomer, folder, browser):
    """From an empty folder to a network of one's own photographs, in fewer than ten commands."""
    out, counts = newcomer
    assert counts == NEWCOMER
    installing = [b for b in documents.blocks("README.md") if b.reason == "installs packages"]
    assert sum(counts.values()) + sum(len(documents.command_lines(b.text)) for b in installing) < 10
    files = [str(path.relative_to(folder)) for path in folder.glob("photos/*/*/*")]
    predicted = collections.Counter(out.splitlines())
    assert len(files) == 50
    assert all(predicted[file] == (3 if file.startswith("photos/val/") else 2) for file in files)
    for name in ("quickstart", "image_folder"):
        run = folder / "runs" / name
        exported = description.read(run / "export.json")
        assert exported.check.passed and (run / exported.file).is_file()
        assert f"Everything is in runs/{name}; begin with report.html." in out
        browser.open(run / "report.html")
        assert browser.messages() == []
        assert "check passed" in browser.texts("#export .badge")
        assert len(browser.texts(".drawn h3")) == 5
    assert exported.class_names == sorted(photographs.NAMES)


@pytest.mark.parametrize("page", COMMANDS)
def test_commands(page, newcomer, data_dir):
    assert run_commands(page, data_dir) == COMMANDS[page]


def run(program, folder, monkeypatch):
    """The names that a program leaves."""
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(program, program.splitlines()[0], "exec"), names)
    return names


def test_two_steps_in_one_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "reactnet_a", small.network)  # which is traced in seconds
    names = run(FIT[0], tmp_path, monkeypatch)
    assert larq_adambnn.binarization(names["model"]) == (True, True)
    assert len(names["model"].history.epoch) == 4


def test_a_notebook(tmp_path, monkeypatch, data_dir, capsys):
    load = larq_adambnn.data.load
    monkeypatch.setattr(larq_adambnn.data, "load", lambda name, **kw: load(name, data_dir, **kw))
    monkeypatch.setitem(models._NETWORKS, "reactnet_a", exports.tiny)
    names = run(FIT[1], tmp_path, monkeypatch)
    assert len(FIT[1].splitlines()) <= 30
    assert larq_adambnn.binarization(names["model"]) == (True, True)
    found = description.read(tmp_path / "digits.json")
    assert found == names["exported"].description
    assert found.binary_convolutions.converted == 2
    assert description.find(tmp_path / "digits.tflite", names["exported"].tflite) == found
    assert names["exported"].report.failures == (), capsys.readouterr().out
    accuracy = larq_adambnn.inference.evaluate(names["exported"].tflite, names["digits"])
    assert accuracy.images == 360
    images, labels = names["digits"].examples(360)
    right = names["model"].predict(images, verbose=0).argmax(-1) == labels
    assert accuracy.top1 == pytest.approx(np.mean(right), abs=0.02)


def test_published_checkpoints(tmp_path, monkeypatch):
    tiny = functools.partial(models.reactnet_a, (32, 32, 3), 10, 0.05)
    trained = tiny()
    checkpoints.save_torch(trained, tmp_path / "checkpoint.pth.tar")
    monkeypatch.setattr(models, "reactnet_a", tiny)
    (program,) = documents.programs("docs/guides/checkpoints.md")
    names = run(program, tmp_path, monkeypatch)
    for ours, theirs in zip(names["model"].weights, trained.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "copy.pth.tar").is_file()


def test_pretrained_networks(tmp_path, monkeypatch, capsys):
    next(photographs.crops(1)).save(tmp_path / "image.png")
    (program,) = documents.programs("pretrained/README.md")
    names = run(program, tmp_path, monkeypatch)
    assert len(names["class_names"]) == 10
    assert "Guess(name=" in capsys.readouterr().out


def test_conversion_without_the_python_of_lce(monkeypatch):
    """What docs/design.md would do gives the same bytes, in a process without TensorFlow."""
    (program,) = documents.programs("docs/design.md")
    program += (
        "import sys\nsys.stdout.buffer.write(convert_saved_model(sys.argv[1]))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    module = importlib.import_module("larq_adambnn.export.convert")  # export.convert is a function
    usual, compared = module._convert_saved_model, []

    def both(folder, io_type):
        compared.append(usual(folder, io_type))
        command = [sys.executable, "-c", program, folder]
        other = subprocess.run(command, capture_output=True, check=True, timeout=300)
        assert other.stdout == compared[0]
        return compared[0]

    monkeypatch.setattr(module, "_convert_saved_model", both)
    export.convert(small.network((32, 32, 1), 10))
    assert len(compared) == 1


def test_commands_are_split_as_a_shell_does():
    text = 'python main.py --a="b c" \\\n  --d  # why\n'
    assert documents.command_lines(text) == [shlex.split("python main.py '--a=b c' --d")]
