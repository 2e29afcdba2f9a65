"""Flags: every shipped config, every check, one line for every mistake."""

import dataclasses
import pathlib

import pytest

from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import Config, load_run, parse

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.cfg"))


@pytest.fixture
def teacher(tmp_path):
    """A directory that looks like a run."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "flags.cfg").write_text("")
    return str(tmp_path / "teacher")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # flagfiles are found from anywhere
    weights = tmp_path / "resnet34.pth"
    weights.touch()
    sweep = tmp_path / "runs" / "study_learning_rate" / "study.csv"
    sweep.parent.mkdir(parents=True)
    sweep.touch()
    flags = ["--output_dir=run", f"--teacher_weights={weights}", f"--data_dir={tmp_path}"]
    config = parse([f"--flagfile={path}", *flags])
    assert isinstance(config, Config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_says_what_it_is(path):
    header = path.read_text().split("\n--")[0]
    assert header.startswith("# ")
    if not path.stem.endswith("base"):
        assert f"python main.py --flagfile=configs/{path.name}" in header


def test_imagenet_configs_are_the_papers(tmp_path):
    weights = tmp_path / "resnet34.pth"
    weights.touch()
    folder = CONFIGS[0].parent
    for name in ("reactnet_a", "reactnet18"):
        config = parse([f"--flagfile={folder}/imagenet_{name}.cfg", f"--teacher_weights={weights}"])
        assert (config.model, config.width, config.image_size) == (name, 1.0, 224)
        assert (config.epochs, config.batch_size, config.learning_rate) == (256, 256, 1.25e-3)
        assert (config.optimizer, config.weight_decay) == ("adam", (5e-6, 0.0))
        assert config.steps == ((True, False), (True, True))
        assert (config.loss, config.teacher) == ("distribution", "resnet34")
        assert (config.crop, config.flip, config.lighting) == ("random_resized", True, 0.1)


def test_lines_of_a_config_parse_to_the_same_config(tmp_path, teacher):
    config = parse(
        [
            "--output_dir=x",
            f"--teacher={teacher}",
            "--weight_decay=1e-5,-0.0001",
            "--noflip",
            "--devices=CPU:0,CPU:1",
            "--learning_rate=0.1",
        ]
    )
    path = tmp_path / "flags.cfg"
    path.write_text("\n".join(config.lines()))
    assert parse([f"--flagfile={path}"]) == config
    assert config.devices == ("CPU:0", "CPU:1")


def test_every_setting_has_a_help_text_and_a_flag():
    text = parse(["--help"])
    for field in dataclasses.fields(Config):
        assert f"--{'[no]' if isinstance(field.default, bool) else ''}{field.name}" in text
        assert field.metadata["help"].endswith(".")


def test_later_flags_win_over_flagfiles(tmp_path):
    path = tmp_path / "a.cfg"
    path.write_text("# comment\n\n--epochs=7\n--seed=3\n")
    config = parse(["--mode=summary", f"--flagfile={path}", "--epochs=9"])
    assert (config.epochs, config.seed) == (9, 3)


def test_flagfiles_include_others_beside_them(tmp_path):
    (tmp_path / "base.cfg").write_text("--epochs=7\n--seed=3\n")
    (tmp_path / "run.cfg").write_text("--flagfile=base.cfg\n--epochs=8\n")
    config = parse(["--mode=summary", f"--flagfile={tmp_path}/run.cfg"])
    assert (config.epochs, config.seed) == (8, 3)


def test_flagfile_that_includes_itself_is_refused(tmp_path):
    (tmp_path / "run.cfg").write_text("--flagfile=run.cfg\n")
    with pytest.raises(UsageError, match="includes itself"):
        parse([f"--flagfile={tmp_path}/run.cfg"])


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        ("activations_first", ((True, False), (True, True))),
        ("weights_first", ((False, True), (True, True))),
        ("one_step", ((True, True),)),
        ("real_valued", ((False, False),)),
    ],
)
def test_order_names_what_is_binary(order, steps):
    assert parse(["--mode=summary", f"--order={order}"]).steps == steps


@pytest.mark.parametrize(
    "flag",
    [
        "--nosuchflag=1",
        "--epochs=0",
        "--epochs=many",
        "--width=0",
        "--width=nan",
        "--image_size=31",
        "--learning_rate=-1",
        "--learning_rate=inf",
        "--weight_decay=1e-5",
        "--weight_decay=a,b",
        "--weight_decay=1e-5,nan",
        "--order=sideways",
        "--mode=dance",
        "--model=lenet",
        "--optimizer=lion",
        "--precision=float8",
        "--strategy=magic",
        "--microbatches=3",
        "--ema=1",
        "--seed=-1",
        "--pad_values=2",
        "--lighting=-0.1",
        "--teacher=/no/such/run",
        "--flagfile=/no/such/file.cfg",
        "--run=/no/such/run",
        "--tflite=/no/such/file.tflite",
        "--flip=perhaps",
    ],
)
def test_wrong_flags_name_themselves_and_what_was_expected(flag):
    with pytest.raises(UsageError) as caught:
        parse(["--output_dir=x", "--teacher=self", "--batch_size=64", flag])
    message = str(caught.value)
    assert "\n" not in message
    assert flag.split("=")[0].lstrip("-") in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output_dir"),
        (["--output_dir=x", "stray"], "stray"),
        (["--output_dir=x", "--teacher=resnet34"], "--teacher_weights"),
        (["--output_dir=x", "--teacher=ResNet50"], "--teacher_weights"),
        (["--output_dir=x", "--teacher=resnet34", "--teacher_weights=gone"], "--teacher_weights"),
        (["--output_dir=x", "--teacher=self", "--model=QuickNet", "--width=0.5"], "--model"),
        (["--output_dir=x", "--teacher=self", "--model=resnet34"], "--order"),
        (
            ["--output_dir=x", "--teacher=self", "--sync_batch_norm", "--microbatches=2"],
            "--sync_batch_norm",
        ),
        (["--mode=evaluate"], "--run"),
        (["--mode=export"], "--run"),
    ],
)
def test_wrong_combinations_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        parse(flags)


def test_run_that_another_version_wrote_is_refused_in_one_line(tmp_path):
    (tmp_path / "flags.cfg").write_text("--no_longer_a_flag=1\n")
    with pytest.raises(UsageError, match="no_longer_a_flag"):
        load_run(tmp_path)
