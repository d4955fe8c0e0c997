"""Matrix products from compiled code: NumPy's own OpenBLAS where it has one, else SciPy's BLAS.

A second BLAS would be a second copy in memory and a second set of threads. The routine is
called by a symbol of our own, which must be registered before cached code is loaded.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

__all__ = ["PROVIDER", "dgemm", "sgemm"]

_SYMBOLS = ("scipy_{}_64_", "{}_64_")  # of an OpenBLAS with 64-bit integers


def _numpy_addresses() -> dict[str, int] | None:
    extension = importlib.import_module("numpy._core._multiarray_umath")
    try:
        library = ctypes.CDLL(str(extension.__file__))
    except OSError:
        return None
    for pattern in _SYMBOLS:
        found = {name: getattr(library, pattern.format(name), None) for name in ("sgemm", "dgemm")}
        if all(found.values()):
            return {
                name: int(ctypes.cast(f, ctypes.c_void_p).value or 0) for name, f in found.items()
            }
    return None


def _register() -> tuple[str, int]:
    addresses, provider, bits = _numpy_addresses(), "numpy", 64
    if addresses is None:
        module = "scipy.linalg.cython_blas"
        importlib.import_module(module)
        addresses = {n: get_cython_function_address(module, n) for n in ("sgemm", "dgemm")}
        provider, bits = "scipy", 32
    for name, address in addresses.items():
        llvmlite.binding.add_symbol(f"refkd_{name}", address)
    return provider, bits


PROVIDER, _BITS = _register()


def _gemm(name: str, kind: ir.Type, numba_kind: types.Type) -> Any:
    @intrinsic
    def gemm(typing_context, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        signature = types.void(
            types.boolean, types.boolean, *[types.intp] * 3, numba_kind, *[types.intp] * 4,
            numba_kind, *[types.intp] * 2,
        )  # fmt: skip

        def generate(context, builder, signature, arguments):
            trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
            integer, byte = ir.IntType(_BITS), ir.IntType(8)

            def by_reference(value, of_type):
                slot = cgutils.alloca_once(builder, of_type)
                builder.store(value, slot)
                return builder.bitcast(slot, pointer)

            def count(value):
                return by_reference(builder.trunc(value, integer) if _BITS < 64 else value, integer)

            def letter(transposed):
                return by_reference(
                    builder.select(transposed, ir.Constant(byte, 84), ir.Constant(byte, 78)), byte
                )

            def address(value):
                return builder.inttoptr(value, pointer)

            pointer = byte.as_pointer()
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [pointer] * 13), f"refkd_{name}"
            )
            # Fortran's C is our Cᵀ: Cᵀ = op(B)ᵀ op(A)ᵀ.
            builder.call(
                function,
                [
                    letter(trans_b), letter(trans_a), count(n), count(m), count(k),
                    by_reference(alpha, kind), address(b), count(ldb), address(a), count(lda),
                    by_reference(beta, kind), address(c), count(ldc),
                ],
            )  # fmt: skip
            return context.get_dummy_value()

        return signature, generate

    gemm.__doc__ = f"""Compute C ← alpha · op(A) op(B) + beta · C for rows in C order, by {name}.

    Parameters: trans_a, trans_b (bool), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, where
    a, b and c are addresses (``array.ctypes.data``), op(A) is (m, k), op(B) (k, n), C (m, n),
    and lda, ldb, ldc are entries from one stored row to the next. Nothing is checked.
    """
    return gemm


sgemm = _gemm("sgemm", ir.FloatType(), types.float32)
dgemm = _gemm("dgemm", ir.DoubleType(), types.float64)
