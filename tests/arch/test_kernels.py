"""Kernel sources: common to NumPy and CuPy, analytic, registered in adjacent pairs.

What a kernel computes is tested beside it; here its text is read (ast).
"""

from __future__ import annotations

import ast
import importlib
import operator
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import refkd
from refkd.dispatch import registered_kernels
from tests.arch.fake_device import CUPY_METHODS, CUPY_NAMES

PACKAGE = pathlib.Path(refkd.__file__).parent
FILES = sorted(path for name in ("ops", "losses") for path in (PACKAGE / name).glob("*.py"))

# They drop the imaginary part, or conjugate it: the complex step would not notice.
NOT_ANALYTIC = frozenset(
    {
        *("abs", "absolute", "fabs", "hypot", "norm", "var", "std", "nanvar", "nanstd"),
        *("logaddexp", "logaddexp2", "vdot", "conj", "conjugate", "angle"),
    }
)
FLOAT_TYPES = frozenset({"float", "float32", "float64", "single", "double"})

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def namespace_names(tree: ast.AST) -> Iterator[str]:
    """Yield ``lib.stride_tricks.as_strided`` for every ``xp.lib.stride_tricks.as_strided``."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        path, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            path.append(root.attr)
            root = root.value
        is_xp = isinstance(root, ast.Name) and root.id == "xp"
        is_namespace = isinstance(root, ast.Call) and ast.unparse(root.func) == "namespace"
        if is_xp or is_namespace:
            yield ".".join(reversed(path))


def is_kernel(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(d).partition("(")[0] == "kernel" for d in function.decorator_list)


def takes_arrays(function: ast.FunctionDef) -> bool:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [a for a in (arguments.vararg, arguments.kwarg) if a]
    return any(
        a.arg == "xp" or (a.annotation and "Array" in ast.unparse(a.annotation)) for a in named
    )


def returns_float(function: ast.FunctionDef) -> bool:
    return bool(function.returns) and "float" in ast.unparse(function.returns)


def number_parameters(function: ast.FunctionDef) -> set[str]:
    """Name the parameters that are plain numbers: temperatures, probabilities, weights."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {a.arg for a in arguments if a.annotation and ast.unparse(a.annotation) == "float"}


def not_analytic(tree: ast.AST) -> list[str]:
    """Return what functions on arrays say that loses the imaginary part."""
    found = []
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for function in (f for f in functions if is_kernel(f) or takes_arrays(f)):
        for node in ast.walk(function):
            match node:
                case ast.Attribute(attr=name) if name in NOT_ANALYTIC:
                    found.append(f"{function.name}: {ast.unparse(node)}")
                case ast.Call(func=ast.Name(id="abs")):
                    found.append(f"{function.name}: {ast.unparse(node)}")
                case ast.Call(func=ast.Name(id="float"), args=[argument]) if not (
                    isinstance(argument, ast.Constant)
                    or returns_float(function)
                    or ast.unparse(argument) in number_parameters(function)
                ):
                    found.append(f"{function.name}: {ast.unparse(node)}")
                case ast.Call(func=ast.Attribute(attr="astype"), args=[dtype, *_]) if (
                    ast.unparse(dtype).strip("'").rpartition(".")[2] in FLOAT_TYPES
                ):
                    found.append(f"{function.name}: {ast.unparse(node)}")
    return found


def says_numpy(tree: ast.AST) -> list[int]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="np" | "numpy"):
                found.append(node.lineno)
            case ast.Import(names=names):
                roots = {alias.name.partition(".")[0] for alias in names}
                found += [node.lineno] if "numpy" in roots else []
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "numpy":
                found.append(node.lineno)
    return found


def kernels_in(tree: ast.Module) -> list[str]:
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and is_kernel(n)]


@each_file
def test_every_name_of_the_namespace_exists_in_numpy_and_in_cupy(path: pathlib.Path) -> None:
    assert set(namespace_names(parse(path))) - CUPY_NAMES == set()


@each_file
def test_no_kernel_says_numpy(path: pathlib.Path) -> None:
    assert says_numpy(parse(path)) == []


@each_file
def test_kernels_are_analytic(path: pathlib.Path) -> None:
    assert not_analytic(parse(path)) == []


@each_file
def test_a_backward_follows_its_forward(path: pathlib.Path) -> None:
    names = [n for n in kernels_in(parse(path)) if n.endswith(("_forward", "_backward"))]
    forwards = [name for name in names if name.endswith("_forward")]
    assert names == [
        f"{name.removesuffix('_forward')}_{direction}"
        for name in forwards
        for direction in ("forward", "backward")
    ]


@each_file
def test_every_kernel_is_exported_by_its_package(path: pathlib.Path) -> None:
    package = importlib.import_module(f"refkd.{path.parent.name}")
    assert set(kernels_in(parse(path))) <= set(package.__all__)


def test_every_pair_is_complete() -> None:
    kernels = {n: k for n, k in registered_kernels().items() if is_of_refkd(k.reference.__module__)}
    assert kernels
    for kernel in kernels.values():
        if kernel.pair is None:
            assert kernel.reason
        else:
            assert kernels[kernel.pair].pair == kernel.name


def is_of_refkd(module: str) -> bool:
    return module.startswith("refkd.")


@pytest.mark.parametrize("name", sorted(CUPY_NAMES))
def test_the_listed_names_exist_in_numpy(name: str) -> None:
    assert has_path(np, name)


def test_the_listed_names_exist_in_cupy() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert [name for name in sorted(CUPY_NAMES) if not has_path(cupy, name)] == []
    assert [name for name in sorted(CUPY_METHODS) if not hasattr(cupy.ndarray, name)] == []


def has_path(module: object, path: str) -> bool:
    try:
        operator.attrgetter(path)(module)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize(
    "body",
    [
        *("abs(x)", "xp.abs(x)", "xp.linalg.norm(x)", "x.var(axis=0)", "xp.std(x)", "x.conj()"),
        *("float(x)", "x.astype(float)", "x.astype('float64')", "x.astype(xp.float32)"),
        *("xp.logaddexp(x, x)", "f(lambda y: xp.hypot(y, y))"),
    ],
)
def test_a_function_that_is_not_analytic_is_found(body: str) -> None:
    for head in ("def helper(xp, x)", "def helper(x: Array | None)", "@kernel\ndef helper(x)"):
        assert len(not_analytic(ast.parse(f"{head}:\n    return {body}"))) == 1


@pytest.mark.parametrize("body", ["x.real.max()", "x.astype(y.dtype)", "float('inf')", "x.sum()"])
def test_an_analytic_function_is_let_through(body: str) -> None:
    assert not_analytic(ast.parse(f"def helper(xp, x):\n    return {body}")) == []


def test_names_are_read_with_their_whole_path() -> None:
    tree = ast.parse("xp.add.at(x, i, 1); namespace(x).tanh(x.T).real; xp.exp(xp.pi * y.sum())")
    assert set(namespace_names(tree)) == {"add.at", "tanh", "exp", "pi"}


@pytest.mark.parametrize(
    "source", ["import numpy", "import numpy.linalg", "from numpy import exp", "np.exp(x)"]
)
def test_numpy_in_a_kernel_file_is_found(source: str) -> None:
    assert says_numpy(ast.parse(source)) == [1]
