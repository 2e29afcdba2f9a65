"""Importing the package: Keras 2 is selected, or the error says what to do."""

import ast
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings the same
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(code, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


CHECK = (
    "import larq_adambnn.layers, larq; assert tf.keras.Model.__module__.startswith('tf_keras'); "
    "assert larq_adambnn.layers.Shift()(tf.zeros([1, 2])).shape == (1, 2); print('works')"
)
# Runs each argument in a process of its own, which begins after an import that takes seconds.
FORKS = """
import os, sys
import tensorflow as tf
for code in sys.argv[1:]:
    if os.fork() == 0:
        exec(code)
        sys.exit()
    os.wait()
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import larq_adambnn; import tensorflow as tf",
        "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import tensorflow as tf; "
        "tf.keras.Model; import larq_adambnn",
    ],
)
def test_keras_2_is_selected(imports):
    result = python(f"{imports}; {CHECK}")
    assert result.stdout.strip() == "works", result.stderr


def test_keras_2_is_selected_after_tensorflow_was_imported():
    imports = ("import larq_adambnn", "tf.constant(1) + 1; import larq_adambnn")
    result = python(FORKS, *(f"{code}; {CHECK}" for code in imports))
    assert result.stdout.split() == ["works", "works"], result.stderr


def test_keras_3_already_loaded_is_a_clear_error():
    touches = (
        "tf.keras.Model",
        "from tensorflow import keras; keras.layers",
        "tf.keras.layers.Dense(1)",
    )
    result = python(FORKS, *(f"{touch}; import larq_adambnn" for touch in touches))
    errors = [x for x in result.stderr.splitlines() if x.startswith("ImportError: ")]
    assert len(errors) == len(touches), result.stderr
    for error in errors:
        assert error.startswith("ImportError: larq_adambnn needs Keras 2")
        assert 'os.environ["TF_USE_LEGACY_KERAS"] = "1"' in error


def test_public_names():
    import larq_adambnn

    for name in larq_adambnn.__all__:
        assert getattr(larq_adambnn, name) is not None
    with pytest.raises(AttributeError):
        larq_adambnn.nosuchname  # noqa: B018


def test_importing_needs_no_larq_zoo_defines_no_flags_and_prints_nothing():
    result = python(
        "import sys; sys.modules['larq_zoo'] = None; "
        "import larq_adambnn.runs.training, larq_adambnn.runs.config; from absl import flags; "
        "assert 'weight_decay' not in flags.FLAGS"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def requirements(lines):
    found = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_every_import_is_a_dependency():
    imported = set()
    for path in (ROOT / "larq_adambnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {"larq_adambnn", *sys.stdlib_module_names}
    distributions = importlib.metadata.packages_distributions()
    needed = {canonicalize_name(distributions[module][0]) for module in imported}
    declared = set(requirements(PROJECT["dependencies"]))
    assert needed - declared == {"larq-zoo", "safetensors", "torch"}  # which are extras
    # Keras 2 takes the place of tf.keras; tensorflow-datasets needs the next two, and the script
    # of report.html is got in a process of its own
    others = {"tf-keras", "importlib-resources", "pyarrow", "vl-convert-python"}
    assert declared - needed == others


def pinned(*files):
    """The one version that files of requirements name of each package."""
    lines = [line for name in files for line in (ROOT / name).read_text().splitlines()]
    pins = {}
    for name, requirement in requirements(x for x in lines if x[:1] not in ("#", "-")).items():
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        pins[name] = pin.version
    return pins


EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    ("files", "extras", "not_needed"),
    [
        (("requirements.txt", "requirements-dev.txt"), ("gpu", "torch", "zoo"), {"pyarrow"}),
        (("requirements-next.txt",), ("gpu",), set()),
    ],
    ids=["first", "next"],
)
def test_pinned_versions_are_in_the_ranges(files, extras, not_needed):
    pins = pinned(*files)
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name not in not_needed:
            assert requirement.specifier.contains(pins[name]), requirement


def test_sets_and_extras():
    """The second set is without larq-zoo and its old protobuf, and newer in the rest."""
    first, following = pinned("requirements.txt"), pinned("requirements-next.txt")
    assert set(EXTRAS) == {"gpu", "torch", "zoo"}
    assert set(first) - set(following) == {"larq-zoo"}
    assert set(following) - set(first) == {"protobuf", "pyarrow"}
    assert int(following["protobuf"].split(".")[0]) >= 4
    for name in first.keys() & following.keys():
        assert Version(first[name]) <= Version(following[name]), name


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with a wheel and an sdist of the package."""
    work = tmp_path_factory.mktemp("built")
    for name in ("larq_adambnn", "configs", "docs/studies", "pretrained"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, work / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    code = "from setuptools.build_meta import *; build_wheel('..'); build_sdist('..')"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=work / "source",
        capture_output=True,
        check=True,
        timeout=120,
    )
    return work


def test_wheel_and_sdist_hold_everything(built):
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "larq_adambnn").rglob("*")
        if path.suffix in (".py", ".csv", ".html", ".css", ".js") or path.name == "py.typed"
    }
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.cfg")}
    studies = {f"docs/studies/{path.name}" for path in (ROOT / "docs/studies").glob("study_*")}
    pretrained = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pretrained").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert configs and studies
    assert {"pretrained/digits/model_int8.tflite", "pretrained/digits/flags.cfg"} <= pretrained
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == modules | {f"larq_adambnn/{name}" for name in configs | studies | pretrained}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert (
        modules | configs | studies | pretrained | {"LICENSE", "README.md", "pyproject.toml"}
        <= names
    )


def test_installed_package_finds_its_configs_and_its_command(built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import importlib.metadata as m; from larq_adambnn.runs.config import parse; "
        "print(parse(['--flagfile=quickstart']).dataset); "
        "print(parse(['--flagfile=study_order']).sweep_file.name); "
        "(d,) = m.distributions(name='larq_adambnn', path=['../site']); "
        "(command,) = d.entry_points; print(command.name, command.load().__name__)"
    )
    (tmp_path / "empty").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = ["digits", "study_learning_rate.csv", "larq-adambnn", "run"]
    assert result.stdout.split() == found, result.stderr
