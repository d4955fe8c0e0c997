"""The report of a run as one HTML page that needs no network and no scripts.

Everything that comes from the result is escaped here, except the pictures, which are
markup already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from refkd.report.attachments import Attachments
from refkd.report.figures import draw_pictures
from refkd.report.mistakes import mistakes_section
from refkd.report.palette import DARK, LIGHT
from refkd.report.svg import Picture
from refkd.report.words import (
    Network,
    answer,
    difference_sentence,
    human_bytes,
    kept_epochs,
    networks,
    one_line,
    short_name,
    summary,
    with_half_interval,
)

__all__ = ["html_report"]


def html_report(result: Mapping[str, Any], attachments: Attachments | None = None) -> str:
    """Return the report of a run as a self-contained HTML page.

    The page holds its style and its pictures (inline SVG), loads nothing, runs no script,
    follows the reader's light or dark setting and can be printed. Equal results give
    equal text.

    Parameters
    ----------
    result : mapping
        What ``refkd distill --json`` prints.
    attachments : Attachments, optional
        What :func:`refkd.report.read_attachments` found in the run folder.

    Returns
    -------
    str

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    attachments = attachments or Attachments()
    sides = networks(result)
    template = Template(files("refkd.report").joinpath("template.html").read_text("utf-8"))
    return template.substitute(
        light=_variables(LIGHT),
        dark=_variables(DARK),
        title=_text(one_line(result["title"])),
        summary=_text(summary(result)),
        answer=_text(answer(result)),
        results="\n".join(_results(result, sides)),
        pictures="\n".join(map(_figure, draw_pictures(result, attachments.filters))),
        mistakes="\n".join(_mistakes(result, attachments)),
        losses=_losses(sides),
        environment=_definitions({**result["environment"], "run folder": result["run"]}),
    )


def _text(value: object) -> str:
    """Escape, with the minus sign that figures are set with."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", escape(str(value)))


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in palette.items())


def _paragraphs(text: str) -> list[str]:
    return [part for part in map(str.strip, re.split(r"\n\s*\n", text)) if part]


def _results(result: Mapping[str, Any], sides: Sequence[Network]) -> Iterable[str]:
    yield _accuracy_table(sides)
    if any(network.side.get("interval") is not None for network in sides):
        kept = kept_epochs(sides)
        yield (
            '<p class="note">Accuracy: mean over the students\' seeds ± half of the 95% interval '
            f"of it; one teacher and one set of test images for all{kept and f'; {kept}'}.</p>"
        )
    if result.get("differences"):
        items = (f"<li>{_text(difference_sentence(d, result))}</li>" for d in result["differences"])
        yield f"<ul>{''.join(items)}</ul>"
    yield from (f"<p>{_text(part)}</p>" for part in _paragraphs(result["explanation"]))
    if result.get("transfer"):
        yield "<h2>Classes left out of the transfer set</h2>"
        yield _transfer_table(result["transfer"])
        yield (
            '<p class="note">Test errors, means over the seeds; the last two columns count them '
            "after the bias was added to the logits of the classes left out.</p>"
        )


def _accuracy_table(sides: Sequence[Network]) -> str:
    header = ["network", "accuracy", "seeds", "epochs", "training images", "parameters", "size"]
    rows = [
        [
            f'<span class="swatch" style="background: var(--{n.role})"></span>{_text(n.label)}',
            f"{with_half_interval(n.side['accuracy'], n.side.get('interval'))}%",
            str(len(n.side["accuracies"])),
            str(n.epochs),
            f"{n.side['train_images']:,}",
            f"{n.side['parameters']:,}",
            human_bytes(n.side["bytes"]),
        ]
        for n in sides
    ]
    if any(n.side.get("published") is not None for n in sides):
        header.insert(2, "published")
        for network, row in zip(sides, rows, strict=True):
            published = network.side.get("published")
            row.insert(2, "" if published is None else f"{100 * published:.2f}%")
    return _table(header, rows)


def _transfer_table(rows: Iterable[Mapping[str, Any]]) -> str:
    header = [
        "network",
        "trained on",
        "errors",
        "on omitted classes",
        "bias added",
        "errors then",
        "on omitted classes",
    ]
    cells = [
        [
            _text(short_name(row["arm"])),
            _text(row["classes"]),
            f"{row['errors']:.1f}",
            f"{row['errors_on_omitted']:.1f}",
            _text(f"{row['bias_shift']:+.2f}"),
            f"{row['errors_corrected']:.1f}",
            f"{row['errors_on_omitted_corrected']:.1f}",
        ]
        for row in rows
    ]
    return _table(header, cells)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out cells of ready markup; the first column names the row."""
    heads = "".join(f'<th scope="col"{_name_class(i)}>{head}</th>' for i, head in enumerate(header))
    body = "\n".join(
        f'<tr><th scope="row" class="name">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _name_class(column: int) -> str:
    return ' class="name"' if column == 0 else ""


def _figure(picture: Picture) -> str:
    return (
        f'<figure id="{picture.name}"><h3>{_text(picture.title)}</h3>\n{picture.svg}\n'
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
    )


def _mistakes(result: Mapping[str, Any], attachments: Attachments) -> Iterable[str]:
    if attachments.examples is not None:
        yield mistakes_section(result, attachments.examples)
    for complaint in attachments.complaints:
        yield f'<p class="note">Not drawn: {_text(one_line(complaint))}</p>'


def _losses(sides: Iterable[Network]) -> str:
    texts: dict[str, list[str]] = {}
    for network in sides:
        if network.side.get("explain"):
            texts.setdefault(network.side["explain"], []).append(network.label)
    if not texts:
        return ""
    parts = (
        f"<h3>{_text('; '.join(labels))}</h3>\n<pre>{_text(text)}</pre>"
        for text, labels in texts.items()
    )
    return "<h2>The losses</h2>\n" + "\n".join(parts)


def _definitions(values: Mapping[str, object]) -> str:
    return "\n".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in values.items())
