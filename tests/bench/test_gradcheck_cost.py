"""The cost of a check: measured on a right gradient, and failing where a target is missed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import gradcheck
from bench.__main__ import main
from bench.gradcheck import Cost, measure


@pytest.fixture(autouse=True)
def _small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck, "SMALL", (3, 4, 2))
    monkeypatch.setattr(gradcheck, "LARGE", (20, 90, 4))


def test_the_cost_counts_parameters_calls_and_memory() -> None:
    cost = measure((20, 90, 4), rounds=1, batch=4)
    assert cost.parameters == 20 * 90 + 90 + 90 * 4 + 4
    assert cost.parameter_mb == cost.parameters * 8 / 2**20
    assert cost.mode == "directional"
    assert cost.calls >= 3
    assert cost.passes == pytest.approx(cost.seconds / cost.pass_seconds)


def test_a_large_model_is_checked_in_three_times_its_parameters() -> None:
    # The complex parameters are two of the three.
    cost = measure((300, 700, 10), rounds=1, batch=4)
    assert cost.parameters > 200_000
    assert 1 < cost.memory_ratio <= 3.0


def test_memory_is_counted_while_it_is_held() -> None:
    assert gradcheck._peak(lambda: np.zeros(10**6)) == pytest.approx(8e6, rel=1e-2)


def cost(**changes: float) -> Cost:
    figures = {"seconds": 0.1, "pass_seconds": 0.05, "passes": 2.0, "extra_mb": 1.0} | changes
    return Cost("f", 10, True, "full", 5, parameter_mb=1.0, **figures)


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"seconds": 0.6}, 1), ({"passes": 6.5}, 1), ({"extra_mb": 3.1}, 1)],
)
def test_a_missed_target_is_exit_code_one(
    change: dict[str, float],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gradcheck, "measure", lambda widths, rounds, batch=0: cost(**change))
    assert main(["gradcheck"]) == code
    assert "target at most 6.0" in capsys.readouterr().out


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["gradcheck", "--rounds", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [row["ok"] for row in printed["rows"]] == [True, True, True]
    assert printed["rows"][0]["mode"] == "full"
    assert printed["environment"]["numpy"] == np.__version__
