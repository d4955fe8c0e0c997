"""What a gradient check found: the verdict, the worst entry, and how it was measured."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass

from refkd.errors import RefkdError

__all__ = ["Comparison", "GradCheckError", "GradReport", "Verdict"]

_METHODS = {"complex": "complex step", "richardson": "Richardson differences", "none": "no method"}


class GradCheckError(RefkdError, AssertionError):
    """A gradient check did not pass; raised by :meth:`GradReport.raise_if_failed`."""


class Verdict(enum.StrEnum):
    """The outcomes of a gradient check."""

    PASS = "PASS"
    """Every gap is within the tolerance or the measured rounding error."""
    WRONG_GRADIENT = "WRONG_GRADIENT"
    """A gap exceeds both the tolerance and the error bar of the numeric derivative."""
    NOISY_REFERENCE = "NOISY_REFERENCE"
    """The numeric derivative is too coarse for the tolerance: nothing is shown either way."""
    NONFINITE = "NONFINITE"
    """The function, its gradient or its numeric derivative is NaN or infinite."""
    SHAPE_DTYPE = "SHAPE_DTYPE"
    """The function gives no real scalar, or the gradient has wrong keys, shapes or dtypes."""


@dataclass(frozen=True)
class Comparison:
    """An analytic derivative beside a numeric one.

    Attributes
    ----------
    name : str
        The parameter.
    index : tuple of int, or None
        The entry; None for a derivative along a random direction.
    analytic, numeric : float
        The two derivatives.
    error_bar : float
        Uncertainty of the numeric derivative, and of the analytic one's rounding.
    scaled_error : float
        |analytic − numeric| divided by max(1e-300, the largest |numeric| of the
        parameter). Along a direction u the divisor is max(1e-300, Σ|g_i u_i|,
        |numeric|), g the analytic gradient; for an entry found from there by
        bisection it is max(1e-300, |numeric|).
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


@dataclass(frozen=True)
class GradReport:
    """The result of :func:`refkd.testing.check_grad`.

    Attributes
    ----------
    verdict : Verdict
    message : str
        One sentence: what is wrong or uncertain; empty where all is well.
    worst : Comparison or None
        The wrong entry farthest off, else the entry with the largest scaled error;
        None where nothing was compared.
    entries : int
        Number of gradient entries covered.
    method : {"complex", "richardson", "none"}
        How the numeric derivative was taken.
    mode : {"full", "directional"}
        Every entry by itself, or one random direction per parameter.
    tolerance : float
        The scaled error allowed.
    """

    verdict: Verdict
    message: str
    worst: Comparison | None
    entries: int
    method: str
    mode: str
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict is Verdict.PASS

    def to_json(self) -> str:
        """Return all attributes and ``ok`` as one JSON object; what is not finite is null."""
        found = dataclasses.asdict(self)
        if self.worst is not None:
            found["worst"] = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in found["worst"].items()
            }
        return json.dumps({"ok": self.ok, **found}, allow_nan=False)

    def raise_if_failed(self) -> GradReport:
        """Return the report itself.

        Raises
        ------
        GradCheckError
            If the verdict is not PASS.
        """
        if not self.ok:
            raise GradCheckError(str(self))
        return self

    def __str__(self) -> str:
        """A line or two for people: verdict, place, both values, error bar."""
        lines = [f"{self.verdict}: {self.message}" if self.message else str(self.verdict)]
        if self.worst is not None:
            w = self.worst
            lines.append(
                f"worst: {w.place}: analytic {w.analytic:.17g}, numeric {w.numeric:.17g} "
                f"± {w.error_bar:.1e}, scaled error {w.scaled_error:.1e} "
                f"(tolerance {self.tolerance:.1e})"
            )
        lines.append(f"{self.entries} entries, {_METHODS[self.method]}, {self.mode}")
        return "\n  ".join(lines)
