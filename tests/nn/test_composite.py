"""Layers made of layers keep the whole contract: exact gradients, taps, purity, names."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import CheckpointError, ConfigError, ShapeError
from refkd.nn import Conv2d, Layer, Parallel, Residual, Sequential, Tanh, WithHeads
from refkd.nn.composite import split_off
from tests.nn.composite_layers import COMPOSITES, IMAGES
from tests.nn.layer_problem import LayerProblem, assert_exact, assert_same_arrays

every_composite = pytest.mark.parametrize("name", COMPOSITES)


def problem_of(name: str, seed: int = 0, **options: Any) -> LayerProblem:
    return LayerProblem(COMPOSITES[name], *IMAGES, seed=seed, **options)


@pytest.mark.parametrize("train", [True, False])
@every_composite
def test_gradients_are_exact(name: str, train: bool) -> None:
    problem = problem_of(name, train=train)
    assert_exact(problem, problem.dy, mode="full")


@every_composite
def test_gradients_are_exact_with_a_cotangent_at_any_feature(name: str) -> None:
    problem = problem_of(name, 1)
    for path in problem.features():
        for dy in (problem.dy, None):
            assert_exact(problem, dy, {path: problem.tap(path)})


@every_composite
@settings(max_examples=8)
@given(data=st.data(), seed=st.integers(0, 2**32), train=st.booleans())
def test_gradients_are_exact_for_any_set_of_taps(
    name: str, data: st.DataObject, seed: int, train: bool
) -> None:
    problem = problem_of(name, seed, train=train)
    paths = data.draw(st.sets(st.sampled_from(sorted(problem.features()))))
    dy = data.draw(parts_of(problem.dy))
    assert_exact(problem, dy, {path: problem.tap(path) for path in sorted(paths)})


def parts_of(dy: Any) -> st.SearchStrategy[Any]:
    """Draw a cotangent of which some parts are left out."""
    if not isinstance(dy, tuple):
        return st.sampled_from([dy, None])
    return st.tuples(*(st.sampled_from([part, None]) for part in dy)) | st.none()


@every_composite
def test_without_any_cotangent_everything_is_zero(name: str) -> None:
    problem = problem_of(name, 2)
    nothing: list[Any] = [None]
    if isinstance(problem.dy, tuple):
        nothing.append((None,) * len(problem.dy))
    for dy in nothing:
        dx, grads = problem.backward(dy)
        assert dx is None
        assert_same_arrays(grads, {n: np.zeros_like(p) for n, p in problem.params.items()})


@every_composite
def test_skipping_dx_changes_no_gradient(name: str) -> None:
    problem = problem_of(name, 3)
    taps = {path: problem.tap(path) for path in problem.features()}
    _, expected = problem.backward(problem.dy, taps=taps)
    dx, grads = problem.backward(problem.dy, taps=taps, need_dx=False)
    assert dx is None
    assert_same_arrays(grads, expected)


@every_composite
def test_forward_backward_and_next_state_mutate_nothing(name: str) -> None:
    problem = problem_of(name, 4)
    taps = {path: problem.tap(path) for path in problem.features()}
    known = (problem.params, problem.state, problem.x, problem.y, problem.cache, problem.dy, taps)
    before = copy.deepcopy(known)
    first = problem.backward(problem.dy, taps=taps)
    first_before = copy.deepcopy(first)
    second = problem.backward(problem.dy, taps=taps)
    problem.layer.next_state(problem.state, problem.cache)
    problem.forward()
    np.testing.assert_equal(known, before)
    np.testing.assert_equal(second, first_before)
    np.testing.assert_equal(first, first_before)


@every_composite
def test_gradients_are_fresh_arrays(name: str) -> None:
    problem = problem_of(name, 5)
    dx, grads = problem.backward(problem.dy)
    dys = problem.dy if isinstance(problem.dy, tuple) else (problem.dy,)
    for array in (dx, *grads.values()):
        for other in (*problem.params.values(), problem.x, *dys):
            assert not np.shares_memory(array, other)


@pytest.mark.parametrize("train", [True, False])
@every_composite
def test_float32_stays_float32(name: str, train: bool) -> None:
    problem = problem_of(name, 6, dtype=np.float32, train=train)
    dx, grads = problem.backward(problem.dy)
    ys = problem.y if isinstance(problem.y, tuple) else (problem.y,)
    assert {a.dtype for a in (*ys, dx, *grads.values())} == {np.dtype(np.float32)}
    for key, array in problem.layer.next_state(problem.state, problem.cache).items():
        assert array.dtype == problem.state[key].dtype


@every_composite
def test_shapes_and_init_name_the_same_arrays_in_the_same_order(name: str) -> None:
    layer = COMPOSITES[name]
    params, state = layer.init(np.random.default_rng(0))
    for arrays, shapes in zip((params, state), layer.shapes(), strict=True):
        assert [(n, a.shape) for n, a in arrays.items()] == list(shapes.items())
    assert not params.keys() & state.keys()


@every_composite
def test_a_state_dict_of_other_names_is_refused(name: str) -> None:
    problem = problem_of(name, 7)
    merged = problem.layer.merge_state_dict(problem.params, problem.state)
    params, state = problem.layer.split_state_dict(merged)
    assert_same_arrays(params, problem.params)
    assert_same_arrays(state, problem.state)
    first, *_ = merged
    for wrong in ({k: v for k, v in merged.items() if k != first}, merged | {"x": problem.x}):
        with pytest.raises(CheckpointError, match="1 differences"):
            problem.layer.split_state_dict(wrong)


@every_composite
def test_training_moves_every_state_and_evaluation_none(name: str) -> None:
    problem = problem_of(name, 8)
    updated = problem.layer.next_state(problem.state, problem.cache)
    assert list(updated) == list(problem.state)
    for key, array in updated.items():
        assert np.all(array != problem.state[key]), key
    problem = problem_of(name, 8, train=False)
    assert_same_arrays(problem.layer.next_state(problem.state, problem.cache), problem.state)


@every_composite
def test_a_tap_at_an_unknown_path_is_an_error_that_suggests_one(name: str) -> None:
    problem = problem_of(name, 9)
    kind = type(problem.layer).__name__
    for path in problem.features():
        if "." not in path:
            with pytest.raises(ConfigError, match=f"{kind}.backward.*did you mean '{path}'"):
                problem.backward(problem.dy, taps={f"{path}_": problem.tap(path)})
        with pytest.raises(ConfigError, match=r"'nothing.*' names no feature"):
            problem.backward(problem.dy, taps={f"{path}.nothing": problem.x})
    with pytest.raises(ConfigError, match="names no feature"):
        problem.backward(problem.dy, taps={"": problem.x})


@pytest.mark.parametrize("name", ["inception", "two_heads"])
def test_cotangents_of_another_number_are_an_error(name: str) -> None:
    problem = problem_of(name, 10)
    kind, count = type(problem.layer).__name__, len(problem.dy)
    for dy in (problem.dy[1:], (*problem.dy, None), problem.dy[0], list(problem.dy)):
        with pytest.raises(ShapeError, match=f"{kind}.backward: dy .* tuple of {count} cotangents"):
            problem.backward(dy)


@dataclass(frozen=True)
class Watch(Layer):
    """y = w x; it writes down whether dx was asked for."""

    asked: list[bool] = field(default_factory=list, compare=False)

    def shapes(self):
        return {"w": ()}, {}

    def init(self, rng, *, dtype=np.float32):
        return {"w": np.array(rng.standard_normal(), dtype)}, {}

    def forward(self, params, state, x, *, train, rng=None):
        return params["w"] * x, x

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        self.asked.append(need_dx)
        return params["w"] * dy if need_dx else None, {"w": (dy * cache).sum()}


def watched(*names: str) -> dict[str, Watch]:
    return {name: Watch() for name in names}


def asked_by(watches: dict[str, Watch]) -> dict[str, list[bool]]:
    return {name: watch.asked for name, watch in watches.items()}


def test_the_first_layers_of_every_branch_skip_dx() -> None:
    w = watched("a", "b1", "b2")
    branch = Sequential((("tanh", Tanh()), ("b1", w["b1"]), ("b2", w["b2"])))
    fork = Parallel((("a", w["a"]), ("b", branch)))
    network = Sequential((("tanh", Tanh()), ("fork", fork)))
    problem = LayerProblem(network, 2, 3)
    problem.backward(problem.dy, need_dx=False)
    assert asked_by(w) == {"a": [False], "b1": [False], "b2": [True]}


def test_the_first_layers_of_body_and_shortcut_skip_dx() -> None:
    w = watched("first", "second", "shortcut")
    body = Sequential((("first", w["first"]), ("second", w["second"])))
    problem = LayerProblem(Sequential((("block", Residual(body, w["shortcut"])),)), 2, 3)
    problem.backward(problem.dy, need_dx=False)
    assert asked_by(w) == {"first": [False], "second": [True], "shortcut": [False]}


def test_a_head_gives_its_trunk_a_cotangent_but_the_trunk_gives_none() -> None:
    w = watched("first", "second", "head")
    trunk = Sequential((("first", w["first"]), ("second", w["second"])))
    problem = LayerProblem(WithHeads(trunk, (("head", "first", w["head"]),)), 2, 3)
    problem.backward(problem.dy, need_dx=False)
    assert asked_by(w) == {"first": [False], "second": [True], "head": [True]}


def test_a_head_on_a_trunk_without_parameters_skips_dx() -> None:
    w = watched("head")
    trunk = Sequential((("tanh", Tanh()),))
    problem = LayerProblem(WithHeads(trunk, (("head", "tanh", w["head"]),)), 2, 3)
    problem.backward(problem.dy, need_dx=False)
    assert asked_by(w) == {"head": [False]}


def test_a_branch_that_no_cotangent_reaches_does_no_work() -> None:
    w = watched("a", "b")
    problem = LayerProblem(Parallel(tuple(w.items())), 2, 3)
    problem.backward((None, problem.dy[1]))
    assert asked_by(w) == {"a": [], "b": [True]}


@pytest.mark.parametrize("names", [("a", "a"), ("a.b",), ("",)])
def test_names_that_would_not_be_a_path_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="Parallel: names must be unique"):
        Parallel(tuple((name, Tanh()) for name in names))
    with pytest.raises(ConfigError, match="WithHeads: names must be unique"):
        WithHeads(Sequential((("x", Tanh()),)), tuple((name, "x", Tanh()) for name in names))


def test_the_name_of_a_shortcut_or_a_head_is_not_one_of_the_body() -> None:
    body = Sequential((("conv", Tanh()), ("downsample", Tanh())))
    with pytest.raises(ConfigError, match=r"Residual: names must be unique.*'downsample'"):
        Residual(body, Tanh())
    with pytest.raises(ConfigError, match=r"WithHeads: names must be unique.*'conv'"):
        WithHeads(body, (("conv", "conv", Tanh()),))
    Residual(body)  # the identity needs no name
    with pytest.raises(ConfigError, match="names must be unique, not empty"):
        Residual(body, Tanh(), "down.sample")


@pytest.mark.parametrize(
    ("make", "field"),
    [(Sequential, "Sequential: layers"), (Parallel, "Parallel: branches")],
)
@pytest.mark.parametrize(
    ("children", "words"),
    [
        (None, r"must be a tuple of \(name, layer\), got None"),
        (Tanh(), r"must be a tuple of \(name, layer\), got Tanh\(\)"),
        ((Tanh(),), r"must be a tuple of \(name, layer\), .* string, got Tanh\(\) in it"),
        (((0, Tanh()),), r"each a layer after 1 string, got \(0, Tanh\(\)\) in it"),
        ((("a", Tanh()), ("b",)), r"got \('b',\) in it"),
        ((("a", "b", Tanh()),), r"got \('a', 'b', Tanh\(\)\) in it"),
        (("ab",), "got 'ab' in it"),
    ],
)
def test_children_are_pairs_of_a_name_and_a_layer(
    make: Any, field: str, children: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field} .*{words}"):
        make(children)


@pytest.mark.parametrize("child", [None, Tanh, 3])
def test_what_is_no_layer_is_named_by_its_place(child: Any) -> None:
    with pytest.raises(ConfigError, match="Sequential: 'a' in layers must be a layer, got"):
        Sequential((("a", child),))
    with pytest.raises(ConfigError, match="Parallel: 'a' in branches must be a layer, got"):
        Parallel((("a", child),))
    body = Sequential((("x", Tanh()),))
    with pytest.raises(ConfigError, match="WithHeads: 'a' in heads must be a layer, got"):
        WithHeads(body, (("a", "x", child),))
    if child is not None:
        with pytest.raises(ConfigError, match="Residual: shortcut must be a layer, got"):
            Residual(body, child)


def test_composites_are_compared_and_hashed_by_value() -> None:
    for layer in COMPOSITES.values():
        assert copy.deepcopy(layer) == layer
        assert hash(copy.deepcopy(layer)) == hash(layer)
    pairs = [["a", Tanh()], ["b", Tanh()]]
    assert Parallel(pairs) == Parallel((("a", Tanh()), ("b", Tanh())))  # type: ignore[arg-type]


def test_names_are_split_off_one_level_at_a_time() -> None:
    arrays = {"a.b": 1, "c.d.e": 2, "c": 3, "cc.d": 4, "c.d": 5}
    rest, own = split_off(arrays, ["c", "unused"])
    assert rest == {"a.b": 1, "cc.d": 4}
    assert own == {"c": {"d.e": 2, "": 3, "d": 5}, "unused": {}}


@every_composite
def test_inference_returns_the_bits_of_the_forward_in_evaluation(name: str) -> None:
    problem = problem_of(name, 30, train=False, dtype=np.float32)
    y = problem.layer.infer(problem.params, problem.state, problem.x)
    np.testing.assert_equal(y, problem.y)


def test_inference_keeps_the_largest_layers_and_not_all() -> None:
    layers = [Conv2d(4, 4, 3, padding=1) for _ in range(30)]
    network = WithHeads(Sequential.numbered(*layers), (("head", "29", Tanh()),))
    params, state = network.init(np.random.default_rng(0))
    x = np.zeros((8, 4, 64, 64), np.float32)

    def peak(evaluate: Any) -> int:
        tracemalloc.start()
        try:
            kept = evaluate()
            return tracemalloc.get_traced_memory()[1] if kept is not None else 0
        finally:
            tracemalloc.stop()

    inferred = peak(lambda: network.infer(params, state, x))
    remembered = peak(lambda: network.forward(params, state, x, train=False))
    assert remembered > 30 * x.nbytes
    assert inferred < remembered / 2
