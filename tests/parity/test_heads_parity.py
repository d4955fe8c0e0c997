"""Networks with several heads, learning and teaching, against PyTorch twins in float64.

The twins are written as a training script would write them: modules put in a mode,
losses summed over what they return, gradients by autograd. They share the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.distill import LogitDistillation, Objective, Supervised
from refkd.losses import KDSpec
from tests.distill.networks import (
    CLASSES,
    FEATURES,
    NORMALISED_HEADS,
    NORMALISED_STUDENT,
    STUDENT,
    THREE_HEADS,
    drawn,
    step,
)

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
nn, F = torch.nn, torch.nn.functional

WEIGHTS = (1.0, 0.3, 0.3)
T, HARD, SOFT = 5.0, 0.55, 0.45


class TwinHeads(nn.Module):
    def __init__(self, *, normalised: bool) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"fc1": nn.Linear(FEATURES, 5)})
        if normalised:
            self.trunk["norm"] = nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, CLASSES)
        self.aux2 = nn.ModuleDict({"fc1": nn.Linear(5, 2), "fc2": nn.Linear(2, CLASSES)})
        self.aux1 = nn.Linear(5, CLASSES)

    def forward(self, x):
        for layer in self.trunk.values():
            x = layer(x)
        x = torch.tanh(x)
        aux2 = self.aux2["fc2"](torch.tanh(self.aux2["fc1"](x)))
        return self.fc(x), aux2, self.aux1(x)


class TwinStudent(nn.Module):
    def __init__(self, *, normalised: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, 6)
        self.norm = nn.BatchNorm1d(6) if normalised else nn.Identity()
        self.fc2 = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


def twins_of(objective: Objective, params: Any, state: Any) -> dict[str, Any]:
    """Return a PyTorch twin of each network, with its parameters and statistics."""
    makers = {
        THREE_HEADS: lambda: TwinHeads(normalised=False),
        NORMALISED_HEADS: lambda: TwinHeads(normalised=True),
        STUDENT: lambda: TwinStudent(normalised=False),
        NORMALISED_STUDENT: lambda: TwinStudent(normalised=True),
    }
    twins = {}
    for name, network in objective.networks.items():
        twin = makers[network]().double()
        arrays = {k: v for k, v in {**params, **state}.items() if k.startswith(f"{name}.")}
        twin.load_state_dict(
            {k.removeprefix(f"{name}."): torch.tensor(v) for k, v in arrays.items()}, strict=True
        )
        twins[name] = twin.train()
    return twins


def published(z, heads, y):
    """A softmax where a log-softmax is due, against all three heads."""
    kld = nn.KLDivLoss(reduction="batchmean")
    soft = sum(
        w * kld(F.softmax(z / T, dim=1), F.softmax(v / T, dim=1))
        for w, v in zip(WEIGHTS, heads, strict=True)
    )
    return HARD * F.cross_entropy(z, y) + SOFT * soft


def intended(z, heads, y):
    kld = nn.KLDivLoss(reduction="batchmean")
    soft = sum(
        w * kld(F.log_softmax(z / T, dim=1), F.softmax(v / T, dim=1))
        for w, v in zip(WEIGHTS, heads, strict=True)
    )
    return HARD * F.cross_entropy(z, y) + SOFT * soft


def scaled(z, heads, y):
    hard = HARD * F.cross_entropy(z, y)
    return hard + T * T * (intended(z, heads, y) - hard)


def assert_same_step(
    assert_parity: Callable[..., None], result: Any, loss: Any, network: str, twin: Any
) -> None:
    assert_parity(result.terms["loss"], loss.detach().numpy(), 1.0)
    names = [name for name, _ in twin.named_parameters()]
    theirs = torch.autograd.grad(loss, list(twin.parameters()))
    assert set(result.grads) == {f"{network}.{name}" for name in names}
    largest = max(float(grad.abs().max()) for grad in theirs)
    for name, grad in zip(names, theirs, strict=True):
        # The gradient of a bias before batch norm is zero but for rounding.
        assert_parity(result.grads[f"{network}.{name}"], grad.numpy(), largest)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("network", [THREE_HEADS, NORMALISED_HEADS])
def test_a_network_with_auxiliary_heads_learns_the_same(
    assert_parity, network: Any, smoothing: float
) -> None:
    objective = Supervised(network, "teacher", smoothing, WEIGHTS)
    params, state, batch = drawn(objective)
    twin = twins_of(objective, params, state)["teacher"]
    y = torch.from_numpy(batch.labels)
    outputs = twin(torch.from_numpy(batch.images))
    terms = [F.cross_entropy(head, y, label_smoothing=smoothing) for head in outputs]
    loss = sum(w * term for w, term in zip(WEIGHTS, terms, strict=True))
    result = step(objective, params, state, batch)
    assert_same_step(assert_parity, result, loss, "teacher", twin)
    for number, term in enumerate(terms, 1):
        assert_parity(result.terms[f"head{number}"], term.detach().numpy())


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (published, KDSpec.preset("googlenet-published")),
        (intended, KDSpec.preset("googlenet-intended")),
        (scaled, KDSpec.preset("hinton", temperature=T, alpha=HARD)),
    ],
)
@pytest.mark.parametrize("teacher_mode", ["eval", "train"])
@pytest.mark.parametrize("student_eval_from", [None, 0])
@pytest.mark.parametrize(
    ("student", "teacher"), [(STUDENT, THREE_HEADS), (NORMALISED_STUDENT, NORMALISED_HEADS)]
)
def test_a_student_learns_the_same_from_three_heads_in_any_mode(
    assert_parity,
    source: Callable[..., Any],
    spec: KDSpec,
    teacher_mode: str,
    student_eval_from: int | None,
    student: Any,
    teacher: Any,
) -> None:
    objective = LogitDistillation(
        student,
        teacher,
        spec,
        head_weights=WEIGHTS,
        teacher_mode=teacher_mode,
        student_eval_from=student_eval_from,
        exact=False,
    )
    params, state, batch = drawn(objective)
    twins = twins_of(objective, params, state)
    twins["teacher"].train(teacher_mode == "train")
    twins["student"].train(student_eval_from is None)
    x, y = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
    with torch.no_grad():
        heads = twins["teacher"](x)
    loss = source(twins["student"](x), heads, y)
    result = step(objective, params, state, batch)
    assert_same_step(assert_parity, result, loss, "student", twins["student"])


def test_the_modes_are_four_different_trainings() -> None:
    losses = set()
    for teacher_mode in ("eval", "train"):
        for student_eval_from in (None, 0):
            objective = LogitDistillation(
                NORMALISED_STUDENT,
                NORMALISED_HEADS,
                KDSpec.preset("googlenet-intended"),
                head_weights=WEIGHTS,
                teacher_mode=teacher_mode,
                student_eval_from=student_eval_from,
                exact=False,
            )
            losses.add(np.round(float(step(objective, *drawn(objective)).terms["loss"]), 6))
    assert len(losses) == 4
