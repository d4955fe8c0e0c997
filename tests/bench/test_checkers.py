"""The comparison of checkers: the same errors for each, and honest columns."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from bench import checkers
from bench.__main__ import main
from bench.checkers import Row, compare, table
from bench.subjects import Entry
from bench.subjects.distillation import kd_loss
from bench.subjects.large import pointwise
from bench.subjects.peers import CHECKERS, Checker, Finding

REFKD, TORCH, TORCH_FAST, JAX = CHECKERS
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_JAX = importlib.util.find_spec("jax") is not None


@pytest.fixture(autouse=True)
def _two_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"kd": kd_loss, "many": lambda rng: pointwise(rng, 20_000)}
    monkeypatch.setattr(checkers, "SUBJECTS", functions)


def test_refkd_catches_and_locates() -> None:
    row = compare("kd", REFKD, seed=0, rounds=1)
    assert (row.planted, row.caught) == (8, 8)
    assert (row.single, row.located) == (1, 1)
    assert (row.right, row.alarms) == (1, 0)
    assert row.seconds > 0


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_torch_judges_the_same_errors() -> None:
    row = compare("kd", TORCH, seed=0, rounds=1)
    assert (row.planted, row.single, row.right, row.alarms) == (8, 1, 1, 0)
    assert row.caught >= 6
    fast = compare("kd", TORCH_FAST, seed=0, rounds=1)
    assert (fast.planted, fast.alarms) == (8, 0)
    assert compare("many", TORCH, seed=0, rounds=1).note == "skipped: 40,000 calls"


@pytest.mark.skipif(not HAS_JAX, reason="jax is not installed")
def test_jax_judges_the_same_errors() -> None:
    row = compare("kd", JAX, seed=0, rounds=1)
    assert (row.planted, row.single, row.right, row.alarms) == (8, 1, 1, 0)
    assert row.caught >= 6


def test_a_peer_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    row = compare("kd", JAX, seed=0, rounds=1)
    assert row.note == "not installed"
    assert "| kd | jax check_grads | not installed |" in table([row])


def test_an_alarm_on_a_right_gradient_and_a_miss_are_counted() -> None:
    inverted = Checker("inverted", "refkd", lambda *_: Finding(True, "x[0]"))
    row = compare("kd", inverted, seed=0, rounds=2)
    assert (row.right, row.alarms, row.caught) == (2, 2, 16)
    blind = Checker("blind", "refkd", lambda *_: Finding(False, ""))
    row = compare("kd", blind, seed=0, rounds=1)
    assert (row.alarms, row.caught, row.located) == (0, 0, 0)


@pytest.mark.parametrize("says", ["at x[1, 2] it", "entry (1, 2) is", "index 1, 2"])
def test_an_entry_counts_as_named_by_its_index(says: str) -> None:
    assert checkers._names(says, Entry("x", (1, 2)))
    assert not checkers._names(says, Entry("x", (2, 1)))


def test_the_sums_leave_out_what_was_not_tried() -> None:
    counted = Row("a", "c", "", 4, 3, 2, 1, 5, 0, 0.25)
    text = table([counted, Row("b", "c", "skipped"), Row("b", "d", "not installed")])
    assert "| a | c | 3 of 4 | 1 of 2 | 0 of 5 | 250.0 |" in text
    assert text.splitlines()[-1] == "| **all tried** | c | 3 of 4 | 1 of 2 | 0 of 5 |  |"


def test_the_command_prints_a_row_for_each_function_and_checker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkers, "CHECKERS", (REFKD,))
    monkeypatch.setattr(checkers, "SUBJECTS", {"few": lambda rng: pointwise(rng, 5)})
    assert main(["checkers", "--rounds", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["function"], row["checker"]) == ("few", "refkd check_grad")
    assert np.isfinite(row["seconds"])
    assert main(["checkers", "--rounds", "1"]) == 0
    assert "| few | refkd check_grad | 1 of 1 | 1 of 1 | 0 of 1 |" in capsys.readouterr().out
