"""Register-blocked products: a tile of C stays in vector registers while A and B stream by.

Numba vectorises loops, but does not keep a two-dimensional block of sums in registers, which
is worth a factor of four. So the innermost loops are written in LLVM's own language, for
whatever vectors the processor has.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refkd_numba.compile import device

__all__ = ["COLUMNS", "LANES", "ROWS", "tile"]


def _vector_lanes() -> int:
    """Return how many float32 a vector register holds."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 4


LANES = _vector_lanes()
"""How many float32 a vector register holds."""
_VECTORS = 2
ROWS = 12 if LANES == 16 else 6
"""Rows of the largest tile; of 32 vector registers with AVX-512, of 16 otherwise."""
COLUMNS = _VECTORS * LANES
"""Columns of every tile: a panel of B is that wide."""

_I64, _F32 = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)


def _tile_of(rows: int) -> Any:
    """Return the intrinsic for tiles of so many rows."""

    @intrinsic
    def tile(
        typing_context, a, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps, c, c_row, add
    ):
        signature = types.void(*[types.intp] * 12)

        def generate(context, builder, signature, arguments):
            a, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps, c, c_row, add = arguments
            _Tile(builder, rows, c, c_row).generate(
                a, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps, add
            )
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tile:
    """Writes the loops of one tile into ``builder``."""

    def __init__(self, builder: Any, rows: int, c: Any, c_row: Any) -> None:
        self.builder, self.rows = builder, rows
        self.entries = [
            self._pointer(builder.add(c, builder.mul(c_row, _count(m))), 4 * LANES * v)
            for m in range(rows)
            for v in range(_VECTORS)
        ]

    def generate(
        self, a: Any, a_row: Any, a_step: Any, a_jump: Any, b: Any, b_step: Any, b_jump: Any,
        jumps: Any, steps: Any, add: Any,
    ) -> None:  # fmt: skip
        builder = self.builder
        before = builder.basic_block
        outer, inner, after_inner, done = (
            builder.append_basic_block(name) for name in ("outer", "inner", "after_inner", "done")
        )
        builder.branch(outer)

        builder.position_at_end(outer)
        jump, a_outer, b_outer = self._phis([(_I64, before, v) for v in (_count(0), a, b)])
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        outer_sums = self._phis([(_VECTOR, before, zero)] * len(self.entries))
        builder.branch(inner)

        builder.position_at_end(inner)
        step, a_inner, b_inner = self._phis(
            [(_I64, outer, v) for v in (_count(0), a_outer, b_outer)]
        )
        inner_sums = self._phis([(_VECTOR, outer, value) for value in outer_sums])
        new_sums = self._products(a_inner, a_row, b_inner, inner_sums)
        next_step = builder.add(step, _count(1))
        step.add_incoming(next_step, inner)
        a_inner.add_incoming(builder.add(a_inner, a_step), inner)
        b_inner.add_incoming(builder.add(b_inner, b_step), inner)
        for phi, value in zip(inner_sums, new_sums, strict=True):
            phi.add_incoming(value, inner)
        builder.cbranch(builder.icmp_signed("<", next_step, steps), inner, after_inner)

        builder.position_at_end(after_inner)
        next_jump = builder.add(jump, _count(1))
        jump.add_incoming(next_jump, after_inner)
        a_outer.add_incoming(builder.add(a_outer, a_jump), after_inner)
        b_outer.add_incoming(builder.add(b_outer, b_jump), after_inner)
        for phi, value in zip(outer_sums, new_sums, strict=True):
            phi.add_incoming(value, after_inner)
        builder.cbranch(builder.icmp_signed("<", next_jump, jumps), outer, done)

        builder.position_at_end(done)
        # Added at the end, not begun with: so long sums are sums of shorter ones.
        adding, writing, end = (builder.append_basic_block(n) for n in ("adding", "writing", "end"))
        builder.cbranch(builder.icmp_signed("!=", add, _count(0)), adding, writing)
        builder.position_at_end(adding)
        self._store(
            [builder.fadd(self._load(e), v) for e, v in zip(self.entries, new_sums, strict=True)]
        )
        builder.branch(end)
        builder.position_at_end(writing)
        self._store(new_sums)
        builder.branch(end)
        builder.position_at_end(end)

    def _store(self, values: list[Any]) -> None:
        for value, entry in zip(values, self.entries, strict=True):
            self.builder.store(value, entry).align = 4

    def _products(self, a: Any, a_row: Any, b: Any, sums: list[Any]) -> list[Any]:
        builder = self.builder
        multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_VECTOR, [_VECTOR] * 3),
            f"llvm.fmuladd.v{LANES}f32",  # one instruction where there is one
        )
        undefined, index = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        everywhere = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
        columns = [self._load(self._pointer(b, 4 * LANES * v)) for v in range(_VECTORS)]
        new_sums = []
        for m in range(self.rows):
            at = builder.inttoptr(builder.add(a, builder.mul(a_row, _count(m))), _F32.as_pointer())
            lane = builder.insert_element(undefined, builder.load(at), ir.Constant(index, 0))
            factor = builder.shuffle_vector(lane, undefined, everywhere)
            new_sums += [
                builder.call(multiply_add, [factor, columns[v], sums[m * _VECTORS + v]])
                for v in range(_VECTORS)
            ]
        return new_sums

    def _phis(self, incoming: list[tuple[Any, Any, Any]]) -> list[Any]:
        phis = []
        for of_type, block, value in incoming:
            phi = self.builder.phi(of_type)
            phi.add_incoming(value, block)
            phis.append(phi)
        return phis

    def _pointer(self, address: Any, offset: int) -> Any:
        return self.builder.inttoptr(
            self.builder.add(address, _count(offset)), _VECTOR.as_pointer()
        )

    def _load(self, pointer: Any) -> Any:
        value = self.builder.load(pointer)
        value.align = 4
        return value


def _count(value: int) -> Any:
    return ir.Constant(_I64, value)


_largest, _four, _two, _one = (_tile_of(rows) for rows in (ROWS, 4, 2, 1))


@device
def tile(rows, a, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps, c, c_row, add):
    """Add a panel of COLUMNS columns, C[m, :] (+)= Σ_jt A[m, j, t] B[j, t, :] for m < ``rows``.

    All are addresses and distances in bytes: A[m, j, t] is at a + m·a_row + j·a_jump + t·a_step,
    the row B[j, t] at b + j·b_jump + t·b_step, the row C[m] at c + m·c_row; j < ``jumps`` and
    t < ``steps``, both at least 1. With ``add`` nonzero the sums are added to what C holds.
    """
    m = 0
    while rows - m >= ROWS:
        _largest(
            a + m * a_row, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps,
            c + m * c_row, c_row, add,
        )  # fmt: skip
        m += ROWS
    while rows - m >= 4:
        _four(
            a + m * a_row, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps,
            c + m * c_row, c_row, add,
        )  # fmt: skip
        m += 4
    while rows - m >= 2:
        _two(
            a + m * a_row, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps,
            c + m * c_row, c_row, add,
        )  # fmt: skip
        m += 2
    if rows - m == 1:
        _one(
            a + m * a_row, a_row, a_step, a_jump, b, b_step, b_jump, jumps, steps,
            c + m * c_row, c_row, add,
        )  # fmt: skip
