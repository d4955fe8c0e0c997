"""Training steps that are captured as CUDA graphs: when, for which batches, and what else is done.

A graph serves batches of one shape. A step whose work depends on more (losses that change with
the epoch) is left to the kernels, as is everything that does not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.distill import Batch, Objective, Optimizer
from refkd.errors import RefkdError
from refkd.nn.layer import Arrays
from refkd.train.step import EagerStep
from refkd_cupy import settings
from refkd_cupy.graph import KEPT, Graph, Unfit

__all__ = ["CapturedStep", "compile_step"]

_MOST_GRAPHS, _MOST_CAPTURES = 4, 32


def compile_step(objective: Objective, optimizer: Optimizer) -> CapturedStep | None:
    """Return a step that is captured when it is first taken; None for other optimisers."""
    return CapturedStep(objective, optimizer) if type(optimizer) in KEPT else None


class CapturedStep:
    """See :class:`refkd.train.step.TrainingStep`.

    Parameters
    ----------
    objective : Objective
    optimizer : SGD, Adam or AdamW

    Attributes
    ----------
    reason_against : str
        Why the kernels took the last step one by one; empty where it was a captured one.
    """

    def __init__(self, objective: Objective, optimizer: Any) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._eager = EagerStep(objective, optimizer)
        self._graphs: dict[Any, Graph] = {}  # by shape, the last one that was played at the end
        self._reasons: dict[Any, str] = {}  # why there is none of a shape
        self._captures = 0
        self.reason_against = ""

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
        """See :class:`refkd.train.step.TrainingStep`."""
        key = (batch.nominal_size, settings.choices(), *map(_form, batch[:3]))
        graph, reason = self._graphs.pop(key, None), ""
        if graph is None or not graph.is_of(params, state, optimizer_state):
            graph = None  # a new one may need its memory
            graph, reason = self._captured(key, params, state, optimizer_state, batch)
        if graph is not None:
            self._graphs[key] = graph
            self.reason_against = ""
            return graph.play(state, optimizer_state, batch, rng, self._optimizer, lr, where)
        result = self._eager(params, state, optimizer_state, batch, rng, lr=lr, where=where)
        # What the kernels refuse as well is a mistake in the arguments, and no reason.
        self._reasons[key] = self.reason_against = reason
        return result

    def _captured(
        self,
        key: Any,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
    ) -> tuple[Graph | None, str]:
        """Return a new graph for batches of this shape, or why there is none."""
        if key in self._reasons:
            return None, self._reasons[key]
        if self._captures + len(self._reasons) >= _MOST_CAPTURES:
            return None, "its arrays are others each time, or batches have too many shapes"
        try:
            graph = Graph(self._objective, self._optimizer, params, state, optimizer_state, batch)
        except (Unfit, RefkdError) as error:
            return None, str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(
                f"refkd: the training step for images of shape {batch.images.shape} could not be "
                f"captured as a CUDA graph ({reason}); its kernels run one by one",
                file=sys.stderr,
            )
            return None, reason
        self._captures += 1
        while len(self._graphs) >= _MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph, ""


def _form(array: Array | None) -> Any:
    return None if array is None else (type(array), array.shape, array.strides, array.dtype)
