"""CUDA sources as text, the parameters of their kernels, and whether arguments fit them.

Nothing here needs CuPy or a GPU. A kernel is declared ``extern "C" __global__ void name(...)``;
in a macro its name may end in ``##SUFFIX``, which stands for any word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refkd.errors import ConfigError

__all__ = [
    "Form",
    "Parameter",
    "as_dimensions",
    "check_arguments",
    "check_grid",
    "forms",
    "signature",
    "text",
]

_FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^[ \t]*#include "(\w+\.cuh)"[^\n]*$', re.MULTILINE)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?([\w#]+)\s*\(([^)]*)\)'
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_POINTER = re.compile(r"(const )?([\w ]+?)\*(\w+)")
_DTYPES = {
    "bool": np.bool_,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float": np.float32,
    "double": np.float64,
}
_VECTORS = {"float2": ("float", 8), "float4": ("float", 16), "int4": ("int", 16)}
_VECTORS |= {"uchar4": ("unsigned char", 4), "double2": ("double", 16)}
_MOST_THREADS = 1024
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)


class Parameter(NamedTuple):
    """What a kernel declares of one parameter.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    is_pointer, is_written : bool
    alignment : int
        Bytes of which an address is a multiple.
    """

    name: str
    dtype: np.dtype[Any]
    is_pointer: bool
    is_written: bool
    alignment: int


# Of a parameter whether it is a pointer, its dtype, the type of its scalars, and the alignment.
Form = tuple[bool, np.dtype[Any], type, int]


@functools.cache
def text(stem: str) -> str:
    """Return a source with what it includes from beside it in its place, each file once."""
    included: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in included:
            return ""
        included.add(name)
        return _INCLUDE.sub(replace, (_FOLDER / name).read_text(encoding="utf-8"))

    return _INCLUDE.sub(replace, (_FOLDER / f"{stem}.cu").read_text(encoding="utf-8"))


@functools.cache
def signature(stem: str, name: str) -> tuple[Parameter, ...]:
    """Return the parameters of a kernel.

    Raises
    ------
    ConfigError
        If the source declares no such kernel.
    """
    declared = _declared(stem)
    if name in declared:
        return declared[name]
    fitting = [
        pattern
        for pattern in declared
        if "##" in pattern and re.fullmatch(re.sub(r"##\w+?(?=##|$)", r"\\w+", pattern), name)
    ]
    if not fitting:
        known = ", ".join(declared)
        raise ConfigError(f"{stem}.cu: no kernel is named {name!r}, but {known}")
    return declared[max(fitting, key=len)]


@functools.cache
def forms(stem: str, name: str) -> tuple[Form, ...]:
    """Return of a kernel's parameters what is compared at each launch."""
    return tuple(
        (parameter.is_pointer, parameter.dtype, parameter.dtype.type, parameter.alignment)
        for parameter in signature(stem, name)
    )


@functools.cache
def _declared(stem: str) -> dict[str, tuple[Parameter, ...]]:
    code = _COMMENT.sub(" ", text(stem).replace("\\\n", " "))
    return {
        match.group(1): tuple(_parameter(stem, p) for p in match.group(2).split(",") if p.strip())
        for match in _KERNEL.finditer(code)
    }


def _parameter(stem: str, declaration: str) -> Parameter:
    words = re.sub(r"\s+", " ", declaration.replace("__restrict__", " ")).strip()
    pointer = _POINTER.fullmatch(re.sub(r" ?\* ?", "*", words))
    if pointer:
        constant, kind, name = pointer.groups()
    else:
        kind, _, name = words.removeprefix("const ").rpartition(" ")
        constant = "const"
    base, alignment = _VECTORS.get(kind.strip(), (kind.strip(), 1))
    if base not in _DTYPES or (alignment > 1 and not pointer):
        raise ConfigError(f"{stem}.cu: cannot read the parameter {declaration.strip()!r}")
    dtype = np.dtype(_DTYPES[base])
    return Parameter(name, dtype, bool(pointer), not constant, max(alignment, dtype.itemsize))


def check_arguments(
    stem: str,
    name: str,
    arguments: Sequence[Any],
    is_array: Callable[[Any], bool],
    address: Callable[[Any], int],
) -> tuple[Parameter, ...]:
    """Return the kernel's parameters once the arguments are known to fit them.

    An argument is an array that fills its memory in C order, None for a pointer to nothing, or
    a scalar of NumPy of just the type declared: a Python number has no width.

    Raises
    ------
    ConfigError
        If one does not fit.
    """
    parameters = signature(stem, name)
    if len(arguments) != len(parameters):
        raise ConfigError(f"{name}: takes {len(parameters)} arguments, got {len(arguments)}")
    for parameter, argument in zip(parameters, arguments, strict=True):
        wrong = _misfit(parameter, argument, is_array, address)
        if wrong:
            raise ConfigError(f"{name}: {parameter.name} {wrong}")
    return parameters


def _misfit(
    parameter: Parameter,
    argument: Any,
    is_array: Callable[[Any], bool],
    address: Callable[[Any], int],
) -> str:
    if not parameter.is_pointer:
        if type(argument) is parameter.dtype.type:
            return ""
        return f"must be a numpy.{parameter.dtype} scalar, got {type(argument).__name__}"
    if argument is None:
        return ""
    if not is_array(argument):
        return f"must be an array of the device, got {type(argument).__name__}"
    if argument.dtype != parameter.dtype:
        return f"must be {parameter.dtype}, got {argument.dtype}"
    if not argument.flags.c_contiguous:
        return f"must be C-contiguous, got strides {argument.strides} for {argument.shape}"
    if address(argument) % parameter.alignment:
        return f"must lie at a multiple of {parameter.alignment} bytes"
    return ""


def as_dimensions(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
    """Return the sizes of a grid or a block as three."""
    if type(sizes) is int:
        return sizes, 1, 1
    given = sizes if isinstance(sizes, tuple) else (sizes,)
    x, y, z = (*map(int, given), 1, 1, 1)[:3]
    return x, y, z


def check_grid(name: str, grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    """Raise ConfigError if no GPU takes such a grid or such blocks."""
    fits = all(0 < n <= most for n, most in zip(grid, _MOST_BLOCKS, strict=True))
    if not fits:
        raise ConfigError(f"{name}: a grid of {grid} blocks; at most {_MOST_BLOCKS}, at least 1")
    threads = block[0] * block[1] * block[2]
    if min(block) < 1 or threads > _MOST_THREADS or block[2] > 64:
        raise ConfigError(f"{name}: blocks of {block} threads; at most {_MOST_THREADS}")
