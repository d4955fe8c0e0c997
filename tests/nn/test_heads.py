"""Heads that read features inside a trunk; the contract is in test_composite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.nn import AdaptiveAvgPool2d, Linear, Sequential, Tanh, WithHeads
from tests.nn.composite_layers import IMAGES, TWO_HEADS
from tests.nn.layer_problem import LayerProblem, assert_exact, assert_same_arrays

TRUNK = Sequential((("a", Linear(3, 4)), ("tanh", Tanh()), ("b", Linear(4, 2))))
SMALL = WithHeads(TRUNK, (("aux", "tanh", Linear(4, 2)), ("early", "a", Linear(4, 3))))


@pytest.mark.parametrize("train", [True, False])
def test_outputs_are_the_trunks_and_then_the_heads_in_the_given_order(train: bool) -> None:
    problem = LayerProblem(SMALL, 5, 3, train=train)
    main, aux, early = problem.y
    p, features = problem.params, problem.features()
    np.testing.assert_array_equal(main, features["b"])
    np.testing.assert_array_equal(aux, features["tanh"] @ p["aux.weight"].T + p["aux.bias"])
    np.testing.assert_array_equal(early, features["a"] @ p["early.weight"].T + p["early.bias"])


def test_the_trunk_keeps_its_names_and_a_head_prefixes_its_own() -> None:
    trunk = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4), "b.bias": (2,)}
    aux = {"aux.weight": (2, 4), "aux.bias": (2,)}
    early = {"early.weight": (3, 4), "early.bias": (3,)}
    assert SMALL.shapes() == (trunk | aux | early, {})
    assert list(LayerProblem(SMALL, 5, 3).features()) == ["a", "tanh", "b", "aux", "early"]


def test_a_trunk_that_is_given_heads_is_the_trunk_it_was() -> None:
    seeds = [np.random.default_rng(1), np.random.default_rng(1)]
    params, _ = TRUNK.init(seeds[0])
    with_heads, _ = SMALL.init(seeds[1])
    for name, array in params.items():
        np.testing.assert_array_equal(with_heads[name], array)
    x = np.random.default_rng(2).standard_normal((5, 3)).astype(np.float32)
    alone, _ = TRUNK.forward(params, {}, x, train=True)
    np.testing.assert_array_equal(SMALL.forward(with_heads, {}, x, train=True)[0][0], alone)


def test_a_head_is_a_tap_at_the_feature_it_reads() -> None:
    problem = LayerProblem(SMALL, 5, 3, seed=3)
    main, aux, _ = problem.dy
    dx, grads = problem.backward((main, aux, None))
    _, cache = TRUNK.forward(own(problem.params, "a", "b"), {}, problem.x, train=True)
    tap = {"tanh": aux @ problem.params["aux.weight"]}
    expected_dx, expected = TRUNK.backward(own(problem.params, "a", "b"), cache, main, taps=tap)
    np.testing.assert_array_equal(dx, expected_dx)
    assert_same_arrays(own(grads, "a", "b"), expected)


def own(arrays: dict[str, np.ndarray], *layers: str) -> dict[str, np.ndarray]:
    return {name: a for name, a in arrays.items() if name.partition(".")[0] in layers}


def test_a_head_that_is_not_used_changes_nothing_and_has_zero_gradients() -> None:
    problem = LayerProblem(SMALL, 5, 3, seed=4)
    main, aux, _ = problem.dy
    _, grads = problem.backward((main, aux, None))
    assert not np.any(grads["early.weight"])
    assert not np.any(grads["early.bias"])
    # Layers behind the feature that a used head reads have no part in its loss.
    _, grads = problem.backward((None, None, problem.dy[2]))
    reached = {"a.weight", "a.bias", "early.weight", "early.bias"}
    assert {name for name, grad in grads.items() if np.any(grad)} == reached


def test_several_heads_may_read_one_feature_beside_a_tap() -> None:
    heads = (("x", "tanh", Linear(4, 2)), ("y", "tanh", Linear(4, 3)))
    problem = LayerProblem(WithHeads(TRUNK, heads), 5, 3, seed=5)
    taps = {path: problem.tap(path) for path in ("tanh", "x", "b")}
    assert_exact(problem, problem.dy, taps, mode="full")
    assert_exact(problem, None, taps, mode="full")


def test_a_head_may_have_heads() -> None:
    head = WithHeads(Sequential((("c", Linear(4, 2)), ("d", Tanh()))), (("e", "c", Linear(2, 2)),))
    problem = LayerProblem(WithHeads(TRUNK, (("aux", "tanh", head),)), 5, 3, seed=6)
    main, (inner, second) = problem.y
    assert (main.shape, inner.shape, second.shape) == ((5, 2),) * 3
    taps = {path: problem.tap(path) for path in ("aux.c", "aux.e", "tanh")}
    assert_exact(problem, problem.dy, taps, mode="full")
    assert_exact(problem, (None, (None, problem.dy[1][1])), mode="full")


def test_a_head_is_found_in_the_nested_features_of_the_trunk() -> None:
    problem = LayerProblem(TWO_HEADS, *IMAGES)
    features = problem.features()
    np.testing.assert_array_equal(features["aux2.join"], np.concatenate(features["fork"], axis=1))
    pooled, _ = AdaptiveAvgPool2d(1).forward({}, {}, features["block.downsample.0"], train=True)
    np.testing.assert_array_equal(features["aux1.pool"], pooled)


def test_a_path_that_is_no_feature_is_an_error_that_suggests_one() -> None:
    network = WithHeads(TRUNK, (("aux", "tahn", Linear(4, 2)),))
    params, state = network.init(np.random.default_rng(0))
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(ConfigError, match=r"head 'aux' reads 'tahn'.*did you mean 'tanh'"):
        network.forward(params, state, x, train=True)


def test_without_heads_the_output_is_a_tuple_of_one() -> None:
    problem = LayerProblem(WithHeads(TRUNK, ()), 5, 3, seed=7)
    assert len(problem.y) == 1
    assert_exact(problem, problem.dy, mode="full")


@pytest.mark.parametrize("trunk", [Tanh(), (("tanh", Tanh()),), None])
def test_the_trunk_is_a_sequential(trunk: Any) -> None:
    with pytest.raises(ConfigError, match=r"WithHeads: trunk must be a Sequential, got .*numbered"):
        WithHeads(trunk, ())


@pytest.mark.parametrize(
    "head", [("aux", Tanh()), ("aux", 3, Tanh()), (["aux"], "a", Tanh()), ("aux", "a"), Tanh()]
)
def test_a_head_is_a_name_the_path_of_a_feature_and_a_layer(head: Any) -> None:
    words = r"WithHeads: heads must be a tuple of \(name, feature path, layer\), .*2 strings, got"
    with pytest.raises(ConfigError, match=words):
        WithHeads(TRUNK, (head,))
