"""The machines that plant errors: every mutant is distinct, and differs where it can."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from bench.subjects.gradient_mutants import gradient_mutants, spoiled
from bench.subjects.pairs import (
    cases_by_pair,
    checked,
    distance,
    gradients_of,
    mutants_of,
    reference_of,
)
from bench.subjects.source_mutants import SourceMutant, source_mutants
from refkd.dispatch import registered_kernels
from refkd.testing import Verdict


def product(dy: Any, x: Any) -> Any:
    """Return dy · x; the docstring is not mutated: 1 + 1."""
    if dy.shape != x.shape:
        raise ValueError(f"{dy.shape} against {x.shape}")
    return _doubled(dy) * x


def _doubled(dy: Any) -> Any:
    return 2 * dy


def summed(dy: Any, x: Any) -> Any:
    return (dy.T @ x, dy.sum(axis=0, keepdims=True))


def of_kind(mutants: list[SourceMutant], kind: str) -> set[str]:
    return {m.change for m in mutants if m.kind == kind}


def test_the_rewriter_makes_each_small_change_once() -> None:
    mutants = source_mutants(product)
    assert of_kind(mutants, "* for /") == {
        "_doubled(dy) * x → _doubled(dy) / x",
        "2 * dy → 2 / dy",
    }
    assert of_kind(mutants, "factor dropped") == {
        "_doubled(dy) * x → _doubled(dy)",
        "_doubled(dy) * x → x",
        "2 * dy → 2",
        "2 * dy → dy",
    }
    assert of_kind(mutants, "constant") == {"2 → 3", "2 → 1"}
    assert of_kind(mutants, "input replaced") == {"dy → x", "x → dy"}
    assert len(mutants) == len({(m.line, m.change) for m in mutants})


def test_every_mutant_computes_something_else() -> None:
    dy, x = np.array([[3.0, 5.0]]), np.array([[7.0, 11.0]])
    for mutant in source_mutants(product):
        assert not np.array_equal(mutant.function(dy, x), product(dy, x)), mutant


def test_a_mutated_helper_serves_the_mutant_alone() -> None:
    dy, x = np.array([3.0]), np.array([7.0])
    for mutant in source_mutants(product):
        mutant.function(dy, x)
    assert product(dy, x) == 42.0


def test_the_line_of_a_mutant_is_its_line_in_the_file() -> None:
    lines, first = inspect.getsourcelines(_doubled)
    expected = {first + k for k, line in enumerate(lines) if "2 * dy" in line}
    assert {m.line for m in source_mutants(product) if m.change == "2 → 3"} == expected


def test_sums_axes_and_transposes_are_mutated() -> None:
    mutants = source_mutants(summed)
    assert of_kind(mutants, "transpose dropped") == {"dy.T → dy"}
    assert of_kind(mutants, "transpose added") == {"dy.T @ x → dy.T @ x.T"}
    assert of_kind(mutants, "operands swapped") == {"dy.T @ x → x @ dy.T"}
    assert of_kind(mutants, "mean for sum") == {
        "dy.sum(axis=0, keepdims=True) → dy.mean(axis=0, keepdims=True)"
    }
    assert "dy.sum(axis=0, keepdims=True) → dy.sum(axis=1, keepdims=True)" in of_kind(
        mutants, "axis"
    )
    assert of_kind(mutants, "keepdims") == {
        "dy.sum(axis=0, keepdims=True) → dy.sum(axis=0, keepdims=False)"
    }


def test_every_registered_backward_has_mutants() -> None:
    for name, kernel in registered_kernels().items():
        if name.endswith("_backward"):
            assert len(source_mutants(kernel.reference)) >= 5, name


def test_a_change_of_what_is_returned_leaves_none_and_the_others_alone() -> None:
    def backward(dy: Any) -> Any:
        return None, dy, 2 * dy

    dy = np.array([1.0, 2.0])
    returned = spoiled(backward, 2, np.negative)(dy)
    assert returned[0] is None
    np.testing.assert_array_equal(returned[1], dy)
    np.testing.assert_array_equal(returned[2], -2 * dy)
    assert spoiled(backward, 0, np.negative)(dy)[0] is None
    mutants = gradient_mutants(backward, (None, "a", "b"))
    assert {m.where for m in mutants} == {"da", "db", "da, db", "all"}


def test_an_unchanged_backward_in_the_place_of_the_pairs_own_passes() -> None:
    case = cases_by_pair()["linear"][0]
    own = reference_of("linear")
    assert distance(gradients_of(case, own, 0), gradients_of(case, own, 0)) == 0
    assert checked(case, own, 0).ok


def test_a_planted_error_in_linear_is_caught() -> None:
    (case,) = (c for c in cases_by_pair()["linear"] if c.label == "square weight")
    own = gradients_of(case, reference_of("linear"), 0)
    (mutant,) = (
        m
        for m in mutants_of("linear", cases_by_pair()["linear"])
        if (m.kind, m.change) == ("returned: transposed", "dweight")
    )
    assert distance(own, gradients_of(case, mutant.function, 0)) > 0.1
    report = checked(case, mutant.function, 0)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.name == "weight"


def test_the_distance_is_relative_and_infinite_for_what_is_no_gradient() -> None:
    own = {"x": np.array([1.0, -4.0]), "zero": np.zeros(2)}
    assert distance(own, {**own, "x": np.array([1.5, -4.0])}) == 0.125
    assert distance(own, {**own, "x": np.array([np.nan, -4.0])}) == np.inf
    assert distance(own, {**own, "x": np.zeros((1, 2))}) == np.inf
    assert distance(own, {**own, "zero": np.array([0.0, 1e-300])}) == np.inf
