"""The three wings: commands may use runs and the library, runs the library, the library itself."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "larq_adambnn"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(name):
    """The modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {module for module in found if module.split(".")[0] == PACKAGE}


GRAPH = {name: imports(name) for name in MODULES}


def wing(name):
    part = name.split(".")[1:2]
    return {"runs": 1, "commands": 2}.get(part[0] if part else "", 0)


def test_the_modules_are_found():
    assert {"larq_adambnn", "larq_adambnn.data.dataset", "larq_adambnn.runs.config"} <= set(GRAPH)
    assert "larq_adambnn.runs.config" in GRAPH["larq_adambnn.commands.evaluate"]
    assert {wing(name) for name in GRAPH} == {0, 1, 2}


def test_no_arrow_points_up():
    upwards = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if wing(other) > wing(name)
    ]
    assert upwards == []


def test_no_imports_run_in_a_circle():
    done, path = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for other in sorted(GRAPH.get(name, ())):
            visit(other)
        done.add(path.pop())

    for name in sorted(GRAPH):
        visit(name)


@pytest.mark.parametrize("name", [name for name in sorted(GRAPH) if wing(name) == 0])
def test_the_library_knows_no_flags_and_prints_nothing(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "absl" not in modules
    assert "Config" not in names
    # `say` is for both, and silent until it is asked for; a summary is for the terminal.
    if name not in ("larq_adambnn.progress", "larq_adambnn.models.complexity"):
        assert "print" not in names


def test_only_the_config_reads_flags():
    readers = [
        name
        for name, path in MODULES.items()
        if "absl" in path.read_text(encoding="utf-8") and "import" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "absl"
    ]
    assert readers == ["larq_adambnn.runs.config"]
