"""Why the CuPy backend cannot be used: each reason is one line that says what to do."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

import refkd_cupy
from refkd.switches import switch
from refkd_cupy import probe, settings


class CudaError(RuntimeError):
    def __init__(self, status: int, words: str = "cudaErrorOfSomeKind") -> None:
        super().__init__(words)
        self.status = status


class OutOfMemoryError(MemoryError):
    pass


def raising(error: Exception) -> Any:
    def function(*arguments: Any, **options: Any) -> Any:
        raise error

    return function


class FakeArray:
    """Ones, of which a kernel makes threes."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __add__(self, other: Any) -> FakeArray:
        return self

    def sum(self) -> float:
        return 96.0

    def reshape(self, *shape: int) -> FakeArray:
        return self


def fake_cupy(version: str = "14.2.0", **changes: Any) -> types.ModuleType:
    """Return a module that answers as CuPy does on a machine where all works, but for changes."""
    runtime = {
        "getDeviceCount": lambda: 1,
        "driverGetVersion": lambda: 13000,
        "runtimeGetVersion": lambda: 13000,
    }
    functions = {
        "empty": lambda *a: FakeArray(),
        "RawKernel": lambda *a, **k: lambda *b: None,
        "gemm": lambda *a, **k: None,
    }
    for name, change in changes.items():
        (runtime if name in runtime else functions)[name] = change
    module = types.ModuleType("cupy")
    module.__version__ = version  # type: ignore[attr-defined]
    stream = types.SimpleNamespace(synchronize=lambda: None)
    module.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        runtime=types.SimpleNamespace(**runtime), get_current_stream=lambda: stream
    )
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def reason(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> str | None:
    blas = types.ModuleType("refkd_cupy.blas")
    blas.gemm = vars(cupy).get("gemm") if cupy else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "refkd_cupy.blas", blas)
    return probe.reason_against()


def test_there_is_no_reason_where_all_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, fake_cupy()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "13.4.1"}, "CuPy 13.4.1 is too old, 14.0 is the oldest that works"),
        ({"getDeviceCount": raising(CudaError(100))}, "no NVIDIA GPU that programs may see"),
        ({"getDeviceCount": lambda: 0}, "no NVIDIA GPU that programs may see"),
        (
            {"getDeviceCount": raising(CudaError(35)), "driverGetVersion": lambda: 0},
            "there is no NVIDIA driver; install one",
        ),
        (
            {"getDeviceCount": raising(CudaError(35)), "driverGetVersion": lambda: 12040},
            "the NVIDIA driver serves CUDA 12.4 and this CuPy needs 13.0; update the driver",
        ),
        ({"getDeviceCount": raising(CudaError(999))}, "CUDA does not start (CudaError"),
        ({"empty": raising(OutOfMemoryError("Out of memory"))}, "the GPU's memory is taken"),
        ({"empty": raising(CudaError(2))}, "the GPU's memory is taken"),
        ({"empty": raising(CudaError(46))}, "the GPU is held by another program"),
        (
            {"RawKernel": raising(RuntimeError("failed to load libnvrtc.so.13"))},
            "NVRTC does not work (RuntimeError: failed to load libnvrtc.so.13); pip install",
        ),
        (
            {"gemm": raising(OSError("libcublas.so.13: cannot open\nshared object file"))},
            "cuBLAS does not work (OSError: libcublas.so.13: cannot open shared object file); pip",
        ),
        ({"RawKernel": raising(RuntimeError("what is this"))}, "the GPU does not work"),
    ],
)
def test_a_reason_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    given = reason(monkeypatch, fake_cupy(**changes))
    assert given is not None
    assert words in given
    assert "\n" not in given
    assert any(advice in given for advice in ("pip install", "nvidia-smi", "install one", "update"))


def test_cupy_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = reason(monkeypatch, None)
    assert given is not None
    assert "refkd[cuda13]" in given


def test_cupy_that_does_not_import_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ImportError("libcuda.so.1:\ncannot open")

    given = reason(monkeypatch, Broken("cupy"))
    assert given is not None
    assert given.startswith("CuPy does not import (ImportError: libcuda.so.1: cannot open)")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("REFKD_TF32", "false", "REFKD_TF32 must be 0 or 1, got 'false'"),
        ("REFKD_THREE_TERMS", "no", "REFKD_THREE_TERMS must be 0 or 1, got 'no'"),
        *(
            ("REFKD_GPU_MEMORY", value, f"such as 50%, got '{value}'")
            for value in ("150%", "0%", "nan%", "%", "inf", "0", "-1", "1e30", "half", "2 GB")
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.delitem(sys.modules, "refkd_cupy.settings")
    monkeypatch.setenv(variable, value)
    given = refkd_cupy._backend().unavailable_reason
    assert given is not None
    assert given.startswith(f"{variable} must be ")
    assert words in given


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"": {}, "100%": {"fraction": 1}, " 12.5% ": {"fraction": 0.125}, "1": {"size": 1}}
    for value, limit in (limits | {"2e9": {"size": 2_000_000_000}}).items():
        monkeypatch.setenv("REFKD_GPU_MEMORY", value)
        assert settings._limit("REFKD_GPU_MEMORY") == limit
    for value, default, expected in (("1", False, True), ("0", True, False), ("", True, True)):
        monkeypatch.setenv("REFKD_TF32", value)
        assert switch("REFKD_TF32", default=default) == expected


def test_every_setting_but_the_limit_of_memory_chooses_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in {*settings.__all__} - {"choices", "memory_limit"}:
        before = settings.choices()
        monkeypatch.setattr(settings, name, not getattr(settings, name))
        assert settings.choices() != before, name
