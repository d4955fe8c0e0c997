"""The report of a run as plain text for a terminal of 80 columns."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.report.words import (
    Network,
    answer,
    clipped,
    confusion_matrices,
    difference_sentence,
    human_bytes,
    human_count,
    kept_epochs,
    networks,
    one_line,
    short_name,
    summary,
    with_half_interval,
)

__all__ = ["text_report"]

_COLUMNS = 80
_GAP = "  "
_MOST_CLASSES = 10  # whose confusions fit the columns


def text_report(result: Mapping[str, Any]) -> str:
    """Return the results of a run as a table of at most 80 columns.

    Parameters
    ----------
    result : mapping
        What ``refkd distill --json`` prints.

    Returns
    -------
    str
        Title, answer, accuracy table, paired differences and, where the result holds them,
        the distilled student's confusions (of few classes) and the table of the transfer
        experiment. Ends with a line break. Where matplotlib is
        missing the last line names the extra that brings the pictures.
    """
    blocks = [
        _wrap(one_line(result["title"])) + "\n" + _wrap(summary(result)),
        _wrap(answer(result)),
        _accuracy_table(networks(result)),
    ]
    if result.get("differences"):
        blocks.append(
            "\n".join(_wrap(difference_sentence(d, result), "  ") for d in result["differences"])
        )
    confusion = confusion_matrices(result).get("student_distilled")
    if confusion is not None and len(confusion) <= _MOST_CLASSES:
        blocks.append(_confusion_table(confusion, result["data"]["class_names"]))
    if result.get("transfer"):
        blocks.append(_transfer_table(result["transfer"]))
    if importlib.util.find_spec("matplotlib") is None:
        blocks.append("pictures need matplotlib: pip install 'refkd[plot]'")
    return "\n\n".join(blocks) + "\n"


def _accuracy_table(rows: Sequence[Network]) -> str:
    with_published = any(n.side.get("published") is not None for n in rows)
    header = ["who", "accuracy %", "seeds", "epochs", "parameters", "bytes"]
    cells = [
        [
            n.label,
            with_half_interval(n.side["accuracy"], n.side.get("interval")),
            str(len(n.side["accuracies"])),
            str(n.epochs),
            f"{n.side['parameters']:,}",
            human_bytes(n.side["bytes"]),
        ]
        for n in rows
    ]
    if with_published:
        header.insert(2, "published")
        for network, row in zip(rows, cells, strict=True):
            published = network.side.get("published")
            row.insert(2, "" if published is None else f"{100 * published:.2f}")
    note = (
        "accuracy: mean over the students' seeds ± half of the 95% interval of that mean;\n"
        "one teacher and one set of test images for all"
    )
    kept = kept_epochs(rows)
    note += f";\n{kept}" if kept else ""
    return _table(header, cells) + "\n" + note


def _confusion_table(counts: NDArray[np.float64], names: Sequence[str]) -> str:
    room = (_COLUMNS - 14) // len(names) - len(_GAP)
    header = ["distilled", *(clipped(name, room) for name in names)]
    cells = [
        [clipped(name, 12), *(human_count(count) if count else "." for count in row)]
        for name, row in zip(names, counts, strict=True)
    ]
    note = (
        "test images of one true class (row) by what the distilled student says (column), "
        "first seed"
    )
    return _table(header, cells) + "\n" + _wrap(note)


def _transfer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["who", "classes", "errors", "omitted", "bias", "corrected", "omitted"]
    numbers = (
        "errors",
        "errors_on_omitted",
        "bias_shift",
        "errors_corrected",
        "errors_on_omitted_corrected",
    )
    cells = [
        [
            short_name(row["arm"]),
            one_line(row["classes"]),
            *(f"{row[number]:{'+' if number == 'bias_shift' else ''}.1f}" for number in numbers),
        ]
        for row in rows
    ]
    note = (
        "test errors, means over the seeds; omitted: of those, on the omitted classes; "
        "bias: added to the omitted classes' logits; corrected: errors after that"
    )
    return _table(header, cells, left=2) + "\n" + _wrap(note)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Align columns, the first ``left`` of them left and the others right.

    The left columns share what the others leave of the line; longer cells are wrapped.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    room = _COLUMNS - sum(widths[left:]) - len(_GAP) * (len(header) - 1)
    for i in range(left):
        widths[i] = min(widths[i], max(room // (left - i), len(header[i])))
        room -= widths[i]
    lines = [line for row in (header, *rows) for line in _table_row(row, widths, left)]
    lines.insert(1, _GAP.join("-" * width for width in widths))
    return "\n".join(lines)


def _table_row(row: Sequence[str], widths: Sequence[int], left: int) -> Iterator[str]:
    wrapped = [
        textwrap.wrap(cell, width) or [""]
        for cell, width in zip(row[:left], widths[:left], strict=True)
    ]
    for i in range(max(map(len, wrapped))):
        cells = [
            (part[i] if i < len(part) else "").ljust(width)
            for part, width in zip(wrapped, widths[:left], strict=True)
        ]
        if i == 0:
            cells += [c.rjust(w) for c, w in zip(row[left:], widths[left:], strict=True)]
        yield _GAP.join(cells).rstrip()


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _COLUMNS, subsequent_indent=indent)
