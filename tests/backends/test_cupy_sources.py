"""What launchers may hand to kernels, what the kernels declare, and that they compile."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import refkd_cupy
from refkd import dispatch
from refkd.errors import ConfigError
from refkd_cupy import source
from tests.backends import cuda_host as host
from tests.backends.calls import Call, calls, reference
from tests.backends.override import Override

FOLDER = Path(source.__file__).parent
SOURCES = sorted(path.stem for path in FOLDER.glob("*.cu"))
ARCHITECTURES = (75, 80, 90)

needs_gpp = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")


def launch(*arguments: Any, kernel: str = "dropout", grid: Any = 1, block: Any = 64) -> None:
    host.launch("dropout", kernel, grid, block, list(arguments))


def given() -> list[Any]:
    x, y = host.asarray(np.ones(8, "f")), host.empty((8,))
    return [x, host.asarray(np.ones(8, np.bool_)), y, np.int64(8), np.float32(2)]


@needs_gpp
def test_a_launch_runs() -> None:
    arguments = given()
    launch(*arguments)
    np.testing.assert_array_equal(arguments[2], 2)


@pytest.mark.parametrize(
    ("place", "argument", "words"),
    [
        (0, np.ones(8), "x must be float32, got float64"),
        (0, np.ones((8, 2), "f")[:, 0], "x must be C-contiguous"),
        (0, 1.0, "x must be an array of the device, got float"),
        (1, np.ones(8, np.uint8), "mask must be bool, got uint8"),
        (3, 8, "n must be a numpy.int64 scalar, got int"),
        (3, np.int32(8), "n must be a numpy.int64 scalar, got int32"),
        (4, np.float64(2), "scale must be a numpy.float32 scalar, got float64"),
        (4, None, "scale must be a numpy.float32 scalar, got NoneType"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(place: int, argument: Any, words: str) -> None:
    arguments = given()
    arguments[place] = argument
    with pytest.raises(ConfigError, match=re.escape(words)):
        launch(*arguments)


def test_a_wrong_number_of_arguments_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 5 arguments, got 4"):
        launch(*given()[:-1])


def test_an_unknown_kernel_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(ConfigError, match=r"dropout\.cu: no kernel is named 'drop', but dropout"):
        launch(*given(), kernel="drop")


@pytest.mark.parametrize(
    ("grid", "block"), [(0, 64), (2**31, 64), ((1, 65536), 64), (1, 0), (1, 1025), (1, (1, 1, 65))]
)
def test_a_grid_that_no_device_takes_is_refused(grid: Any, block: Any) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        launch(*given(), grid=grid, block=block)


def test_what_is_declared_as_a_vector_must_be_aligned() -> None:
    declared = source._parameter("a", "const float4* __restrict__ x")
    assert (declared.dtype, declared.alignment, declared.is_written) == (np.dtype("f"), 16, False)
    array = host.empty((9,))
    assert "multiple of 16" in source._misfit(declared, array[1:], host.is_array, host.pointer)
    assert not source._misfit(declared, array, host.is_array, host.pointer)


@pytest.mark.parametrize("stem", SOURCES)
def test_every_kernel_s_parameters_can_be_read(stem: str) -> None:
    declared = source._declared(stem)
    assert declared, f"{stem}.cu declares no kernel"
    assert source.text(stem).count("__global__") == len(declared), "one declaration is not read"
    for name, parameters in declared.items():
        # A table of addresses may say what is written.
        written = any(p.is_written or (p.dtype == np.int64 and p.is_pointer) for p in parameters)
        assert written, f"{name} writes nothing"


@pytest.mark.parametrize("stem", SOURCES)
def test_a_source_is_plain_cuda_of_its_own(stem: str) -> None:
    code = source.text(stem)
    assert "#include" not in code, "what is included must lie beside it, and nothing else"
    assert not re.search(r"atomicAdd\s*\(\s*\(?float", code)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiling for a GPU needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stem", SOURCES)
def test_a_source_compiles_and_what_is_hot_does_not_spill(
    stem: str, architecture: int, tmp_path: Path
) -> None:
    code = tmp_path / f"{stem}.cu"
    code.write_text(source.text(stem), encoding="utf-8")
    done = subprocess.run(
        ["nvcc", "--cubin", "-std=c++17", "-ftz=true", f"-arch=sm_{architecture}", "-Xptxas", "-v",
         "-o", str(tmp_path / "out.cubin"), str(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spilling = set(re.findall(
        r"Function properties for (\w+)\n\s+\d+ bytes stack frame, (?!0 bytes spill stores)",
        done.stderr,
    ))  # fmt: skip
    spilled = {name for name in spilling if any(re.fullmatch(p, name) for p in hot_kernels(stem))}
    assert not spilled, done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiling for a GPU needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "instruction"), [(75, "trap"), (80, "mma.sync")])
def test_a_product_without_tensor_cores_is_an_error(
    architecture: int, instruction: str, tmp_path: Path
) -> None:
    common = FOLDER.joinpath("common.cuh").read_text(encoding="utf-8")
    code = """extern "C" __global__ void k(float* out) {
      float d[4] = {}; uint32 a[4] = {}, b[2] = {};
      mma_tf32(d, a, b);
      out[threadIdx.x] = d[0];
    }"""
    written = tmp_path / "k.cu"
    written.write_text(f"{common}\n{code}", encoding="utf-8")
    command = ["nvcc", "--ptx", f"-arch=compute_{architecture}", "-o", "-", str(written)]
    ptx = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [word for word in ("trap", "mma.sync") if word in ptx] == [instruction]


def hot_kernels(stem: str) -> Iterator[str]:
    """Yield patterns for the names of the kernels that say they are hot.

    They say so in a line before, ``// hot``, or, where macros declare them, in one line for all,
    ``// hot: softmax_forward_* softmax_backward_*``.
    """
    for match in re.finditer(
        r'// hot[ \t]*\n\s*extern\s+"C"\s+__global__\s+void\s+'
        r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)",
        source.text(stem),
    ):
        yield match.group(1)
    for match in re.finditer(r"// hot: ([\w* ]+)", source.text(stem)):
        for words in match.group(1).split():
            yield words.replace("*", r"\w*")


# ---- Mistakes in kernels of the backend, each of which the emulation must see

BLOCK_KERNELS = {"_NARROW": 0, "_WIDE": 0}


def results(kernel: str, call: Call, old: str, new: str) -> list[Any]:
    """Return what an override makes of a call once ``old`` in its source is ``new``."""
    backend = host.host_backend(*refkd_cupy._MODULES)
    read = source.text

    def mutated(stem: str) -> str:
        return read(stem).replace(old, new)

    rows = host.launchers("rows")["rows"]
    with (
        mock.patch.dict(dispatch._loaded, {backend.name: backend}),
        mock.patch.object(source, "text", mutated),
        mock.patch.multiple(rows, **BLOCK_KERNELS),
        host.on_the_host(),
    ):
        return Override(backend, kernel).results(call, "odd address")


def call_of(kernel: str) -> Call:
    """Return a call of more than one block, whose arrays have no multiple of 4 entries."""
    for call in calls(kernel):
        size = next(iter(call.arrays.values())).size
        if size > 800 and size % 4:
            return call
    return max(calls(kernel), key=lambda call: next(iter(call.arrays.values())).size)


@needs_gpp
@pytest.mark.parametrize(
    ("kernel", "old", "new"),
    [
        ("softmax_forward", "= value;\n  __syncthreads();", "= value;\n"),
        ("softmax_cross_entropy_forward", "if (row.is_own) log_q[i] = log;", ""),
        ("gelu_forward", "y[i] = f(x[i]);", "y[i + 1] = f(x[i]);"),
        ("relu_forward", "i < n; i += step) y[i] = f(x[i])", "i <= n; i += step) y[i] = f(x[i])"),
        ("mse_forward", "if (threadIdx.x == 0) sums[blockIdx.x] = sum;",
         "if (threadIdx.x == 0) sums[0] = sum;"),
        ("dropout_forward", "vectors = aligned ? n / 4 : 0", "vectors = n / 4"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_kernel_is_seen(kernel: str, old: str, new: str) -> None:
    call = call_of(kernel)
    expected = reference(call)
    np.testing.assert_allclose(results(kernel, call, "", "")[0], expected[0], rtol=1e-4, atol=1e-5)
    try:
        actual = results(kernel, call, old, new)
    except host.KernelError:
        return
    assert any(
        not np.allclose(a, e, rtol=1e-3, atol=1e-5) for a, e in zip(actual, expected, strict=True)
    )
