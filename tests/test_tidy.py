"""The shape of the code, checked as code: sizes, names, and who may import whom.

Method: parse every module of the packages with `ast`; no exceptions are listed, a rule that gets in
the way is changed here, with its reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cell", "control_plane", "router", "infra", "benchmarks")
MAY_IMPORT = {
    "cell": set(),
    "control_plane": {"cell"},
    "router": {"cell", "control_plane"},
    "infra": {"cell", "control_plane", "router"},
    "benchmarks": {"cell", "control_plane", "router", "infra"},
}
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
DISCOURAGED_FILES = {
    "utils",
    "util",
    "common",
    "helpers",
    "helper",
    "manager",
    "models",
    "services",
}


MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_tidy(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES_MAX, "split the file along its nouns"
    assert path.stem not in DISCOURAGED_FILES, "name the file after what it holds"
    assert ast.get_docstring(tree), "say what the module does, and what it does not"
    long = [
        f"{name}: {lines} lines" for name, lines in functions(tree) if lines > FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}
    assert imported & set(PACKAGES) - {package} <= MAY_IMPORT[package]


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, its docstring not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            yield node.name, (node.end_lineno or 0) - (start or 0)


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
