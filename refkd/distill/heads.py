"""Networks with several heads: a weight for each output, and none dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refkd.dispatch import Array
from refkd.errors import ConfigError, check_non_negative

__all__ = ["as_heads", "checked_weights", "separate_heads"]


def checked_weights(where: str, weights: Any) -> tuple[float, ...]:
    """Return the head weights as Python numbers.

    Raises
    ------
    ConfigError
        If they are no sequence of numbers, one is negative or not finite, or none is
        positive.
    """
    if not isinstance(weights, Iterable):
        raise ConfigError(
            f"{where}: head_weights must be a tuple of numbers, one for each output, or () "
            f"for a network with one, got {weights!r}"
        )
    given = tuple(weights)
    for number, weight in enumerate(given, 1):
        check_non_negative(where, f"head_weights, number {number},", weight)
    if given and not any(given):
        raise ConfigError(f"{where}: head_weights are all 0, so there is nothing to learn")
    # A NumPy scalar, unlike a Python one, would promote float32 logits to float64.
    return tuple(float(weight) for weight in given)


def as_heads(outputs: Any) -> tuple[Array, ...]:
    """Return what a network returned, one array or a tuple of them, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def separate_heads(where: str, outputs: Any, head_weights: tuple[float, ...]) -> tuple[Array, ...]:
    """Return a network's outputs as a tuple that matches the weights.

    Parameters
    ----------
    where : str
        Who gives the outputs, for the message: ``"Supervised: student"``.
    outputs : array, or tuple of array
        Of a network with one head, or with several.
    head_weights : tuple of float
        Empty for a network with one head.

    Raises
    ------
    ConfigError
        If there is not one output for each weight. A head that a network leaves out in
        evaluation, or that nobody asked for, is never dropped in silence.
    """
    heads = as_heads(outputs)
    if not head_weights and not isinstance(outputs, tuple):
        return heads
    if len(heads) != len(head_weights):
        raise ConfigError(
            f"{where} returns {len(heads)} {'output' if len(heads) == 1 else 'outputs'}, "
            f"and head_weights has {len(head_weights)}: give one weight for each output, "
            f"0 for one that does not count"
        )
    return heads
