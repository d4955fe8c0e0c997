"""SGD, Adam, AdamW and gradient clipping against torch.optim in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.train.optim import SGD, Adam, AdamW, clip_by_global_norm

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")

STEPS = 20
# One longer than a chunk of the update kernels, one that is not a multiple of it, a scalar.
SHAPES = {"a": (17, 1000), "b": (5, 3), "c": ()}

CASES: list[tuple[Any, Any]] = [
    (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    (SGD(0.1, weight_decay=0.05), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05)),
    (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    ),
    (Adam(), torch.optim.Adam),
    (
        Adam(0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    (AdamW(), torch.optim.AdamW),
    (
        AdamW(0.02, betas=(0.0, 0.9), weight_decay=0.5),
        lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.0, 0.9), weight_decay=0.5),
    ),
]


def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("optimizer", "make"), CASES, ids=[repr(c[0]) for c in CASES])
def test_twenty_steps_with_random_gradients(assert_parity, optimizer, make) -> None:
    rng = np.random.default_rng(0)
    params = draw(rng)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    theirs = make(list(tensors.values()))
    state = optimizer.init(params)
    for step in range(STEPS):
        lr = optimizer.lr * (1 - step / STEPS)  # a schedule multiplies the base rate
        grads = draw(rng)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        optimizer.update(params, grads, state, lr=lr)
        for name, tensor in tensors.items():
            assert_parity(params[name], tensor.detach().numpy())
    for name, tensor in tensors.items():
        for key, value in theirs.state[tensor].items():
            if key == "step":
                assert state["step"] == STEPS == value
            elif value is not None:  # SGD without momentum keeps no buffer
                assert_parity(state[f"{key}.{name}"], value.numpy())


def test_adam_normalises_tiny_gradients_as_pytorch_does(assert_parity) -> None:
    # √v ~ 1e-9 against eps 1e-8: where eps stands in the denominator decides the step.
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal(6)}
    tensor = torch.tensor(params["w"], requires_grad=True)
    theirs, optimizer = torch.optim.Adam([tensor]), Adam()
    state = optimizer.init(params)
    for _ in range(STEPS):
        grad = 1e-9 * rng.standard_normal(6)
        tensor.grad = torch.tensor(grad)
        theirs.step()
        optimizer.update(params, {"w": grad}, state, lr=optimizer.lr)
    assert_parity(params["w"], tensor.detach().numpy())


@pytest.mark.parametrize("max_norm", [0.1, 10.0, 1e6])
def test_clipping_by_the_global_norm(assert_parity, max_norm: float) -> None:
    grads = draw(np.random.default_rng(2))
    tensors = [
        torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()
    ]
    for tensor, grad in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(grad)
    theirs = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    clipped, norm = clip_by_global_norm(grads, max_norm)
    assert norm == pytest.approx(float(theirs), rel=1e-13)
    for ours, tensor in zip(clipped.values(), tensors, strict=True):
        assert_parity(ours, tensor.grad.numpy())
