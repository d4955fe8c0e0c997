"""The part of the page that shows test images the distilled student gets wrong.

Markup by hand, as the tables of the page are: an image, its label, and a row per class
with the soft targets of teacher and student as bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.ops.softmax import softmax_forward
from refkd.report.examples import Examples
from refkd.report.pixels import data_url, shrunk
from refkd.report.words import clipped, confusion_matrices

__all__ = ["mistakes_section", "shown_classes"]

_MOST_CLASSES = 10  # with a bar each; of more, those that matter
_LONGEST_SIDE = 112  # pixels; a page of photographs stays below a megabyte
_SMALL = 64  # pixels; smaller images are enlarged with their pixels in sight


def mistakes_section(result: Mapping[str, Any], examples: Examples) -> str:
    """Return the section as HTML.

    Parameters
    ----------
    result : mapping
    examples : Examples
        Of the same run.
    """
    names = result["data"]["class_names"]
    counts = confusion_matrices(result)["student_distilled"]
    total = int(counts.sum())
    wrong = total - int(counts.trace())
    heading = "<h2>Mistakes of the distilled student</h2>"
    if len(examples) == 0:
        return f"{heading}\n<p>Its first seed gets all {total:,} test images right.</p>"
    items = "\n".join(_item(examples, i, names) for i in range(len(examples)))
    return (
        f"{heading}\n<p>{_introduction(examples, wrong, total)}</p>\n"
        f'<p class="note">{_how_to_read(examples, len(names))}</p>\n'
        f'<ol class="mistakes">\n{items}\n</ol>'
    )


def _introduction(examples: Examples, wrong: int, total: int) -> str:
    shown = len(examples)
    which = "All of them" if shown >= wrong else f"The {shown} that it is surest of"
    text = f"Its first seed gets {wrong:,} of {total:,} test images wrong. {which}"
    if examples.teacher is None:
        return f"{text}, the surest first."
    same = int((examples.teacher.argmax(axis=1) == examples.student.argmax(axis=1)).sum())
    return f"{text}, the surest first; on {same or 'none'} of these the teacher says the same."


def _how_to_read(examples: Examples, num_classes: int) -> str:
    swatches = " and ".join(
        f'<span class="swatch" style="background: var(--{role})"></span>{name}'
        for name, role, _ in _voices(examples)
    )
    classes = "every class" if num_classes <= _MOST_CLASSES else "the classes that get most"
    text = (
        f"Bars: the probabilities in percent that {swatches} give {classes}, at the recipe's "
        f"temperature T = {examples.temperature:g}; the label is in bold. In words: what each "
        f"says, and its probability at T = 1."
    )
    if examples.stretched:
        text += " Every image is shown from its own least value, black, to its greatest, white."
    return text


def _voices(examples: Examples) -> list[tuple[str, str, NDArray[np.floating[Any]]]]:
    """Return name, role and logits of the networks whose opinions are known."""
    voices = [("teacher", "teacher", examples.teacher), ("student", "distilled", examples.student)]
    return [(name, role, logits) for name, role, logits in voices if logits is not None]


def _item(examples: Examples, i: int, names: Sequence[str]) -> str:
    label, pixels = int(examples.labels[i]), examples.images[i]
    kind = ' class="small"' if max(pixels.shape[-2:]) <= _SMALL else ""
    title = f"test image {examples.rows[i]}"
    lines = [f'label: <b>{_name(names[label])}</b> <span class="muted">({title})</span>']
    soft = {}
    for name, role, logits in _voices(examples):
        says = int(logits[i].argmax())
        sure = _sure(float(softmax_forward(logits[i])[says]))
        lines.append(f'<span class="{role}">{name}: {_name(names[says])} ({sure})</span>')
        soft[role] = softmax_forward(logits[i].astype(np.float64), temperature=examples.temperature)
    return (
        f'<li><img{kind} src="{data_url(shrunk(pixels, _LONGEST_SIDE))}" alt="{title}">'
        f"<div><p>{'<br>'.join(lines)}</p>\n{_bars(soft, label, names)}</div></li>"
    )


def _name(name: str) -> str:
    return escape(clipped(name, 16))


def _sure(probability: float) -> str:
    return f"{100 * probability:.1f}%" if probability < 0.9995 else "&gt;99.9%"


def _bars(soft: Mapping[str, NDArray[np.float64]], label: int, names: Sequence[str]) -> str:
    shown = shown_classes(list(soft.values()), label)
    rows = [
        _row(
            f"<b>{_name(names[c])}</b>" if c == label else _name(names[c]),
            {role: float(s[c]) for role, s in soft.items()},
        )
        for c in shown
    ]
    rest = len(names) - len(shown)
    if rest:
        left = {role: max(0.0, 1 - float(s[shown].sum())) for role, s in soft.items()}
        rows.append(_row(f'<span class="muted">{rest:,} others</span>', left))
    whose = "teacher and student" if "teacher" in soft else "student"
    return f'<table aria-label="probabilities by {whose}">{"".join(rows)}</table>'


def _row(name: str, probabilities: Mapping[str, float]) -> str:
    bars = "".join(
        f'<span style="width: {100 * p:.1f}%; background: var(--{role})"></span>'
        for role, p in probabilities.items()
    )
    figures = "".join(
        f'<td class="{role}">{f"{100 * p:.0f}" if p >= 0.005 else ""}</td>'
        for role, p in probabilities.items()
    )
    return f'<tr><th scope="row">{name}</th><td class="bars">{bars}</td>{figures}</tr>'


def shown_classes(soft: Sequence[NDArray[np.floating[Any]]], label: int) -> list[int]:
    """Return the classes that get a bar: all of few, else the likeliest ones and the label.

    Parameters
    ----------
    soft : sequence of arrays, shape (C,)
        Probabilities, one array per network.
    label : int

    Returns
    -------
    list of int
        In their order where all are shown, else the likeliest (to any network) first.
    """
    likeliest = np.max(soft, axis=0)
    if len(likeliest) <= _MOST_CLASSES:
        return list(range(len(likeliest)))
    order = np.argsort(-likeliest, kind="stable").tolist()
    shown = order[: _MOST_CLASSES - 2]
    return shown if label in shown else [*shown[:-1], label]
