"""The pytest plugin, run on files of tests that are written here."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

# Each run inside a test forgets the modules it loaded, and NumPy cannot be loaded twice.
import numpy  # noqa: F401
import pytest

import refkd

pytest_plugins = ["pytester"]

ROOT = Path(refkd.__file__).parents[1]
INSTALLED = any(
    point.value == "refkd.testing.plugin"
    for point in importlib.metadata.entry_points(group="pytest11")
)
# In a bare checkout the plugin is there, but nothing tells pytest of it.
PLUGIN = [] if INSTALLED else ["-p", "refkd.testing.plugin"]
STRICT = [*PLUGIN, "-W", "error", "--strict-markers", "-p", "no:cacheprovider"]

TESTS = """
import numpy as np
import pytest
from refkd.testing import GradCheckError

X = {"x": np.array([1.0, 2.0, 3.0, 4.0])}
OFF = np.array([1.0, 1.0, 1.0, 1.01])

def f(x):
    return (x**2).sum()

def test_right(check_grad):
    report = check_grad(f, X, lambda x: {"x": 2 * x})
    assert report.ok and report.entries == 4

def test_wrong(check_grad):
    check_grad(f, X, lambda x: {"x": 2 * x * OFF})

class TestGroup:
    @pytest.mark.parametrize("factor", [2, 3])
    def test_factor(self, check_grad, factor):
        check_grad(f, X, lambda x: {"x": factor * x}, method="complex")

def test_judged_by_the_test(check_grad):
    report = check_grad(f, X, grad=lambda x: {"x": 5 * x}, raise_on_failure=False)
    assert not report.ok
    check_grad(f, X, grad=lambda x: {"x": 2 * x})

def test_without():
    pass
"""
SUMMARY = (
    "refkd: 6 gradient checks, 3 passed, 3 WRONG_GRADIENT (x[[]3[]] in test_wrong, "
    "x* in TestGroup::test_factor[[]3[]], x* in test_judged_by_the_test)"
)


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*STRICT, *args)


def output(pytester: pytest.Pytester, *args: str) -> str:
    """Return what pytest prints in a process of its own."""
    result = pytester.runpytest_subprocess(*STRICT, *args)
    return f"{result.stdout}\n{result.stderr}"


@pytest.fixture
def tests(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_it=TESTS)
    return pytester


# The fixture


def test_a_wrong_gradient_fails_the_test_with_the_report(tests: pytest.Pytester) -> None:
    result = run(tests)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_wrong _*",
            '>*check_grad(f, X, lambda x: {"x": 2 * x [*] OFF})',
            "E *GradCheckError: WRONG_GRADIENT: *x[[]3[]]*",
            "E *worst: x[[]3[]]: analytic 8.08*, numeric 8*",
            "test_it.py:16: GradCheckError",
        ]
    )


def test_the_last_line_counts_and_places(tests: pytest.Pytester) -> None:
    run(tests).stdout.fnmatch_lines([SUMMARY])


def test_a_run_without_checks_says_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing():\n    pass")
    assert "refkd:" not in str(run(pytester).stdout)


def test_one_check_is_no_plural_and_many_places_are_cut(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\n@pytest.mark.parametrize('i', range(5))\n"
        "def test_many(check_grad, i):\n    check_grad(f, X, lambda x: {'x': x})"
    )
    run(pytester, "-k", "test_right").stdout.fnmatch_lines(["refkd: 1 gradient check, 1 passed"])
    run(pytester, "-k", "test_many").stdout.fnmatch_lines(
        ["refkd: 5 gradient checks, 5 WRONG_GRADIENT (*[[]0[]], *[[]1[]], *[[]2[]] and 2 more)"]
    )


def test_other_verdicts_are_counted_by_name(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\ndef test_nan(check_grad):\n"
        "    check_grad(lambda x: x.sum() * np.nan, X, lambda x: {'x': x})"
    )
    result = run(pytester, "-k", "test_nan or test_wrong")
    result.stdout.fnmatch_lines(
        ["refkd: 2 gradient checks, 1 WRONG_GRADIENT (*), 1 NONFINITE (*test_nan)"]
    )


def test_an_error_of_the_checked_function_passes_through(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\ndef test_raises(check_grad):\n"
        "    def broken(x):\n        raise KeyError('lost')\n"
        "    check_grad(broken, X, lambda x: {'x': x})"
    )
    run(pytester, "-k", "test_raises").stdout.fnmatch_lines(["E *KeyError: 'lost'"])


def test_a_fixture_of_the_users_own_may_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\n@pytest.fixture(scope='module')\ndef checked(check_grad):\n"
        "    return check_grad(f, X, lambda x: {'x': 2 * x})\n"
        "def test_indirect(checked):\n    assert checked.ok\n"
        "def test_again(checked):\n    assert checked.ok\n"
    )
    result = run(pytester, "-m", "gradcheck", "-k", "indirect or again")
    result.assert_outcomes(passed=2, deselected=6)
    result.stdout.fnmatch_lines(["refkd: 1 gradient check, 1 passed"])


def test_a_check_before_or_after_the_test_is_kept(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\n@pytest.fixture\ndef before(check_grad):\n"
        "    check_grad(f, X, lambda x: {'x': x})\n"
        "@pytest.fixture\ndef after(check_grad):\n    yield\n"
        "    check_grad(f, X, lambda x: {'x': 2 * x})\n"
        "def test_never_run(before):\n    pass\n"
        "def test_ended(after):\n    pass\n"
    )
    result = run(pytester, "-k", "test_never_run or test_ended")
    result.assert_outcomes(passed=1, errors=1, deselected=6)
    result.stdout.fnmatch_lines(
        ["refkd: 2 gradient checks, 1 passed, 1 WRONG_GRADIENT (x* in test_never_run)"]
    )


def test_a_test_under_given_may_use_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS + "\nfrom hypothesis import given, settings, strategies as st\n"
        "@settings(database=None)\n"
        "@given(st.integers(1, 9))\n"
        "def test_drawn(check_grad, n):\n"
        "    given = {'x': np.ones(n)}\n"
        "    check_grad(f, given, lambda x: {'x': 2 * x if n < 5 else x})\n"
    )
    result = run(pytester, "-k", "test_drawn", "--refkd-report=out.json")
    result.stdout.fnmatch_lines(
        ["E *n=5,*", "refkd: 1 gradient check, 1 WRONG_GRADIENT (x* in test_drawn)"]
    )
    (entry,) = json.loads((pytester.path / "out.json").read_text())
    assert entry["report"]["entries"] == 5


# The marker


def test_the_marker_selects_what_uses_the_fixture(tests: pytest.Pytester) -> None:
    run(tests, "-m", "gradcheck").assert_outcomes(passed=3, failed=2, deselected=1)
    run(tests, "-m", "not gradcheck").assert_outcomes(passed=1, deselected=5)


def test_the_marker_and_the_fixture_are_documented(tests: pytest.Pytester) -> None:
    run(tests, "--markers").stdout.fnmatch_lines(["@pytest.mark.gradcheck: uses the fixture*"])
    run(tests, "--fixtures").stdout.fnmatch_lines(["check_grad * -- *", "    Check a gradient*"])


# The report


def test_a_json_report_has_every_check_under_its_test(tests: pytest.Pytester) -> None:
    run(tests, "--refkd-report=out.json").stdout.fnmatch_lines([SUMMARY])
    entries = json.loads((tests.path / "out.json").read_text(encoding="utf-8"))
    assert [(entry["test"], entry["report"]["verdict"]) for entry in entries] == [
        ("test_it.py::test_right", "PASS"),
        ("test_it.py::test_wrong", "WRONG_GRADIENT"),
        ("test_it.py::TestGroup::test_factor[2]", "PASS"),
        ("test_it.py::TestGroup::test_factor[3]", "WRONG_GRADIENT"),
        ("test_it.py::test_judged_by_the_test", "WRONG_GRADIENT"),
        ("test_it.py::test_judged_by_the_test", "PASS"),
    ]
    assert entries[1]["report"]["worst"]["index"] == [3]


def test_an_html_report_names_every_check(tests: pytest.Pytester) -> None:
    run(tests, "--refkd-report", "out.HTML")
    page = (tests.path / "out.HTML").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html")
    for name in ("test_right", "test_wrong", "TestGroup::test_factor[3]"):
        assert f"test_it.py::{name}" in page
    for n in (1, 2):
        assert f"test_it.py::test_judged_by_the_test ({n})" in page
    assert "WRONG_GRADIENT" in page


def test_a_report_without_checks_is_empty_and_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing():\n    pass")
    result = run(pytester, "--refkd-report=out.json")
    result.stdout.fnmatch_lines(["refkd: 0 gradient checks"])
    assert json.loads((pytester.path / "out.json").read_text()) == []


def test_the_path_is_relative_to_where_pytest_was_started(tests: pytest.Pytester) -> None:
    tests.makepyfile(test_move="import os\ndef test_move(tmp_path):\n    os.chdir(tmp_path)")
    run(tests, "--refkd-report=out.json", "test_move.py", "test_it.py")
    assert len(json.loads((tests.path / "out.json").read_text())) == 6


@pytest.mark.slow
def test_checks_in_other_processes_are_counted_and_written(tests: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    shown = output(tests, "-n", "2", "--refkd-report=out.json")
    assert "refkd: 6 gradient checks, 3 passed, 3 WRONG_GRADIENT" in shown
    assert len(json.loads((tests.path / "out.json").read_text())) == 6


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out.txt", "--refkd-report: PATH must end in .html or .json, got 'out.txt'"),
        ("out", "--refkd-report: PATH must end in .html or .json, got 'out'"),
        ("missing/out.json", "--refkd-report: cannot write missing/out.json: No such file*"),
        ("folder.json", "--refkd-report: cannot write folder.json: Is a directory"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_any_test(
    tests: pytest.Pytester, path: str, message: str
) -> None:
    (tests.path / "folder.json").mkdir()
    result = run(tests, f"--refkd-report={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "test_it.py" not in str(result.stdout)


def test_probing_the_path_changes_nothing(pytester: pytest.Pytester) -> None:
    old = pytester.path / "old.json"
    old.write_text("[1]")
    for name in ("old.json", "new.json"):  # --help configures pytest and runs no session
        assert run(pytester, f"--refkd-report={name}", "--help").ret == 0
    assert old.read_text() == "[1]"
    assert not (pytester.path / "new.json").exists()


def test_a_folder_that_vanishes_meanwhile_fails_the_run(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("folder")
    pytester.makepyfile(f"import os\ndef test_it():\n    os.rmdir({str(folder)!r})")
    result = run(pytester, "--refkd-report=folder/out.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["refkd: 0 gradient checks", "*1 passed*"])
    result.stderr.fnmatch_lines(["Exit: --refkd-report: cannot write *out.json: *"])


# Hypothesis


@pytest.mark.parametrize(
    ("profile", "examples", "derandomize", "print_blob"),
    [
        ("refkd-dev", 10, False, False),
        ("refkd-ci", 100, True, True),
        ("refkd-nightly", 5000, False, True),
    ],
)
def test_a_profile_is_loaded_by_the_option_of_hypothesis(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    examples: int,
    derandomize: bool,
    print_blob: bool,
) -> None:
    # Hypothesis starts from other settings where it believes itself in CI.
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(
        "from hypothesis import settings\n"
        "def test_it():\n"
        "    s = settings.default\n"
        "    print(s.max_examples, s.derandomize, s.print_blob, s.deadline)"
    )
    shown = output(pytester, "-s", f"--hypothesis-profile={profile}")
    assert f"{examples} {derandomize} {print_blob} None" in shown
    assert "1 passed" in shown


def test_the_profiles_are_there_in_time_if_hypothesis_is_loaded_last(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plugin loaded last is configured first, unless one asks to be.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_it():\n    pass")
    plugins = ["-p", "refkd.testing.plugin", "-p", "_hypothesis_pytestplugin"]
    result = pytester.runpytest_subprocess(*plugins, "--hypothesis-profile=refkd-dev")
    result.assert_outcomes(passed=1)


def test_a_profile_of_the_users_own_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from hypothesis import settings\nsettings.register_profile('own', max_examples=3)"
    )
    pytester.makepyfile(
        "from hypothesis import settings\n"
        "def test_it():\n    print('examples:', settings.default.max_examples)"
    )
    assert "examples: 3" in output(pytester, "-s", "--hypothesis-profile=own")


def test_a_run_that_does_not_use_the_plugin_loads_nothing_for_it(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        "import sys\ndef test_it():\n"
        "    loaded = {'hypothesis', 'refkd.testing.strategies', 'refkd.testing.html'}\n"
        "    loaded &= set(sys.modules)\n"
        "    assert 'refkd.testing.plugin' in sys.modules and not loaded, loaded"
    )
    assert "1 passed" in output(pytester)


def test_the_plugin_itself_imports_nothing_else_not_even_numpy() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import refkd.testing.plugin\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["refkd"]


def test_the_entry_point_is_the_plugin() -> None:
    pyproject = ROOT / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("an installed refkd has no pyproject.toml")
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"refkd": "refkd.testing.plugin"}


def test_a_project_s_own_fixture_of_that_name_is_not_marked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def check_grad():
            return 1

        def test_of_its_own(check_grad):
            assert check_grad == 1
        """
    )
    result = pytester.runpytest("-m", "gradcheck")
    result.assert_outcomes(deselected=1)
