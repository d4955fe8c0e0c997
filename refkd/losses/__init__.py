"""Losses: kernel pairs like those of :mod:`refkd.ops`, and the distillation loss as data."""

from refkd.losses.cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from refkd.losses.distillation import KDTerms, distillation_loss, kd_backward, kd_forward
from refkd.losses.heads import kd_heads_backward, kd_heads_forward
from refkd.losses.kd import softmax_kd_backward, softmax_kd_forward
from refkd.losses.kl import softmax_kl_backward, softmax_kl_forward
from refkd.losses.kl_without_log import (
    softmax_kl_without_log_backward,
    softmax_kl_without_log_forward,
)
from refkd.losses.presets import PRESETS
from refkd.losses.regression import huber_backward, huber_forward, mse_backward, mse_forward
from refkd.losses.spec import KDSpec

__all__ = [
    "PRESETS",
    "KDSpec",
    "KDTerms",
    "distillation_loss",
    "huber_backward",
    "huber_forward",
    "kd_backward",
    "kd_forward",
    "kd_heads_backward",
    "kd_heads_forward",
    "mse_backward",
    "mse_forward",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_kd_backward",
    "softmax_kd_forward",
    "softmax_kl_backward",
    "softmax_kl_forward",
    "softmax_kl_without_log_backward",
    "softmax_kl_without_log_forward",
]
