"""Names of parameters and state: PyTorch's, split and merged strictly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import CheckpointError, ConfigError
from refkd.nn import Flatten, Linear, ReLU, Sequential, Tanh
from refkd.nn.layer import add_prefix, split_by_prefix
from tests.nn.contract_layers import WHOLE_CONTRACT

PARAMETERS = {
    "embed.table": (5, 4),
    "embed.weight": (4, 3),
    "body.0.weight": (6, 4),
    "body.0.bias": (6,),
    "body.norm.weight": (6,),
    "body.norm.bias": (6,),
    "body.inner.1.weight": (6, 6),
    "head.u": (3, 6),
    "head.v": (2, 6),
}
STATE = {
    "body.norm.running_mean": (6,),
    "body.norm.running_var": (6,),
    "body.norm.num_batches_tracked": (),
}


@pytest.fixture
def state_dict() -> dict[str, Any]:
    params, state = WHOLE_CONTRACT.init(np.random.default_rng(0))
    return WHOLE_CONTRACT.merge_state_dict(params, state)


def test_shapes_and_init_name_the_same_arrays() -> None:
    params, state = WHOLE_CONTRACT.init(np.random.default_rng(0))
    assert WHOLE_CONTRACT.shapes() == (PARAMETERS, STATE)
    assert {name: array.shape for name, array in params.items()} == PARAMETERS
    assert {name: array.shape for name, array in state.items()} == STATE


def test_splitting_inverts_merging(state_dict: dict[str, Any]) -> None:
    params, state = WHOLE_CONTRACT.split_state_dict(dict(reversed(state_dict.items())))
    assert list(params) == list(PARAMETERS)
    assert list(state) == list(STATE)
    for name, array in {**params, **state}.items():
        assert array is state_dict[name]


def test_a_missing_array_is_named(state_dict: dict[str, Any]) -> None:
    del state_dict["body.norm.running_var"], state_dict["head.u"]
    with pytest.raises(CheckpointError, match=r"2 differences.*missing head\.u.*running_var"):
        WHOLE_CONTRACT.split_state_dict(state_dict)


def test_an_unexpected_array_is_named_with_the_closest_name(state_dict: dict[str, Any]) -> None:
    state_dict["body.0.wieght"] = np.zeros(1)
    with pytest.raises(
        CheckpointError, match=r"unexpected body\.0\.wieght; did you mean 'body\.0\.weight'"
    ):
        WHOLE_CONTRACT.split_state_dict(state_dict)


@pytest.mark.parametrize("shape", [(4, 6), (24,), (6, 4, 1), (1, 4), ()])
def test_another_shape_is_named_even_where_it_would_broadcast(
    state_dict: dict[str, Any], shape: tuple[int, ...]
) -> None:
    state_dict["body.0.weight"] = np.zeros(shape)
    with pytest.raises(CheckpointError, match=r"body\.0\.weight has shape .*expected \(6, 4\)"):
        WHOLE_CONTRACT.split_state_dict(state_dict)


def test_a_checkpoint_of_another_model_lists_some_differences_and_counts_all() -> None:
    with pytest.raises(CheckpointError, match=r"12 differences\).*; \.\.\.$"):
        WHOLE_CONTRACT.split_state_dict({})


def test_layers_without_parameters_keep_their_names_out_of_the_state_dict() -> None:
    network = Sequential.numbered(Flatten(), Linear(4, 3), ReLU(), Linear(3, 2, bias=False))
    assert network.shapes()[0] == {"1.weight": (3, 4), "1.bias": (3,), "3.weight": (2, 3)}


@pytest.mark.parametrize("names", [("a", "a"), ("a.b",), ("",)])
def test_names_that_would_not_be_a_path_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="unique"):
        Sequential(tuple((name, Tanh()) for name in names))


def test_a_name_that_begins_another_is_no_prefix_of_it() -> None:
    network = Sequential((("fc1", Linear(2, 2)), ("fc10", Linear(2, 2)), ("fc", Linear(2, 2))))
    rng = np.random.default_rng(1)
    params, state = network.init(rng, dtype=np.float64)
    x = rng.standard_normal((3, 2))
    expected = x
    for name in ("fc1", "fc10", "fc"):
        expected = expected @ params[f"{name}.weight"].T + params[f"{name}.bias"]
    np.testing.assert_allclose(network.forward(params, state, x, train=False)[0], expected)


def test_prefixes_are_added_and_split_one_level_at_a_time() -> None:
    nested = {"a.b.c": 1, "a.d": 2, "e": 3}
    groups = split_by_prefix(nested)
    assert groups == {"a": {"b.c": 1, "d": 2}, "e": {"": 3}}
    joined = {k: v for head, group in groups.items() for k, v in add_prefix(head, group).items()}
    assert joined == nested
