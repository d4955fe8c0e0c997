"""Wrong functions made of a right one by one small change of its source each.

The changes are those a hand makes in deriving or typing a backward: a sign, a factor, a
term, an axis, a transpose. Checks of arguments and their messages are left alone.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

__all__ = ["SourceMutant", "source_mutants"]


class SourceMutant(NamedTuple):
    """A function with one change of its source.

    Attributes
    ----------
    kind : str
    line : int
        Of the change, in the file of the function.
    change : str
        Before and after.
    function : callable
        The changed function; whatever else it uses is as it was.
    """

    kind: str
    line: int
    change: str
    function: Callable[..., Any]


def source_mutants(function: Callable[..., Any]) -> list[SourceMutant]:
    """Return every mutant of ``function`` and of the private helpers in its module.

    Parameters
    ----------
    function : callable
        Written with ``def`` in a file; decorators are dropped.

    Notes
    -----
    A mutated helper serves the mutant alone. Mutants with one source are one mutant.
    """
    parsed = [_parsed(f) for f in _with_helpers(function)]
    trees = [_bare(tree) for tree in parsed]
    mutants = []
    for k, tree in enumerate(trees):
        arrays, seen = _arrays_of(parsed[k]), {ast.unparse(tree)}
        for position, node in enumerate(_mutable(tree)):
            for kind, replacement in _alternatives(node, arrays):
                changed = copy.deepcopy(tree)
                target = list(_mutable(changed))[position]
                changed = ast.fix_missing_locations(_Replaced(target, replacement).visit(changed))
                source = ast.unparse(changed)
                if source in seen:
                    continue
                seen.add(source)
                compiled = _compiled([*trees[:k], changed, *trees[k + 1 :]], function)
                change = f"{ast.unparse(node)} → {ast.unparse(replacement)}"
                mutants.append(SourceMutant(kind, node.lineno, change, compiled))
    return mutants


def _with_helpers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return ``function`` and the private functions of its module that it calls, checks aside."""
    found = [function]
    for caller in found:  # grows while it is read
        for name in caller.__code__.co_names:
            helper = function.__globals__.get(name)
            if (
                isinstance(helper, FunctionType)
                and helper.__module__ == function.__module__
                and name.startswith("_")
                and not name.startswith("_check")
                and helper not in found
            ):
                found.append(helper)
    return found


def _parsed(function: Callable[..., Any]) -> ast.FunctionDef:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"{function.__name__} is not written with def")
    ast.increment_lineno(tree, first - 1)
    return tree


def _bare(tree: ast.FunctionDef) -> ast.FunctionDef:
    """Return a copy without decorators, annotations and docstring."""
    tree = copy.deepcopy(tree)
    tree.decorator_list = []
    tree.returns = None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    return tree


def _compiled(trees: list[ast.FunctionDef], function: Callable[..., Any]) -> Callable[..., Any]:
    namespace = dict(function.__globals__)
    module = ast.Module(body=list(trees), type_ignores=[])
    exec(compile(module, inspect.getfile(function), "exec"), namespace)
    compiled: Callable[..., Any] = namespace[function.__name__]
    return compiled


def _names_in(annotation: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def _mutable(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions of the body in a fixed order, without checks and messages."""
    nodes = tree.body if isinstance(tree, ast.FunctionDef) else ast.iter_child_nodes(tree)
    for node in nodes:
        if isinstance(node, (ast.Raise, ast.Expr, ast.JoinedStr)) or _is_check(node):
            continue
        if isinstance(node, ast.expr):
            yield node
        yield from _mutable(node)


def _is_check(node: ast.AST) -> bool:
    match node:
        case ast.If(body=body):
            return all(isinstance(statement, ast.Raise) for statement in body)
        case ast.Call(ast.Name(name)):
            return name.startswith(("check_", "_check"))
    return False


def _arrays_of(tree: ast.FunctionDef) -> list[str]:
    """Name the parameters that may be arrays, as far as their annotations say."""
    return [
        argument.arg
        for argument in tree.args.args
        if argument.annotation is None or {"Array", "Any"} & _names_in(argument.annotation)
    ]


class _Replaced(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.expr) -> None:
        self.target, self.replacement = target, replacement

    def visit(self, node: ast.AST) -> Any:
        if node is self.target:
            return ast.copy_location(copy.deepcopy(self.replacement), self.target)
        return self.generic_visit(node)


_SIGNS: dict[type, type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_FACTORS: dict[type, type[ast.operator]] = {ast.Mult: ast.Div, ast.Div: ast.Mult}
_COMPARISONS: dict[type, tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}

Alternatives = Iterator[tuple[str, ast.expr]]


def _alternatives(node: ast.expr, arrays: list[str]) -> Alternatives:
    """Yield what may stand in the place of ``node`` by mistake."""
    match node:
        case ast.BinOp(left, operator, right):
            yield from _of_operation(left, operator, right)
        case ast.Call():
            yield from _of_call(node)
        case ast.Attribute(value, "T"):
            yield "transpose dropped", value
        case ast.UnaryOp(ast.USub(), operand):
            yield "minus dropped", operand
        case ast.Compare(left, [operator], [right]) if type(operator) in _COMPARISONS:
            for other in _COMPARISONS[type(operator)]:
                yield "comparison", ast.Compare(left, [other()], [right])
        case ast.Constant(int(value) | float(value)) if not isinstance(value, bool):
            for changed in (value + 1, value - 1):
                yield "constant", ast.Constant(changed)
        case ast.Name(name, ast.Load()) if name in arrays:
            for other_name in arrays:
                if other_name != name:
                    yield "input replaced", ast.Name(other_name, ast.Load())


def _of_operation(left: ast.expr, operator: ast.operator, right: ast.expr) -> Alternatives:
    if type(operator) in _SIGNS:
        yield "sign", ast.BinOp(left, _SIGNS[type(operator)](), right)
        yield "term dropped", left
        minus = isinstance(operator, ast.Sub)
        yield "term dropped", ast.UnaryOp(ast.USub(), right) if minus else right
    if type(operator) in _FACTORS:
        yield "* for /", ast.BinOp(left, _FACTORS[type(operator)](), right)
        yield "factor dropped", left
        if isinstance(operator, ast.Mult):
            yield "factor dropped", right
    if isinstance(operator, (ast.Sub, ast.Div, ast.MatMult)):
        yield "operands swapped", ast.BinOp(right, operator, left)
    if isinstance(operator, ast.MatMult):
        if not _is_transposed(left):
            yield "transpose added", ast.BinOp(_transposed(left), operator, right)
        if not _is_transposed(right):
            yield "transpose added", ast.BinOp(left, operator, _transposed(right))


def _is_transposed(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "T"


def _transposed(node: ast.expr) -> ast.expr:
    return ast.Attribute(node, "T", ast.Load())


def _of_call(node: ast.Call) -> Alternatives:
    for i in range(len(node.args) - 1):
        swapped = [*node.args]
        if any(isinstance(a, ast.Constant) for a in swapped[i : i + 2]):
            continue  # the name of the function, for messages
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        yield "arguments swapped", ast.Call(node.func, swapped, node.keywords)
    if not isinstance(node.func, ast.Attribute):
        return
    on, method = node.func.value, node.func.attr
    if method in ("sum", "mean"):
        other = ast.Attribute(on, "mean" if method == "sum" else "sum", ast.Load())
        yield "mean for sum", ast.Call(other, node.args, node.keywords)
        yield "sum dropped", on
        yield from _of_keywords(node)
    elif isinstance(on, ast.Name) and on.id == "xp" and len(node.args) == 1:
        yield "function dropped", node.args[0]


def _of_keywords(node: ast.Call) -> Alternatives:
    for k, keyword in enumerate(node.keywords):
        others: list[tuple[str, ast.expr]] = []
        match keyword:
            case ast.keyword("keepdims", ast.Constant(bool(value))):
                others = [("keepdims", ast.Constant(not value))]
            case ast.keyword("axis", value):
                # Without the axis everything is summed: what broadcasting hides best.
                others = [("axis", ast.Constant(axis)) for axis in (None, 0, 1, -1, -2)]
        for kind, other in others:
            keywords = [*node.keywords]
            keywords[k] = ast.keyword(keyword.arg, other)
            yield kind, ast.Call(node.func, node.args, keywords)
