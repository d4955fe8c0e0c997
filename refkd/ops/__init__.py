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
from refkd.ops.adaptive_pool import adaptive_avg_pool2d_backward, adaptive_avg_pool2d_forward
from refkd.ops.attention import (
    attention_backward,
    attention_backward_stepwise,
    attention_forward,
)
from refkd.ops.avg_pool import avg_pool2d_backward, avg_pool2d_forward
from refkd.ops.batch_norm import (
    batch_norm_backward,
    batch_norm_backward_stepwise,
    batch_norm_forward,
    running_statistics,
)
from refkd.ops.conv import (
    conv2d_backward,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
)
from refkd.ops.dropout import dropout_backward, dropout_forward
from refkd.ops.group_norm import group_norm_backward, group_norm_forward
from refkd.ops.join import concatenate_backward, concatenate_forward, split_backward, split_forward
from refkd.ops.layer_norm import layer_norm_backward, layer_norm_forward
from refkd.ops.linear import linear_backward, linear_forward
from refkd.ops.max_pool import max_pool2d_backward, max_pool2d_forward
from refkd.ops.pixels import pixels_to_float
from refkd.ops.resample import upsample_nearest2d_backward, upsample_nearest2d_forward
from refkd.ops.shortcut import padded_shortcut_backward, padded_shortcut_forward
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
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool2d_forward",
    "attention_backward",
    "attention_backward_stepwise",
    "attention_forward",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "batch_norm_backward",
    "batch_norm_backward_stepwise",
    "batch_norm_forward",
    "concatenate_backward",
    "concatenate_forward",
    "conv2d_backward",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "conv2d_forward",
    "dropout_backward",
    "dropout_forward",
    "ema_update",
    "erf",
    "gelu_backward",
    "gelu_forward",
    "group_norm_backward",
    "group_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "log_softmax_backward",
    "log_softmax_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "padded_shortcut_backward",
    "padded_shortcut_forward",
    "pixels_to_float",
    "relu_backward",
    "relu_forward",
    "running_statistics",
    "sgd_update",
    "sigmoid_backward",
    "sigmoid_forward",
    "silu_backward",
    "silu_forward",
    "softmax_backward",
    "softmax_forward",
    "split_backward",
    "split_forward",
    "tanh_backward",
    "tanh_forward",
    "upsample_nearest2d_backward",
    "upsample_nearest2d_forward",
]
