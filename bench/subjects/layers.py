"""A linear layer with its softmax, and a convolution, each under a random cotangent."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.subjects import Gradient, Subject
from bench.subjects.distillation import log_softmax

__all__ = ["conv2d", "linear"]


def linear(rng: np.random.Generator, size: int = 5) -> Subject:
    """Return ⟨c, softmax(x Wᵀ + b)⟩, all square: a transpose or a wrong axis fits as well."""
    cotangent = rng.standard_normal((size, size))

    def probabilities(x: Any, weight: Any, bias: Any) -> Any:
        return np.exp(log_softmax(x @ weight.T + bias))

    def f(x: Any, weight: Any, bias: Any) -> Any:
        return (cotangent * probabilities(x, weight, bias)).sum()

    def of_logits(x: Any, weight: Any, bias: Any) -> Any:
        q = probabilities(x, weight, bias)
        return q * (cotangent - (q * cotangent).sum(axis=-1, keepdims=True))

    def grad(x: Any, weight: Any, bias: Any) -> dict[str, Any]:
        du = of_logits(x, weight, bias)
        return {"x": du @ weight, "weight": du.T @ x, "bias": du.sum(axis=0)}

    def changed(**replacements: Any) -> Gradient:
        def wrong(x: Any, weight: Any, bias: Any) -> dict[str, Any]:
            du = of_logits(x, weight, bias)
            new = {name: change(du, x, weight) for name, change in replacements.items()}
            return {**grad(x, weight, bias), **new}

        return wrong

    return Subject(
        "linear and softmax",
        f,
        {
            "x": rng.standard_normal((size, size)),
            "weight": rng.standard_normal((size, size)),
            "bias": rng.standard_normal(size),
        },
        grad,
        errors={
            "weight's gradient transposed": changed(weight=lambda du, x, w: x.T @ du),
            "weight transposed in dx": changed(x=lambda du, x, w: du @ w.T),
            "bias not summed over the batch": changed(bias=lambda du, x, w: du[-1].copy()),
            "bias averaged over the batch": changed(bias=lambda du, x, w: du.mean(axis=0)),
            "bias summed over the features": changed(bias=lambda du, x, w: du.sum(axis=1)),
            "softmax forgotten in the bias": changed(bias=lambda du, x, w: cotangent.sum(axis=0)),
        },
    )


def conv2d(
    rng: np.random.Generator, size: int = 7, kernel: int = 3, stride: int = 2, padding: int = 1
) -> Subject:
    """Return ⟨c, conv2d(x, weight)⟩ of 2 images with 2 channels to 3 channels.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        Height and width; those of the output follow from the three others.
    kernel, stride, padding : int
    """
    out = (size + 2 * padding - kernel) // stride + 1
    cotangent = rng.standard_normal((2, 3, out, out))

    def window(p: int, q: int, stride: int) -> tuple[Any, ...]:
        """Say where the kernel's entry (p, q) looks at in the padded input."""
        return (..., slice(p, p + stride * out, stride), slice(q, q + stride * out, stride))

    def padded(x: Any) -> Any:
        return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))

    def f(x: Any, weight: Any) -> Any:
        wide = padded(x)
        y = sum(
            np.einsum("oc,nchw->nohw", weight[:, :, p, q], wide[window(p, q, stride)])
            for p in range(kernel)
            for q in range(kernel)
        )
        return (cotangent * y).sum()

    def gradient(
        crop: int = padding, spread: int = stride, flipped: bool = True, shift: int = 0
    ) -> Gradient:
        def grad(x: Any, weight: Any) -> dict[str, Any]:
            wide = padded(x)
            # One row and column more on either side, for a crop that is off by one.
            dwide = np.zeros((2, 2, size + 2 * padding + 2, size + 2 * padding + 2))
            dweight = np.zeros_like(weight)
            for p in range(kernel):
                for q in range(kernel):
                    looked_at = np.roll(wide, shift, axis=(2, 3))[window(p, q, stride)]
                    dweight[:, :, p, q] = np.einsum("nohw,nchw->oc", cotangent, looked_at)
                    w = (
                        weight[:, :, p, q]
                        if flipped
                        else weight[:, :, kernel - 1 - p, kernel - 1 - q]
                    )
                    dwide[window(1 + p, 1 + q, spread)] += np.einsum("oc,nohw->nchw", w, cotangent)
            inner = slice(1 + crop, 1 + crop + size)
            return {"x": dwide[..., inner, inner].copy(), "weight": dweight}

        return grad

    return Subject(
        "conv2d",
        f,
        {
            "x": rng.standard_normal((2, 2, size, size)),
            "weight": rng.standard_normal((3, 2, kernel, kernel)),
        },
        gradient(),
        errors={
            "padding one too small in dx": gradient(crop=padding - 1),
            "padding one too large in dx": gradient(crop=padding + 1),
            "padding one too small in dweight": gradient(shift=1),
            "padding one too large in dweight": gradient(shift=-1),
            "stride ignored": gradient(spread=1),
            "kernel not flipped": gradient(flipped=False),
        },
    )
