"""Winograd's transforms of a tile, for as many channels at a time as a vector register holds.

Each is separable: a formula for one axis, along the columns and then along the rows. The
formulas are plain Python; here they are run on LLVM's vectors in the place of numbers, so
that a tile's whole transform is one piece of straight-line code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refkd_numba.microkernel import LANES

__all__ = [
    "gradient_points",
    "input_points",
    "output_values",
    "transform",
    "transform_and_finish",
    "weight_points",
    "weight_values",
]

_I64, _F32 = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_FAST = ("contract", "reassoc", "nsz", "arcp")


def input_points(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> tuple[Any, ...]:
    """Bᵀ d: what the values of the polynomial 6 inputs make are at 0, ±1, ±2 and infinity."""
    even, odd = d4 - 4.0 * d2, d3 - 4.0 * d1
    wide, narrow = d4 - d2, 2.0 * (d3 - d1)
    return (
        4.0 * d0 - 5.0 * d2 + d4,
        even + odd,
        even - odd,
        wide + narrow,
        wide - narrow,
        4.0 * d1 - 5.0 * d3 + d5,
    )


def output_values(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> tuple[Any, ...]:
    """Aᵀ m: the 4 outputs of what stands at the 6 points."""
    s, t, u, v = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s + u, t + 2.0 * v, s + 4.0 * u, t + 8.0 * v + m5


def gradient_points(y0: Any, y1: Any, y2: Any, y3: Any) -> tuple[Any, ...]:
    """A dy, the adjoint of :func:`output_values`."""
    even, odd = y0 + y2, y1 + y3
    wide, narrow = y0 + 4.0 * y2, 2.0 * y1 + 8.0 * y3
    return y0, even + odd, even - odd, wide + narrow, wide - narrow, y3


def weight_points(g0: Any, g1: Any, g2: Any) -> tuple[Any, ...]:
    """G w: the values at the 6 points, with the factors that make Aᵀ a matrix of integers."""
    ends, middle = (g0 + g2) * (1 / 6), g1 * (1 / 6)
    wide, narrow = g0 * (1 / 24) + g2 * (1 / 6), g1 * (1 / 12)
    return g0 * 0.25, -ends - middle, middle - ends, wide + narrow, wide - narrow, g2


def weight_values(u0: Any, u1: Any, u2: Any, u3: Any, u4: Any, u5: Any) -> tuple[Any, ...]:
    """Gᵀ u, the adjoint of :func:`weight_points`."""
    s, t, v, w = u1 + u2, u2 - u1, u3 + u4, u3 - u4
    return (
        u0 * 0.25 - s * (1 / 6) + v * (1 / 24),
        t * (1 / 6) + w * (1 / 12),
        (v - s) * (1 / 6) + u5,
    )


def transform(formula: Callable[..., tuple[Any, ...]], inputs: int) -> Any:
    """Return an intrinsic that transforms a tile of ``inputs`` by ``inputs`` values.

    Its arguments are addresses and distances in bytes: source, source_row, source_column,
    first_row, end_row, first_column, end_column, zeros, target, target_row, target_column.
    Rows and columns outside their range count as zero, which is read from ``zeros``.
    """

    @intrinsic
    def transformed(
        typing_context, source, source_row, source_column, first_row, end_row, first_column,
        end_column, zeros, target, target_row, target_column,
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):
            *places, target, target_row, target_column = arguments
            tile = _transformed(builder, formula, inputs, places)
            for i, row in enumerate(tile):
                for j, value in enumerate(row):
                    at = _at(builder, target, i, target_row, j, target_column)
                    _store(builder, value, at)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return transformed


def transform_and_finish(formula: Callable[..., tuple[Any, ...]], inputs: int) -> Any:
    """Return an intrinsic that also adds a bias, clips, and leaves out what is beyond the edge.

    Arguments: source, source_row, source_column, target, target_row, target_column, rows,
    columns, elsewhere, bias, least. What is beyond ``rows`` and ``columns`` goes ``elsewhere``;
    values not above ``least`` become ``least``.
    """

    @intrinsic
    def transformed(
        typing_context, source, source_row, source_column, target, target_row, target_column,
        rows, columns, elsewhere, bias, least,
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):
            (
                source, source_row, source_column, target, target_row, target_column,
                rows, columns, elsewhere, bias, least,
            ) = arguments  # fmt: skip
            everywhere = [_count(0), _count(inputs)] * 2
            places = [source, source_row, source_column, *everywhere, source]
            added, least = _load(builder, bias), _splat(builder, least)
            tile = _transformed(builder, formula, inputs, places)
            for i, row in enumerate(tile):
                for j, value in enumerate(row):
                    inside = builder.and_(
                        builder.icmp_signed("<", _count(i), rows),
                        builder.icmp_signed("<", _count(j), columns),
                    )
                    at = _at(builder, target, i, target_row, j, target_column)
                    result = builder.fadd(value, added, flags=_FAST)
                    low = builder.fcmp_ordered("<=", result, least)
                    result = builder.select(low, least, result)
                    _store(builder, result, builder.select(inside, at, elsewhere))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10, types.float32), generate

    return transformed


def _transformed(
    builder: Any, formula: Callable[..., tuple[Any, ...]], inputs: int, places: list[Any]
) -> list[tuple[Any, ...]]:
    """Return the rows of the transformed tile, as values of LLVM."""
    source, row, column, first_row, end_row, first_column, end_column, zeros = places

    def within(index: int, first: Any, end: Any) -> Any:
        after = builder.icmp_signed(">=", _count(index), first)
        return builder.and_(after, builder.icmp_signed("<", _count(index), end))

    rows = [within(i, first_row, end_row) for i in range(inputs)]
    half = []
    for j in range(inputs):
        in_column = within(j, first_column, end_column)
        loaded = []
        for i in range(inputs):
            at = _at(builder, source, i, row, j, column)
            at = builder.select(builder.and_(rows[i], in_column), at, zeros)
            loaded.append(_Vector(builder, _load(builder, at)))
        half.append(formula(*loaded))
    return [tuple(vector.value for vector in formula(*along)) for along in zip(*half, strict=True)]


class _Vector:
    """A vector of LLVM that adds, subtracts and multiplies with others and with numbers."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: _Vector) -> _Vector:
        return _Vector(self.builder, self.builder.fadd(self.value, other.value, flags=_FAST))

    def __sub__(self, other: _Vector) -> _Vector:
        return _Vector(self.builder, self.builder.fsub(self.value, other.value, flags=_FAST))

    def __neg__(self) -> _Vector:
        return _Vector(self.builder, self.builder.fneg(self.value, flags=_FAST))

    def __mul__(self, factor: float) -> _Vector:
        constant = ir.Constant(_VECTOR, [factor] * LANES)
        return _Vector(self.builder, self.builder.fmul(self.value, constant, flags=_FAST))

    __rmul__ = __mul__


def _at(builder: Any, base: Any, i: int, row: Any, j: int, column: Any) -> Any:
    offset = builder.add(builder.mul(_count(i), row), builder.mul(_count(j), column))
    return builder.add(base, offset)


def _load(builder: Any, address: Any) -> Any:
    value = builder.load(builder.inttoptr(address, _VECTOR.as_pointer()))
    value.align = 4
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, _VECTOR.as_pointer())).align = 4


def _splat(builder: Any, scalar: Any) -> Any:
    undefined, index = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
    lane = builder.insert_element(undefined, scalar, ir.Constant(index, 0))
    everywhere = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
    return builder.shuffle_vector(lane, undefined, everywhere)


def _count(value: int) -> Any:
    return ir.Constant(_I64, value)
