"""What the parity tests share: one tolerance, and vector-Jacobian products by autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

# Both sides sum at most a few hundred rounded terms, which is tens of ulp of the largest
# entry; 1e-13 is 450 of them. A wrong factor, sign or term is off by 1e-3 at the least.
TOLERANCE = 1e-13


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., None]:
    """Return a check that max|ours − theirs| <= 1e-13 max|theirs|, in float64.

    Where the result is a difference of larger numbers, ``scale`` gives their size, which is
    what rounding is relative to; it takes the place of max|theirs| where it is larger.
    """

    def check(ours: np.ndarray | float, theirs: np.ndarray | float, scale: float = 0.0) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == np.float64
        if theirs.size:
            assert np.abs(ours - theirs).max() <= TOLERANCE * max(scale, np.abs(theirs).max())

    return check


@pytest.fixture(scope="session")
def autograd() -> Callable[..., tuple[np.ndarray, ...]]:
    """Return a function that gives y = f(*inputs) and the gradients of ⟨dy, y⟩."""
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")

    def evaluate(
        function: Callable[..., object],
        inputs: tuple[np.ndarray, ...],
        dy: np.ndarray | float = 1.0,
    ) -> tuple[np.ndarray, ...]:
        tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
        y = function(*tensors)
        cotangent = torch.as_tensor(dy, dtype=y.dtype)
        grads = torch.autograd.grad(y, tensors, cotangent, materialize_grads=True)
        return tuple(a.detach().numpy() for a in (y, *grads))

    return evaluate
