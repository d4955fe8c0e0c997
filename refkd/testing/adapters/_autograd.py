"""Functions of float64 tensors, called with NumPy arrays; nothing here is public.

Values, autograd's gradients and errors for both kinds of subject in
:mod:`refkd.testing.adapters.torch`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refkd.errors import DtypeError

__all__ = ["Evaluated", "Runner", "Tensor", "floating_tensors", "to_numpy"]

Tensor: TypeAlias = Any


class Evaluated(NamedTuple):
    """A value and the tensors to differentiate it by."""

    value: Any
    variables: Mapping[str, Tensor]


class Runner:
    """Calls a function of tensors with arrays, and asks autograd for its gradient.

    Parameters
    ----------
    torch : module
    evaluate : callable
        Of a mapping of float64 or complex128 tensors; what else is among the arguments
        reaches it unchanged.
    tensors : mapping of str to tensor
        The point, of any floating dtypes and devices.
    seed : int
        Of PyTorch's generators, before every call.
    differentiable : bool
        Whether the tensors require a gradient.
    """

    def __init__(
        self,
        torch: ModuleType,
        evaluate: Callable[[Mapping[str, Any]], Evaluated],
        tensors: Mapping[str, Tensor],
        *,
        seed: int,
        differentiable: bool,
    ) -> None:
        self._torch, self._evaluate, self._seed = torch, evaluate, seed
        self._differentiable = differentiable
        self._devices = {name: tensor.device for name, tensor in tensors.items()}
        self.point = {
            name: tensor.detach().to("cpu", torch.float64, copy=True).numpy()
            for name, tensor in tensors.items()
        }

    def value(self, **given: Any) -> Any:
        """Return the function's value as a NumPy array of shape ()."""
        return to_numpy(self._torch, self._run(given).value)

    def gradient(self, **given: Any) -> dict[str, NDArray[Any]]:
        """Return autograd's gradient, zero where there is no way from a parameter to the value."""
        value, variables = self._run(given)
        if not isinstance(value, self._torch.Tensor):
            raise DtypeError(
                f"torch.from_function: f must return a tensor, got {type(value).__name__}; "
                f"float() and .item() cut it off from autograd"
            )
        if not value.requires_grad:
            return {name: np.zeros_like(given[name]) for name in variables}
        gradients = self._torch.autograd.grad(
            value, list(variables.values()), allow_unused=True, materialize_grads=True
        )
        # Autograd may return one tensor for two variables.
        named = zip(variables, gradients, strict=True)
        return {name: to_numpy(self._torch, gradient).copy() for name, gradient in named}

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``given`` with arrays as tensors, on the CPU in the arrays' own memory."""
        torch, arguments = self._torch, dict(given)
        for name, device in self._devices.items():
            tensor = torch.from_numpy(np.asarray(given[name])).to(device)
            is_real = tensor.is_floating_point()
            arguments[name] = tensor.requires_grad_(self._differentiable and is_real)
        for name, value in arguments.items():
            if isinstance(value, torch.Generator):
                arguments[name] = value.clone_state()
        return arguments

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Start random numbers from the seed and record gradients; leave both as they were."""
        torch = self._torch
        cuda = [device.index for device in set(self._devices.values()) if device.type == "cuda"]
        with (
            torch.random.fork_rng(devices=cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(self._seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(self._seed)
            yield

    def _run(self, given: Mapping[str, Any]) -> Evaluated:
        arguments = self.arguments(given)
        with self.replayed():
            if any(arguments[name].is_complex() for name in self._devices):
                return self._run_complex(arguments)
            try:
                return self._evaluate(arguments)
            except RuntimeError as error:
                if "dtype" not in str(error) and "same type" not in str(error):
                    raise
                error.add_note(
                    "This ran in float64 for a gradient check: tensors that a function closes "
                    "over must be float64 as well, those of a module should be buffers."
                )
                raise

    def _run_complex(self, arguments: Mapping[str, Any]) -> Evaluated:
        # The checker verifies that the imaginary part survives, so PyTorch's warnings of a
        # cast say nothing new. TypeError tells it to take real differences instead.
        with warnings.catch_warnings(action="ignore"):
            try:
                return self._evaluate(arguments)
            except Exception as error:
                raise TypeError(f"{type(error).__name__}: {error}") from error


def floating_tensors(torch: ModuleType, where: str, leaves: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the floating tensors among ``leaves``.

    Raises
    ------
    DtypeError
        If a leaf is a sparse or complex tensor, or a floating NumPy array.
    """
    found = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "fc":
            raise DtypeError(
                f"{where}: {path} is a NumPy array of {leaf.dtype}; pass torch.from_numpy({path}), "
                f"or let f close over it as a constant"
            )
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.layout != torch.strided:
            raise DtypeError(f"{where}: {path} is {leaf.layout}, expected a dense tensor")
        if leaf.is_complex():
            raise DtypeError(
                f"{where}: {path} is {leaf.dtype}, expected a real tensor; use torch.view_as_real"
            )
        if leaf.is_floating_point():
            found[path] = leaf
    return found


def to_numpy(torch: ModuleType, value: Any) -> Any:
    """Return a tensor as an array on the host; what is no tensor as it is."""
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value
