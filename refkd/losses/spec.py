"""The distillation loss as data: what a paper or a library means by "T and alpha".

Implementations in circulation agree on CE + KL and on little else. A
:class:`KDSpec` holds every choice they differ in, says what it does to the gradient
(:meth:`KDSpec.explain`) and translates between conventions (:meth:`KDSpec.convert`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refkd.errors import (
    ConfigError,
    check_choice,
    check_non_negative,
    check_positive,
    check_unit_interval,
)

__all__ = ["DIVERGENCES", "FORMULAS", "SAME_GRADIENT", "KDSpec", "batch_over_divisor"]

DIVERGENCES = ("kl", "cross_entropy", "reverse_kl", "mse_probabilities", "kl_without_log")
SAME_GRADIENT = frozenset({"kl", "cross_entropy"})
FORMULAS = {
    "kl": "KL(t ‖ s)",
    "cross_entropy": "H(t, s)",
    "reverse_kl": "KL(s ‖ t)",
    "mse_probabilities": "‖s − t‖²",
    "kl_without_log": "Σ_c t(log t − s)",
}


@dataclass(frozen=True)
class KDSpec:
    """L = hard_weight · CE(softmax(z), y) + soft_weight · [T²] · D / R.

    z and v are the logits of student and teacher, s = softmax(z/T) and
    t = softmax(v/T). The cross-entropy is always the mean over the batch.

    Attributes
    ----------
    temperature : float, > 0
        T, the same for student and teacher.
    hard_weight, soft_weight : float, >= 0
        The factors on the two terms, T² not included.
    t_squared : bool
        Whether the soft term is multiplied by T².
    reduction : {"batchmean", "mean", "sum"}
        R = B, B·C or 1, for a batch of B and C classes.
    divergence : {"kl", "cross_entropy", "reverse_kl", "mse_probabilities", "kl_without_log"}
        D: Σ t (log t − log s); −Σ t log s; Σ s (log s − log t); Σ (s − t)²; and
        Σ t (log t − s), which ``nn.KLDivLoss`` computes where it is given a softmax for a
        log-softmax: no divergence, but in circulation.
    alpha_weights : {"hard", "soft", None}
        Which term ``alpha`` stands on where the convention ties the two weights by
        one alpha; None where they are free.

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.

    Examples
    --------
    >>> spec = KDSpec.preset("hinton", temperature=4.0, alpha=0.3)
    >>> spec.coefficient()
    2.8
    """

    temperature: float
    hard_weight: float
    soft_weight: float
    t_squared: bool = True
    reduction: str = "batchmean"
    divergence: str = "kl"
    alpha_weights: str | None = None

    def __post_init__(self) -> None:
        check_positive("KDSpec", "temperature", self.temperature)
        if not math.isfinite(float(self.temperature) * float(self.temperature)):
            raise ConfigError(
                f"KDSpec: temperature must have a finite square, got {self.temperature!r}"
            )
        for name in ("hard_weight", "soft_weight"):
            check_non_negative("KDSpec", name, getattr(self, name))
        check_choice("KDSpec", "reduction", self.reduction, ("batchmean", "mean", "sum"))
        check_choice("KDSpec", "divergence", self.divergence, DIVERGENCES)
        if self.alpha_weights is not None:
            check_choice("KDSpec", "alpha_weights", self.alpha_weights, ("hard", "soft"))
            check_unit_interval("KDSpec", "hard_weight, tied by alpha,", self.hard_weight)
        # A NumPy scalar, unlike a Python one, would promote float32 logits to float64.
        for name in ("temperature", "hard_weight", "soft_weight"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def preset(cls, name: str, /, **parameters: float) -> KDSpec:
        """Return the convention of a paper or library by name.

        Parameters
        ----------
        name : str
            A key of :data:`refkd.losses.presets.PRESETS`.
        **parameters : float
            What that convention is parameterised by, mostly ``temperature`` and
            ``alpha``.

        Raises
        ------
        ConfigError
            If the name or a parameter is unknown, missing or out of range.
        """
        from refkd.losses.presets import build

        return build(name, parameters)

    @property
    def alpha(self) -> float | None:
        """The single alpha of the convention, or None where the weights are free."""
        if self.alpha_weights is None:
            return None
        return self.hard_weight if self.alpha_weights == "hard" else 1 - self.hard_weight

    @property
    def effective_soft_weight(self) -> float:
        """The factor on the reduced divergence, T² included where the spec has it."""
        return self.soft_weight * (self.temperature**2 if self.t_squared else 1.0)

    def coefficient(
        self, *, num_classes: int | None = None, batch_size: int | None = None
    ) -> float:
        """Return the k of ∂(soft term)/∂z = k · (s − t)/B.

        Parameters
        ----------
        num_classes : int, optional
            C, needed where the reduction is ``"mean"``.
        batch_size : int, optional
            B, needed where the reduction is ``"sum"``.

        Raises
        ------
        ConfigError
            If the gradient of the divergence is no multiple of s − t, or C or B is
            needed and not given.
        """
        if self.divergence not in SAME_GRADIENT:
            raise ConfigError(
                f"KDSpec.coefficient: the gradient of {FORMULAS[self.divergence]} is "
                f"{_gradient_shape(self.divergence)}, not a multiple of (s − t)"
            )
        return (
            self.effective_soft_weight
            / self.temperature
            * batch_over_divisor(self.reduction, num_classes, batch_size)
        )

    def explain(self, *, num_classes: int | None = None, batch_size: int | None = None) -> str:
        """Say in words and in a formula what this loss does to the student's logits.

        Parameters
        ----------
        num_classes, batch_size : int, optional
            With them the coefficient is a number even where it depends on them.
        """
        t_squared = "·T²" if self.t_squared else ""
        divisor = {"batchmean": "B", "mean": "(B·C)", "sum": "1"}[self.reduction]
        lines = [
            f"L = {self.hard_weight:g}·CE(q, y) + {self.soft_weight:g}{t_squared}·"
            f"Σ_batch {FORMULAS[self.divergence]}/{divisor}",
            f"q = softmax(z), s = softmax(z/T), t = softmax(v/T), T = {self.temperature:g}",
        ]
        if self.divergence in SAME_GRADIENT:
            lines.append(f"dL/dz = {self.hard_weight:g}·(q − y)/B + k·(s − t)/B")
            lines.append(self._explain_coefficient(num_classes, batch_size))
        else:
            lines.append(
                f"the soft gradient is {_gradient_shape(self.divergence)}, not a multiple of s − t"
            )
        if self.divergence == "kl_without_log":
            lines.append(
                "a softmax stands where its logarithm is due: the soft term is negative and "
                "rewards certainty of the teacher's first choice, not likeness to the teacher"
            )
        if self.alpha is not None:
            lines.append(
                f"alpha = {self.alpha:g} weights the {self.alpha_weights} term in this convention"
            )
        if not self.t_squared and self.temperature != 1:
            lines.append(
                f"there is no T²: the soft gradient is {self.temperature**2:g} times weaker than "
                f"with it, and fades like 1/T² as the temperature rises"
            )
        return "\n".join(lines)

    def _explain_coefficient(self, num_classes: int | None, batch_size: int | None) -> str:
        weight = f"{self.soft_weight:g}"
        formula = f"{weight}·T" if self.t_squared else f"{weight}/T"
        formula += {"batchmean": "", "mean": "/C", "sum": "·B"}[self.reduction]
        try:
            value = self.coefficient(num_classes=num_classes, batch_size=batch_size)
        except ConfigError:
            return f"k = {formula}"
        return f"k = {formula} = {value:.6g}"

    def convert(
        self,
        other: str | KDSpec,
        *,
        num_classes: int | None = None,
        batch_size: int | None = None,
    ) -> KDSpec:
        """Return the spec in another convention that gives the student the same gradient.

        Parameters
        ----------
        other : str or KDSpec
            A preset's name, or a spec whose convention (everything but the weights) is
            taken.
        num_classes, batch_size : int, optional
            Needed where the two reductions differ by C or B.

        Returns
        -------
        KDSpec
            In the convention of ``other``, with the weights that equal this one's
            gradient. The loss's value differs by the entropy of t between ``kl`` and
            ``cross_entropy``.

        Raises
        ------
        ConfigError
            If there are no such weights; the message says why.
        """
        from refkd.losses.convert import convert

        return convert(self, other, num_classes=num_classes, batch_size=batch_size)


def _gradient_shape(divergence: str) -> str:
    return {
        "reverse_kl": "∝ s⊙(ℓ − ⟨s, ℓ⟩) with ℓ = log s − log t",
        "mse_probabilities": "∝ s⊙(d − ⟨s, d⟩) with d = s − t",
        "kl_without_log": "∝ −s⊙(t − ⟨s, t⟩)",
    }[divergence]


def batch_over_divisor(reduction: str, num_classes: Any, batch_size: Any) -> float:
    """Return B/R; ConfigError where it depends on a size that is not given."""
    if reduction == "batchmean":
        return 1.0
    name, value = (
        ("num_classes", num_classes) if reduction == "mean" else ("batch_size", batch_size)
    )
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ConfigError(
            f"KDSpec: reduction={reduction!r} makes the gradient depend on {name}; "
            f"give {name}=, a positive integer, got {value!r}"
        )
    return 1.0 / value if reduction == "mean" else float(value)
