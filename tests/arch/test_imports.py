"""Imports inside refkd run one way, and reach other packages only where they are needed."""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

import refkd

PACKAGE = pathlib.Path(refkd.__file__).parent

# What each part of refkd may import of refkd, itself aside. Lazy imports count too.
CORE = {"errors", "dispatch"}
KERNELS = CORE | {"ops", "losses"}
NETWORKS = KERNELS | {"nn", "models"}
TRAINING = NETWORKS | {"distill", "train"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "dispatch": {"errors", "threads"},
    "threads": set(),
    "switches": {"errors"},
    "ops": CORE | {"threads"},
    "losses": CORE | {"ops"},
    "nn": CORE | {"ops"},
    "models": CORE | {"ops", "nn"},
    "distill": NETWORKS | {"threads"},
    "data": CORE | {"ops", "threads"},
    "train": TRAINING | {"data", "threads"},
    "report": TRAINING | {"data"},
    "recipes": TRAINING | {"data", "report", "threads"},
    "cli": TRAINING | {"data", "report", "recipes", "testing"},
    "testing": CORE,
    "__main__": {"cli"},
}
# What exists for an optional package loads it, and is loaded by nothing else in refkd.
MADE_FOR = {"testing.plugin": "pytest", "testing.strategies": "hypothesis"}
# A case or a strategy may reach for a kernel or a loss when its inputs are drawn.
LAZILY_WHERE_DRAWN = {"ops", "losses"}


def module_name(path: pathlib.Path, root: pathlib.Path = PACKAGE) -> str:
    """Return ``losses.kd`` for ``losses/kd.py`` and ``losses`` for its ``__init__``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part of refkd, a key of ALLOWED, that a module belongs to."""
    return module.removeprefix("refkd.").partition(".")[0]


def imported_modules(tree: ast.Module, package: str) -> Iterator[tuple[str, ast.stmt | ast.expr]]:
    """Yield every module that is imported anywhere, by its absolute name, with its node."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, node) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                name = ".".join([*base, *([module] if module else [])])
                yield name, node
                if name == "refkd":
                    yield from ((f"refkd.{alias.name}", node) for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name, node


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what a module of refkd, named without ``refkd.``, imports against the rules."""
    tree = ast.parse(source)
    full = f"refkd.{module}"
    package = full if is_package else full.rpartition(".")[0]
    at_module_level = {id(node) for node in module_level_statements(tree)}
    allowed = ALLOWED.get(part_of(module), set()) | {part_of(module)}
    found = []
    for name, node in imported_modules(tree, package):
        target = part_of(name)
        if not name.startswith("refkd.") or target in allowed:
            continue
        is_lazy = id(node) not in at_module_level
        draws = full.startswith(("refkd.testing.cases", "refkd.testing.strategies"))
        if draws and target in LAZILY_WHERE_DRAWN and is_lazy:
            continue
        found.append(f"{full}:{node.lineno} imports {name}")
    return found


def module_level_statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when the module is imported."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_for_types_only(node):
            continue
        yield node
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def is_for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def foreign_imports(source: str) -> list[str]:
    """Return what a module loads, when it is imported, beside NumPy and the standard library."""
    statements = [
        node
        for node in module_level_statements(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = imported_modules(ast.Module(body=statements, type_ignores=[]), "refkd")
    roots = {name.partition(".")[0] for name, _ in names}
    return sorted(roots - {"refkd", "numpy"} - sys.stdlib_module_names)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_inside_refkd_run_one_way(path: pathlib.Path) -> None:
    module = module_name(path)
    assert part_of(module) in ALLOWED, f"give {module} its place in ALLOWED"
    is_package = path.name == "__init__.py"
    assert violations(path.read_text("utf-8"), module, is_package=is_package) == []


@pytest.mark.parametrize("path", [PACKAGE / "__init__.py", *MODULES], ids=module_name)
def test_a_module_loads_nothing_but_numpy_and_the_standard_library(path: pathlib.Path) -> None:
    module = module_name(path)
    theirs = {package for home, package in MADE_FOR.items() if f"{module}.".startswith(f"{home}.")}
    assert set(foreign_imports(path.read_text("utf-8"))) <= theirs


def test_the_order_has_no_cycle() -> None:
    placed: set[str] = set()
    while len(placed) < len(ALLOWED):
        ready = {part for part in ALLOWED.keys() - placed if ALLOWED[part] - {part} <= placed}
        assert ready, f"a cycle among {sorted(ALLOWED.keys() - placed)}"
        placed |= ready


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import refkd.dispatch"),
        ("ops.linear", "from refkd.losses.kd import softmax_kd_forward"),
        ("ops.linear", "def f():\n    from refkd import nn"),
        ("losses.kd", "from refkd import errors, nn"),
        ("nn.linear", "import refkd.losses as losses"),
        ("nn.linear", "from ..models import mlp"),
        ("distill.logit", "from importlib import import_module\nimport_module('refkd.train')"),
        ("data.idx", "from refkd.losses import KDSpec"),
        ("report.html", "if True:\n    import refkd.cli"),
        ("testing.pairs", "def f():\n    import refkd.ops"),
        ("testing.cases.linear", "from refkd.ops import linear_forward"),
        ("train.loop", "from refkd.report import plot"),
    ],
)
def test_an_import_against_the_order_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses.kd", "from refkd.ops.softmax import softmax_forward\nfrom . import kl"),
        ("train.loop", "from refkd.data import dataset\nimport numpy, refkd.errors"),
        ("testing.cases.linear", "def f():\n    from refkd.ops import linear_forward"),
        ("nn.linear", "from .layer import Layer\nfrom refkd import ops"),
        ("cli.main", "import refkd\nfrom refkd.report import html"),
    ],
)
def test_an_import_along_the_order_is_none(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_an_optional_package_loaded_by_a_module_is_found() -> None:
    for source in ("import scipy.linalg", "try:\n    from torch import nn\nexcept E: pass"):
        assert len(foreign_imports(source)) == 1
    for source in ("if TYPE_CHECKING:\n    import torch", "def f():\n    import torch"):
        assert foreign_imports(f"{source}\nimport numpy.linalg, json") == []
