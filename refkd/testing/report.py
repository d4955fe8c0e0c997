"""What a gradient check found: the verdict, the worst entry, and how it was measured."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import RefkdError

__all__ = ["Comparison", "GradCheckError", "GradReport", "ParameterReport", "Verdict"]

_METHODS = {
    "complex": "complex step",
    "longdouble": "longdouble differences",
    "ridders": "Ridders differences",
    "adjoint": "adjoint identity",
    "none": "no method",
}


class GradCheckError(RefkdError, AssertionError):
    """A gradient check did not pass; raised by :meth:`GradReport.raise_if_failed`."""


class Verdict(enum.StrEnum):
    """The outcomes of a gradient check."""

    PASS = "PASS"
    """Every gap is within the tolerance or the measured rounding error."""
    KINK = "KINK"
    """f has a kink here; the gradient lies between its one-sided slopes. Accepted."""
    WRONG_GRADIENT = "WRONG_GRADIENT"
    """A gap exceeds both the tolerance and the error bar of the numeric derivative."""
    NOISY_REFERENCE = "NOISY_REFERENCE"
    """The numeric derivative is too coarse for the tolerance: nothing is shown either way."""
    NONDETERMINISTIC = "NONDETERMINISTIC"
    """Two calls at one point differ by more than rounding, and no replayed seed helps."""
    NONFINITE = "NONFINITE"
    """The function, its gradient or its numeric derivative is NaN or infinite."""
    ALIASED = "ALIASED"
    """The gradient is right, but shares memory: with an argument, with another gradient, or
    with a buffer that the next call overwrites."""
    MUTATED_INPUT = "MUTATED_INPUT"
    """The function or its gradient writes into its arguments."""
    SHAPE_DTYPE = "SHAPE_DTYPE"
    """The function gives no real scalar, or the gradient has wrong keys, shapes or dtypes."""


@dataclass(frozen=True)
class Comparison:
    """An analytic derivative beside a numeric one.

    Attributes
    ----------
    name : str
        The parameter; of several at once, their names joined by commas.
    index : tuple of int, or None
        The entry; None for a derivative along a random direction.
    analytic, numeric : float
        The two derivatives.
    error_bar : float
        Uncertainty of the numeric derivative, and of the analytic one's rounding.
    scaled_error : float
        |analytic − numeric| divided by the largest |numeric| of the parameter, or the
        largest |analytic| where that is 0. Along a direction u the divisor is the
        larger of Σ|g_i u_i| and |numeric|, g the analytic gradient; for an entry found
        from there by bisection it is |numeric|, or |analytic| where that is 0. It is
        never below 1e-300.
    """

    name: str
    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    error_bar: float
    scaled_error: float

    @property
    def place(self) -> str:
        """``weight[2, 1]``, or the parameter alone for a direction."""
        return self.name if not self.index else f"{self.name}{list(self.index)}"

    @property
    def ulps(self) -> float:
        """|analytic − numeric| in float64 roundings of the numeric derivative."""
        spacing = float(np.spacing(abs(self.numeric)))
        return abs(self.analytic - self.numeric) / spacing if spacing > 0 else math.nan


@dataclass(frozen=True)
class ParameterReport:
    """What was found in one parameter.

    Attributes
    ----------
    name : str
        Its path within the parameters, such as ``"layers[0].weight"``.
    shape : tuple of int
    dtype : str
        As given: ``"float64"`` or ``"float32"``.
    verdict : Verdict
    worst : Comparison or None
        None where the parameter was not compared by itself: one without entries, or one
        of those that passed together along one direction.
    wrong : int or None
        Number of entries found wrong; None where not every entry was compared.
    errors : array of float64, or None
        The scaled error of every entry, in the parameter's shape; None where not every
        entry was compared.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    worst: Comparison | None = None
    wrong: int | None = None
    errors: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class GradReport:
    """The result of :func:`refkd.testing.check_grad` and its siblings.

    Attributes
    ----------
    verdict : Verdict
    message : str
        One sentence: what is wrong or uncertain; empty where all is well.
    explanation : str
        What a wrong gradient looks like ("the derivative times 0.0625: 1/T² with T = 4?"), or
        empty: a guess, from the numbers alone.
    notes : tuple of str
        What else was noticed, such as why the complex step was not used.
    worst : Comparison or None
        The wrong entry farthest off, else the entry with the largest scaled error;
        None where nothing was compared.
    parameters : tuple of ParameterReport
        One for each differentiated parameter, in their order.
    entries : int
        Number of gradient entries covered.
    method : {"complex", "longdouble", "ridders", "adjoint", "none"}
        How the numeric derivative was taken.
    mode : {"full", "directional"}
        Every entry by itself, or random directions.
    tolerance : float
        The scaled error allowed; along a direction a hundredth of it.
    calls : int
        Calls of the function and of its gradient together.
    """

    verdict: Verdict
    message: str
    worst: Comparison | None = None
    parameters: tuple[ParameterReport, ...] = ()
    entries: int = 0
    method: str = "none"
    mode: str = "full"
    tolerance: float = 0.0
    calls: int = 0
    explanation: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the gradient is accepted: the verdict is PASS or KINK."""
        return self.verdict in (Verdict.PASS, Verdict.KINK)

    def to_json(self) -> str:
        """Return all attributes and ``ok`` as one JSON object; what is not finite is null.

        The parameters are there without their errors entry by entry.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["parameters"] = [
            {f.name: getattr(p, f.name) for f in fields(p) if f.name != "errors"}
            for p in self.parameters
        ]
        return json.dumps(_finite({"ok": self.ok, **found}), allow_nan=False)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return a page of its own with a heat map of each parameter's errors.

        Parameters
        ----------
        path : path, optional
            Where to write it as well.
        """
        from refkd.testing.html import page

        text = page({"Gradient check": self})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def raise_if_failed(self) -> GradReport:
        """Return the report itself.

        Raises
        ------
        GradCheckError
            If the gradient is not accepted.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        if not self.ok:
            raise GradCheckError(str(self))
        return self

    def _limit(self, comparison: Comparison) -> float:
        return self.tolerance / 100 if comparison.index is None else self.tolerance

    def __str__(self) -> str:
        """A few lines for people: verdict, place, both values, error bar, explanation."""
        lines = [f"{self.verdict}: {self.message}" if self.message else str(self.verdict)]
        if self.explanation:
            lines.append(f"looks like: {self.explanation}")
        if self.worst is not None:
            w = self.worst
            lines.append(
                f"worst: {w.place}: analytic {w.analytic:.17g}, numeric {w.numeric:.17g} "
                f"± {w.error_bar:.1e}, scaled error {w.scaled_error:.1e} "
                f"(tolerance {self._limit(w):.1e}), {w.ulps:.3g} ulps"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines.append(
            f"{self.entries} entries, {_METHODS[self.method]}, {self.mode}, {self.calls} calls"
        )
        return "\n  ".join(lines)


def _finite(found: Any) -> Any:
    """Return ``found`` as JSON takes it: dataclasses as objects, NaN and infinity as null."""
    if isinstance(found, Comparison):
        found = {**{f.name: getattr(found, f.name) for f in fields(found)}, "ulps": found.ulps}
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, (tuple, list)):
        return [_finite(value) for value in found]
    if isinstance(found, float) and not math.isfinite(found):
        return None
    return found
