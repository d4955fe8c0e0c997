"""The GoogLeNet workloads in refkd."""

from __future__ import annotations

from bench.workloads import WORKLOADS
from bench.workloads.googlenet import (
    AUX_DROPOUT,
    DROPOUT,
    HARD_WEIGHT,
    HEAD_WEIGHTS,
    NUM_CLASSES,
    SOFT_WEIGHT,
    TEMPERATURE,
    GoogLeNetWorkload,
)
from bench.workloads.loop_refkd import RefkdSide
from refkd.distill import LogitDistillation, Objective, Supervised
from refkd.losses.spec import KDSpec
from refkd.models import googlenet, small_cnn

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RefkdSide:
    """Return refkd's side of ``workload`` on the backend ``mode``."""
    chosen = WORKLOADS[workload]
    return RefkdSide(
        chosen,
        mode,
        timed=_objective(chosen, dropout=DROPOUT, aux_dropout=AUX_DROPOUT),
        verified=_objective(chosen, dropout=0.0, aux_dropout=0.0),
    )


def _objective(workload: GoogLeNetWorkload, *, dropout: float, aux_dropout: float) -> Objective:
    large = googlenet(num_classes=NUM_CLASSES, dropout=dropout, aux_dropout=aux_dropout)
    if not workload.distils:
        return Supervised(large, head_weights=HEAD_WEIGHTS)
    spec = KDSpec(TEMPERATURE, HARD_WEIGHT, SOFT_WEIGHT, t_squared=False)
    return LogitDistillation(
        small_cnn(num_classes=NUM_CLASSES, dropout=dropout),
        large,
        spec,
        head_weights=HEAD_WEIGHTS,
        exact=False,  # as in bench.workloads.vgg_refkd
    )
