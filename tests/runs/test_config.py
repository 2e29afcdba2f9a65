"""Flags: every shipped config, every check, one line for every mistake."""

import dataclasses
import pathlib
import random

import pytest

from larq_adambnn.errors import UsageError
from larq_adambnn.runs import teachers
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
    monkeypatch.chdir(tmp_path)  # flagfiles and tables of rates are found from anywhere
    weights = tmp_path / "resnet34.pth"
    weights.touch()
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
        assert (config.loss, config.teacher) == ("distribution", ("resnet34",))
        assert (config.crop, config.flip, config.lighting) == ("random_resized", True, 0.1)


def test_the_two_recipes_differ_in_the_recipe_alone():
    folder = CONFIGS[0].parent
    paper, best = (parse([f"--flagfile={folder}/recipe_{name}.cfg"]) for name in ("paper", "best"))
    settings = [dataclasses.asdict(config) for config in (paper, best)]
    differing = {name for name, value in settings[0].items() if settings[1][name] != value}
    assert differing <= {
        *("output_dir", "order", "epochs", "learning_rate", "schedule", "warmup"),
        *("activation_clip", "loss", "label_weight", "init_from"),
    }
    assert paper.epochs * len(paper.steps) == best.epochs * len(best.steps)
    looking = best.replace(attention=30)
    for recipe in (best, looking):
        assert teachers.own_config(paper, "teacher") == teachers.own_config(recipe, "teacher")
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    for name in (
        "schedule",
        "warmup",
        "activation_clip",
        "weight_clip",
        "optimizer",
        "gradient_floor",
        "silent_decay",
        "clip_norm",
        "loss",
        "init_from",
    ):
        assert settings[0][name] == defaults[name]
    assert paper.steps == ((True, False), (True, True)) and paper.weight_decay == (5e-6, 0.0)


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
    path = tmp_path / "copy.cfg"
    path.write_text("\n".join(config.lines()))
    assert parse([f"--flagfile={path}"]) == config
    assert config.devices == ("CPU:0", "CPU:1")


# What a line of a file cannot hold as it is, and what only looks so
NASTY = (
    " ",
    " blank before",
    "blank after ",
    "tab after\t",
    "two\nlines",
    "a\n--epochs=1",
    "end\r",
    "form\x0cfeed",
    "next\x85line",
    "line\u2028separator",
    "nul\0",
    "#no comment",
    "// no comment",
    "a,b",
    ",",
    '"',
    '"quoted"',
    '"a",b',
    '"open',
    "it's",
    "back\\slash",
    "\\n",
    "[1]",
    '["a"]',
    "[open",
    "--epochs=1",
    "=",
    "données/猫",
    "no-break\xa0",
    "file\udcff.png",
    "\ufeffmark",
    "x" * 3000,
)


def test_every_text_survives_flags_cfg(tmp_path, monkeypatch):
    monkeypatch.setattr("larq_adambnn.runs.config._check_values", lambda config: None)
    letters = "a \t\n\r\"',\\#[]=-\x85\u2028\udc80é\0"
    random_values = random.Random(0)
    values = [*NASTY, *("".join(random_values.choices(letters, k=6)) for _ in range(200))]
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Config)}
    texts = [name for name, kind in kinds.items() if kind is str and name != "output_dir"]
    numbers = ("weight_decay", "diode_momenta")
    lists = [name for name, kind in kinds.items() if kind is tuple and name not in numbers]
    for value in values:
        settings = dict.fromkeys(texts, value) | dict.fromkeys(lists, (value, "plain", value))
        config = Config(**settings, output_dir=str(tmp_path))
        (tmp_path / "flags.cfg").write_text("\n".join(config.lines()) + "\n", encoding="utf-8")
        assert load_run(tmp_path) == config, repr(value)


@pytest.mark.parametrize("value", NASTY)
def test_the_directory_of_a_run_may_have_any_name(value, tmp_path):
    config = Config(mode="summary", output_dir=value)
    path = tmp_path / "copy.cfg"
    path.write_text("\n".join(config.lines()), encoding="utf-8")
    assert parse([f"--flagfile={path}"]) == config


def test_ordinary_lines_are_plain(tmp_path):
    config = Config(
        output_dir="runs/a b#c",
        data_dir="données",
        init_from='C:\\"x"',
        teacher=("self", "runs/a b"),
        split="train[90%:]",
        devices=("GPU:0", "GPU:1"),
        weight_decay=(1e-5, 0.0),
        flip=False,
    )
    expected = {
        "--output_dir=runs/a b#c",
        "--data_dir=données",
        '--init_from=C:\\"x"',
        "--teacher=self,runs/a b",
        "--split=train[90%:]",
        "--devices=GPU:0,GPU:1",
        "--weight_decay=1e-05,0.0",
        "--flip=False",
        "--images=",
        "--epochs=256",
    }
    assert expected <= set(config.lines())


def test_lists_are_rows_of_a_csv_file_or_json():
    for text in ('"a,b", c', '["a,b", "c"]'):
        assert parse(["--mode=summary", f"--devices={text}"]).devices == ("a,b", "c")


def test_quotation_marks_of_a_command_line_stay():
    assert parse(["--mode=summary", '--output_dir="x"']).output_dir == '"x"'


@pytest.mark.parametrize("name", ["images", "compare", "devices"])
@pytest.mark.parametrize("text", ["a.png,", ",a.png", "a.png,,b.png", ",", "a.png, ", '""'])
def test_empty_items_are_refused(name, text):
    with pytest.raises(UsageError, match=f"--{name}: expected no empty item"):
        parse(["--mode=summary", f"--{name}={text}"])


def test_former_names_still_parse(tmp_path):
    (tmp_path / "flags.cfg").write_text("--checkpoint_steps=7\n")
    assert load_run(tmp_path).checkpoint_iterations == 7
    arguments = ["--mode=summary", "--checkpoint_iterations=5", "--checkpoint_steps=6"]
    assert parse(arguments).checkpoint_iterations == 6
    assert parse([*arguments, "--checkpoint_iterations=8"]).checkpoint_iterations == 8
    with pytest.raises(UsageError, match=r"^--checkpoint_iterations: .* received 'x'$"):
        parse(["--checkpoint_steps=x"])


@pytest.mark.parametrize("name", ["quickstart", "quickstart.cfg"])
def test_shipped_configs_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.cfg").write_text("--nosuchflag=1\n")  # not the one beside quickstart.cfg
    config = parse([f"--flagfile={name}"])
    assert config == parse([f"--flagfile={CONFIGS[0].parent}/quickstart.cfg"])
    assert config.output_dir == "runs/quickstart"


def test_what_comes_with_the_package_is_the_same_from_anywhere(tmp_path, monkeypatch):
    """In a checkout and elsewhere, and in the flags.cfg of a run."""
    flags = ["--mode=summary", "--sweep=docs/studies/study_learning_rate.csv"]
    flags += ["--init_from=pretrained/digits"]
    monkeypatch.chdir(CONFIGS[0].parents[1])
    there = parse(flags)
    monkeypatch.chdir(tmp_path)
    elsewhere = parse(flags)
    assert there == elsewhere and there.sweep_file.is_file()
    assert set(flags[1:]) <= set(there.lines())
    (tmp_path / "flags.cfg").write_text("\n".join(there.lines()))
    assert load_run(tmp_path, output_dir="") == there
    own = tmp_path / "docs/studies/study_learning_rate.csv"
    own.parent.mkdir(parents=True)
    own.touch()
    assert parse(flags).sweep == flags[1].split("=")[1]


def test_a_file_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # no file
    assert parse(["--flagfile=quickstart"]).epochs == 16
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("--mode=summary\n--epochs=3\n")
    assert parse(["--flagfile=quickstart"]).epochs == 3


def test_a_config_of_ones_own_may_name_a_shipped_one(tmp_path):
    (tmp_path / "mine.cfg").write_text("--flagfile=quickstart\n--epochs=3\n")
    config = parse([f"--flagfile={tmp_path}/mine.cfg"])
    assert (config.epochs, config.dataset) == (3, "digits")


@pytest.mark.parametrize("arguments", [["--flagfile=nosuch"], ["--flagfile"], ["--flagfile="]])
def test_a_flagfile_that_is_nowhere_is_refused_with_the_shipped_names(arguments):
    with pytest.raises(UsageError, match=r"--flagfile: .* cifar10, .*quickstart.*; received '"):
        parse(arguments)


def test_a_flagfile_that_is_no_text_is_refused_with_its_name(tmp_path, monkeypatch):
    path = tmp_path / "flags.cfg"
    path.write_bytes(b"--epochs=3\n--output_dir=\xff\n")
    for read in (lambda: parse([f"--flagfile={path}"]), lambda: load_run(tmp_path)):
        with pytest.raises(UsageError, match=f"^{path}: expected .* UTF-8"):
            read()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    with pytest.raises(UsageError, match=f"^{path}: expected .*; Permission denied"):
        load_run(tmp_path)


def test_an_unknown_flag_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"^--epoch: expected a flag .*--epochs\?.*'--epoch=3'$"):
        parse(["--epoch=3"])


def test_a_flag_with_a_value_too_few_or_too_many():
    for argument in ("--mode", "-mode"):
        with pytest.raises(UsageError, match=r"^--mode: expected a value, .*; received none$"):
            parse(["--epochs=3", argument])
    with pytest.raises(UsageError, match=r"^--noflip: .* without a value; received '--noflip=no'$"):
        parse(["--noflip=no"])


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
        ("progressive", ((True, True),)),
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
        "--schedule=step",
        "--warmup=1",
        "--clip_norm=-1",
        "--activation_clip=0",
        "--weight_clip=nan",
        "--gradient_floor=-1",
        "--silent_decay=-1e-3",
        "--silent_iterations=0",
        "--diode_momenta=0.9",
        "--diode_momenta=0.9,1",
        "--label_smoothing=0.1",
        "--step2_teacher=step2",
        "--attention=-1",
        "--seed=-1",
        "--pad_values=2",
        "--lighting=-0.1",
        "--teacher=/no/such/run",
        "--flagfile=/no/such/file.cfg",
        "--run=/no/such/run",
        "--tflite=/no/such/file.tflite",
        "--flip=perhaps",
        "--noflip=1",
        '--images="a',
        "--epochs",
        f"--run={'x' * 600}",
        f"--flagfile={'x' * 600}",
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
        (["--mode=train"], "--output_dir"),
        (["--output_dir=x", "stray"], "stray"),
        (["--output_dir=x", "--teacher=resnet34"], "--teacher_weights"),
        (["--output_dir=x", "--init_from=teacher", "--teacher=/gone"], "--init_from"),
        (["--output_dir=x", "--init_from=teacher", "--loss=cross_entropy"], "--init_from"),
        (["--output_dir=x", "--teacher=ResNet50"], "--teacher_weights"),
        (["--output_dir=x", "--teacher=NoSuchNet"], "--teacher: expected self, resnet34, a run"),
        (["--output_dir=x", "--teacher=resnet34", "--teacher_weights=gone"], "--teacher_weights"),
        (["--output_dir=x", "--teacher="], "--teacher: expected self"),
        (["--output_dir=x", "--teacher=self,gone"], "received 'gone'"),
        (["--output_dir=x", "--teacher=self,,self"], "--teacher: expected no empty item"),
        (
            ["--output_dir=x", "--teacher=VGG16,self,VGG16", "--teacher_weights=imagenet,imagenet"],
            "--teacher: expected each but self once; received 'VGG16,self,VGG16'",
        ),
        (
            ["--output_dir=x", "--teacher=VGG16,self,VGG19", "--teacher_weights=imagenet"],
            "--teacher_weights: expected the file of VGG16,VGG19's weights, one for each",
        ),
        (
            ["--output_dir=x", "--teacher=VGG16,self", "--init_from=teacher"],
            "--init_from: expected a --teacher that is self",
        ),
        (["--output_dir=x", "--teacher=self", "--model=QuickNet", "--width=0.5"], "--model"),
        (["--output_dir=x", "--teacher=self", "--model=QuickNet", "--weight_clip=2"], "--weight_c"),
        (["--output_dir=x", "--teacher=self", "--model=resnet34"], "--order"),
        (
            ["--mode=summary", "--step2_teacher=step1", "--order=one_step"],
            "--step2_teacher: expected two steps",
        ),
        (
            ["--mode=summary", "--attention=30", "--loss=cross_entropy"],
            "--attention: expected --loss=distribution",
        ),
        (
            ["--mode=summary", "--attention=30", "--teacher=self,VGG16"],
            "--attention: expected one --teacher with it; received self,VGG16",
        ),
        (
            ["--mode=summary", "--model=QuickNet", "--order=progressive"],
            "--order: expected another",
        ),
        (["--output_dir=x", "--teacher=self", "--model=DoReFaNet"], "have 2 bits"),
        (
            ["--output_dir=x", "--teacher=self", "--sync_batch_norm", "--microbatches=2"],
            "--sync_batch_norm",
        ),
        (["--mode=evaluate"], "--run"),
        (["--mode=export"], "--run"),
        (["--output_dir=x", "--teacher=self", "--study=order"], "--study: expected --mode=study"),
        (["--output_dir=x", "--teacher=self", "--rows=a,b"], "--rows: .* received 'a,b'"),
        (["--mode=study", "--study=order", "--output_dir=x"], "--held_out: expected above 0"),
        (["--mode=study", "--study=foo"], "^--study: expected one of optimizers, .*; received 'f"),
    ],
)
def test_wrong_combinations_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        parse(flags)


def test_run_that_another_version_wrote_is_refused_in_one_line(tmp_path):
    (tmp_path / "flags.cfg").write_text("--no_longer_a_flag=1\n")
    with pytest.raises(UsageError, match="no_longer_a_flag"):
        load_run(tmp_path)


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse(["--output_dir=~/a", "--data_dir=~", "--teacher=self"])
    assert (config.output_dir, config.data_dir) == (f"{tmp_path}/a", str(tmp_path))
    flags = ["--mode=predict", f"--run={tmp_path}", "--images=~/b.png,c.png"]
    with pytest.raises(UsageError, match=r"--run: expected a run directory"):
        parse(flags)
    (tmp_path / "flags.cfg").touch()
    assert parse(flags).images == (f"{tmp_path}/b.png", "c.png")


def test_a_value_in_a_damaged_flags_file_is_checked(tmp_path):
    for line in ("--order=a,b", "--width=nan", "--epochs=0"):
        (tmp_path / "flags.cfg").write_text(line)
        with pytest.raises(UsageError, match=f"{tmp_path}/flags.cfg: {line.split('=')[0]}: "):
            load_run(tmp_path)
