"""Kernels: pure functions on arrays, each forward beside its hand-written backward."""

from refkd.ops.activation import (
    gelu_backward,
    gelu_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    silu_backward,
    silu_forward,
    tanh_backward,
    tanh_forward,
)
from refkd.ops.dropout import dropout_backward, dropout_forward
from refkd.ops.linear import linear_backward, linear_forward
from refkd.ops.softmax import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from refkd.ops.special import erf
from refkd.ops.update import adam_update, ema_update, sgd_update

__all__ = [
    "adam_update",
    "dropout_backward",
    "dropout_forward",
    "ema_update",
    "erf",
    "gelu_backward",
    "gelu_forward",
    "linear_backward",
    "linear_forward",
    "log_softmax_backward",
    "log_softmax_forward",
    "relu_backward",
    "relu_forward",
    "sgd_update",
    "sigmoid_backward",
    "sigmoid_forward",
    "silu_backward",
    "silu_forward",
    "softmax_backward",
    "softmax_forward",
    "tanh_backward",
    "tanh_forward",
]
