"""Matrix products from compiled code: NumPy's own OpenBLAS where it has one, else SciPy's BLAS.

A second BLAS would be a second copy in memory and a second set of threads. The routine is
called by a symbol of our own, which must be registered before cached code is loaded.
"""

from __future__ import annotations

import ctypes
import importlib

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

__all__ = ["PROVIDER", "sgemm"]

_SYMBOLS = ("scipy_sgemm_64_", "sgemm_64_")  # of an OpenBLAS with 64-bit integers
_OWN_SYMBOL = "refkd_sgemm"


def _numpy_address() -> int | None:
    extension = importlib.import_module("numpy._core._multiarray_umath")
    try:
        library = ctypes.CDLL(str(extension.__file__))
    except OSError:
        return None
    for symbol in _SYMBOLS:
        found = getattr(library, symbol, None)
        if found is not None:
            return ctypes.cast(found, ctypes.c_void_p).value
    return None


def _register() -> tuple[str, int]:
    address, provider, bits = _numpy_address(), "numpy", 64
    if address is None:
        module = "scipy.linalg.cython_blas"
        importlib.import_module(module)
        address, provider, bits = get_cython_function_address(module, "sgemm"), "scipy", 32
    llvmlite.binding.add_symbol(_OWN_SYMBOL, address)
    return provider, bits


PROVIDER, _BITS = _register()


@intrinsic
def sgemm(typing_context, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Compute C ← alpha · op(A) op(B) + beta · C for rows in C order, in float32.

    Parameters: trans_a, trans_b (bool), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, where
    a, b and c are addresses (``array.ctypes.data``), op(A) is (m, k), op(B) (k, n), C (m, n),
    and lda, ldb, ldc are entries from one stored row to the next. Nothing is checked.
    """
    signature = types.void(
        types.boolean, types.boolean, *[types.intp] * 3, types.float32, *[types.intp] * 4,
        types.float32, *[types.intp] * 2,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
        integer, byte, real = ir.IntType(_BITS), ir.IntType(8), ir.FloatType()
        pointer = byte.as_pointer()

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

        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer] * 13), _OWN_SYMBOL
        )
        # Fortran's C is our Cᵀ: Cᵀ = op(B)ᵀ op(A)ᵀ.
        builder.call(
            function,
            [
                letter(trans_b), letter(trans_a), count(n), count(m), count(k),
                by_reference(alpha, real), address(b), count(ldb), address(a), count(lda),
                by_reference(beta, real), address(c), count(ldc),
            ],
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, generate
