"""PyTorch functions and modules: autograd's gradient, or one written by hand, judged in float64.

Parameters become float64 tensors on the device where they were given, whatever their
floating dtype was; values and gradients come back as NumPy arrays. Every call sees the
same random numbers. Rounding in float32 itself is not judged here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from refkd.errors import ConfigError, DtypeError, import_extra
from refkd.testing.adapters import Subject, cotangent_generator, flat_gradients
from refkd.testing.adapters._autograd import Evaluated, Runner, Tensor, floating_tensors, to_numpy
from refkd.testing.structure import flatten, rebuild

__all__ = ["from_function", "from_module"]


def from_function(
    f: Callable[..., Any],
    params: Mapping[str, Any],
    grad: Callable[..., Mapping[str, Any]] | None = None,
) -> Subject:
    """Return the subject for a scalar function of tensors.

    Parameters
    ----------
    f : callable
        ``f(**params)`` is a tensor of shape (). It is called with float64 tensors, and
        with complex128 ones for the complex step; floating tensors it closes over must
        be float64.
    params : mapping of str to tensor
        Also nested. All floating tensors are differentiated; whatever else there is
        reaches ``f`` and ``grad`` unchanged, generators in the same state every time.
    grad : callable, optional
        ``grad(**params)`` is a mapping of tensors that mirrors ``params``. By default
        autograd's gradient of ``f`` is judged, and with it the backward of every
        ``torch.autograd.Function`` inside.

    Raises
    ------
    MissingExtra
        If PyTorch cannot be imported.
    DtypeError
        If ``params`` is no mapping, or holds a sparse or complex tensor, or a floating
        NumPy array.
    ConfigError
        If no tensor is floating, or ``f`` is a module.

    Examples
    --------
    >>> import torch  # doctest: +SKIP
    >>> x = torch.tensor([0.5, 2.0])  # doctest: +SKIP
    >>> check_grad(*from_function(lambda x: torch.sin(x).sum(), {"x": x}))  # doctest: +SKIP
    """
    where = "torch.from_function"
    torch = _import_torch()
    if isinstance(f, torch.nn.Module):
        raise ConfigError(f"{where}: f is a module; use torch.from_module(module, *inputs)")
    if not isinstance(params, Mapping):
        raise DtypeError(
            f"{where}: params must be a mapping of names to tensors, got {type(params).__name__}"
        )
    leaves = flatten(params)
    floating = floating_tensors(torch, where, leaves)
    if not floating:
        raise ConfigError(
            f"{where}: no floating tensor to differentiate among {', '.join(leaves) or 'none'}"
        )
    others = {p: leaf for p, leaf in leaves.items() if not isinstance(leaf, torch.Tensor)}

    def evaluate(arguments: Mapping[str, Any]) -> Evaluated:
        value = f(**rebuild(params, arguments))
        return Evaluated(value, {name: arguments[name] for name in floating})

    runner = Runner(torch, evaluate, floating, seed=0, differentiable=grad is None)
    if grad is None:
        return Subject(runner.value, {**others, **runner.point}, runner.gradient)

    def gradient(**given: Any) -> Any:
        with runner.replayed():
            returned = flat_gradients(grad(**rebuild(params, runner.arguments(given))))
        if not isinstance(returned, Mapping):
            return returned
        return {path: to_numpy(torch, leaf) for path, leaf in returned.items()}

    return Subject(runner.value, {**others, **runner.point}, gradient)


def from_module(
    module: Any, *inputs: Any, rng: int | np.random.Generator = 0, **keywords: Any
) -> Subject:
    """Return the subject Σ dy · y for the outputs y of a module and random cotangents dy.

    Parameters
    ----------
    module : torch.nn.Module
        In training or evaluation mode. A float64 copy of it is called, with the same
        buffers (running statistics) every time.
    *inputs, **keywords
        Arguments of ``module.forward``. Floating tensors in them are differentiated,
        under the names that ``forward`` gives them.
    rng : int or numpy.random.Generator
        Draws the cotangents, and the seed of dropout.

    Returns
    -------
    Subject
        Its parameters are those of the module that require a gradient, shared ones once,
        and the inputs; its gradient is autograd's.

    Raises
    ------
    MissingExtra
        If PyTorch cannot be imported.
    ConfigError
        If ``module`` is none, is lazy and was never called, or does not take the inputs,
        or if there is nothing to differentiate.
    DtypeError
        If a parameter, input or output is sparse or complex, or no output is floating.

    Examples
    --------
    >>> import torch  # doctest: +SKIP
    >>> subject = from_module(torch.nn.Linear(3, 2), torch.randn(4, 3))  # doctest: +SKIP
    >>> check_grad(*subject).raise_if_failed()  # doctest: +SKIP
    """
    where = "torch.from_module"
    torch = _import_torch()
    _check_module(torch, where, module)
    call = _Call(torch, where, module, inputs, keywords)
    rng = cotangent_generator(rng)
    seed = int(rng.integers(2**63))
    cotangents: dict[str, Tensor] = {}

    def evaluate(arguments: Mapping[str, Any]) -> Evaluated:
        outputs, variables = call(arguments)
        value = sum((outputs[path] * dy).sum() for path, dy in cotangents.items())
        return Evaluated(value, variables)

    runner = Runner(torch, evaluate, call.tensors, seed=seed, differentiable=True)
    with runner.replayed():
        outputs, _ = call(runner.arguments(runner.point))
    for path, y in floating_tensors(torch, where, outputs).items():
        dy = np.asarray(rng.standard_normal(tuple(y.shape)))
        cotangents[path] = torch.from_numpy(dy).to(y.device)
    if not cotangents:
        given = ", ".join(f"{path}: {type(y).__name__}" for path, y in outputs.items())
        raise DtypeError(f"{where}: {type(module).__name__} returns no floating tensor ({given})")
    return Subject(runner.value, runner.point, runner.gradient)


class _Call:
    """A float64 copy of a module and what it is called with.

    Attributes
    ----------
    tensors : dict of str to tensor
        What is differentiated: inputs, and parameters that require a gradient.
    """

    def __init__(
        self, torch: ModuleType, where: str, module: Any, inputs: Any, keywords: Any
    ) -> None:
        self._bound = _bound(where, module, inputs, keywords)
        required = {name: p for name, p in module.named_parameters() if p.requires_grad}
        floating = floating_tensors(torch, where, flatten(self._bound.arguments))
        self._paths = {f"{p} (input)" if p in required else p: p for p in floating}
        self.tensors = {
            **{name: floating[path] for name, path in self._paths.items()},
            **floating_tensors(torch, where, required),
        }
        if not self.tensors:
            raise ConfigError(
                f"{where}: {type(module).__name__} has no floating parameter that requires a "
                f"gradient, and no floating input"
            )
        self._module = copy.deepcopy(module).double()
        self._parameters = {
            name: p for name, p in self._module.named_parameters() if name in required
        }
        self._buffers = [
            (owner, name, buffer.clone())
            for owner in self._module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]

    def __call__(self, arguments: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the outputs by path, and the tensors they are to be differentiated by."""
        for owner, name, buffer in self._buffers:
            setattr(owner, name, buffer.clone())
        # In place: what else refers to a parameter, such as a list of them, follows.
        for name, parameter in self._parameters.items():
            parameter.data = arguments[name].detach()
            parameter.requires_grad_(arguments[name].requires_grad)
        # A module may write into its inputs (inplace=True), which no leaf allows.
        inputs = {path: arguments[name].clone() for name, path in self._paths.items()}
        bound = copy.copy(self._bound)
        bound.arguments = rebuild(self._bound.arguments, inputs)
        outputs = self._module(*bound.args, **bound.kwargs)
        return flatten({"output": outputs}), {
            name: self._parameters.get(name, arguments[name]) for name in self.tensors
        }


def _import_torch() -> ModuleType:
    return import_extra("torch", "torch", "checking a gradient of PyTorch tensors")


def _check_module(torch: ModuleType, where: str, module: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"{where}: expected a torch.nn.Module, got {type(module).__name__}; functions are "
            f"for torch.from_function"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ConfigError(
                f"{where}: {name} of {type(module).__name__} has no shape yet; call the lazy "
                f"module once on an input"
            )


def _bound(where: str, module: Any, inputs: Any, keywords: Any) -> inspect.BoundArguments:
    signature = inspect.signature(module.forward)
    try:
        return signature.bind(*inputs, **keywords)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {type(module).__name__}.forward{signature} does not take the inputs: {error}"
        ) from error
