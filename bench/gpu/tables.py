"""The results as Markdown, as ``bench/RESULTS.md`` has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["line", "text"]

Row = Mapping[str, Any]

_KERNEL_COLUMNS = ("kernel", "us", "PyTorch us", "ratio", "of peak", "call us", "PyTorch call us")
_KERNEL_COLUMNS += ("error",)
_KERNEL_NOTES = """\
Captured, so that launches do not count; "call" is a plain call from Python. Of peak: the part of
the copy that a kernel's bytes come to, each array counted once (in brackets: as often as it is
passed over, where sums over all of it must come first), or the part of the matrix product that its
operations come to; products of three TF32 terms may exceed 1. Errors are the largest of all
results. refkd's attention forward writes the probabilities for the backward, PyTorch's writes
none."""
_TRAINING_COLUMNS = ("step", "kernels one by one", "captured", "PyTorch eager", "PyTorch graphs")
_TRAINING_COLUMNS += ("torch.compile", "of eager", "of graphs", "of peak", "PyTorch's")
_TRAINING_NOTES = """\
Milliseconds: images lie on the device as bytes; a batch's rows are taken, converted, forward,
backward and Adam done and the loss fetched; refkd's looks for NaN besides. "Captured" is what
`compile_step` gives, and what PyTorch's times are divided by. Both sides took the same step before
they were timed; in TF32 they agree within 0.2 of a layer's norm. Of peak: the part of the matrix
product that a step's operations come to, captured and in PyTorch's graphs."""


def line(row: Row) -> str:
    """Return a row as one line, for whoever watches."""
    values = {name: value for name, value in row.items() if name != "row"}
    return f"{row['row']}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items())


def text(results: Mapping[str, Any]) -> str:
    """Return all tables, and what was left out or failed."""
    sections: Mapping[str, list[dict[str, Any]]] = results["sections"]
    ceilings = {row["row"]: row for row in sections.get("ceilings", ())}
    parts = [_paragraph(sections.get(name, ())) for name in ("ceilings", "conformance")]
    compiled = {row["row"]: row for row in sections.get("torch_compile", ())}
    trained = [row for row in sections.get("training", ()) if "refkd_captured_ms" in row]
    if trained:
        cells = (_training_cells(row, compiled.get(row["row"], {}), ceilings) for row in trained)
        parts += [_TRAINING_NOTES, _table(_TRAINING_COLUMNS, cells)]
    kernels = [row for row in sections.get("kernels", ()) if "refkd_us" in row]
    if kernels:
        cells = (cells for row in kernels for cells in _kernel_cells(row, ceilings))
        parts += [_KERNEL_NOTES, _table(_KERNEL_COLUMNS, cells)]
    left_out = [
        f"- {section}: {row['row']}: {row.get('error', row.get('skipped'))}"
        for section, rows in sections.items()
        for row in rows
        if "error" in row or "skipped" in row
    ]
    if left_out:
        parts.append("Failed or left out:\n\n" + "\n".join(left_out))
    parts.append(f"{results.get('seconds', 0):.0f} s in all.")
    return "\n\n".join(part for part in parts if part)


def _paragraph(rows: Iterable[Row]) -> str:
    found = ({k: v for k, v in row.items() if k not in ("error", "skipped")} for row in rows)
    return "\n".join(f"{line(row)}." for row in found if len(row) > 1)


def _kernel_cells(row: Row, ceilings: Mapping[str, Row]) -> list[list[str]]:
    return [
        [
            row["row"] + words,
            _number(row[f"refkd_us{suffix}"], 1),
            _number(row[f"peer_us{suffix}"], 1),
            _number(row[f"ratio{suffix}"], 2),
            _of_peak(row, suffix, ceilings),
            _number(row[f"refkd_call_us{suffix}"], 0),
            _number(row[f"peer_call_us{suffix}"], 0),
            f"{row[f'largest_error{suffix}']:.0e}",
        ]
        for suffix, words in (("", ""), ("_tf32", " tf32"))
        if f"refkd_us{suffix}" in row
    ]


def _of_peak(row: Row, suffix: str, ceilings: Mapping[str, Row]) -> str:
    seconds = row[f"refkd_us{suffix}"] / 1e6
    if row["gflop"]:
        return _number(_of_product(row["gflop"] / seconds, bool(suffix), ceilings), 2)
    peak = ceilings.get("copy", {}).get("gbs")
    if not peak:
        return ""
    passes = row.get("gbyte_of_all_passes")
    return f"{row['gbyte'] / seconds / peak:.2f}" + (
        f" ({passes / seconds / peak:.2f})" if passes else ""
    )


def _of_product(gflops: float, tf32: bool, ceilings: Mapping[str, Row]) -> float | None:
    peak = ceilings.get("sgemm tf32" if tf32 else "sgemm", {}).get("tflops")
    return gflops / 1e3 / peak if peak else None


def _training_cells(row: Row, compiled: Row, ceilings: Mapping[str, Row]) -> list[str]:
    names = ("refkd_eager_ms", "refkd_captured_ms", "torch_eager_ms", "torch_graph_ms")
    times = [row.get(name) for name in names]
    parts = [
        _of_product(row["gflop"] / time * 1e3, row["row"].endswith(" tf32"), ceilings)
        if time
        else None
        for time in (times[1], times[3])
    ]
    ratios = (row.get("ratio_eager"), row.get("ratio_graph"))
    return [
        row["row"],
        *(_number(time, 3) for time in (*times, compiled.get("torch_compile_ms"))),
        *(_number(value, 2) for value in (*ratios, *parts)),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(columns: tuple[str, ...], lines: Iterable[list[str]]) -> str:
    rows = ["| " + " | ".join(cells) + " |" for cells in (list(columns), *lines)]
    rows.insert(1, "|---|" + "--:|" * (len(columns) - 1))
    return "\n".join(rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
