"""Autograd judged by ``check_grad``: ordinary modules pass, planted errors are located."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError
from refkd.testing import Verdict, check_grad
from refkd.testing.adapters import Subject, adapt
from refkd.testing.adapters.torch import from_function, from_module

torch = pytest.importorskip("torch", reason="checking PyTorch modules needs torch")
nn = torch.nn


def normal(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def assert_wrong(subject: Subject, name: str, index: tuple[int, ...] | None = None) -> None:
    report = check_grad(*subject)
    assert report.verdict is Verdict.WRONG_GRADIENT, report
    assert report.worst is not None
    assert report.worst.name == name
    assert index is None or report.worst.index == index


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Distillation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(5, 4)
        self.loss = nn.KLDivLoss(reduction="batchmean")

    def forward(self, x: Any, teacher_logits: Any, temperature: float = 4.0) -> Any:
        log_q = torch.log_softmax(self.student(x) / temperature, -1)
        return temperature**2 * self.loss(log_q, torch.softmax(teacher_logits / temperature, -1))


def evaluating(module: Any) -> Any:
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    return module.eval()


MODULES: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "Linear": lambda: (nn.Linear(5, 3), (normal(4, 5),)),
    "Conv2d": lambda: (nn.Conv2d(2, 3, 3, stride=2, padding=1), (normal(2, 2, 5, 5),)),
    "BatchNorm2d, training": lambda: (nn.BatchNorm2d(2), (normal(3, 2, 2, 2),)),
    "BatchNorm2d, evaluation": lambda: (evaluating(nn.BatchNorm2d(2)), (normal(3, 2, 2, 2),)),
    "LayerNorm": lambda: (nn.LayerNorm(6), (normal(4, 6),)),
    "MultiheadAttention": lambda: (
        nn.MultiheadAttention(4, 2, batch_first=True),
        (normal(2, 3, 4), normal(2, 4, 4, seed=1), normal(2, 4, 4, seed=2)),
    ),
    "GRU": lambda: (nn.GRU(3, 4), (normal(3, 2, 3),)),
    "LSTM": lambda: (nn.LSTM(2, 3), (normal(3, 2, 2), (normal(1, 2, 3), normal(1, 2, 3, seed=1)))),
    "Embedding": lambda: (nn.Embedding(6, 3), (torch.tensor([[0, 2, 2], [5, 1, 0]]),)),
    "Distillation": lambda: (Distillation(), (normal(3, 5), normal(3, 4, seed=1))),
    "Dropout": lambda: (
        nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh()),
        (normal(3, 5),),
    ),
    "ReLU and MaxPool2d": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (normal(2, 2, 4, 4),),
    ),
}


def leaves(tree: Any) -> list[Any]:
    return [x for part in tree for x in leaves(part)] if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("name", MODULES)
def test_an_ordinary_module_passes_whole(name: str) -> None:
    module, inputs = MODULES[name]()
    report = check_grad(*from_module(module, *inputs))
    assert report.verdict is Verdict.PASS, report
    tensors = [*module.parameters(), *(x for x in leaves(inputs) if x.is_floating_point())]
    assert report.entries == sum(x.numel() for x in tensors)
    assert report.method == (
        "complex" if name in {"Linear", "GRU", "LSTM", "Embedding"} else "ridders"
    )


@pytest.mark.parametrize("name", MODULES)
def test_no_parameter_is_without_effect_on_the_function(name: str) -> None:
    module, inputs = MODULES[name]()
    subject = from_module(module, *inputs)
    value, gradients = subject.f(**subject.params), subject.grad(**subject.params)
    for path, x in subject.params.items():
        if name == "MultiheadAttention" and path == "in_proj_bias":
            continue  # its key part shifts all scores alike
        moved = {**subject.params, path: x + 1e-3 * np.sign(gradients[path] + 1e-300)}
        assert subject.f(**moved) != value, path


@pytest.mark.parametrize("name", MODULES)
def test_every_call_sees_the_same_numbers_and_the_module_is_left_alone(name: str) -> None:
    module, inputs = MODULES[name]()
    before, random_state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    subject = from_module(module, *inputs)
    for call in (subject.f, subject.grad):
        first, second = call(**subject.params), call(**subject.params)
        np.testing.assert_equal(first, second)
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# --- planted errors ------------------------------------------------------------------------


class Planted(torch.autograd.Function):
    """x Wᵀ + b whose backward passes through ``change``."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, change: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.change = change
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensors
        return *ctx.change(dy @ weight, dy.T @ x, dy.sum(0)), None


class Affine(nn.Linear):
    def __init__(self, change: Any) -> None:
        super().__init__(3, 3)
        self.change = change

    def forward(self, x: Any) -> Any:
        return Planted.apply(x, self.weight, self.bias, self.change)


def one_percent(dweight: Any) -> Any:
    dweight = dweight.clone()
    dweight[1, 2] *= 1.01
    return dweight


PLANTED: dict[str, tuple[str, Any]] = {
    "scale": ("weight", lambda dx, dw, db: (dx, dw / 4, db)),
    "sign": ("bias", lambda dx, dw, db: (dx, dw, -db)),
    "transposed": ("weight", lambda dx, dw, db: (dx, dw.T, db)),
    "detached": ("x", lambda dx, dw, db: (None, dw, db)),
    "mean for sum": ("bias", lambda dx, dw, db: (dx, dw, db / 4)),
    "one entry": ("weight", lambda dx, dw, db: (dx, one_percent(dw), db)),
}


def gradcheck(module: Any, x: Any) -> bool:
    double = copy.deepcopy(module).double()
    x = x.double().requires_grad_()
    tensors = (x, *double.parameters())
    return bool(torch.autograd.gradcheck(lambda *_: double(x), tensors, raise_exception=False))


def test_the_right_backward_of_a_custom_function_passes() -> None:
    module, x = Affine(lambda *gradients: gradients), normal(4, 3)
    assert check_grad(*from_module(module, x)).verdict is Verdict.PASS
    assert gradcheck(module, x)


@pytest.mark.parametrize("planted", PLANTED)
def test_a_wrong_backward_of_a_custom_function_is_located(planted: str) -> None:
    (name, change), x = PLANTED[planted], normal(4, 3)
    module = Affine(change)
    index = (1, 2) if planted == "one entry" else None
    assert_wrong(from_module(module, x), name, index)
    assert not gradcheck(module, x)
    params = {"x": x, "weight": module.weight, "bias": module.bias}
    assert_wrong(
        from_function(lambda **p: Planted.apply(*p.values(), change).square().sum(), params), name
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=15)
def test_one_wrong_entry_behind_a_relu_is_located(seed: int, row: int, column: int) -> None:
    # Real differences judge here: ReLU takes no complex numbers.
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            dx = dy.clone()
            dx[row, column] *= 1.01
            return dx

    sign = torch.where(normal(4, 3, seed=1) > 0, 1, -1)
    x = sign * torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 3, (4, 3)))
    x[row, column] = 1.5

    def f(x: Any) -> Any:
        return torch.relu(Wrong.apply(x)).square().sum()

    assert_wrong(from_function(f, {"x": x}), "x", (row, column))


def test_a_detached_output_has_the_gradient_zero_which_is_wrong() -> None:
    subject = from_function(lambda x: x.detach().square().sum(), {"x": normal(3)})
    assert not subject.grad(**subject.params)["x"].any()
    assert_wrong(subject, "x")


class TwoOutputs(nn.Module):
    """The second of two outputs, in a dict or a tuple, has a wrong backward."""

    def __init__(self, wrap: Callable[..., Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.weight = nn.Parameter(normal(3))

    def forward(self, x: Any) -> Any:
        double = Planted.apply(
            x[None], torch.eye(3).to(x), self.weight, lambda dx, dw, db: (dx, dw, 2 * db)
        )
        return self.wrap(x * self.weight, x.argmax(), double)


@pytest.mark.parametrize(
    "wrap", [lambda *y: y, lambda *y: list(y), lambda a, b, c: {"a": a, "b": (b, {"c": c})}]
)
def test_every_floating_output_has_a_cotangent(wrap: Callable[..., Any]) -> None:
    assert_wrong(from_module(TwoOutputs(wrap), normal(3)), "weight")


# --- modules -------------------------------------------------------------------------------


def test_tied_weights_count_once_and_frozen_ones_are_constants() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module[2].bias.requires_grad_(False)
    subject = from_module(module, normal(2, 3))
    assert list(subject.params) == ["input", "0.weight", "0.bias"]
    assert check_grad(*subject).verdict is Verdict.PASS


def test_a_parameter_without_use_has_the_gradient_zero() -> None:
    module = nn.Linear(3, 2)
    module.unused = nn.Parameter(normal(4))
    subject = from_module(module, normal(2, 3))
    np.testing.assert_array_equal(subject.grad(**subject.params)["unused"], np.zeros(4))
    assert check_grad(*subject).verdict is Verdict.PASS


def test_parameters_kept_in_a_plain_list_follow() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(3))
            self.all = [self.weight]

        def forward(self, x: Any) -> Any:
            return x * self.all[0] ** 2

    subject = from_module(Listed(), normal(3))
    assert np.all(subject.grad(**subject.params)["weight"] != 0)
    assert check_grad(*subject).verdict is Verdict.PASS


@pytest.mark.parametrize("in_place", [True, False])
def test_a_module_may_overwrite_its_inputs_and_its_buffers(in_place: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            self.calls = self.calls.add_(1) if in_place else self.calls + 1
            return self.calls * torch.relu_(x)

    x = normal(5)
    before = x.clone()
    assert check_grad(*from_module(Counting(), x)).verdict is Verdict.PASS
    assert torch.equal(x, before)


def test_inputs_are_named_as_forward_names_them_and_beside_the_parameters() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(3))

        def forward(self, weight: Any, *more: Any, scale: Any = 1.0, **options: Any) -> Any:
            return scale * weight * self.weight + sum(more) + options["shift"]

    one = torch.ones(3)
    subject = from_module(Named(), 2 * one, one, one, scale=normal(3, seed=1), shift=one)
    assert list(subject.params) == [
        "weight (input)",
        *("more[0]", "more[1]", "scale", "options.shift", "weight"),
    ]
    assert check_grad(*subject).verdict is Verdict.PASS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_floating_dtype_is_judged_in_float64(dtype: Any) -> None:
    subject = from_module(nn.Linear(3, 2).to(dtype), normal(4, 3, dtype=dtype))
    assert {x.dtype for x in subject.params.values()} == {np.dtype(np.float64)}
    report = check_grad(*subject)
    assert (report.verdict, report.method) == (Verdict.PASS, "complex")
    assert report.worst is not None
    assert report.worst.scaled_error < 1e-14


def test_another_seed_draws_other_cotangents_and_another_dropout() -> None:
    module, x = nn.Dropout(0.5), torch.ones(100)
    subjects = [from_module(module, x, rng=seed) for seed in (0, 0, 1)]
    dx = [s.grad(**s.params)["input"] for s in subjects]
    np.testing.assert_array_equal(dx[0], dx[1])
    assert not np.array_equal(dx[0] == 0, dx[2] == 0)
    kept = (dx[0] != 0) & (dx[2] != 0)
    assert np.all(dx[0][kept] != dx[2][kept])


def test_gradients_are_found_even_where_they_are_switched_off() -> None:
    with torch.no_grad():
        assert check_grad(*from_module(nn.Linear(3, 2), normal(4, 3))).verdict is Verdict.PASS


class Returning(nn.Module):
    def __init__(self, returned: Any, weight: Any = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight))
        self.returned = returned

    def forward(self, x: Any) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("module", "inputs", "error", "message"),
    [
        (torch.sin, (torch.ones(2),), ConfigError, r"expected a torch\.nn\.Module"),
        (nn.LazyLinear(2), (torch.ones(1, 2),), ConfigError, "weight of LazyLinear has no shape"),
        (nn.ReLU(), (torch.ones(2, dtype=torch.int64),), ConfigError, "no floating parameter"),
        (nn.Linear(2, 2), (), ConfigError, r"Linear\.forward\(input.*missing a required argument"),
        (nn.Linear(2, 2), (np.ones((1, 2)),), DtypeError, "input is a NumPy array of float64"),
        (nn.Linear(2, 2), (torch.eye(2).to_sparse(),), DtypeError, r"input is torch\.sparse_coo"),
        (Returning(None, torch.ones(2) * 1j), (torch.ones(2),), DtypeError, r"weight is .*complex"),
        (
            nn.ReLU(),
            (torch.ones(1, 2, dtype=torch.complex64),),
            DtypeError,
            r"input is torch\.complex64, expected a real tensor",
        ),
        (Returning(None), (torch.ones(2),), DtypeError, r"no floating tensor \(output: NoneType"),
        (Returning(torch.arange(3)), (torch.ones(2),), DtypeError, "no floating tensor"),
        (Returning([torch.eye(2) * 1j]), (torch.ones(2),), DtypeError, r"output\[0\] is .*complex"),
        (Returning(torch.eye(2).to_sparse()), (torch.ones(2),), DtypeError, "output is .*sparse"),
    ],
)
def test_a_module_that_cannot_be_checked_is_an_error_that_says_why(
    module: Any, inputs: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_module(module, *inputs)


# --- functions -----------------------------------------------------------------------------


def test_check_grad_takes_tensors_and_needs_no_gradient() -> None:
    report = check_grad(lambda x: torch.sin(x).sum(), {"x": normal(2, 3)})
    assert (report.verdict, report.method, report.entries) == (Verdict.PASS, "complex", 6)


def test_nested_tensors_beside_constants_pass() -> None:
    layers = [{"weight": normal(3, 3), "bias": normal(3, seed=1)} for _ in range(2)]
    params = {"layers": layers, "labels": torch.tensor([0, 2]), "scale": 2.0, "n": np.arange(2)}

    def f(layers: Any, labels: Any, scale: float, n: Any) -> Any:
        x = torch.eye(3, dtype=torch.float64)[:2].to(layers[0]["weight"])
        for layer in layers:
            x = torch.tanh(x @ layer["weight"] + layer["bias"])
        return scale * x[n, labels].sum()

    report = check_grad(f, params)
    assert (report.verdict, report.entries) == (Verdict.PASS, 24)
    assert {p.name for p in report.parameters} >= {"layers[0].weight", "layers[1].bias"}


def exp_gradient(x: Any, y: tuple[Any, Any]) -> Any:
    return {"x": torch.exp(x) * y[0], "y": (torch.exp(x), None)}


def test_a_gradient_written_by_hand_on_tensors_is_judged() -> None:
    params = {"x": normal(3), "y": (normal(3, seed=1), torch.arange(3))}

    def f(x: Any, y: Any) -> Any:
        return (torch.exp(x) * y[0]).sum()

    def wrong(x: Any, y: Any) -> Any:
        return {**exp_gradient(x, y), "x": torch.exp(x)}

    assert check_grad(f, params, exp_gradient).verdict is Verdict.PASS
    subject = adapt(f, params, wrong)
    assert subject is not None
    assert_wrong(subject, "x")


def test_a_hand_written_gradient_may_use_autograd_and_return_what_is_no_mapping() -> None:
    def by_autograd(x: Any) -> Any:
        x = x.detach().requires_grad_()
        return {"x": torch.autograd.grad((x**3).sum(), x)[0]}

    params = {"x": normal(3)}
    with torch.no_grad():
        assert check_grad(lambda x: (x**3).sum(), params, by_autograd).verdict is Verdict.PASS
    report = check_grad(lambda x: (x**3).sum(), params, lambda x: 3 * x**2)
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "must return a mapping" in report.message


def test_a_hand_written_gradient_must_keep_the_precision() -> None:
    report = check_grad(lambda x: (x**2).sum(), {"x": normal(3)}, lambda x: {"x": 2 * x.float()})
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "must be float64 of shape (3,) like the parameter, got float32" in report.message


def test_a_function_that_writes_into_its_argument_is_told_so() -> None:
    def f(x: Any) -> Any:
        return x.mul_(2).sum()

    report = check_grad(f, {"x": normal(3)}, lambda x: {"x": torch.full_like(x, 2)})
    assert report.verdict is Verdict.MUTATED_INPUT


def test_what_autograd_shares_between_gradients_is_no_aliasing() -> None:
    params = {"a": normal(3), "b": normal(3, seed=1)}
    assert check_grad(lambda a, b: (a + b).square().sum(), params).verdict is Verdict.PASS


def test_random_functions_draw_the_same_in_every_call() -> None:
    def f(x: Any, generator: Any = None, rng: Any = None) -> Any:
        mask = torch.rand(x.shape, generator=generator) < 0.5
        return (x * mask).sum() * (1 if rng is None else rng.random())

    for others in ({}, {"generator": torch.Generator()}, {"rng": np.random.default_rng(0)}):
        state = torch.get_rng_state()
        assert check_grad(f, {"x": normal(40), **others}).verdict is Verdict.PASS
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x * x).abs().exp().sum(),
        lambda x: torch.where(x.real > 0, x, -x).square().sum(),
        lambda x: (x.to(torch.float64) ** 3).sum(),
        lambda x: torch.linalg.vector_norm(x) ** 3,
        lambda x: (x**3).sum().conj(),
        lambda x: torch.nn.functional.gelu(x).sum(),
    ],
)
def test_what_is_not_analytic_in_complex_numbers_is_still_judged_rightly(f: Any) -> None:
    report = check_grad(f, {"x": normal(5)})
    assert report.verdict is Verdict.PASS, report


def test_a_gradient_that_misses_what_the_complex_step_misses_is_wrong() -> None:
    def f(x: Any) -> Any:
        return (x * (x.real.detach() if x.is_complex() else x)).sum()

    report = check_grad(f, {"x": normal(3)}, lambda x: {"x": x.clone()})
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.method == "ridders"


def test_complex_numbers_where_pytorch_has_none_are_a_type_error() -> None:
    subject = from_function(lambda x: torch.relu(x).sum(), {"x": normal(3)})
    with pytest.raises(TypeError, match="not supported for complex"):
        subject.f(x=np.ones(3, dtype=np.complex128))


def test_complex_values_come_back_whole_and_a_cast_does_not_warn() -> None:
    params = {"x": normal(3)}
    conjugate = from_function(lambda x: x.sum().conj(), params)
    cast = from_function(lambda x: x.to(torch.float64).sum(), params)
    torch.set_warn_always(True)
    try:
        assert conjugate.f(x=np.full(3, 1 + 1j)) == 3 - 3j
        assert cast.f(x=np.full(3, 1 + 1j)) == 3
    finally:
        torch.set_warn_always(False)


def test_a_float32_constant_of_the_function_is_explained() -> None:
    weight = normal(3, 3)
    subject = from_function(lambda x: (x @ weight).sum(), {"x": normal(2, 3)})
    with pytest.raises(RuntimeError) as raised:
        subject.f(**subject.params)
    assert "must be float64 as well" in raised.value.__notes__[0]


def test_a_function_of_no_tensor_or_no_scalar_is_told_what_to_return() -> None:
    vector = check_grad(lambda x: x, {"x": normal(3)})
    assert vector.verdict is Verdict.SHAPE_DTYPE
    assert "must return a real scalar, got float64 of shape (3,)" in vector.message
    with pytest.raises(DtypeError, match=r"must return a tensor, got float; float\(\) and .item"):
        check_grad(lambda x: x.sum().item(), {"x": normal(3)})
    given = check_grad(lambda x: x.sum().item(), {"x": normal(3)}, lambda x: {"x": 0 * x + 1})
    assert given.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"x": torch.arange(3)}, ConfigError, "no floating tensor to differentiate among x"),
        (torch.ones(2), DtypeError, "params must be a mapping of names to tensors, got Tensor"),
        ({"x": torch.eye(2).to_sparse()}, DtypeError, r"x is torch\.sparse_coo"),
        ({"x": torch.ones(2) * 1j}, DtypeError, r"use torch\.view_as_real"),
        ({"x": torch.ones(2), "y": np.ones(2)}, DtypeError, "y is a NumPy array of float64"),
    ],
)
def test_parameters_that_cannot_be_differentiated_are_an_error(
    params: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_function(lambda **given: 0, params)


def test_a_module_is_no_function() -> None:
    with pytest.raises(ConfigError, match=r"use torch\.from_module"):
        check_grad(nn.Linear(2, 2), {"input": torch.ones(1, 2)})


def test_tensors_beside_floating_numpy_arrays_are_a_dtype_error() -> None:
    params = {"x": nn.Parameter(torch.ones(2)), "y": np.ones(2)}
    with pytest.raises(DtypeError, match="x is a PyTorch tensor, y is a floating NumPy array"):
        check_grad(lambda x, y: x.sum(), params)


def test_the_subject_holds_no_memory_of_the_tensors_it_was_made_from() -> None:
    x = normal(3, dtype=torch.float64)
    subject: Subject = from_function(lambda x: x.sum(), {"x": x})
    subject.params["x"][:] = 7.0
    assert not torch.any(x == 7)
