"""Hypothesis strategies for numerical code: arrays, batches, losses, geometries, pairs.

Hypothesis draws shapes, memory layouts, kinds of values and a seed; the numbers come
from ``numpy.random.default_rng(seed)``, so that drawing is quick and a failing example
shrinks to few words: the smallest shape, the simplest kind, seed 0. It is printed as a
call of :func:`seeded_array` or :func:`seeded_labels` that gives the same array anywhere.
This package needs the extra ``testing``; nothing else in ``refkd.testing`` loads
hypothesis.
"""

from refkd.errors import import_extra

import_extra("hypothesis", "testing", "refkd.testing.strategies")

from refkd.testing.strategies.arrays import VALUES, arrays, seeded_array  # noqa: E402
from refkd.testing.strategies.attention import AttentionShape, attention_shapes  # noqa: E402
from refkd.testing.strategies.batches import (  # noqa: E402
    distillation_batches,
    logits_and_labels,
    seeded_labels,
)
from refkd.testing.strategies.convolution import ConvGeometry, conv_geometries  # noqa: E402
from refkd.testing.strategies.losses import kd_specs, temperatures  # noqa: E402
from refkd.testing.strategies.pairs import DrawnPair, pair_cases  # noqa: E402

__all__ = [
    "VALUES",
    "AttentionShape",
    "ConvGeometry",
    "DrawnPair",
    "arrays",
    "attention_shapes",
    "conv_geometries",
    "distillation_batches",
    "kd_specs",
    "logits_and_labels",
    "pair_cases",
    "seeded_array",
    "seeded_labels",
    "temperatures",
]
