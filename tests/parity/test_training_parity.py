"""Layers, the multilayer perceptron and ten distillation steps against PyTorch in float64."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest

from refkd.losses import KDSpec, kd_backward, kd_forward
from refkd.models import create
from refkd.nn import Linear, Sequential
from refkd.train.optim import Adam

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional


def torch_mlp(widths: tuple[int, ...], params: dict[str, np.ndarray]):
    """Return flatten → linear → relu ... → linear with refkd's arrays loaded as they are."""
    layers: list[tuple[str, torch.nn.Module]] = [("flatten", torch.nn.Flatten())]
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        layers.append((f"fc{i}", torch.nn.Linear(fan_in, fan_out, dtype=torch.float64)))
        if i < len(widths) - 1:
            layers.append((f"relu{i}", torch.nn.ReLU()))
    network = torch.nn.Sequential(OrderedDict(layers))
    network.load_state_dict({k: torch.tensor(v) for k, v in params.items()}, strict=True)
    return network


def mlp(*widths: int) -> Sequential:
    return create("mlp", in_features=widths[0], hidden=widths[1:-1], num_classes=widths[-1])


@pytest.mark.parametrize(("fan_in", "fan_out"), [(784, 1200), (20, 5000), (3, 20_000)])
def test_linear_is_initialised_from_the_distribution_of_pytorch(fan_in: int, fan_out: int) -> None:
    params, _ = Linear(fan_in, fan_out).init(np.random.default_rng(0), dtype=np.float64)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(fan_in, fan_out)
    bound = 1 / math.sqrt(fan_in)
    for name, values in params.items():
        their_values = getattr(theirs, name).detach().numpy()
        assert values.shape == their_values.shape
        quantiles = np.linspace(0, 1, 21)
        for sample in (values, their_values):
            assert np.abs(sample).max() <= bound * (1 + 1e-6)
            # An empirical quantile of n uniform numbers is off by at most 1/√n or so.
            off = np.quantile(sample, quantiles) / bound - (2 * quantiles - 1)
            assert np.abs(off).max() <= 5 / math.sqrt(sample.size)


@pytest.mark.parametrize("widths", [(7, 3), (12, 8, 5), (12, 20, 20, 10)])
def test_mlp_forward_and_backward_from_the_same_state_dict(
    assert_parity, widths: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    network = mlp(*widths)
    params, state = network.init(rng, dtype=np.float64)
    theirs = torch_mlp(widths, network.merge_state_dict(params, state))
    x, dy = rng.standard_normal((6, widths[0])), rng.standard_normal((6, widths[-1]))
    y, cache = network.forward(params, state, x, train=True)
    dx, grads = network.backward(params, cache, dy)

    their_x = torch.tensor(x, requires_grad=True)
    their_y = theirs(their_x)
    their_y.backward(torch.tensor(dy))
    assert_parity(y, their_y.detach().numpy())
    assert_parity(dx, their_x.grad.numpy())
    assert set(grads) == {name for name, _ in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        assert_parity(grads[name], parameter.grad.numpy())


def test_mlp_flattens_images_in_the_order_of_pytorch(assert_parity) -> None:
    network = mlp(12, 5, 3)
    params, state = network.init(np.random.default_rng(2), dtype=np.float64)
    x = np.random.default_rng(3).standard_normal((4, 1, 3, 4))
    y, _ = network.forward(params, state, x, train=False)
    assert_parity(y, torch_mlp((12, 5, 3), params)(torch.tensor(x)).detach().numpy())


def test_ten_distillation_steps_with_adam(assert_parity) -> None:
    rng = np.random.default_rng(4)
    widths, batch, temperature, alpha = (16, 20, 20, 10), 32, 4.0, 0.3
    student, teacher = mlp(*widths), mlp(16, 50, 10)
    params, state = student.init(rng, dtype=np.float64)
    teacher_params, teacher_state = teacher.init(rng, dtype=np.float64)
    spec = KDSpec.preset("hinton", temperature=temperature, alpha=alpha)
    optimizer = Adam(lr=1e-2)
    moments = optimizer.init(params)

    their_student = torch_mlp(widths, params)
    their_teacher = torch_mlp((16, 50, 10), teacher_params)
    their_optimizer = torch.optim.Adam(their_student.parameters(), lr=1e-2)

    for _ in range(10):
        x, labels = rng.standard_normal((batch, 16)), rng.integers(10, size=batch)

        v, _ = teacher.forward(teacher_params, teacher_state, x, train=False)
        z, cache = student.forward(params, state, x, train=True)
        terms, saved = kd_forward(z, v, labels, spec)
        dz = kd_backward(1.0, saved, labels, spec)
        _, grads = student.backward(params, cache, dz, need_dx=False)

        with torch.no_grad():
            their_v = their_teacher(torch.tensor(x))
        their_z = their_student(torch.tensor(x))
        soft = F.kl_div(
            torch.log_softmax(their_z / temperature, dim=1),
            torch.softmax(their_v / temperature, dim=1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(their_z, torch.tensor(labels))
        loss = alpha * hard + (1 - alpha) * temperature**2 * soft
        their_optimizer.zero_grad()
        loss.backward()

        assert_parity(terms.loss, loss.detach().numpy())
        for name, parameter in their_student.named_parameters():
            assert_parity(grads[name], parameter.grad.numpy())
        their_optimizer.step()
        optimizer.update(params, grads, moments, lr=optimizer.lr)
        for name, parameter in their_student.named_parameters():
            assert_parity(params[name], parameter.detach().numpy())
