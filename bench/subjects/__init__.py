"""Functions with their gradients, right and wrong: what the gradient checker is tried on.

Here is what they have in common. The functions of the literature with errors planted by
hand are in the files named after them, drawn functions with right gradients in
:mod:`bench.subjects.drawn`, and the two machines that plant errors in any backward in
:mod:`bench.subjects.gradient_mutants` and :mod:`bench.subjects.source_mutants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Entry", "Gradient", "Subject", "one_entry_off", "random_entry"]

Gradient = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A function with its gradient, and gradients with an error each.

    Attributes
    ----------
    name : str
    f : callable
        ``f(**params)`` is a scalar.
    params : mapping of str to array
    grad : callable
        ``grad(**params)`` is the right gradient.
    errors : mapping of str to callable
        Wrong gradients by the name of the error.
    conventions : mapping of str to callable
        Gradients that differ from ``grad`` and are no less right: other elements of the
        subdifferential where f has a kink.
    """

    name: str
    f: Callable[..., Any]
    params: Mapping[str, Any]
    grad: Gradient
    errors: Mapping[str, Gradient] = field(default_factory=dict)
    conventions: Mapping[str, Gradient] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One entry of one gradient."""

    name: str
    index: tuple[int, ...]


def random_entry(gradients: Mapping[str, Any], rng: np.random.Generator) -> Entry | None:
    """Draw one entry among all that are not zero; None where there is none."""
    names = [name for name, g in gradients.items() if np.any(g)]
    if not names:
        return None
    counts = np.array([np.count_nonzero(gradients[name]) for name in names])
    name = names[int(rng.choice(len(names), p=counts / counts.sum()))]
    candidates = np.flatnonzero(gradients[name])
    flat = int(rng.choice(candidates))
    index = np.unravel_index(flat, np.shape(gradients[name]))
    return Entry(name, tuple(int(i) for i in index))


def one_entry_off(grad: Gradient, entry: Entry, factor: float = 1.01) -> Gradient:
    """Return ``grad`` with one entry multiplied by ``factor``."""

    def wrong(**params: Any) -> dict[str, Any]:
        gradients = dict(grad(**params))
        changed = np.array(gradients[entry.name])
        changed[entry.index] *= factor
        return {**gradients, entry.name: changed}

    return wrong
