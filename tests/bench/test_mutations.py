"""The mutation command: what counts as caught, located, equivalent, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.mutations import shares, table
from bench.subjects import Subject, planted
from bench.subjects.distillation import kd_loss
from bench.subjects.pairs import Mutant, cases_by_pair, gradients_of, reference_of
from bench.subjects.planted import Outcome, in_literature, in_one_entry


def outcome_of(function: Any, pair: str = "mse") -> Outcome:
    cases = cases_by_pair()[pair]
    own = [gradients_of(case, reference_of(pair), 0) for case in cases]
    return planted._outcome(Mutant(pair, "kind", "change", function), cases, own, 0)


def test_an_equivalent_mutant_is_excluded() -> None:
    def mse_backward(dloss: Any, input: Any, target: Any, *, reduction: str = "mean") -> Any:
        dtarget, dinput = reference_of("mse")(dloss, target, input, reduction=reduction)
        return dinput, dtarget

    assert outcome_of(mse_backward).result == "equivalent"


def test_a_mutant_that_does_not_run_is_counted_apart() -> None:
    def mse_backward(dloss: Any, input: Any, target: Any, *, reduction: str = "mean") -> Any:
        raise TypeError

    assert outcome_of(mse_backward).result == "raised"


def test_a_wrong_mutant_is_caught_and_one_within_the_tolerance_is_no_miss() -> None:
    def scaled(factor: float) -> Any:
        def mse_backward(dloss: Any, input: Any, target: Any, *, reduction: str = "mean") -> Any:
            dinput, dtarget = reference_of("mse")(dloss, input, target, reduction=reduction)
            return factor * dinput, dtarget

        return mse_backward

    assert outcome_of(scaled(2.0)).result == "caught"
    assert outcome_of(scaled(1 + 1e-6)).result == "caught"
    assert outcome_of(scaled(1 + 3e-13)).result == "tolerated"


def test_a_checker_that_accepts_everything_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    own = planted.checked
    monkeypatch.setattr(
        planted, "checked", lambda case, function, seed: own(case, reference_of("mse"), seed)
    )

    def mse_backward(dloss: Any, input: Any, target: Any, *, reduction: str = "mean") -> Any:
        return target - input, input - target

    outcome = outcome_of(mse_backward)
    assert outcome.result == "missed"
    assert "PASS" in outcome.detail


def test_errors_planted_by_hand_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "LITERATURE", (kd_loss,))
    outcomes = list(in_literature(seed=1))
    assert len(outcomes) == len(kd_loss(np.random.default_rng(0)).errors)
    assert {o.result for o in outcomes} == {"caught"}


def test_one_entry_among_a_few_thousand_is_located() -> None:
    outcomes = list(in_one_entry(seed=1, rounds=1, sizes=(50, 3000)))
    assert len(outcomes) == 6
    assert all(o.located for o in outcomes)


def test_shares_leave_out_what_is_no_error() -> None:
    outcomes = [
        Outcome("a", "", "caught"),
        Outcome("a", "", "missed"),
        Outcome("a", "", "raised"),
        Outcome("a", "", "equivalent"),
        Outcome("a", "", "tolerated"),
        Outcome("b", "", "caught", located=True),
        Outcome("b", "", "caught", located=False),
    ]
    assert shares(outcomes) == (0.75, 0.5)
    lines = table(outcomes).splitlines()
    assert lines[2] == "| a | 5 | 1 | 1 | 1 | 1 |  | 1 | 50.00% |"
    assert lines[3] == "| b | 2 | 0 | 0 | 0 | 2 | 1 | 0 | 100.00% |"
    assert "2 missed or not located" in lines


@pytest.fixture
def _one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "cases_by_pair", lambda: {"tanh": cases_by_pair()["tanh"][:2]})
    monkeypatch.setattr(planted, "LITERATURE", (kd_loss,))
    monkeypatch.setattr(planted, "SIZES", (100,))


@pytest.mark.usefixtures("_one_pair")
def test_the_command_counts_by_kind_and_exits_with_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["mutations", "--rounds", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["caught"] == printed["located"] == 1.0
    assert {o["kind"].partition(":")[0] for o in printed["outcomes"]} == {
        "returned",
        "source",
        "by hand",
        "one entry off by 1%",
    }
    assert printed["right"] == {"distillation loss: its gradient": "PASS"}
    assert main(["mutations", "--rounds", "1"]) == 0
    assert "| **all** |" in capsys.readouterr().out


@pytest.mark.usefixtures("_one_pair")
def test_the_command_exits_with_one_where_a_right_gradient_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(rng: np.random.Generator) -> Subject:
        subject = kd_loss(rng)
        return Subject(
            subject.name, subject.f, subject.params, subject.errors["T² dropped"], subject.errors
        )

    monkeypatch.setattr(planted, "LITERATURE", (refused,))
    assert main(["mutations", "--rounds", "1"]) == 1
    assert "its gradient: WRONG_GRADIENT" in capsys.readouterr().out


@pytest.mark.slow
def test_ninety_nine_percent_of_all_planted_errors_are_caught_and_located(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["mutations", "--rounds", "1"]) == 0, capsys.readouterr().out
