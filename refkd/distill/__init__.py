"""Distillation methods: objectives and the stages they are trained in."""

from refkd.distill.frozen import frozen_logits
from refkd.distill.logit import LogitDistillation
from refkd.distill.objective import Batch, Objective, StepResult, Supervised, select
from refkd.distill.stage import Optimizer, Schedule, Stage

__all__ = [
    "Batch",
    "LogitDistillation",
    "Objective",
    "Optimizer",
    "Schedule",
    "Stage",
    "StepResult",
    "Supervised",
    "frozen_logits",
    "select",
]
