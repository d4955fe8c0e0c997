"""Dispatch, proven with small backends that are offered as a third party offers one."""

from __future__ import annotations

import inspect
import itertools
import pathlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refkd import dispatch
from refkd.dispatch import (
    Backend,
    available_backends,
    get_backend,
    kernel,
    namespace,
    registered_kernels,
    set_default_backend,
    use_backend,
)
from refkd.errors import BackendUnavailable, ConfigError, DtypeError

dispatch.registered_kernels()  # are there in each test: a module registers its own but once

X = np.array([1.0, 2.0, 3.0])


NO_ARRAYS = [None, 1, 1.0, True, "mean", np.float64(1), np.float32(1), [], (), [None], [1.0]]


class Device:
    """An array of another library, as far as dispatch can tell."""

    shape = (3,)
    dtype = np.dtype("float32")


class UnservedDevice(Device):
    """An array of a library that no loaded backend serves."""


@pytest.fixture(autouse=True)
def _dispatch_as_freshly_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tables: list[dict[Any, Any]] = [
        dispatch._kernels,
        dispatch._loaded,
        dispatch._by_array_type,
    ]
    before = [dict(table) for table in tables]
    dispatch._by_array_type.clear()
    monkeypatch.setattr(dispatch, "_default", None)
    monkeypatch.setattr(dispatch, "_KERNEL_PACKAGES", ())
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def twofold() -> Callable[..., Any]:
    """Give a kernel whose reference says that it ran."""

    @kernel
    def twofold_forward(x: Any, y: Any = None, *, factor: float = 2.0) -> Any:
        """Double."""
        return ("reference", x, y, factor)

    @kernel
    def twofold_backward(dy: Any, *, factor: float = 2.0) -> Any:
        return ("reference", dy, factor)

    return twofold_forward


@pytest.fixture
def variadic() -> Callable[..., Any]:
    """Give a kernel that takes any arguments."""

    @kernel
    def variadic_forward(*args: Any) -> Any:
        return "reference"

    return variadic_forward


@pytest.fixture
def offer_entry_point(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Install the metadata of a distribution that offers ``target`` as a backend."""
    serial = itertools.count()

    def offer_target(name: str, target: str) -> None:
        site = tmp_path / f"site{next(serial)}"
        metadata = site / f"{name}_provider-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Name: {name}-provider\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[refkd.backends]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(site))

    return offer_target


@pytest.fixture
def offer(
    offer_entry_point: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Backend]:
    """Offer a backend as a third party would: in a module, by an entry point."""

    def offer_backend(
        name: str = "fake",
        kernels: dict[str, Callable[..., Any]] | None = None,
        *,
        array_type: type = np.ndarray,
        unavailable_reason: str | None = None,
    ) -> Backend:
        backend = Backend(
            name=name,
            array_type=array_type,
            asarray=np.asarray,
            to_numpy=np.asarray,
            synchronize=lambda: None,
            kernels=kernels or {},
            unavailable_reason=unavailable_reason,
        )
        module = types.ModuleType(f"provider_of_{name}")
        module.backend = backend  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        offer_entry_point(name, f"{module.__name__}:backend")
        return backend

    return offer_backend


def override(x: Any, y: Any = None, *, factor: float = 2.0) -> Any:
    return ("override", x, y, factor)


def not_served(x: Any, y: Any = None, *, factor: float = 2.0) -> Any:
    return NotImplemented


def answering(answer: Any) -> Callable[..., Any]:
    def override(x: Any, y: Any = None, *, factor: float = 2.0) -> Any:
        return answer

    return override


def ran(result: Any) -> str:
    return str(result[0])


class TestKernels:
    def test_a_kernel_keeps_its_name_signature_and_docstring(self, twofold: Any) -> None:
        assert twofold.__name__ == "twofold_forward"
        assert twofold.__doc__ == "Double."
        assert list(inspect.signature(twofold).parameters) == ["x", "y", "factor"]

    def test_forward_and_backward_are_each_others_pair_by_name(self, twofold: Any) -> None:
        kernels = registered_kernels()
        assert kernels["twofold_forward"].pair == "twofold_backward"
        assert kernels["twofold_backward"].pair == "twofold_forward"
        assert kernels["twofold_forward"].call is twofold
        assert kernels["twofold_forward"].reference is twofold.__wrapped__

    def test_a_kernel_without_a_pair_keeps_its_reason(self) -> None:
        @kernel(pair=None, reason="writes into its argument")
        def made_up_update(parameter: Any) -> None: ...

        registered = registered_kernels()["made_up_update"]
        assert registered.pair is None
        assert registered.reason == "writes into its argument"

    def test_a_kernel_with_neither_pair_nor_reason_is_refused(self) -> None:
        def accuracy(x: Any) -> Any: ...

        with pytest.raises(ConfigError, match=r"kernel accuracy: .*says why"):
            kernel(accuracy)
        with pytest.raises(ConfigError, match=r"kernel accuracy: .*says why"):
            kernel(pair=None, reason="")(accuracy)
        assert "accuracy" not in registered_kernels()

    def test_a_name_taken_by_another_module_is_refused(self, twofold: Any) -> None:
        def twofold_forward(x: Any) -> Any: ...

        twofold_forward.__module__ = "elsewhere"
        with pytest.raises(ConfigError, match=f"twofold_forward: already registered by {__name__}"):
            kernel(twofold_forward)
        assert registered_kernels()["twofold_forward"].call is twofold

    def test_the_packages_of_kernels_are_loaded_to_list_them(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
    ) -> None:
        (tmp_path / "late_kernels.py").write_text(
            "from refkd.dispatch import kernel\n"
            "@kernel(pair=None, reason='a test')\n"
            "def late(x): return x\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(dispatch, "_KERNEL_PACKAGES", ("late_kernels",))
        assert "late" in registered_kernels()


class TestDispatch:
    def test_without_a_backend_the_reference_runs(self, twofold: Any) -> None:
        assert twofold(X, factor=3.0) == ("reference", X, None, 3.0)

    def test_a_hit_gets_the_arguments_unchanged(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        with use_backend("fake"):
            result = twofold(X, 1, factor=3.0)
        assert result[0] == "override"
        assert result[1] is X
        assert result[2:] == (1, 3.0)

    def test_a_missing_override_falls_through(self, twofold: Any, offer: Any) -> None:
        offer(kernels={})
        with use_backend("fake"):
            assert twofold(X, 1, factor=3.0) == ("reference", X, 1, 3.0)

    def test_not_implemented_falls_through(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": not_served})
        with use_backend("fake"):
            assert twofold(X, 1, factor=3.0) == ("reference", X, 1, 3.0)

    def test_an_error_in_an_override_is_not_swallowed(self, twofold: Any, offer: Any) -> None:
        def broken(x: Any, y: Any = None, *, factor: float = 2.0) -> Any:
            raise ZeroDivisionError

        offer(kernels={"twofold_forward": broken})
        with use_backend("fake"), pytest.raises(ZeroDivisionError):
            twofold(X)

    def test_a_falsy_result_of_an_override_counts(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": answering(None)})
        with use_backend("fake"):
            assert twofold(X) is None

    @pytest.mark.parametrize("kernels", [{}, {"twofold_forward": not_served}])
    def test_strict_raises_instead_of_falling_through(
        self, twofold: Any, offer: Any, kernels: Any
    ) -> None:
        offer(kernels=kernels)
        with (
            use_backend("fake", strict=True),
            pytest.raises(
                BackendUnavailable,
                match=r"twofold_forward: backend 'fake' .*\(float64 \(3,\), 1, factor=3\.0\)",
            ),
        ):
            twofold(X, 1, factor=3.0)

    def test_strict_lets_a_hit_pass(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        with use_backend("fake", strict=True):
            assert ran(twofold(X)) == "override"

    def test_the_reference_satisfies_a_strict_numpy_scope(self, twofold: Any) -> None:
        with use_backend("numpy", strict=True):
            assert ran(twofold(X)) == "reference"


def test_a_backend_is_selected_by_its_name(offer: Any) -> None:
    with pytest.raises(ConfigError, match="expected the name of a backend, got Backend"):
        get_backend(offer())


class TestArrayTypes:
    def test_a_device_array_finds_its_backend_without_a_scope(
        self, twofold: Any, offer: Any
    ) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        get_backend("gpu")
        assert ran(twofold(Device())) == "override"
        assert ran(twofold(X)) == "reference"

    def test_a_device_array_behind_a_scalar_may_be_named(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        get_backend("gpu")
        assert ran(twofold(1.0, y=Device())) == "override"
        assert ran(twofold(1.0, factor=2.0, y=X)) == "reference"

    def test_the_array_type_goes_before_the_scope(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        offer("cpu", {"twofold_forward": not_served})
        get_backend("gpu")
        for name in ("cpu", "numpy"):
            with use_backend(name):
                assert ran(twofold(Device())) == "override"

    def test_of_two_backends_for_one_array_type_the_selected_one_serves(
        self, twofold: Any, offer: Any
    ) -> None:
        for name in ("one", "two"):
            offer(name, {"twofold_forward": answering(name)}, array_type=Device)
            get_backend(name)
        for name in ("one", "two"):
            with use_backend(name):
                assert twofold(Device()) == name

    def test_numpy_arrays_do_not_reach_a_device_backend(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        with use_backend("gpu"):
            assert ran(twofold(X)) == "reference"
        with use_backend("gpu", strict=True), pytest.raises(BackendUnavailable, match="float64"):
            twofold(X)

    def test_arrays_that_nobody_serves_do_not_reach_a_numpy_backend(
        self, twofold: Any, offer: Any
    ) -> None:
        offer("cpu", {"twofold_forward": override})
        with use_backend("cpu"):
            assert ran(twofold(UnservedDevice())) == "reference"
            assert ran(twofold([UnservedDevice()])) == "reference"

    def test_the_first_array_decides(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        get_backend("gpu")
        assert ran(twofold(Device(), X)) == "override"
        assert ran(twofold(X, Device())) == "reference"

    @given(leading=st.lists(st.sampled_from(NO_ARRAYS), max_size=4))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_what_is_no_array_is_passed_over(
        self, variadic: Any, offer: Any, leading: list[Any]
    ) -> None:
        if "gpu" not in dispatch._loaded:
            offer("gpu", {"variadic_forward": lambda *args: "override"}, array_type=Device)
            get_backend("gpu")
        assert variadic(*leading, Device(), X) == "override"
        assert variadic(*leading, X, Device()) == "reference"
        assert variadic(*leading, UnservedDevice(), Device()) == "reference"
        assert variadic(*leading) == "reference"

    @pytest.mark.parametrize("container", [list, tuple])
    def test_the_first_element_of_a_list_counts(
        self, twofold: Any, offer: Any, container: Any
    ) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        get_backend("gpu")
        assert ran(twofold(container([Device(), Device()]))) == "override"
        assert ran(twofold(container([X, X]))) == "reference"

    def test_arrays_given_by_keyword_count(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device)
        get_backend("gpu")
        assert ran(twofold(x=Device())) == "override"
        assert ran(twofold(x=X)) == "reference"

    def test_a_subclass_of_ndarray_is_served_like_ndarray(self, twofold: Any, offer: Any) -> None:
        class Mapped(np.ndarray[Any, Any]): ...

        offer("cpu", {"twofold_forward": override})
        with use_backend("cpu"):
            assert ran(twofold(X.view(Mapped))) == "override"


class TestScope:
    def test_scopes_nest_and_end(self, twofold: Any, offer: Any) -> None:
        offer("outer", {"twofold_forward": answering("outer")})
        offer("inner", {"twofold_forward": answering("inner")})
        with use_backend("outer") as backend:
            assert backend.name == "outer"
            with use_backend("inner"):
                assert twofold(X) == "inner"
            assert twofold(X) == "outer"
        assert ran(twofold(X)) == "reference"

    def test_an_exception_ends_the_scope(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        with pytest.raises(KeyError), use_backend("fake", strict=True):
            raise KeyError
        assert ran(twofold(X)) == "reference"

    def test_strictness_is_the_inner_scopes(self, twofold: Any, offer: Any) -> None:
        offer(kernels={})
        with use_backend("fake", strict=True), use_backend("fake"):
            assert ran(twofold(X)) == "reference"
        with (
            use_backend("fake"),
            use_backend("fake", strict=True),
            pytest.raises(BackendUnavailable),
        ):
            twofold(X)

    def test_a_scope_does_not_leak_to_other_threads(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        with use_backend("fake"):
            assert ran(twofold(X)) == "override"
            assert in_thread(lambda: ran(twofold(X))) == "reference"

    def test_threads_hold_scopes_side_by_side(self, twofold: Any, offer: Any) -> None:
        names = ("one", "two", "three")
        for name in names:
            offer(name, {"twofold_forward": answering(name)})
        together = threading.Barrier(len(names), timeout=10)
        seen: dict[str, Any] = {}

        def work(name: str) -> None:
            with use_backend(name):
                together.wait()
                seen[name] = twofold(X)
                together.wait()

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert seen == {name: name for name in names}

    def test_an_unusable_backend_is_refused_before_the_block_runs(self, offer: Any) -> None:
        offer(unavailable_reason="no such device; plug one in")
        with (
            pytest.raises(BackendUnavailable, match="plug one in"),
            use_backend("fake"),
        ):
            pytest.fail("the block ran")


class TestDefault:
    def test_the_default_serves_every_thread(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        set_default_backend("fake")
        assert ran(twofold(X)) == "override"
        assert in_thread(lambda: ran(twofold(X))) == "override"

    def test_the_default_falls_through(self, twofold: Any, offer: Any) -> None:
        offer(kernels={})
        set_default_backend("fake")
        assert ran(twofold(X)) == "reference"

    def test_numpy_in_a_scope_gives_the_reference(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        set_default_backend("fake")
        with use_backend("numpy"):
            assert ran(twofold(X)) == "reference"
        assert ran(twofold(X)) == "override"

    def test_numpy_as_the_default_gives_the_reference(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        set_default_backend("fake")
        set_default_backend("numpy")
        assert ran(twofold(X)) == "reference"

    def test_a_refused_default_leaves_the_old_one(self, twofold: Any, offer: Any) -> None:
        offer(kernels={"twofold_forward": override})
        set_default_backend("fake")
        with pytest.raises(ConfigError):
            set_default_backend("fike")
        assert ran(twofold(X)) == "override"


class TestLoading:
    def test_a_backend_is_found_by_its_entry_point_and_loaded_once(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, offer_entry_point: Any
    ) -> None:
        (tmp_path / "third_party.py").write_text(
            "import numpy as np\n"
            "from refkd.dispatch import Backend\n"
            "backend = Backend('third', np.ndarray, np.asarray, np.asarray, lambda: None)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        offer_entry_point("third", "third_party:backend")
        backend = get_backend("third")
        assert backend is sys.modules.pop("third_party").backend
        assert get_backend("third") is backend
        assert available_backends()["third"] is None

    def test_numpy_is_always_available(self) -> None:
        assert available_backends()["numpy"] is None
        assert get_backend("numpy").array_type is np.ndarray
        assert get_backend("numpy").kernels == {}

    def test_an_entry_point_cannot_take_a_built_in_name(self, offer: Any) -> None:
        impostor = offer("numpy", {})
        assert get_backend("numpy") is not impostor
        assert dispatch._known_backends()["numpy"]() is not impostor

    @pytest.mark.parametrize(
        "wrong",
        [
            pytest.param(lambda a, y=None, *, factor=2.0: a, id="wrong name"),
            pytest.param(lambda x, y=None, *, factor=1.0: x, id="wrong default"),
            pytest.param(lambda y, x=None, *, factor=2.0: x, id="wrong order"),
            pytest.param(lambda x, y=None, factor=2.0: x, id="positional option"),
            pytest.param(lambda x, y, *, factor=2.0: x, id="default lost"),
            pytest.param(lambda x, y=None, *, factor=2.0, more=0: x, id="one too many"),
            pytest.param(lambda *args, **kwargs: 0, id="anything goes"),
        ],
    )
    def test_an_override_with_another_signature_is_refused(
        self, twofold: Any, offer: Any, wrong: Any
    ) -> None:
        offer(kernels={"twofold_forward": wrong})
        with pytest.raises(
            ConfigError,
            match=r"'fake': twofold_forward .*\(x, y=None, \*, factor=2\.0\), got \(",
        ):
            get_backend("fake")
        assert ran(twofold(X)) == "reference"
        assert "twofold_forward" in str(available_backends()["fake"])

    def test_annotations_are_no_part_of_the_signature(self, twofold: Any, offer: Any) -> None:
        backend = offer(kernels={"twofold_forward": lambda x, y=None, *, factor=2.0: x})
        assert get_backend("fake") is backend

    def test_an_override_of_no_kernel_is_refused_with_a_suggestion(
        self, twofold: Any, offer: Any
    ) -> None:
        offer(kernels={"twofold_foward": override})
        with pytest.raises(
            ConfigError, match=r"'fake'.*'twofold_foward'.*mean 'twofold_forward'\?"
        ):
            get_backend("fake")

    def test_an_unavailable_backend_gives_its_reason(self, offer: Any) -> None:
        offer(unavailable_reason="no GPU found; run on a machine that has one")
        assert available_backends()["fake"] == (
            "backend 'fake': no GPU found; run on a machine that has one"
        )
        with pytest.raises(BackendUnavailable, match="no GPU found; run on"):
            get_backend("fake")

    def test_an_unavailable_device_backend_serves_no_arrays(self, twofold: Any, offer: Any) -> None:
        offer("gpu", {"twofold_forward": override}, array_type=Device, unavailable_reason="no GPU")
        available_backends()
        assert ran(twofold(Device())) == "reference"

    @pytest.mark.parametrize("name", ["nunpy", "NumPy", "fakee"])
    def test_an_unknown_name_is_refused_with_a_suggestion(self, offer: Any, name: str) -> None:
        offer()
        expected = "fake" if name == "fakee" else "numpy"
        with pytest.raises(ConfigError, match=f"got '{name}'; did you mean '{expected}'"):
            get_backend(name)

    @pytest.mark.parametrize("target", ["no_such_module:backend", "json:no_such_attribute"])
    def test_a_broken_entry_point_is_unavailable(self, offer_entry_point: Any, target: str) -> None:
        offer_entry_point("broken", target)
        with pytest.raises(BackendUnavailable, match=rf"'broken': .*{target}"):
            get_backend("broken")
        assert target in str(available_backends()["broken"])

    def test_an_entry_point_that_fails_while_importing_is_unavailable(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, offer_entry_point: Any
    ) -> None:
        (tmp_path / "fails_to_import.py").write_text("raise RuntimeError('driver too old')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        offer_entry_point("failing", "fails_to_import:backend")
        assert "driver too old" in str(available_backends()["failing"])

    @pytest.mark.parametrize(
        ("kernels", "words"),
        [
            (["relu_forward"], "kernels must be a mapping of names to functions, got list"),
            ({"relu_forward": None}, r"relu_forward must have .* got \(unknown: None\)"),
            ({"relu_forward": dict}, r"relu_forward must have .* got \(unknown: <class 'dict'>\)"),
        ],
        ids=str,
    )
    def test_kernels_that_are_none_are_a_reason(self, offer: Any, kernels: Any, words: str) -> None:
        offer("fake", kernels)
        with pytest.raises(ConfigError, match=words):
            get_backend("fake")
        assert available_backends()["fake"] is not None

    def test_a_module_that_exits_is_a_reason(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, offer_entry_point: Any
    ) -> None:
        (tmp_path / "leaves.py").write_text("raise SystemExit('no licence')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        offer_entry_point("leaving", "leaves:backend")
        assert "no licence" in str(available_backends()["leaving"])

    @pytest.mark.parametrize("reason", [None, "no such device"])
    def test_arrays_of_a_package_find_the_backend_of_its_name_unasked(
        self, twofold: Any, offer: Any, reason: str | None
    ) -> None:
        class Array:
            shape = (3,)

        Array.__module__ = "fake.arrays"
        dispatch._load_if_known.cache_clear()
        offer("fake", {"twofold_forward": override}, array_type=Array, unavailable_reason=reason)
        for _ in range(2):
            assert ran(twofold(Array())) == ("reference" if reason else "override")
            assert dispatch.backend_of(Array()).name == ("numpy" if reason else "fake")

    def test_an_entry_point_to_something_else_is_refused(self, offer_entry_point: Any) -> None:
        offer_entry_point("wrong", "json:dumps")
        with pytest.raises(ConfigError, match=r"json:dumps must name a refkd.* got function"):
            get_backend("wrong")
        assert "json:dumps" in str(available_backends()["wrong"])

    def test_a_backend_has_the_name_of_its_entry_point(
        self, offer: Any, offer_entry_point: Any
    ) -> None:
        offer("fake")
        offer_entry_point("alias", "provider_of_fake:backend")
        with pytest.raises(ConfigError, match=r"'alias'.*'fake'"):
            get_backend("alias")

    @pytest.mark.parametrize("name", ["numba", "cupy"])
    def test_a_built_in_backend_whose_package_is_absent_says_so(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(dispatch._loaded, name, raising=False)
        monkeypatch.setitem(dispatch._BUILT_IN_MODULES, name, "refkd_absent")
        reason = available_backends()[name]
        assert reason is not None
        assert reason.startswith(f"backend '{name}': the package refkd_absent ")
        assert "use the reference (numpy)" in reason
        with pytest.raises(BackendUnavailable, match="refkd_absent"), use_backend(name):
            pass

    @pytest.mark.parametrize("name", ["numba", "cupy"])
    def test_a_built_in_backend_loads_here_or_says_why_not(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "_KERNEL_PACKAGES", ("refkd.ops", "refkd.losses"))
        reason = available_backends()[name]
        if reason is None:
            assert get_backend(name).name == name
        else:
            assert len(reason.split()) > 5
            with pytest.raises(BackendUnavailable):
                get_backend(name)


class TestNamespace:
    @pytest.mark.parametrize("x", [X, X[0], X.view(np.memmap), np.array(1j)])
    def test_of_numpy_arrays_and_scalars_is_numpy(self, x: Any) -> None:
        assert namespace(x) is np

    def test_of_an_array_api_array_is_what_it_says(self) -> None:
        class Foreign:
            def __array_namespace__(self) -> str:
                return "its module"

        assert namespace(Foreign()) == "its module"

    def test_of_a_cupy_array_is_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # CuPy 14.2 has no __array_namespace__ on its arrays.
        cupy = types.ModuleType("cupy")
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        array_type = type("ndarray", (), {"__module__": "cupy"})
        assert namespace(array_type()) is cupy

    @pytest.mark.parametrize("x", [None, 1.0, [1.0], "x"])
    def test_of_anything_else_is_refused(self, x: Any) -> None:
        with pytest.raises(DtypeError, match=f"expected an array, got {type(x).__name__}"):
            namespace(x)


def in_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(10)
    return results[0]
