"""No kernel escapes the gradient check, and the table says what it found."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from refkd import dispatch
from refkd.cli import gradcheck as cli
from refkd.dispatch import kernel, registered_kernels
from refkd.errors import ConfigError
from refkd.testing import pairs
from refkd.testing.pairs import (
    PairCase,
    all_cases,
    check_all,
    check_pair,
    escaped_kernels,
    forward,
)


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_kernels", registered_kernels())


def triple_forward(x: Any) -> Any:
    return 3 * x


def triple_backward(dy: Any) -> Any:
    return 2 * dy


def case_of_triple(*gradients: str | None) -> PairCase:
    return PairCase("triple", "plain", lambda rng: {"x": rng.standard_normal(4)}, gradients)


def command(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    return parser.parse_args(["gradcheck", *arguments])


def test_every_kernel_is_reached_by_a_gradient_check() -> None:
    assert escaped_kernels() == []


def test_a_kernel_without_pair_has_a_reason() -> None:
    assert all(k.reason for k in registered_kernels().values() if k.pair is None)


@pytest.mark.usefixtures("scratch_registry")
def test_a_pair_without_a_case_is_reported() -> None:
    kernel(triple_forward)
    kernel(triple_backward)
    assert escaped_kernels() == ["pair triple has no case in refkd/testing/cases"]
    (result,) = check_all(["triple"])
    assert (result.verdict, result.ok) == ("NO_CASE", False)


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("alone", [triple_forward, triple_backward])
def test_a_kernel_without_its_other_direction_is_reported(alone: Any) -> None:
    kernel(alone)
    (complaint,) = escaped_kernels()
    other = {"triple_forward": "triple_backward", "triple_backward": "triple_forward"}
    assert complaint == f"{alone.__name__} has no {other[alone.__name__]} beside it"


def test_a_case_of_no_registered_pair_is_reported() -> None:
    assert escaped_kernels(cases=[*all_cases(), case_of_triple("x")]) == [
        "cases for triple, which is no registered pair"
    ]


@pytest.mark.usefixtures("scratch_registry")
def test_a_wrong_backward_kernel_is_found() -> None:
    kernel(triple_forward)
    kernel(triple_backward)
    report = check_pair(case_of_triple("x"))
    assert report.verdict == "WRONG_GRADIENT"
    assert report.worst is not None
    assert report.worst.analytic / report.worst.numeric == pytest.approx(2 / 3)


@pytest.mark.usefixtures("scratch_registry")
def test_a_backward_whose_argument_no_case_gives_is_a_config_error() -> None:
    def triple_backward(dy: Any, scale: Any) -> Any:
        return dy * scale

    kernel(triple_forward)
    kernel(triple_backward)
    with pytest.raises(ConfigError, match="triple_backward: the case gives no scale"):
        check_pair(case_of_triple("x"))


def test_labels_are_unique_within_a_pair() -> None:
    assert max(Counter(map(str, all_cases())).values()) == 1


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_every_case_calls_its_forward_with_finite_results(case: PairCase) -> None:
    outputs = forward(case, case.inputs(case.generator()))
    assert len(outputs) == len(case.outputs)
    assert all(np.isfinite(output).all() for output in outputs)


def test_a_pair_draws_the_same_data_alone_and_among_others() -> None:
    alone = list(check_all(["linear"], seed=3))
    together = [r for r in check_all(["dropout", "linear"], seed=3) if r.name == "linear"]
    assert alone == together
    assert alone != list(check_all(["linear"], seed=4))


def test_the_command_prints_a_line_per_pair(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("linear", "tanh")
    assert arguments.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["name", "cases", "entries", "method"]
    assert [line.split()[0] for line in lines[1:3]] == ["linear", "tanh"]
    assert lines[-1] == "2 pairs checked, 0 failed"


def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("--json", "--seed", "1")
    assert arguments.run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    names = {k.name.removesuffix("_forward") for k in registered_kernels().values() if k.pair}
    names = {name for name in names if not name.endswith("_backward")}
    assert {row["name"] for row in printed["pairs"]} == names
    assert printed["checked"] == len(names)
    assert printed["failed"] == []
    assert printed["worst"]["scaled_error"] == max(r["scaled_error"] for r in printed["pairs"])
    assert printed["worst"]["scaled_error"] <= 1e-12


@pytest.mark.usefixtures("scratch_registry")
def test_the_command_fails_where_a_pair_fails(capsys: pytest.CaptureFixture[str]) -> None:
    kernel(triple_forward)
    kernel(triple_backward)
    arguments = command("linear", "triple", "--json")
    assert arguments.run(arguments) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["triple"]
    arguments = command("triple")
    assert arguments.run(arguments) == 1
    assert "triple: no case in refkd/testing/cases" in capsys.readouterr().out


@pytest.mark.usefixtures("scratch_registry")
def test_the_command_shows_the_whole_report_of_a_case_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(triple_forward)
    kernel(triple_backward)
    monkeypatch.setattr(pairs, "all_cases", lambda: (case_of_triple("x"),))
    arguments = command("triple")
    assert arguments.run(arguments) == 1
    shown = capsys.readouterr().out
    assert "\n  triple: plain: WRONG_GRADIENT: " in shown
    assert "\n    worst: x[" in shown


def test_a_result_keeps_the_report_of_every_case() -> None:
    (result,) = check_all(["linear"])
    cases = [case.label for case in all_cases() if case.pair == "linear"]
    assert [label for label, _ in result.reports] == cases
    assert sum(report.entries for _, report in result.reports) == result.entries
    assert max(pairs._scaled_error(report) for _, report in result.reports) == result.worst


def test_an_unknown_name_gets_a_suggestion() -> None:
    arguments = command("liner")
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        arguments.run(arguments)
