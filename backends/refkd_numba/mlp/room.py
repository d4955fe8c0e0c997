"""What a step works on: dense layers as read from a network, and memory for their activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.nn import Dropout, Flatten, Linear, ReLU, Sequential
from refkd.nn.layer import Layer
from refkd_numba.buffers import empty
from refkd_numba.microkernel import COLUMNS, ROWS
from refkd_numba.mlp import kernels
from refkd_numba.mlp.draws import Draws, least_kept

__all__ = ["Dense", "Room", "dense_layers", "flattens", "shapes_of"]


@dataclass(frozen=True)
class Dense:
    """A linear layer and what follows it: dropout and ReLU, if it is hidden.

    Attributes
    ----------
    name : str
        Prefixed by the network's: ``student.fc1``.
    inputs, outputs : int
    has_bias, is_hidden : bool
    dropout : float
    """

    name: str
    inputs: int
    outputs: int
    has_bias: bool
    is_hidden: bool
    dropout: float


def dense_layers(network: Layer, prefix: str) -> list[Dense] | None:
    """Return the layers of a network that is [flatten] (fc [dropout] relu)* fc, else None."""
    if type(network) is not Sequential:
        return None
    rest = list(network.layers)
    if rest and type(rest[0][1]) is Flatten:
        del rest[0]
    found: list[Dense] = []
    while rest:
        name, layer = rest.pop(0)
        if type(layer) is not Linear or (found and found[-1].outputs != layer.in_features):
            return None
        is_hidden, dropout = bool(rest), 0.0
        if rest and type(rest[0][1]) is Dropout:
            dropout = float(rest.pop(0)[1].p)
        if is_hidden and (len(rest) < 2 or type(rest.pop(0)[1]) is not ReLU):
            return None
        sizes = layer.in_features, layer.out_features
        found.append(Dense(f"{prefix}.{name}", *sizes, layer.bias, is_hidden, dropout))
    return found or None


def flattens(network: Layer) -> bool:
    """Return whether the network takes images of any shape."""
    return type(network) is Sequential and type(network.layers[0][1]) is Flatten


def shapes_of(layers: list[Dense]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters, by name, in the order of the layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for dense in layers:
        shapes[f"{dense.name}.weight"] = (dense.outputs, dense.inputs)
        if dense.has_bias:
            shapes[f"{dense.name}.bias"] = (dense.outputs,)
    return shapes


class Room:
    """Memory for batches of up to ``capacity`` examples, and the tables of where things lie.

    Parameters
    ----------
    frozen, learning : list of Dense
        The first ones are evaluated only, on the same inputs. In the tables they come first.
    capacity, threads : int
    """

    def __init__(
        self, frozen: list[Dense], learning: list[Dense], capacity: int, threads: int
    ) -> None:
        self.capacity, self.threads = capacity, threads
        self._dense, self._frozen_count = [*frozen, *learning], len(frozen)
        count = len(self._dense)
        self.layers = np.zeros((count, kernels.LAYER_COLUMNS), np.int64)
        self.rates = np.zeros((count, kernels.NORMS + 2 * threads))
        self.results = np.zeros(kernels.COUNT_OF_RESULTS)
        widest = max(_panels(dense.inputs) * COLUMNS for dense in learning)
        most = max(dense.outputs for dense in learning)
        classes = learning[-1].outputs
        loss = 2 * COLUMNS + (3 * COLUMNS + _panels(capacity) * COLUMNS) * classes
        self.scratch = empty((threads, max(ROWS * widest, most, loss)))
        self._held: list[NDArray[Any]] = []
        self._fill_in(self.layers[: len(frozen)], frozen)
        self._fill_in(self.layers[len(frozen) :], learning, learns=True)
        self.layers[0, kernels.SOURCE] = self.layers[len(frozen), kernels.SOURCE]
        self.drawn_by_example = self._fill_in_dropout(learning)
        self.draws = Draws(capacity * self.drawn_by_example)

    def _fill_in(self, rows: NDArray[Any], layers: list[Dense], learns: bool = False) -> None:
        source = self._panels_of_examples(layers[0].inputs) if learns else 0
        for row, dense in zip(rows, layers, strict=True):
            row[[kernels.INPUTS, kernels.OUTPUTS]] = dense.inputs, dense.outputs
            row[kernels.IS_HIDDEN] = dense.is_hidden
            row[kernels.SOURCE] = source
            row[kernels.TARGET] = source = self._panels_of_examples(dense.outputs)
            if learns:
                row[kernels.GRADIENT] = self._panels_of_examples(dense.outputs)
                row[kernels.SOURCE_ROWS] = self._new(
                    (_panels(dense.inputs), self.capacity, COLUMNS)
                )
        rows[:-1, kernels.TARGET_ROWS] = rows[1:, kernels.SOURCE_ROWS]

    def _fill_in_dropout(self, learning: list[Dense]) -> int:
        """Return how many numbers an example draws."""
        drawn = 0
        for i, dense in enumerate(learning, self._frozen_count):
            if dense.dropout > 0:
                scale = 0.0 if dense.dropout == 1 else 1 / (1 - dense.dropout)
                self.rates[i, [kernels.P, kernels.SCALE]] = dense.dropout, scale
                self.layers[i, kernels.LEAST_KEPT] = least_kept(dense.dropout)
                self.layers[i, kernels.DRAWN_BEFORE] = drawn
                drawn += dense.outputs
        return drawn

    def _panels_of_examples(self, features: int) -> int:
        return self._new((_panels(self.capacity), features, COLUMNS))

    def _new(self, shape: tuple[int, ...]) -> int:
        """Return the address of new memory."""
        self._held.append(empty(shape))
        return _address(self._held[-1])

    def bind(self, params: Mapping[str, Array]) -> None:
        """Note where the parameters lie."""
        for row, dense in zip(self.layers, self._dense, strict=True):
            row[kernels.WEIGHT] = _address(params[f"{dense.name}.weight"])
            if dense.has_bias:
                row[kernels.BIAS] = _address(params[f"{dense.name}.bias"])

    def bind_kept(self, kept: Mapping[str, Array], kinds: tuple[str, ...]) -> None:
        """Note where one or two arrays lie that are kept for each parameter: ``kind + name``."""
        for row, dense in zip(
            self.layers[self._frozen_count :], self._dense[self._frozen_count :], strict=True
        ):
            for i, kind in enumerate(kinds):
                row[kernels.WEIGHT_KEPT + i] = _address(kept[f"{kind}{dense.name}.weight"])
                if dense.has_bias:
                    row[kernels.BIAS_KEPT + i] = _address(kept[f"{kind}{dense.name}.bias"])


def _panels(count: int) -> int:
    return -(-count // COLUMNS)


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
