"""The results as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["line", "text"]

# Microseconds captured, on the device alone; and of a call, with the host's work.
_KERNEL_COLUMNS = ("kernel", "us", "torch us", "ratio", "of peak", "call us", "torch call us")
_KERNEL_COLUMNS += ("error",)
_TRAINING_COLUMNS = ("step", "eager", "captured", "torch eager", "graphs", "x eager", "x graphs")


def line(row: Mapping[str, Any]) -> str:
    """Return a row as one line, for whoever watches."""
    values = {name: value for name, value in row.items() if name != "row"}
    return f"{row['row']}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items())


def text(results: Mapping[str, Any]) -> str:
    """Return all tables, and what was left out or failed."""
    sections = results["sections"]
    ceilings = {row["row"]: row for row in sections.get("ceilings", ()) if "error" not in row}
    parts = [line(row) for row in sections.get("ceilings", ())]
    parts += [line(row) for row in sections.get("conformance", ())]
    kernels = [r for r in sections.get("kernels", ()) if "refkd_us" in r]
    if kernels:
        lines = [cells for row in kernels for cells in _kernel_lines(row, ceilings)]
        parts.append(_table(_KERNEL_COLUMNS, lines))
    trained = [r for r in sections.get("training", ()) if "refkd_captured_ms" in r]
    if trained:
        parts.append(_table(_TRAINING_COLUMNS, map(_training_line, trained)))
    compiled = [r for r in sections.get("training", ()) if "torch_compile_ms" in r]
    parts += [line(row) for row in compiled]
    for section in ("compile", "kernels", "training"):
        parts += [
            f"{section}: {line(row)}"
            for row in sections.get(section, ())
            if "error" in row or "skipped" in row
        ]
    parts.append(f"{results.get('seconds', 0):.0f} s in all")
    return "\n".join(parts)


def _kernel_lines(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for suffix, words in (("", ""), ("_tf32", " tf32")):
        if f"refkd_us{suffix}" in row:
            lines.append(
                [
                    row["row"] + words,
                    f"{row[f'refkd_us{suffix}']:.1f}",
                    f"{row[f'peer_us{suffix}']:.1f}",
                    f"{row[f'ratio{suffix}']:.2f}",
                    _of_peak(row, suffix, ceilings),
                    f"{row[f'refkd_call_us{suffix}']:.0f}",
                    f"{row[f'peer_call_us{suffix}']:.0f}",
                    f"{row[f'largest_error{suffix}']:.0e}",
                ]
            )
    return lines


def _of_peak(row: Mapping[str, Any], suffix: str, ceilings: Mapping[str, Any]) -> str:
    seconds = row[f"refkd_us{suffix}"] / 1e6
    if row["gflop"]:
        peak = ceilings.get("sgemm tf32" if suffix else "sgemm", {}).get("tflops")
        done = row["gflop"] / 1e3 / seconds
    else:
        peak = ceilings.get("copy", {}).get("gbs")
        done = row["gbyte"] / seconds
    return f"{done / peak:.2f}" if peak else ""


def _training_line(row: Mapping[str, Any]) -> list[str]:
    names = ("refkd_eager_ms", "refkd_captured_ms", "torch_eager_ms", "torch_graph_ms")
    times = [f"{row[name]:.3f}" for name in names]
    if not row["captured"]:
        times[1] += " (eager)"
    return [row["row"], *times, f"{row['ratio_eager']:.2f}", f"{row['ratio_graph']:.2f}"]


def _table(columns: tuple[str, ...], lines: Any) -> str:
    rows = [list(columns), ["---", *["--:"] * (len(columns) - 1)], *lines]
    return "\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
