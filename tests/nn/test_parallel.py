"""Branches on one input, and the join of their outputs; the contract is in test_composite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError, ShapeError
from refkd.nn import Concat, Linear, Parallel, Sequential, Tanh
from tests.nn.composite_layers import IMAGES, INCEPTION
from tests.nn.layer_problem import LayerProblem, assert_exact, assert_same_arrays

BRANCHES = ["branch1", "branch2", "branch3", "pool"]


def test_every_branch_receives_the_input() -> None:
    problem = LayerProblem(INCEPTION, *IMAGES)
    assert len(problem.y) == len(BRANCHES)
    for (name, layer), y in zip(INCEPTION.branches, problem.y, strict=True):
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in problem.params.items()
            if key.startswith(f"{name}.")
        }
        np.testing.assert_array_equal(y, layer.forward(own, {}, problem.x, train=True)[0])


def test_names_stand_under_their_branch() -> None:
    params, state = INCEPTION.shapes()
    assert list(params) == [
        *("branch1.weight", "branch1.bias", "branch2.0.weight", "branch2.0.bias"),
        *("branch2.2.weight", "branch2.2.bias", "branch3.1.weight", "branch3.1.bias"),
    ]
    assert state == {}


def test_features_are_the_branches_and_what_is_in_them() -> None:
    problem = LayerProblem(INCEPTION, *IMAGES, seed=1)
    features = problem.features()
    inner = ["branch2.0", "branch2.1", "branch2.2", "branch3.0", "branch3.1"]
    order = ["branch1", *inner[:3], "branch2", *inner[3:], "branch3", "pool"]
    assert list(features) == order
    for name, y in zip(BRANCHES, problem.y, strict=True):
        assert features[name] is y


def test_dx_is_the_sum_over_the_branches() -> None:
    problem = LayerProblem(INCEPTION, *IMAGES, seed=2)
    dx, grads = problem.backward(problem.dy)
    alone = []
    for i, name in enumerate(BRANCHES):
        only = tuple(dy if i == j else None for j, dy in enumerate(problem.dy))
        part, own = problem.backward(only)
        alone.append(part)
        for key, grad in own.items():
            expected = grads[key] if key.startswith(f"{name}.") else np.zeros_like(grad)
            np.testing.assert_array_equal(grad, expected)
    np.testing.assert_allclose(dx, sum(alone), rtol=0, atol=1e-14 * np.abs(dx).max())


def test_branches_may_take_a_tuple() -> None:
    fork = Parallel((("a", Linear(3, 2)), ("b", Tanh())))
    both = Parallel((("left", Concat()), ("right", Concat(-1))))
    network = Sequential((("fork", fork), ("both", both), ("join", Concat(1))))
    problem = LayerProblem(network, 4, 3)
    assert problem.y.shape == (4, 10)
    assert_exact(problem, problem.dy, {"both": problem.tap("both")}, mode="full")


def test_a_nested_tuple_has_a_cotangent_of_its_structure() -> None:
    inner = Parallel((("a", Linear(3, 2)), ("b", Tanh())))
    problem = LayerProblem(Parallel((("pair", inner), ("single", Linear(3, 3)))), 4, 3, seed=3)
    (first, second), single = problem.dy
    for dy in (problem.dy, ((None, second), None), (None, single), ((first, None), single)):
        assert_exact(problem, dy, mode="full")
    assert_exact(problem, None, {"pair": (first, None), "pair.b": second}, mode="full")


def test_without_branches_there_is_nothing_to_hand_x_to() -> None:
    with pytest.raises(ConfigError, match="Parallel: branches must hold at least one layer"):
        Parallel(())


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_concat_joins_along_its_axis_and_takes_apart_again(axis: int) -> None:
    rng = np.random.default_rng(4)
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    for i, shape in enumerate(shapes):
        shape[axis] = i + 1
    xs = tuple(rng.standard_normal(shape) for shape in shapes)
    y, cache = Concat(axis).forward({}, {}, xs, train=True)
    np.testing.assert_array_equal(y, np.concatenate(xs, axis))
    parts, grads = Concat(axis).backward({}, cache, y)
    assert grads == {}
    assert_same_arrays(dict(enumerate(parts)), dict(enumerate(xs)))  # type: ignore[arg-type]


def test_concat_skips_dx_and_has_no_parameters_or_features() -> None:
    xs = (np.ones((2, 1)), np.ones((2, 3)))
    y, cache = Concat().forward({}, {}, xs, train=True)
    assert Concat().backward({}, cache, y, need_dx=False) == (None, {})
    assert Concat().shapes() == ({}, {})
    assert list(Concat().features(cache)) == []
    with pytest.raises(ConfigError, match=r"Concat\.backward: tap 'x'"):
        Concat().backward({}, cache, y, taps={"x": y})


def test_concat_of_one_array_is_an_error_that_says_what_it_takes() -> None:
    with pytest.raises(ShapeError, match=r"Concat\.forward: x must be a tuple"):
        Concat().forward({}, {}, np.ones((2, 2)), train=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [1.0, None, True, (1,)])
def test_the_axis_of_concat_is_an_integer(axis: Any) -> None:
    with pytest.raises(ConfigError, match="Concat: axis must be an integer"):
        Concat(axis)
