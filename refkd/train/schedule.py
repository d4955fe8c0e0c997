"""Learning-rate schedules: the factor on the optimiser's base rate, by step.

A schedule is a function of the step alone, so that a resumed run needs nothing from
it. Steps count optimiser updates from 0; ``total`` is the stage's number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from refkd.distill.stage import Schedule
from refkd.errors import ConfigError, check_integer, check_positive, check_unit_interval

__all__ = ["Constant", "Cosine", "Linear", "Step", "WarmUp"]


@dataclass(frozen=True)
class Constant:
    """1 throughout."""

    def factor(self, step: int, total: int) -> float:
        """Return the factor; see :class:`refkd.distill.Schedule`."""
        return 1.0


@dataclass(frozen=True)
class Step:
    """Multiply by ``gamma`` whenever one of ``milestones``, fractions of the stage, is passed.

    Attributes
    ----------
    milestones : tuple of float, in [0, 1], ascending
    gamma : float, > 0
    """

    milestones: tuple[float, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_positive("Step", "gamma", self.gamma)
        for milestone in self.milestones:
            check_unit_interval("Step", "milestones", milestone)
        if list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"Step: milestones must ascend, got {self.milestones}")

    def factor(self, step: int, total: int) -> float:
        return self.gamma ** sum(step / total >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Linear:
    """From 1 at the first step straight towards ``end`` at the end of the stage."""

    end: float = 0.0

    def __post_init__(self) -> None:
        check_unit_interval("Linear", "end", self.end)

    def factor(self, step: int, total: int) -> float:
        return 1 + (self.end - 1) * step / total


@dataclass(frozen=True)
class Cosine:
    """From 1 to ``end`` along half a cosine, as ``CosineAnnealingLR`` with T_max = total."""

    end: float = 0.0

    def __post_init__(self) -> None:
        check_unit_interval("Cosine", "end", self.end)

    def factor(self, step: int, total: int) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * step / total)) / 2


@dataclass(frozen=True)
class WarmUp:
    """Rise linearly over ``steps`` updates, (k + 1)/steps at step k, then follow ``then``.

    Attributes
    ----------
    steps : int, >= 1
    then : Schedule
        Runs over the remaining steps.
    """

    steps: int
    then: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        check_integer("WarmUp", "steps", self.steps, 1)

    def factor(self, step: int, total: int) -> float:
        if step < self.steps:
            return (step + 1) / self.steps
        return self.then.factor(step - self.steps, total - self.steps)
