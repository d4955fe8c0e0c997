"""Rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import pathlib

import pytest

import refkd

PACKAGE = pathlib.Path(refkd.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
KERNEL_FILES = sorted(path for name in ("ops", "losses") for path in (PACKAGE / name).glob("*.py"))


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(PACKAGE))


def asserts(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def prints(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def undocumented(tree: ast.Module) -> list[str]:
    """Return the public functions and classes of a module that have no docstring."""
    listed = public_names(tree)
    return [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and (node.name in listed if listed else not node.name.startswith("_"))
        and not any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
        and ast.get_docstring(node) is None
    ]


def public_names(tree: ast.Module) -> list[str]:
    """Return the names in ``__all__``, none where a module has no such list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_refkd_never_asserts(path: pathlib.Path) -> None:
    assert asserts(parse(path)) == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if PACKAGE / "cli" not in path.parents], ids=name_of
)
def test_only_the_command_line_prints(path: pathlib.Path) -> None:
    assert prints(parse(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_everything_public_in_them_have_docstrings(path: pathlib.Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    assert undocumented(tree) == []


@pytest.mark.parametrize("path", KERNEL_FILES, ids=name_of)
def test_a_file_of_kernels_stays_under_300_lines(path: pathlib.Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 300, "two topics: split it"


def test_an_offender_is_found() -> None:
    tree = ast.parse("def f():\n    assert x\n    print(x)\nclass C: ...\ndef _private(): ...\n")
    assert asserts(tree) == [2]
    assert prints(tree) == [3]
    assert undocumented(tree) == ["f", "C"]
    assert undocumented(ast.parse("__all__ = ['g']\ndef f(): ...\ndef g(): ...\n")) == ["g"]
