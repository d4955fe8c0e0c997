"""The pytest plugin: fixture ``check_grad``, marker, ``--refkd-report``, hypothesis profiles.

It is loaded into every pytest run where refkd is installed, so it imports nothing but
pytest until a test asks for the fixture, and registers the profiles only for a run that
names one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from refkd.testing.report import GradReport

__all__ = ["PROFILES", "GradChecks", "check_grad"]

PROFILES: dict[str, dict[str, Any]] = {
    "refkd-dev": {"max_examples": 10},
    "refkd-ci": {"derandomize": True, "print_blob": True},
    "refkd-nightly": {"max_examples": 5000, "print_blob": True},
}
"""Settings for ``--hypothesis-profile``, where they differ from hypothesis's defaults; none
has a deadline, which would fail a correct test on a busy machine."""

_PLACES_SHOWN = 3


@pytest.fixture(scope="session")
def check_grad(pytestconfig: pytest.Config) -> Callable[..., GradReport]:
    """Check a gradient as refkd.testing.check_grad does; the test fails unless it is right.

    ``check_grad(f, params, grad, ..., raise_on_failure=True)`` returns the report and
    keeps it, under the name of the running test, for the summary and ``--refkd-report``;
    of a hypothesis test it keeps the last one, which is that of the failing example.
    """
    # Of the session, so that a test under @given may use it; hypothesis refuses fixtures
    # that are made anew for each test.
    checks = pytestconfig.stash[_CHECKS]

    def check(*args: Any, raise_on_failure: bool = True, **keywords: Any) -> GradReport:
        __tracebackhide__ = True
        from refkd.testing import GradCheckError, check_grad

        report = check_grad(*args, **keywords)
        checks.keep(report)
        if raise_on_failure and not report.ok:
            raise GradCheckError(str(report))
        return report

    return check


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--refkd-report``."""
    parser.getgroup("refkd").addoption(
        "--refkd-report",
        metavar="PATH",
        help="write the reports of all gradient checks made with the fixture check_grad: "
        "PATH.json, or PATH.html with heat maps",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register marker and profiles, and refuse a report that cannot be written.

    First, because hypothesis loads its profile in this hook.
    """
    config.addinivalue_line(
        "markers", "gradcheck: uses the fixture check_grad of refkd (added by itself)"
    )
    if config.getoption("--hypothesis-profile", None) in PROFILES:
        _register_profiles()
    checks = GradChecks(_report_path(config))
    config.stash[_CHECKS] = checks
    config.pluginmanager.register(checks, "refkd-checks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the fixture, before ``-m`` selects."""
    for item in items:
        found = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
        # A fixture of that name may be the project's own.
        if any(d.func.__module__ == __name__ for d in found.get("check_grad", ())[-1:]):
            item.add_marker("gradcheck")


class GradChecks:
    """The gradient checks of a run: kept by test, summed up and written at the end.

    Reports travel on the test's own report, pickled, so that those of other processes
    (pytest-xdist) arrive like those of this one.

    Parameters
    ----------
    path : Path or None
        Where to write them.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._item: pytest.Item | None = None
        self._of_item: list[GradReport] = []
        self._found: list[tuple[str, GradReport]] = []

    def keep(self, report: GradReport) -> None:
        """Keep the report of a check made by the running test."""
        if getattr(getattr(self._item, "obj", None), "is_hypothesis_test", False):
            self._of_item.clear()
        self._of_item.append(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Know which test runs."""
        self._item = item
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the checks of a test to the last of its reports."""
        test_report = yield
        if call.when == "teardown" and self._of_item:
            vars(test_report)["refkd_checks"] = _packed(self._of_item)
            self._of_item = []
        return test_report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect them, wherever the test ran."""
        for found in _unpacked(getattr(report, "refkd_checks", "")):
            self._found.append((report.nodeid, found))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say in one line how many checks passed, and where one did not."""
        if self._found or self._path is not None:
            failed = not all(report.ok for _, report in self._found)
            colour = {"red": True} if failed else {"green": True}
            terminalreporter.write_line(_summary(self._found), **colour)

    # Around all others: what it raises must not keep them from finishing.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Write the report."""
        result = yield
        if self._path is not None:
            render = _html if self._path.suffix.lower() == ".html" else _json
            try:
                self._path.write_text(render(self._found), encoding="utf-8")
            except OSError as error:
                pytest.exit(f"--refkd-report: cannot write {self._path}: {error}", returncode=1)
        return result


_CHECKS = pytest.StashKey[GradChecks]()


def _register_profiles() -> None:
    from hypothesis import settings

    for name, changes in PROFILES.items():
        # Not on top of the current profile, which depends on the environment.
        default = settings.get_profile("default")
        settings.register_profile(name, default, deadline=None, **changes)


def _report_path(config: pytest.Config) -> Path | None:
    given: str | None = config.getoption("refkd_report")
    if given is None or hasattr(config, "workerinput"):  # a process of pytest-xdist
        return None
    path = config.invocation_params.dir / os.path.expanduser(given)
    if path.suffix.lower() not in (".html", ".json"):
        raise pytest.UsageError(f"--refkd-report: PATH must end in .html or .json, got {given!r}")
    is_new = not path.exists()
    try:
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise pytest.UsageError(f"--refkd-report: cannot write {given}: {error.strerror}") from None
    return path


def _summary(found: list[tuple[str, GradReport]]) -> str:
    """``refkd: 12 gradient checks, 11 passed, 1 WRONG_GRADIENT (x[3] in test_foo)``."""
    parts = [f"{len(found)} gradient check{'s' if len(found) != 1 else ''}"]
    passed = sum(report.ok for _, report in found)
    if passed:
        parts.append(f"{passed} passed")
    failed = [(test, report) for test, report in found if not report.ok]
    for verdict, count in Counter(report.verdict for _, report in failed).items():
        places = [_place(test, report) for test, report in failed if report.verdict == verdict]
        shown = ", ".join(places[:_PLACES_SHOWN])
        rest = f" and {count - _PLACES_SHOWN} more" if count > _PLACES_SHOWN else ""
        parts.append(f"{count} {verdict} ({shown}{rest})")
    return f"refkd: {', '.join(parts)}"


def _place(test: str, report: GradReport) -> str:
    name = test.partition("::")[2] or test
    return name if report.worst is None else f"{report.worst.place} in {name}"


def _json(found: list[tuple[str, GradReport]]) -> str:
    import json

    return json.dumps(
        [{"test": test, "report": json.loads(report.to_json())} for test, report in found],
        indent=1,
    )


def _html(found: list[tuple[str, GradReport]]) -> str:
    from refkd.testing.html import page

    checks = Counter(test for test, _ in found)
    seen: Counter[str] = Counter()
    named: dict[str, GradReport] = {}
    for test, report in found:
        seen[test] += 1
        named[f"{test} ({seen[test]})" if checks[test] > 1 else test] = report
    return page(named)


def _packed(reports: list[GradReport]) -> str:
    import base64
    import pickle

    return base64.b64encode(pickle.dumps(reports)).decode()


def _unpacked(packed: str) -> list[GradReport]:
    if not packed:
        return []
    import base64
    import pickle

    reports: list[GradReport] = pickle.loads(base64.b64decode(packed))
    return reports
