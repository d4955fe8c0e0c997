"""``refkd doctor --warm-up``: all that a backend has runs once, in float32."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd import dispatch, models
from refkd.cli import doctor, warm_up
from refkd.dispatch import Backend, available_backends, registered_kernels
from tests.backends.processes import run


class Probe:
    """A backend that leaves all to the reference and remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in registered_kernels()}
        self.pruned = 0
        self.backend = Backend(
            name="probe",
            array_type=np.ndarray,
            asarray=np.asarray,
            to_numpy=np.asarray,
            synchronize=lambda: None,
            kernels={name: self.kernel(name) for name in self.calls},
            prune_cache=self.prune,
        )

    def kernel(self, name: str) -> Callable[..., Any]:
        def remember(*args: Any, **kwargs: Any) -> Any:
            self.calls[name].append(args)
            return NotImplemented

        return remember

    def prune(self) -> None:
        self.pruned += 1

    def arrays(self) -> list[Any]:
        return [a for calls in self.calls.values() for c in calls for a in c if hasattr(a, "dtype")]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """The probe, selectable by its name."""
    probe = Probe()
    monkeypatch.setitem(dispatch._loaded, "probe", probe.backend)
    return probe


@pytest.fixture
def small_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the test the training of large networks."""
    small = {"mlp": warm_up._NETWORKS["mlp"], "vgg": {"blocks": ((4,), (4,)), "image_size": 32}}
    monkeypatch.setattr(warm_up, "_NETWORKS", small)


def test_every_kernel_runs_in_float32_and_in_two_layouts(
    probe: Probe, small_networks_alone: None
) -> None:
    warm_up.warm_up(probe.backend)
    assert [name for name, calls in probe.calls.items() if not calls] == []
    floating = {str(a.dtype) for a in probe.arrays() if a.dtype.kind == "f"}
    assert floating == {"float32"}
    for name, calls in probe.calls.items():
        images = [a for call in calls for a in call[:1] if getattr(a, "ndim", 0) == 4 and a.size]
        layouts = {np.moveaxis(image, 1, -1).flags.c_contiguous for image in images}
        assert layouts in ({True, False}, set()) or registered_kernels()[name].pair is None, name
    assert probe.pruned == 1


def test_a_network_of_every_family_is_trained() -> None:
    assert warm_up._NETWORKS.keys() == models.MODELS.keys()


def test_doctor_says_how_long_it_took_and_then_what_it_always_says(
    probe: Probe, small_networks_alone: None, monkeypatch: pytest.MonkeyPatch, refkd: Any
) -> None:
    ready = {"numpy": None, "probe": None, "absent": "backend 'absent': nobody knows it"}
    monkeypatch.setattr(doctor, "available_backends", lambda: ready)
    code, out, err = refkd("doctor", "--warm-up")
    assert code == 0
    assert err.startswith("backend 'probe': warmed up in ")
    assert err.count("\n") == 1
    assert "backend 'probe': ready" in out
    monkeypatch.setattr(doctor, "warm_up", lambda backend: 2.5)
    assert json.loads(refkd("doctor", "--warm-up", "--json").out)["warm_up_seconds"] == {
        "probe": 2.5
    }
    _, _, err = refkd("doctor", "--warm-up", "--backend", "probe")
    assert err == "backend 'probe': warmed up in 2.5 s\n"
    assert refkd("doctor", "--warm-up", "--backend", "numpy").err == ""


def test_doctor_refuses_a_backend_that_is_unknown_or_has_nothing_to_do(
    probe: Probe, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = refkd("doctor", "--warm-up", "--backend", "prob")
    assert (code, "did you mean" in err or "must be one of" in err) == (2, True)
    code, _, err = refkd("doctor", "--backend", "probe")
    assert (code, "--warm-up" in err) == (2, True)
    absent = Backend("probe", np.ndarray, *[np.asarray] * 2, lambda: None, unavailable_reason="no")
    monkeypatch.delitem(dispatch._loaded, "probe")
    monkeypatch.setattr(dispatch, "_known_backends", lambda: {"probe": lambda: absent})
    code, _, err = refkd("doctor", "--warm-up", "--backend", "probe")
    assert (code, err) == (4, "refkd doctor: backend 'probe': no\n")


@pytest.mark.slow
@pytest.mark.skipif(available_backends()["numba"] is not None, reason="there is no Numba")
def test_a_warm_up_compiles_all_there_is_and_after_it_nothing_is_compiled_any_more() -> None:
    program = "import sys; from refkd.cli import main; sys.exit(main(['doctor', '--warm-up']))"
    run(program)
    everything = """
        import importlib, pkgutil
        import refkd_numba
        from numba.core.caching import FunctionCache
        from refkd.cli.warm_up import warm_up

        warm_up(refkd_numba.backend)
        for module in pkgutil.walk_packages(refkd_numba.__path__, "refkd_numba."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(getattr(value, "_cache", None), FunctionCache):
                    if not value.overloads:
                        print(module.name, name)
    """
    finished = run(textwrap.dedent(everything))
    assert finished.stdout == ""
    assert finished.stderr == ""
