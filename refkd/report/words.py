"""Names, numbers and sentences that the page and the terminal table have in common.

A result is a mapping as ``refkd distill --json`` prints it. No layout here and no
escaping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Network",
    "answer",
    "clipped",
    "confusion_matrices",
    "difference_sentence",
    "human_bytes",
    "human_count",
    "human_seconds",
    "kept_epochs",
    "networks",
    "one_line",
    "percent",
    "points",
    "short_name",
    "strongest_confusion",
    "summary",
    "with_half_interval",
]

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """One network of a result, and how it is called and drawn everywhere.

    Attributes
    ----------
    key : str
        In the result: ``teacher``, ``student_alone``, ``student_no3``.
    name : str
        Short, for direct labels: ``teacher``, ``alone``, ``no3``.
    role : str
        Of the palette: ``teacher``, ``alone``, ``distilled``, ``arm1`` to ``arm4``.
    side : mapping
        The network's part of the result.
    """

    key: str
    name: str
    role: str
    side: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The network's name for people, on one line."""
        return one_line(self.side["label"])

    @property
    def epochs(self) -> int:
        """Epochs each seed was trained."""
        return int(self.side["epochs"])


def networks(result: Result) -> list[Network]:
    """Return the networks of a result: teacher, alone, distilled, then further arms."""
    fixed = {"teacher": "teacher", "student_alone": "alone", "student_distilled": "distilled"}
    further = [key for key in result if key.startswith("student_") and key not in fixed]
    roles = fixed | {key: f"arm{1 + i % 4}" for i, key in enumerate(further)}
    return [
        Network(key, short_name(key), role, result[key])
        for key, role in roles.items()
        if result.get(key) is not None
    ]


def short_name(key: str) -> str:
    """``student_no3`` is called ``no3``, ``teacher`` stays."""
    return one_line(key.removeprefix("student_"))


def one_line(text: object) -> str:
    """Collapse white space and drop control characters, which could steer a terminal."""
    return " ".join("".join(c for c in word if c.isprintable()) for word in str(text).split())


def clipped(text: object, width: int) -> str:
    """``text`` on one line, cut with an ellipsis where it is longer than ``width``."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def percent(fraction: float, digits: int = 2) -> str:
    """``0.9521`` as ``95.21%``."""
    return f"{100 * fraction:.{digits}f}%"


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points with its sign: ``+1.32``."""
    # Adding zero turns -0.0, which prints as "-0.00", into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"


def human_bytes(count: float) -> str:
    """``65320`` as ``65.3 kB``; units of 1000."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        # 999.5 and more would print as "1e+03".
        if count < 999.5 or unit == "GB":
            break
    return f"{count:#.3g} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def human_count(count: float) -> str:
    """``9604`` as it is, ``12345`` as ``12k``, ``1234567`` as ``1M``: four characters or fewer."""
    for unit in ("", "k", "M"):
        if count < (9999.5 if unit == "" else 999.5):
            break
        count /= 1000
    return f"{count:.0f}{unit}"


def human_seconds(seconds: float) -> str:
    """``0.012`` as ``0.012 s``, ``312`` as ``5 min 12 s``, ``7500`` as ``2 h 5 min``."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 59.95:  # more would print as "60.0 s"
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def with_half_interval(center: float, interval: Sequence[float] | None, sign: str = "") -> str:
    """``0.9521`` as ``95.21``, or with its interval as ``95.21 ± 0.40``: percent, without unit."""
    figure = f"{100 * center:{sign}.2f}"
    if interval is None:
        return figure
    low, high = interval
    return f"{figure} ± {50 * (high - low):.2f}"


def summary(result: Result) -> str:
    """Say what was run: protocol, data, seeds, time and version."""
    data = result["data"]
    validation = f", {data['validation']:,} validation" if data.get("validation") else ""
    seeds = len(result["student_distilled"]["accuracies"])
    return (
        f"{one_line(result['recipe'])}, {one_line(result['protocol'])} protocol: "
        f"{one_line(data['name'])} ({data['train']:,} training{validation} and "
        f"{data['test']:,} test images), {_seeds(seeds)}, "
        f"{human_seconds(result['seconds'])}, refkd {one_line(result['environment']['refkd'])}"
    )


def answer(result: Result) -> str:
    """Answer in one sentence how the distilled student does against the same one alone."""
    distilled, alone = result["student_distilled"], result["student_alone"]
    difference = _find_difference(result, "student_distilled", "student_alone")
    mean = difference["mean"] if difference else distilled["accuracy"] - alone["accuracy"]
    sentence = f"The distilled student reaches {percent(distilled['accuracy'])}, "
    if points(mean) == "+0.00":
        sentence += "as much as the same student alone"
    else:
        more = "more" if mean > 0 else "less"
        sentence += f"{points(abs(mean))[1:]} points {more} than the same student alone"
    if (epochs := _unequal_training(result, "student_distilled", "student_alone")) is not None:
        sentence += f" (after {epochs})"
    interval = difference.get("interval") if difference else None
    if len(distilled["accuracies"]) == 1:
        sentence += ", which one seed cannot tell from noise"
    elif interval is not None and _verdict(interval) == 0:
        sentence += ", which is within the noise of the seeds"
    if result.get("teacher") is None:
        return f"{sentence}; the teacher is known by its logits only."
    return f"{sentence}; the teacher has {percent(result['teacher']['accuracy'])}."


def difference_sentence(difference: Mapping[str, Any], result: Result) -> str:
    """Say a paired difference of a result with its interval and what it means.

    ``distilled minus alone: +1.32 points (95% interval +0.91 to +1.73, 10 seeds):
    distillation helped``. What longer training may have done is not put down to
    distillation.
    """
    a, b = short_name(difference["a"]), short_name(difference["b"])
    start = f"{a} minus {b}: {points(difference['mean'])} points"
    count = _seeds(len(difference["per_seed"]))
    interval = difference.get("interval")
    if interval is None:
        return f"{start} ({count}, no interval): one seed cannot tell it from noise"
    low, high = interval
    verdict = _verdict(interval)
    if verdict == 0:
        meaning = "within noise"
    elif (unequal := _unequal_training(result, difference["a"], difference["b"])) is not None:
        meaning = f"{a} is {'better' if verdict > 0 else 'worse'}, after {unequal}"
    elif (difference["a"], difference["b"]) == ("student_distilled", "student_alone"):
        meaning = "distillation helped" if verdict > 0 else "distillation hurt"
    else:
        meaning = f"{a} is {'better' if verdict > 0 else 'worse'}"
    return f"{start} (95% interval {points(low)} to {points(high)}, {count}): {meaning}"


def confusion_matrices(result: Result) -> dict[str, NDArray[np.float64]]:
    """Return the confusion matrices of a result, teacher first; none in that of an old run.

    Rows are true classes, columns what the network says.

    Raises
    ------
    ValueError, TypeError
        If they are not square, or not of the data's classes.
    """
    size = len(result["data"]["class_names"])
    matrices = {}
    for key in ("teacher", "student_alone", "student_distilled"):
        if (counts := result.get("confusion", {}).get(key)) is not None:
            matrices[key] = np.asarray(counts, dtype=np.float64)
            if matrices[key].shape != (size, size) or not (matrices[key] >= 0).all():
                raise ValueError(f"confusion of {key}: expected {size}x{size} counts")
    return matrices


def kept_epochs(sides: Sequence[Network]) -> str:
    """Return a note if any network is that of its best epoch, else an empty string."""
    if not any(network.side.get("keep") == "best" for network in sides):
        return ""
    return "kept is the epoch with the best validation accuracy; curves go on to the last"


def strongest_confusion(counts: NDArray[np.float64], names: Sequence[str]) -> str:
    """Say which class is most often taken for which other one."""
    errors = counts - np.diag(np.diagonal(counts))
    a, b = divmod(int(errors.argmax()), len(errors))
    if errors[a, b] == 0:
        return "No class is taken for another."
    return (
        f"Most frequent confusion: {errors[a, b]:,.0f} of {counts[a].sum():,.0f} images of "
        f"{one_line(names[a])} are taken for {one_line(names[b])}."
    )


def _verdict(interval: Sequence[float]) -> int:
    low, high = interval
    return (low > 0) - (high < 0)


def _find_difference(result: Result, a: str, b: str) -> Mapping[str, Any] | None:
    found = (d for d in result.get("differences") or () if (d["a"], d["b"]) == (a, b))
    return next(found, None)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _unequal_training(result: Result, a: str, b: str) -> str | None:
    """Say what two students were not given equally: ``20 epochs against 3``; None if nothing."""
    unequal = []
    for key, unit in (("epochs", "epoch"), ("train_images", "training image")):
        first, second = result[a][key], result[b][key]
        if first != second:
            unequal.append(f"{first:,} {unit}{'s' if first != 1 else ''} against {second:,}")
    return " and ".join(unequal) or None
