"""The false-alarm command: right gradients of drawn functions, and an alarm where one is due."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from bench import false_alarms
from bench.__main__ import main
from bench.false_alarms import Checked, check_drawn, check_many, table
from bench.subjects.drawn import Drawn, draw
from refkd.testing import Verdict, check_grad


def test_right_gradients_raise_no_alarm() -> None:
    checked = list(check_many(seed=1, count=150, processes=1))
    assert [c.report for c in checked if c.alarm] == []
    assert [c.number for c in checked] == list(range(150))
    seen = Counter((c.method, c.mode) for c in checked)
    assert {method for method, _ in seen} >= {"complex", "ridders"}
    assert {mode for _, mode in seen} == {"full", "directional"}


def test_a_draw_is_the_same_in_any_process() -> None:
    alone = list(check_many(seed=2, count=3, processes=1))
    apart = list(check_many(seed=2, count=3, processes=2))
    assert alone == apart


def test_a_wrong_gradient_is_an_alarm_with_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rng: Any) -> Drawn:
        drawn = draw(rng)
        subject = drawn.subject
        changed = type(subject)(
            subject.name,
            subject.f,
            subject.params,
            lambda **params: {n: -g for n, g in subject.grad(**params).items()},
        )
        return Drawn(changed, drawn.on_kink)

    monkeypatch.setattr(false_alarms, "draw", wrong)
    alarms = [c for c in (check_drawn(0, n) for n in range(20)) if c.alarm]
    assert len(alarms) > 10
    assert all("WRONG_GRADIENT" in c.report for c in alarms)


def test_an_exception_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("of the checker")

    monkeypatch.setattr(false_alarms, "check_grad", broken)
    checked = check_drawn(0, 0)
    assert checked.alarm
    assert checked.verdict == "ZeroDivisionError"
    assert "of the checker" in checked.report


def test_what_shows_nothing_is_counted_apart() -> None:
    def one(verdict: str) -> Checked:
        return Checked(0, "complex", "full", verdict, False)

    checked = [one("PASS"), one("KINK"), one("NOISY_REFERENCE"), one("WRONG_GRADIENT")]
    assert [c.alarm for c in checked] == [False, False, False, True]
    lines = table(checked).splitlines()
    assert lines[2] == "| complex | full | 4 | 1 | 1 | 1 | 1 | 25.00% |"


def test_the_command_prints_counts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["false-alarms", "--count", "20", "--processes", "1", "--seed", "1"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["count"] == sum(sum(r["verdicts"].values()) for r in printed["rows"]) == 20
    assert printed["alarms"] == []
    assert main(arguments) == 0
    assert "20 right gradients, 0 alarms" in capsys.readouterr().out


def test_the_command_exits_with_one_on_an_alarm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def alarmed(*arguments: Any, **options: Any) -> Any:
        report = check_grad(*arguments, **options)
        return type(report)(Verdict.NONDETERMINISTIC, "not so")

    monkeypatch.setattr(false_alarms, "check_grad", alarmed)
    assert main(["false-alarms", "--count", "2", "--processes", "1"]) == 1
    assert "draw 0: NONDETERMINISTIC" in capsys.readouterr().out
