"""The gradient checkers of PyTorch and JAX on functions written in NumPy.

A function and the gradient given with it become a ``torch.autograd.Function`` or a
``jax.custom_vjp``, so that every checker judges the same two programs.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bench.subjects import Gradient, Subject
from refkd.testing import Verdict, check_grad

__all__ = ["CHECKERS", "Checker", "Finding", "installed"]


class Finding(NamedTuple):
    """What a checker says of a gradient.

    Attributes
    ----------
    wrong : bool
    says : str
        Its report or error message.
    """

    wrong: bool
    says: str


class Checker(NamedTuple):
    """A gradient checker with its defaults.

    Attributes
    ----------
    name : str
    package : str
        That must be installed.
    check : callable
        (subject, grad, seed) → Finding.
    most_entries : int or None
        Beyond which it is not tried.
    """

    name: str
    package: str
    check: Callable[[Subject, Gradient, int], Finding]
    most_entries: int | None = None


def installed(checker: Checker) -> bool:
    """Whether the checker's package can be imported."""
    return importlib.util.find_spec(checker.package) is not None


def _refkd(subject: Subject, grad: Gradient, seed: int) -> Finding:
    report = check_grad(subject.f, subject.params, grad, rng=seed)
    return Finding(not report.ok and report.verdict is not Verdict.NOISY_REFERENCE, str(report))


def _torch_full(subject: Subject, grad: Gradient, seed: int) -> Finding:
    return _torch(subject, grad, seed, fast=False)


def _torch_fast(subject: Subject, grad: Gradient, seed: int) -> Finding:
    return _torch(subject, grad, seed, fast=True)


def _torch(subject: Subject, grad: Gradient, seed: int, *, fast: bool) -> Finding:
    import torch
    from torch.autograd.gradcheck import GradcheckError

    names = list(subject.params)

    def named(tensors: Any) -> dict[str, Any]:
        return {n: t.detach().numpy() for n, t in zip(names, tensors, strict=True)}

    class Function(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            return torch.as_tensor(np.asarray(subject.f(**named(tensors))))

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            gradients = grad(**named(ctx.saved_tensors))
            return tuple(torch.as_tensor(gradients[name]) * cotangents[0] for name in names)

    torch.manual_seed(seed)
    tensors = [torch.tensor(value, requires_grad=True) for value in subject.params.values()]
    try:
        torch.autograd.gradcheck(Function.apply, tensors, fast_mode=fast)
    except GradcheckError as error:
        return Finding(True, str(error))
    return Finding(False, "")


def _jax(subject: Subject, grad: Gradient, seed: int) -> Finding:
    import jax  # type: ignore[import-not-found, unused-ignore]
    from jax.test_util import check_grads  # type: ignore[import-not-found, unused-ignore]

    jax.config.update("jax_enable_x64", True)
    names = list(subject.params)
    shapes = tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in subject.params.values())

    def in_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arrays: function(
            **{n: np.asarray(a) for n, a in zip(names, arrays, strict=True)}
        )

    def value(*arrays: Any) -> Any:
        scalar = jax.ShapeDtypeStruct((), np.float64)
        return jax.pure_callback(lambda *a: np.asarray(in_numpy(subject.f)(*a)), scalar, *arrays)

    def gradients(*arrays: Any) -> tuple[Any, ...]:
        found = in_numpy(grad)(*arrays)
        return tuple(np.asarray(found[name]) for name in names)

    function = jax.custom_vjp(value)
    function.defvjp(
        lambda *arrays: (value(*arrays), arrays),
        lambda arrays, cotangent: tuple(
            cotangent * g for g in jax.pure_callback(gradients, shapes, *arrays)
        ),
    )
    try:
        with warnings.catch_warnings(action="ignore"):
            check_grads(function, tuple(subject.params.values()), order=1, modes=("rev",))
    except AssertionError as error:
        return Finding(True, str(error))
    return Finding(False, "")


CHECKERS = (
    Checker("refkd check_grad", "refkd", _refkd),
    # Two calls of the function for each entry: hours for large ones.
    Checker("torch gradcheck", "torch", _torch_full, most_entries=10_000),
    Checker("torch gradcheck, fast_mode", "torch", _torch_fast),
    Checker("jax check_grads", "jax", _jax),
)
