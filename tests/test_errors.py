"""Errors: their kinds, and that the checks refuse what they say and say what they refuse."""

from __future__ import annotations

import fractions
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd import errors
from refkd.errors import (
    ConfigError,
    DtypeError,
    MissingExtra,
    RefkdError,
    ShapeError,
    check_choice,
    check_float_dtypes,
    check_positive,
    check_same_shape,
    check_unit_interval,
    import_extra,
    suggest,
)

KINDS = {
    "BackendUnavailable": ImportError,
    "CheckpointError": ValueError,
    "ConfigError": ValueError,
    "DataError": ValueError,
    "DtypeError": TypeError,
    "MissingExtra": ImportError,
    "NonFiniteError": FloatingPointError,
    "ShapeError": ValueError,
}
DTYPES = ("float16", "float32", "float64", "complex64", "complex128", "int64", "uint8", "bool")


def allowed(dtypes: set[str]) -> bool:
    return dtypes in ({"float32"}, {"float64"}, {"complex128"}, {"float64", "complex128"})


class TestKinds:
    @pytest.mark.parametrize(("name", "built_in"), KINDS.items())
    def test_a_kind_is_caught_as_refkd_error_and_as_its_built_in(
        self, name: str, built_in: type[Exception]
    ) -> None:
        kind = getattr(errors, name)
        for caught in (RefkdError, built_in):
            with pytest.raises(caught, match="what happened"):
                raise kind("what happened")

    def test_every_kind_is_public_and_listed_here(self) -> None:
        kinds = {
            name
            for name, value in vars(errors).items()
            if isinstance(value, type) and issubclass(value, RefkdError)
        }
        assert kinds == {*KINDS, "RefkdError"}
        assert kinds <= set(errors.__all__)


class TestFloatDtypes:
    @given(dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    def test_one_floating_dtype_is_allowed_and_complex128_stands_for_float64(
        self, dtypes: list[str]
    ) -> None:
        arrays = {f"x{i}": np.ones(2, dtype) for i, dtype in enumerate(dtypes)}
        if allowed(set(dtypes)):
            check_float_dtypes("f", **arrays)
        else:
            given = ", ".join(f"x{i} {dtype}" for i, dtype in enumerate(dtypes))
            with pytest.raises(DtypeError) as caught:
                check_float_dtypes("f", **arrays)
            assert str(caught.value).startswith("f: expected all float32 or all float64")
            assert str(caught.value).endswith(f"got {given}")

    def test_none_is_skipped(self) -> None:
        check_float_dtypes("f", x=np.ones(2), bias=None)
        check_float_dtypes("f", bias=None)
        with pytest.raises(DtypeError, match=r"got x int64$"):
            check_float_dtypes("f", bias=None, x=np.ones(2, np.int64))

    def test_scalars_of_numpy_count_as_arrays(self) -> None:
        check_float_dtypes("f", x=np.float32(1), y=np.ones(2, np.float32))
        with pytest.raises(DtypeError, match="got x float64, y float32"):
            check_float_dtypes("f", x=np.float64(1), y=np.ones(2, np.float32))

    @pytest.mark.parametrize("value", [1.0, [1.0], "x", object()])
    def test_what_is_no_array_is_named(self, value: object) -> None:
        message = rf"^f: weight must be an array, got {type(value).__name__}; convert it first"
        with pytest.raises(DtypeError, match=message):
            check_float_dtypes("f", x=np.ones(2), weight=value)

    def test_an_array_whose_dtype_is_not_numpys_is_refused_like_any_other_object(self) -> None:
        # torch.float32 has no name; a torch tensor is what people will pass by mistake.
        foreign = type("Tensor", (), {"dtype": object()})()
        with pytest.raises(DtypeError, match=r"^f: x must be an array, got Tensor"):
            check_float_dtypes("f", x=foreign)


class TestSameShape:
    def test_equal_shapes_pass(self) -> None:
        check_same_shape("f", x=np.ones((2, 0)), y=np.zeros((2, 0)), z=np.empty((2, 0)))
        check_same_shape("f", x=np.float64(1), y=np.array(2.0))

    def test_shapes_that_would_broadcast_are_refused_and_listed(self) -> None:
        with pytest.raises(ShapeError) as caught:
            check_same_shape("f", x=np.ones((3, 1)), y=np.ones((3, 4)))
        assert str(caught.value) == "f: expected equal shapes, got x (3, 1), y (3, 4)"


class TestChoice:
    def test_a_listed_value_passes(self) -> None:
        check_choice("f", "reduction", "mean", ("mean", "sum"))

    def test_a_generator_of_choices_is_read_once(self) -> None:
        check_choice("f", "reduction", "sum", (c for c in ("mean", "sum")))
        with pytest.raises(ConfigError, match="'mean', 'sum', got 'sun'; did you mean 'sum'"):
            check_choice("f", "reduction", "sun", (c for c in ("mean", "sum")))

    @pytest.mark.parametrize("value", [None, 1, [], "MEAN"])
    def test_anything_else_is_refused_without_a_wrong_suggestion(self, value: object) -> None:
        with pytest.raises(ConfigError) as caught:
            check_choice("f", "reduction", value, ("mean", "sum"))
        assert str(caught.value) == f"f: reduction must be one of 'mean', 'sum', got {value!r}"


NUMBERS = [1, 0.5, np.float32(0.5), np.float64(1), np.int64(1), True + 0, sys.float_info.min]
NO_FINITE_REAL = [
    *(math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")),
    pytest.param(10**400, id="an int that no float holds"),
    *(None, "1", b"1", True, False, np.True_, 1j, [1.0], (1.0,), np.ones(2), np.array([0.5])),
]


class TestNumbers:
    @pytest.mark.parametrize("value", [*NUMBERS, 1e308, 7, fractions.Fraction(1, 3)])
    def test_a_positive_number_passes(self, value: Any) -> None:
        check_positive("f", "temperature", value)

    @pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -5e-324, *NO_FINITE_REAL])
    def test_what_is_not_a_finite_number_above_zero_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"^f: temperature must be a finite number > 0, got"):
            check_positive("f", "temperature", value)

    @pytest.mark.parametrize("value", [*NUMBERS, 0, -0.0, 5e-324])
    def test_a_number_in_the_unit_interval_passes(self, value: Any) -> None:
        check_unit_interval("f", "p", value)

    @pytest.mark.parametrize("value", [-5e-324, math.nextafter(1, 2), -1, 2, *NO_FINITE_REAL])
    def test_what_is_outside_the_unit_interval_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"^f: p must be a number in \[0, 1\], got"):
            check_unit_interval("f", "p", value)

    @given(st.floats())
    def test_the_two_checks_agree_with_their_definitions(self, value: float) -> None:
        for check, holds in (
            (check_positive, 0 < value < math.inf),
            (check_unit_interval, 0 <= value <= 1),
        ):
            try:
                check("f", "x", value)
            except ConfigError:
                assert not holds
            else:
                assert holds


class TestSuggest:
    def test_the_closest_option_is_named(self) -> None:
        assert suggest("temprature", ["learning_rate", "temperature", "tempo"]) == (
            "; did you mean 'temperature'?"
        )

    @pytest.mark.parametrize("value", ["xyz", "", 3, None])
    def test_nothing_is_said_where_nothing_is_close(self, value: object) -> None:
        assert suggest(value, ["temperature"]) == ""
        assert suggest(value, []) == ""


class TestImportExtra:
    def test_a_module_that_is_there_is_returned(self) -> None:
        assert import_extra("os.path", "plot", "a figure") is sys.modules["os.path"]

    def test_a_missing_package_names_its_purpose_and_extra(self) -> None:
        with pytest.raises(MissingExtra) as caught:
            import_extra("no_such_package.pyplot", "plot", "the picture of the loss")
        message = str(caught.value)
        assert message.startswith("the picture of the loss needs no_such_package (")
        assert message.endswith("install it with: pip install 'refkd[plot]'")
        assert isinstance(caught.value.__cause__, ImportError)
