"""One training step: loss, gradients and update, checked in between. The loop takes many.

A backend may have a step of its own for an objective and an optimiser, compiled into one
piece; :class:`EagerStep` is what it follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refkd.dispatch import Array, current_backend, namespace
from refkd.distill.objective import Batch, Objective
from refkd.distill.stage import Optimizer, Stage
from refkd.errors import NonFiniteError
from refkd.nn.layer import Arrays
from refkd.train.optim import clip_by_global_norm, global_norm

__all__ = ["EagerStep", "TrainingStep", "check_gradients", "check_terms", "training_step"]

_ADVICE = "lower the learning rate, clip the gradients, or look at the batch"


class TrainingStep(Protocol):
    """What takes the steps of one stage, one call each.

    Between two calls the caller may put other arrays in the place of any of the given ones,
    and write into those of what learns; the arrays of a frozen network keep their values.
    """

    def __call__(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
        *,
        lr: float,
        where: str,
    ) -> tuple[dict[str, float], Arrays]:
        """Write one step into ``params`` and ``optimizer_state``.

        Parameters
        ----------
        params, state : mapping of str to array
            Of all networks, prefixed by network.
        optimizer_state : mapping of str to array
        batch : Batch
        rng : numpy.random.Generator
            Dropout's.
        lr : float
            Learning rate of this step.
        where : str
            What an error begins with: ``"epoch 1, step 3"``.

        Returns
        -------
        terms : dict of str to float
            The loss and its parts.
        state : dict of str to array
            After this step.

        Raises
        ------
        NonFiniteError
            If a loss term or gradient is NaN or infinite; it is named, and nothing has been
            written.
        """
        ...


@dataclass(frozen=True)
class EagerStep:
    """A step by the kernels, one after another.

    Attributes
    ----------
    objective : Objective
    optimizer : Optimizer
    clip_norm : float or None
        Gradients are scaled down to this global norm.
    """

    objective: Objective
    optimizer: Optimizer
    clip_norm: float | None = None

    def __call__(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
        *,
        lr: float,
        where: str,
    ) -> tuple[dict[str, float], Arrays]:
        """See :class:`TrainingStep`."""
        result = self.objective.value_and_grad(params, state, batch, rng)
        terms = {name: float(term) for name, term in result.terms.items()}
        check_terms(terms, where)
        grads = result.grads
        check_gradients(grads, where)
        if self.clip_norm is not None:
            grads, _ = clip_by_global_norm(grads, self.clip_norm)
        self.optimizer.update(params, grads, optimizer_state, lr=lr)
        return terms, result.state


def training_step(stage: Stage) -> TrainingStep:
    """Return the step of a stage: that of the selected backend, where it has one."""
    compile_step = current_backend().compile_step
    if compile_step is not None and stage.clip_norm is None:
        compiled: TrainingStep | None = compile_step(stage.objective, stage.optimizer)
        if compiled is not None:
            return compiled
    return EagerStep(stage.objective, stage.optimizer, stage.clip_norm)


def check_terms(terms: Mapping[str, float], where: str) -> None:
    """Raise NonFiniteError, which names it, if a loss term is NaN or infinite."""
    for name, term in terms.items():
        if not math.isfinite(term):
            raise NonFiniteError(f"{where}: loss term {name!r} is {term}; {_ADVICE}")


def check_gradients(grads: Mapping[str, Array], where: str) -> None:
    """Raise NonFiniteError, which names it, if a gradient holds NaN or infinity."""
    if math.isfinite(global_norm(grads)):
        return
    for name, grad in grads.items():
        # The sum of squares overflows before a gradient does: look at the entries.
        if not bool(namespace(grad).isfinite(grad).all()):
            raise NonFiniteError(
                f"{where}: the gradient of {name!r} holds NaN or infinity; {_ADVICE}"
            )
