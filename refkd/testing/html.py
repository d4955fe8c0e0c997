"""Gradient checks as one HTML page: a table, and for each check where its errors are.

The page holds its style and its drawings, loads nothing and runs no script. All text is
escaped here; the maps come from :mod:`refkd.testing.heatmap`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

from refkd.testing.heatmap import STYLE, definitions, draw, legend
from refkd.testing.report import Comparison, GradReport, ParameterReport, Verdict
from refkd.testing.tiling import arrange

__all__ = ["page"]

_OPEN = 20  # as many checks are shown whole; among more, only those that failed
_CELLS, _FEWEST, _MOST = 24576, 16, 4096  # of all maps together, and of one
_TITLES, _MOST_TITLES = 4096, 1024
_LONGEST = 2000  # characters


class _Share(NamedTuple):
    """What one map may take, so that the page stays about a megabyte at most."""

    cells: int
    titles: int


class _Check(NamedTuple):
    anchor: str
    name: str
    report: GradReport


def page(reports: Mapping[str, GradReport]) -> str:
    """Return gradient checks as a self-contained HTML page.

    Failed checks come first. Each shows its verdict, the worst entry, and for each
    parameter whose entries were compared one by one a heat map of their scaled errors.
    The page follows the reader's light or dark setting and can be printed; it is also
    well-formed XML. Characters that cannot be seen are written as Python escapes.

    Parameters
    ----------
    reports : mapping of str to GradReport
        By the name of the check.

    Returns
    -------
    str
        About a megabyte at most for 200 checks: the more there is to draw, the more
        entries one cell of a map stands for.
    """
    ordered = sorted(reports.items(), key=lambda item: item[1].ok)
    checks = [_Check(f"check-{i}", name, report) for i, (name, report) in enumerate(ordered, 1)]
    shown = checks if len(checks) <= _OPEN else [c for c in checks if not c.report.ok]
    folded = checks[len(shown) :]
    share, rest = _share(shown), _share(folded)
    sections = [_section(check, share) for check in shown]
    sections += [_details(check, rest) for check in folded]
    template = Template(files("refkd.testing").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        summary=_summary(checks),
        tone="good" if all(check.report.ok for check in checks) else "bad",
        table=_table(checks),
        sections="\n".join(sections),
        colours=STYLE,
        definitions=definitions(),
    )


def _share(checks: Iterable[_Check]) -> _Share:
    sizes = [
        parameter.errors.size
        for check in checks
        for parameter in check.report.parameters
        if parameter.errors is not None
    ]
    cells = _MOST
    while cells > _FEWEST and sum(min(size, cells) for size in sizes) > _CELLS:
        cells //= 2
    return _Share(cells, titles=min(_MOST_TITLES, _TITLES // max(1, len(sizes))))


def _summary(checks: Sequence[_Check]) -> str:
    parts = [_count(len(checks), "check")]
    for ok, word in ((True, "accepted"), (False, "failed")):
        counts = Counter(c.report.verdict for c in checks if c.report.ok is ok)
        verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.most_common())
        parts.append(f"{counts.total():,} {word}" + (f" ({verdicts})" if verdicts else ""))
    return ", ".join(parts)


def _table(checks: Iterable[_Check]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row"><a href="#{anchor}">{_name(name)}</a></th>'
        f'<td>{_verdict(report.verdict)}</td><td class="wide-only">{_text(report.method)}</td>'
        f'<td class="wide-only">{_text(report.mode)}</td>'
        f'<td class="number wide-only">{report.entries:,}</td>'
        f'<td class="number">{_error(report.worst)}</td></tr>'
        for anchor, name, report in checks
    )
    return (
        '<table><thead><tr><th scope="col">check</th><th scope="col">verdict</th>'
        '<th scope="col" class="wide-only">method</th><th scope="col" class="wide-only">mode</th>'
        '<th scope="col" class="number wide-only">entries</th>'
        '<th scope="col" class="number">worst error</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>"
    )


def _section(check: _Check, share: _Share) -> str:
    return (
        f'<section id="{check.anchor}"><h2>{_name(check.name)}</h2>\n'
        f"{_body(check.report, share)}\n</section>"
    )


def _details(check: _Check, share: _Share) -> str:
    # The anchor is inside, so that following a link to it opens the details.
    return (
        f"<details><summary>{_name(check.name)} {_verdict(check.report.verdict)}</summary>"
        f'<div id="{check.anchor}">\n{_body(check.report, share)}\n</div></details>'
    )


def _body(report: GradReport, share: _Share) -> str:
    message = f": {_text(report.message)}" if report.message else ""
    parts = [f"<p>{_verdict(report.verdict)}{message}</p>"]
    if report.explanation:
        parts.append(f"<p><b>Looks like:</b> {_text(report.explanation)}</p>")
    if report.notes:
        notes = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
        parts.append(f"<ul>{notes}</ul>")
    if report.worst is not None:
        parts.append(_worst(report.worst, report.tolerance))
    parts.append(
        f'<p class="muted">{_count(report.entries, "entry", "entries")}, method '
        f"{_text(report.method)}, {_text(report.mode)}, {_count(report.calls, 'call')}</p>"
    )
    figures = [_figure(parameter, report.tolerance, share) for parameter in report.parameters]
    if any("<svg" in figure for figure in figures):
        parts.append(legend(report.tolerance))
    if figures:
        parts.append(f'<div class="maps">{"".join(figures)}</div>')
    return "\n".join(parts)


def _worst(worst: Comparison, tolerance: float) -> str:
    rows = {
        "worst": f"<code>{_text(worst.place)}</code>"
        + (" along a random direction" if worst.index is None else ""),
        "analytic": f"{worst.analytic:.17g}",
        "numeric": f"{worst.numeric:.17g} {_whole(f'± {worst.error_bar:.1e}')}",
        "apart": _whole(f"{worst.ulps:.3g} ulps"),
        "scaled error": f"{_error(worst)}, {_whole(f'tolerance {tolerance:.1e}')}",
    }
    return f"<dl>{''.join(f'<dt>{term}</dt><dd>{value}</dd>' for term, value in rows.items())}</dl>"


def _figure(parameter: ParameterReport, tolerance: float, share: _Share) -> str:
    facts = [_verdict(parameter.verdict)]
    if parameter.wrong:
        size = math.prod(parameter.shape)
        facts.append(f"{parameter.wrong:,} of {_count(size, 'entry', 'entries')} wrong")
    worst = parameter.worst
    if worst is not None:
        facts.append(f"scaled error {_error(worst)} at {_text(worst.place)}")
    drawing = ""
    if 0 in parameter.shape:
        facts.append("it has no entries")
    elif parameter.errors is None:
        facts.append("not compared entry by entry")
    else:
        grid = arrange(parameter.errors, share.cells)
        marked = worst.index if worst is not None and worst.scaled_error != 0 else None
        drawing = f'<div class="plot">{draw(grid, tolerance, marked, share.titles)}</div>'
        facts.append(str(grid))
    return (
        f"<figure><figcaption><b>{_name(parameter.name)}</b> "
        f"{parameter.shape} {_text(parameter.dtype)}: {'; '.join(facts)}.</figcaption>"
        f"{drawing}</figure>"
    )


def _verdict(verdict: Verdict) -> str:
    accepted = verdict in (Verdict.PASS, Verdict.KINK)
    sign, tone = ("✓", "good") if accepted else ("✗", "bad")
    words = verdict.replace("_", "_<wbr/>")
    return f'<span class="{tone}">{sign}&#160;{words}</span>'


def _error(worst: Comparison | None) -> str:
    return "–" if worst is None else _whole(f"{worst.scaled_error:.1e}")


def _whole(figure: str) -> str:
    """Keep a figure in one line: ``1e-16`` has a hyphen to break at."""
    return f'<span class="whole">{figure}</span>'


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _name(name: str) -> str:
    return f'<bdi dir="ltr">{_text(name)}</bdi>'


def _text(text: str) -> str:
    """Escape for HTML; write what is invisible, or turns the text around it, as an escape."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return escape("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in shown))
