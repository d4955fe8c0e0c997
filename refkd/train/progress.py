"""Everything a training must remember to continue bit for bit, and its checkpoint form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refkd.dispatch import Array, backend_of
from refkd.errors import CheckpointError
from refkd.nn.layer import Arrays

__all__ = ["Progress"]

_GROUPS = ("params", "state", "optimizer", "average", "best")


@dataclass
class Progress:
    """Where a training stands. The loop changes it step by step.

    Attributes
    ----------
    seed : int
    rng : numpy.random.Generator
        Dropout's.
    params, state : dict of str to array
        Of all networks, prefixed by network.
    optimizer : dict of str to array
        The optimiser's state.
    average : dict of str to array
        The moving average of what learns; empty where there is none.
    best : dict of str to array
        Parameters and state after the best epoch of this stage, where it keeps that one.
    best_score : float or None
        The validation accuracy of that epoch.
    stage, epoch, step : int
        The next step to take; ``step`` counts within the epoch.
    sums : dict of str to float
        Loss terms of this epoch so far, each times its batch size.
    history : list of dict
        One record per finished epoch.
    """

    seed: int
    rng: np.random.Generator
    params: Arrays
    state: Arrays
    optimizer: Arrays = field(default_factory=dict)
    average: Arrays = field(default_factory=dict)
    best: Arrays = field(default_factory=dict)
    best_score: float | None = None
    stage: int = 0
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def move(self, move: Callable[[Array], Array]) -> None:
        """Replace every array by ``move(array)``, except step counts, which stay on the host.

        The dicts are replaced too.
        """
        for group in _GROUPS:
            arrays = getattr(self, group).items()
            setattr(self, group, {n: array if n == "step" else move(array) for n, array in arrays})

    def to_checkpoint(self, learns: tuple[str, ...]) -> tuple[Arrays, dict[str, str]]:
        """Return arrays and metadata for :func:`refkd.train.checkpoint.save_checkpoint`.

        Parameters
        ----------
        learns : tuple of str
            Networks whose parameters are stored. A frozen teacher is not: it has a
            checkpoint of its own.
        """
        arrays: Arrays = {}
        for group in _GROUPS:
            for name, array in getattr(self, group).items():
                if group in ("optimizer", "average", "best") or name.partition(".")[0] in learns:
                    arrays[f"{group}/{name}"] = backend_of(array).to_numpy(array)
        scalars = {
            "seed": self.seed,
            "best_score": self.best_score,
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "rng": self.rng.bit_generator.state,
        }
        return arrays, {"progress": json.dumps(scalars)}

    @classmethod
    def from_checkpoint(
        cls,
        arrays: Mapping[str, Array],
        metadata: Mapping[str, str],
        *,
        frozen_params: Mapping[str, Array],
        frozen_state: Mapping[str, Array],
    ) -> Progress:
        """Rebuild what :meth:`to_checkpoint` stored.

        Raises
        ------
        CheckpointError
            If the checkpoint holds no training progress.
        """
        groups: dict[str, Arrays] = {group: {} for group in _GROUPS}
        try:
            for key, array in arrays.items():
                group, _, name = key.partition("/")
                groups[group][name] = array
            scalars: dict[str, Any] = json.loads(metadata["progress"])
            rng = np.random.default_rng()
            rng.bit_generator.state = scalars.pop("rng")
            progress = cls(rng=rng, params={}, state={}, **scalars)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint holds no training progress of this version "
                f"({type(error).__name__}: {error}); start the run anew"
            ) from error
        progress.params = {**frozen_params, **groups["params"]}
        progress.state = {**frozen_state, **groups["state"]}
        progress.optimizer, progress.average = groups["optimizer"], groups["average"]
        progress.best = groups["best"]
        return progress
