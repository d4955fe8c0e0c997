"""Nested parameters: flatten and rebuild are inverse, and a path names one leaf."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.testing import Verdict, check_grad
from refkd.testing.structure import flatten, rebuild


class Linear(NamedTuple):
    weight: Any
    bias: Any


class Positive(NamedTuple("Positive", [("low", Any), ("high", Any)])):
    """A named tuple that only its own users can build."""

    __slots__ = ()

    def __new__(cls, low: Any) -> Positive:
        return super().__new__(cls, low, low + 1)


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    y: Any = None


@dataclass
class Validated:
    x: Any
    derived: Any = field(init=False, default=7)

    def __post_init__(self) -> None:
        if not isinstance(self.x, np.ndarray):
            raise TypeError("x must be an array")


class Names(list):
    """A list of another type."""


def array(*values: float) -> Any:
    return np.array(values)


def trees() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.integers(), st.none(), st.booleans(), st.text(max_size=3), st.floats(allow_nan=False)
    )
    names = st.text("abcd", min_size=1, max_size=3)

    def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(names, children, max_size=3),
            st.dictionaries(st.integers(0, 9), children, max_size=2),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
            *(st.builds(kind, children, children) for kind in (Linear, Frozen, Slotted)),
        )

    return st.recursive(leaves, nested, max_leaves=12)


@given(trees())
def test_rebuilding_from_the_leaves_gives_an_equal_tree_of_equal_types(tree: Any) -> None:
    again = rebuild(tree, flatten(tree))
    assert again == tree
    assert repr(again) == repr(tree)


@given(trees())
def test_rebuilding_replaces_every_leaf_and_nothing_else(tree: Any) -> None:
    leaves = {path: f"leaf {path}" for path in flatten(tree)}
    replaced = rebuild(tree, leaves)
    assert flatten(replaced) == leaves
    assert rebuild(replaced, flatten(tree)) == tree


@given(trees())
def test_a_path_reads_as_the_expression_that_reaches_the_leaf(tree: Any) -> None:
    class Dotted(dict):
        __getattr__ = dict.__getitem__

    def readable(tree: Any) -> Any:
        if isinstance(tree, dict):
            return Dotted({key: readable(child) for key, child in tree.items()})
        if isinstance(tree, (Linear, Frozen, Slotted)):
            names = tree._fields if isinstance(tree, Linear) else ("x", "y")
            return type(tree)(*(readable(getattr(tree, name)) for name in names))
        if isinstance(tree, (list, tuple)):
            return type(tree)(readable(child) for child in tree)
        return tree

    root = [tree]
    for path, leaf in flatten(root).items():
        assert eval(f"root{path}", {"root": readable(root)}) is leaf


def test_paths_of_every_kind_of_container() -> None:
    tree = {
        "a": {"b": 1, 3: 2},
        "layers": [Linear(3, 4), (5,)],
        "frozen": Frozen(6, {"c.d": 7}),
        "none": None,
        "empty": {},
    }
    assert flatten(tree) == {
        "a.b": 1,
        "a[3]": 2,
        "layers[0].weight": 3,
        "layers[0].bias": 4,
        "layers[1][0]": 5,
        "frozen.x": 6,
        "frozen.y.c.d": 7,
        "none": None,
    }


def test_a_leaf_has_the_empty_path() -> None:
    leaf = array(1, 2)
    assert flatten(leaf) == {"": leaf}
    assert rebuild(leaf, {"": "other"}) == "other"


def test_arrays_strings_and_classes_are_leaves() -> None:
    leaves = {"a": array(1, 2), "b": "text", "c": Frozen, "d": {1, 2}, "e": np.random.default_rng}
    assert flatten(leaves) == leaves


def test_leaves_are_kept_by_identity_and_containers_are_new() -> None:
    x = array(1, 2)
    tree = {"a": [x, {"b": (x,)}]}
    again = rebuild(tree, {})
    assert again["a"][0] is x
    assert again["a"][1]["b"][0] is x
    assert again is not tree
    assert again["a"] is not tree["a"]
    assert again["a"][1] is not tree["a"][1]


def test_a_dataclass_is_rebuilt_without_its_post_init() -> None:
    original = Validated(array(1))
    rebuilt = rebuild(original, {"x": "no array", "derived": 8})
    assert type(rebuilt) is Validated
    assert (rebuilt.x, rebuilt.derived) == ("no array", 8)
    assert original.derived == 7


@pytest.mark.parametrize("kind", [Frozen, Slotted])
def test_a_frozen_dataclass_is_rebuilt_and_the_original_kept(kind: Any) -> None:
    original = kind(array(1), [array(2)])
    rebuilt = rebuild(original, {"x": 3, "y[0]": 4})
    assert (type(rebuilt), rebuilt.x, rebuilt.y) == (kind, 3, [4])
    assert original.x == array(1)
    assert original.y == [array(2)]


def test_a_named_tuple_is_rebuilt_without_its_new() -> None:
    rebuilt = rebuild(Positive(1), {"low": 5, "high": 9})
    assert type(rebuilt) is Positive
    assert rebuilt == (5, 9)


def test_a_list_of_another_type_keeps_it_and_a_mapping_becomes_a_dict() -> None:
    assert type(rebuild(Names([1, 2]), {"[1]": 3})) is Names
    for mapping in (OrderedDict(a=1), MappingProxyType({"a": 1})):
        rebuilt = rebuild(mapping, {"a": 2})
        assert (type(rebuilt), rebuilt) == (dict, {"a": 2})


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a.b": 1, "a": {"b": 2}}, "a.b"),
        ({"a": {"b": 2}, "a.b": 1}, "a.b"),
        ({"a[0]": 1, "a": [2]}, "a[0]"),
        ({"a": {0: 1, "x": [1]}, "a[0]": [1], "a.x": [2]}, "a.x[0]"),
    ],
)
def test_two_leaves_with_one_path_are_refused(tree: Any, path: str) -> None:
    with pytest.raises(ConfigError) as error:
        flatten(tree)
    assert f"called {path}" in str(error.value)


def test_what_looks_like_a_container_is_a_leaf_where_one_is_known() -> None:
    gradients = {"x": [1.0, 2.0], "y": {"z": (3.0,)}}
    assert flatten(gradients, {"x", "y.z"}) == {"x": [1.0, 2.0], "y.z": (3.0,)}
    assert flatten(Linear(1, 2), {""}) == {"": Linear(1, 2)}


class Model(NamedTuple):
    layers: list[Linear]
    scale: Any
    steps: int


def nested_parameters() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    layers = [Linear(rng.normal(size=(3, 3)), rng.normal(size=3)) for _ in range(2)]
    scale = Slotted(rng.normal(size=3), None)
    return {"model": Model(layers, scale, 2), "x": rng.normal(size=(2, 3)), "p": {"k": 3}}


def nested_f(model: Model, x: Any, p: Any) -> Any:
    assert (type(model), type(model.scale)) == (Model, Slotted)
    assert (model.steps, p) == (2, {"k": 3})
    for layer in model.layers:
        x = np.sin(x @ layer.weight.T + layer.bias)
    return (x * model.scale.x).sum()


def nested_grad(model: Model, x: Any, p: Any) -> dict[str, Any]:
    inputs, u = [x], []
    for layer in model.layers:
        u.append(inputs[-1] @ layer.weight.T + layer.bias)
        inputs.append(np.sin(u[-1]))
    dscale = inputs[-1].sum(axis=0)
    d = np.broadcast_to(model.scale.x, inputs[-1].shape)
    layers: list[Any] = [None, None]
    for k in (1, 0):
        d = d * np.cos(u[k])
        layers[k] = Linear(d.T @ inputs[k], d.sum(axis=0))
        d = d @ model.layers[k].weight
    return {"model": Model(layers, Slotted(dscale), 0), "x": d}


@pytest.mark.parametrize("mode", ["full", "directional"])
def test_nested_parameters_are_checked_and_named_by_their_paths(mode: str) -> None:
    report = check_grad(nested_f, nested_parameters(), nested_grad, mode=mode)
    assert report.ok, str(report)
    assert [p.name for p in report.parameters] == [
        "model.layers[0].weight",
        "model.layers[0].bias",
        "model.layers[1].weight",
        "model.layers[1].bias",
        "model.scale.x",
        "x",
    ]


@pytest.mark.parametrize("mode", ["full", "directional"])
def test_a_wrong_leaf_of_nested_parameters_is_located(mode: str) -> None:
    def wrong(**params: Any) -> dict[str, Any]:
        gradients = nested_grad(**params)
        gradients["model"].layers[1].bias[2] *= 1.01
        return gradients

    report = check_grad(nested_f, nested_parameters(), wrong, mode=mode)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.place == "model.layers[1].bias[2]"
