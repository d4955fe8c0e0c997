"""Nested parameters as a flat dict of leaves with readable paths, and back.

Containers are mappings, tuples, lists, named tuples and dataclasses; everything else is
a leaf. A path reads as the expression that reaches the leaf: ``layers[0].weight``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import Any

from refkd.errors import ConfigError

__all__ = ["flatten", "rebuild"]


def flatten(tree: Any, leaves: Container[str] = ()) -> dict[str, Any]:
    """Return every leaf of ``tree`` by its path; a tree that is a leaf has the path ``""``.

    Parameters
    ----------
    tree : object
    leaves : container of str
        Paths at which there is a leaf, even where it looks like a container.

    Raises
    ------
    ConfigError
        If two leaves have one path, as in ``{"a.b": x, "a": {"b": y}}``.
    """
    found: dict[str, Any] = {}
    for path, leaf in _leaves(tree, "", leaves):
        if path in found:
            raise ConfigError(f"two parameters are called {path}; rename one of them")
        found[path] = leaf
    return found


def rebuild(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """Return ``tree`` with the leaf at each path replaced by ``leaves[path]`` where there is one.

    The containers are new, of the same types, but a mapping becomes a dict; a dataclass is
    copied without running its ``__post_init__``, a named tuple without its ``__new__``.
    """
    return _rebuilt(tree, leaves, "")


def _leaves(tree: Any, path: str, known: Container[str]) -> Iterator[tuple[str, Any]]:
    children = None if path in known else _children(tree, path)
    if children is None:
        yield path, tree
    else:
        for _, child_path, child in children:
            yield from _leaves(child, child_path, known)


def _rebuilt(tree: Any, leaves: Mapping[str, Any], path: str) -> Any:
    children = _children(tree, path)
    if children is None:
        return leaves.get(path, tree)
    values = [(key, _rebuilt(child, leaves, child_path)) for key, child_path, child in children]
    if isinstance(tree, Mapping):
        return dict(values)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)._make(value for _, value in values)  # type: ignore[attr-defined]
    if isinstance(tree, (tuple, list)):
        return type(tree)(value for _, value in values)
    copied = copy.copy(tree)
    for key, value in values:
        object.__setattr__(copied, key, value)
    return copied


def _children(tree: Any, path: str) -> list[tuple[Any, str, Any]] | None:
    """Return (key, path, child) of a container, None for a leaf."""
    if isinstance(tree, Mapping):
        return [
            (k, _below(path, k) if isinstance(k, str) else f"{path}[{k!r}]", v)
            for k, v in tree.items()
        ]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [(k, _below(path, k), v) for k, v in zip(tree._fields, tree, strict=True)]
    if isinstance(tree, (tuple, list)):
        return [(k, f"{path}[{k}]", v) for k, v in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree)]
        return [(name, _below(path, name), getattr(tree, name)) for name in names]
    return None


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
