"""A method is a sequence of stages; a stage is an objective and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from refkd.dispatch import Array
from refkd.distill.objective import Objective
from refkd.errors import (
    ConfigError,
    check_choice,
    check_integer,
    check_positive,
    check_unit_interval,
)

__all__ = ["Optimizer", "Schedule", "Stage"]


class Optimizer(Protocol):
    """What a stage asks of an optimiser; :mod:`refkd.train.optim` has them."""

    @property
    def lr(self) -> float:
        """The base learning rate."""
        ...

    def init(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """Return the state before the first step."""
        ...

    def update(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        state: Mapping[str, Array],
        *,
        lr: float,
    ) -> None:
        """Write one step into ``params`` and ``state``."""
        ...


class Schedule(Protocol):
    """What a stage asks of a schedule; :mod:`refkd.train.schedule` has them."""

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the base learning rate at ``step`` of ``total``."""
        ...


@dataclass(frozen=True)
class Stage:
    """One objective and how it is trained.

    Attributes
    ----------
    objective : Objective
    optimizer : Optimizer
    schedule : Schedule
    epochs : int
    batch_size : int
    clip_norm : float or None
        Gradients are scaled down to this global norm.
    ema_decay : float or None
        With it, the stage ends with an exponential moving average of the parameters.
    start_from : mapping of str to str
        Networks that begin as a copy of another: ``{"student": "teacher"}``.
    keep : {"last", "best"}
        What the stage ends with: the last epoch, or the first one with the highest
        ``validation_accuracy``, which the loop's ``evaluate`` must then report.

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.
    """

    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    epochs: int
    batch_size: int
    clip_norm: float | None = None
    ema_decay: float | None = None
    start_from: Mapping[str, str] = field(default_factory=dict)
    keep: str = "last"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_integer("Stage", name, getattr(self, name), 1)
        check_choice("Stage", "keep", self.keep, ("last", "best"))
        if self.clip_norm is not None:
            check_positive("Stage", "clip_norm", self.clip_norm)
        if self.ema_decay is not None:
            check_unit_interval("Stage", "ema_decay", self.ema_decay)
            if self.ema_decay == 1:
                raise ConfigError("Stage: ema_decay must be below 1, got 1: nothing is averaged")
