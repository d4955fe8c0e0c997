"""The emulation itself: it computes what a GPU would, and sees what a GPU would not forgive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd_cupy import source
from tests.backends import cuda_host as host

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")


def run(code: str, *arguments: Any, grid: Any = 1, block: Any = 64, shared: int = 0) -> None:
    """Run the kernel ``k`` of a source, with 8 drawn orders of threads."""
    common = Path(source.__file__).with_name("common.cuh").read_text(encoding="utf-8")
    parameters = [
        source.Parameter("a", a.dtype, isinstance(a, np.ndarray), True, 1)
        if a is not None
        else source.Parameter("a", np.dtype("f"), True, True, 1)
        for a in arguments
    ]
    for seed in range(8):
        host.run_text(
            f'{common}\nextern "C" __global__ void k{code}',
            "k",
            parameters,
            source.as_dimensions(grid),
            source.as_dimensions(block),
            arguments,
            shared,
            seed,
        )


def test_every_thread_of_every_block_runs_once() -> None:
    counts = host.asarray(np.zeros((3, 2, 2, 4, 8), np.int32))
    code = """(int* counts) {
      int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      counts[block * 64 + thread] += 1;
    }"""
    run(code, counts, grid=(1, 2, 3), block=(8, 4, 2))
    np.testing.assert_array_equal(counts, 8)


def test_blocks_and_warps_sum_and_find_maxima() -> None:
    x = host.asarray(np.random.default_rng(0).standard_normal((5, 96)).astype("f"))
    out = host.empty((5, 3))
    code = """(const float* x, float* out) {
      float value = x[blockIdx.x * 96 + threadIdx.x];
      float sum = block_sum(value), again = block_sum(2 * value), top = block_max(value);
      if (threadIdx.x == 70) {
        out[3 * blockIdx.x] = sum; out[3 * blockIdx.x + 1] = again; out[3 * blockIdx.x + 2] = top;
      }
    }"""
    run(code, x, out, grid=5, block=96)
    np.testing.assert_allclose(out, np.stack([x.sum(1), 2 * x.sum(1), x.max(1)], 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("__shfl_sync(FULL_MASK, lane, 5)", lambda i: 5),
        ("__shfl_sync(FULL_MASK, lane, 1, 8)", lambda i: i // 8 * 8 + 1),
        ("__shfl_xor_sync(FULL_MASK, lane, 3)", lambda i: i ^ 3),
        ("__shfl_down_sync(FULL_MASK, lane, 4)", lambda i: i + 4 if i < 28 else i),
        ("__shfl_up_sync(FULL_MASK, lane, 4)", lambda i: i - 4 if i >= 4 else i),
        ("__popc(__ballot_sync(FULL_MASK, lane % 3 == 0))", lambda i: 11),
        ("__any_sync(FULL_MASK, lane == 7)", lambda i: 1),
        ("__all_sync(FULL_MASK, lane != 7)", lambda i: 0),
    ],
)
def test_operations_of_a_warp(operation: str, expected: Any) -> None:
    out = host.empty((64,), np.int32)
    run(f"(int* out) {{ int lane = lane_index(); out[threadIdx.x] = {operation}; }}", out)
    np.testing.assert_array_equal(out, [expected(i % 32) for i in range(64)])


def test_tensor_cores_multiply_what_is_left_of_10_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = (host.asarray(rng.standard_normal(s).astype("f")) for s in ((16, 8), (8, 8)))
    out = host.empty((16, 8))
    code = """(const float* a, const float* b, float* out) {
      int g = lane_index() / 4, t = lane_index() % 4;
      float d[4] = {0, 0, 0, 0};
      unsigned x[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                       to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
      unsigned y[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
      mma_tf32(d, x, y);
      for (int i = 0; i < 4; i++) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
    }"""
    run(code, a, b, out, block=32)
    assert 1e-5 < np.abs(out - a @ b).max() < 1e-2


_COPIED = """(const float* x, float* y) {{
  __shared__ float tile[64];
  cp_async<4>(&tile[threadIdx.x], &x[threadIdx.x], threadIdx.x != 3);
  cp_async_commit();
  {wait}
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}}"""


def test_asynchronous_copies_arrive_when_waited_for() -> None:
    x, y = host.asarray(np.arange(64, dtype="f")), host.empty((64,))
    run(_COPIED.format(wait="cp_async_wait<0>();"), x, y)
    np.testing.assert_array_equal(y, [x[63 - i] if i != 60 else 0 for i in range(64)])
    run(_COPIED.format(wait="cp_async_wait<1>();"), x, y)
    assert np.isnan(y).all()


_MIRRORED = """(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x];
  BARRIER
  y[threadIdx.x] = tile[63 - threadIdx.x];
}"""


def test_a_missing_barrier_shows_as_values_that_are_not_there() -> None:
    x, y = host.asarray(np.arange(64, dtype="f")), host.empty((64,))
    run(_MIRRORED.replace("BARRIER", "__syncthreads();"), x, y, shared=256)
    np.testing.assert_array_equal(y, x[::-1])
    run(_MIRRORED.replace("BARRIER", ""), x, y, shared=256)
    assert np.isnan(y).any()


def test_static_shared_memory_of_templates_is_poisoned_too() -> None:
    out = host.empty((2,))
    code = """(float* out) {
      float seen = peek<float>();
      __syncthreads();
      if (threadIdx.x == 0) out[blockIdx.x] = seen;
    }"""
    text = """template <typename T> __device__ T peek() {
      __shared__ T kept[4];
      T seen = kept[1];
      __syncthreads();
      kept[threadIdx.x % 4] = 1;
      return seen;
    }
    """
    parameter = source.Parameter("out", np.dtype("f"), True, True, 4)
    code = f'{text}extern "C" __global__ void k{code}'
    host.run_text(code, "k", [parameter], (2, 1, 1), (32, 1, 1), [out])
    assert np.isnan(out).all()


def test_a_missing_second_barrier_shows() -> None:
    code = """(float* y) {
      __shared__ float tile[64];
      float sum = 0;
      for (int k = 0; k < 4; k++) {
        tile[threadIdx.x] = k;
        __syncthreads();
        sum += tile[63 - threadIdx.x];
        BARRIER
      }
      y[threadIdx.x] = sum;
    }"""
    y = host.empty((64,))
    run(code.replace("BARRIER", "__syncthreads();"), y)
    np.testing.assert_array_equal(y, 6)
    run(code.replace("BARRIER", ""), y)
    assert (y != 6).any()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("y[64] = 1;", "writes beyond"),
        ("y[-1] = 1;", "writes beyond"),
        ("__shared__ float t[8]; t[threadIdx.x] = 1; y[0] = t[0];", "an index beyond its array"),
        ("DYNAMIC_SHARED(float, t); t[16 + threadIdx.x] = 1;", "beyond dynamic shared"),
        ("*(float4*)(y + 1) = make_float4(0, 0, 0, 0);", "not aligned"),
        ("*(float*)(8ll << 40) = 1;", "segmentation fault"),
        ("if (threadIdx.x < 32) __syncthreads(); else __syncwarp(0x3);", "not in the mask"),
        ("if (threadIdx.x % 2) __shfl_xor_sync(FULL_MASK, 1, 1); else __syncthreads();", "end"),
        ("if (threadIdx.x < 5) return; y[0] = warp_sum(1.0f);", "a lane that is not there"),
        ("if (threadIdx.x < 7) { __syncthreads(); }\nelse { __syncthreads(); }", "different"),
    ],
)
def test_what_a_kernel_must_not_do_is_an_error(code: str, words: str) -> None:
    with pytest.raises(host.KernelError, match=words):
        run(f"(float* y) {{ {code} }}", host.empty((64,)), shared=64)


def test_a_write_into_an_input_is_an_error() -> None:
    x = host.asarray(np.zeros(8, "f"))
    parameter = source.Parameter("x", np.dtype("f"), True, False, 4)
    code = 'extern "C" __global__ void k(const float* x) { ((float*)x)[3] = 1; }'
    with pytest.raises(host.KernelError, match="into an input"):
        host.run_text(code, "k", [parameter], (1, 1, 1), (1, 1, 1), [x])


def test_float_atomics_do_not_compile() -> None:
    with pytest.raises(host.KernelError, match="no fixed order"):
        run("(float* y) { atomicAdd(y, 1.0f); }", host.empty((64,)))


def test_no_matrix_product_of_other_shapes() -> None:
    a, b = host.empty((3, 4)), host.empty((5, 4))
    with pytest.raises(ConfigError, match="shapes"):
        host.gemm(a, b, host.empty((3, 4)), transpose_b=True)


def test_more_shared_memory_than_a_block_may_have_is_refused() -> None:
    x, y, limit = host.asarray(np.ones(8, "f")), host.empty((8,)), host.host_device.shared_limit()
    arguments = [x, y, np.int64(8)]
    host.launch("activation", "relu_forward", 1, 32, arguments, shared=limit)
    with pytest.raises(host.KernelError, match=f"{limit + 1} bytes of shared memory"):
        host.launch("activation", "relu_forward", 1, 32, arguments, shared=limit + 1)
