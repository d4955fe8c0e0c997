"""Any host: Numba missing, old, broken or switched off, no cache, one core, forks and threads."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path

import pytest

from refkd.dispatch import available_backends, get_backend
from tests.backends.processes import run

needs_numba = pytest.mark.skipif(
    available_backends()["numba"] is not None, reason=str(available_backends()["numba"])
)

REASON = """
import json
import refkd_numba
from refkd.dispatch import available_backends, use_backend
from refkd.errors import BackendUnavailable
try:
    with use_backend("numba"):
        raised = None
except BackendUnavailable as error:
    raised = str(error)
print(json.dumps([refkd_numba.backend.unavailable_reason, available_backends()["numba"], raised,
    len(refkd_numba.backend.kernels)]))
"""
# A training step that a backend serves, and the same of the reference.
STEP = """
import numpy as np
from refkd import models
from refkd.dispatch import use_backend
from refkd.losses import softmax_cross_entropy_backward, softmax_cross_entropy_forward

network = models.create("small_cnn", num_classes=5, image_size=32, dropout=0.0)
params, state = network.init(np.random.default_rng(0))
rng = np.random.default_rng(1)
x, labels = rng.standard_normal((9, 3, 32, 32)).astype(np.float32), rng.integers(5, size=9)

def step(name):
    with use_backend(name):
        logits, cache = network.forward(params, state, x, train=True)
        loss, log_q = softmax_cross_entropy_forward(logits, labels)
        dlogits = softmax_cross_entropy_backward(1.0, log_q, labels)
        dx, grads = network.backward(params, cache, dlogits)
    return {"loss": loss, "dx": dx, **grads}

def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[k], expected[k]) for k in expected)

def assert_near(actual, expected):
    for k in expected:
        assert np.abs(actual[k] - expected[k]).max() <= 1e-4 * np.abs(expected[k]).max(), k
"""


def fake_numba(folder: Path, source: str) -> Path:
    """Write a package numba that comes before any other."""
    (folder / "numba").mkdir()
    (folder / "numba" / "__init__.py").write_text(source)
    return folder


def reasons(*path: Path, first: str = "", **environment: str) -> tuple[str, str, str]:
    """Return why the backend is not available, as three ways to ask say it."""
    backends = Path(__file__).parents[2] / "backends"
    found = run(f"{first}\n{REASON}", path=(*path, backends), **environment)
    own, listed, raised, kernels = json.loads(found.stdout)
    assert kernels == 0
    assert found.stderr == ""
    assert "\n" not in own
    return own, listed, raised


def test_a_switch_that_turns_compiling_off_is_named() -> None:
    own, listed, raised = reasons(NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT is set" in own
    assert listed == raised == f"backend 'numba': {own}"


MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
NOT_FOUND = """
import sys
class NotFound:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("numba", "llvmlite"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [NotFound(finder) for finder in sys.meta_path]
"""


@pytest.mark.parametrize("first", [NOT_FOUND, "import sys; sys.modules['numba'] = None", MISSING])
def test_where_numba_is_missing_the_extra_is_named(first: str) -> None:
    own, listed, raised = reasons(first=first)
    assert "pip install 'refkd[numba]'" in own
    assert listed == raised == f"backend 'numba': {own}"


@pytest.mark.parametrize("version", ["0.60.0", "0.5", "0.60.0rc1+local"])
def test_a_numba_that_is_too_old_is_named_with_its_version(version: str, tmp_path: Path) -> None:
    own, listed, _ = reasons(fake_numba(tmp_path, f"__version__ = {version!r}"))
    assert f"Numba {version} is too old, 0.61 is the oldest that works" in own
    assert "pip install -U 'refkd[numba]'" in own
    assert own in listed


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ImportError('Numba needs NumPy 2.4 or less')", "ImportError: Numba needs NumPy"),
        ("raise SystemError('initialization failed')", "SystemError: initialization failed"),
        ("import numba.nothing", "ModuleNotFoundError"),
        ("raise OSError('libllvmlite.so:\\n cannot open')", "OSError: libllvmlite.so: cannot open"),
    ],
)
def test_a_numba_that_does_not_import_is_quoted(source: str, words: str, tmp_path: Path) -> None:
    own, _, _ = reasons(fake_numba(tmp_path, source))
    assert "Numba does not import" in own
    assert words in own


@pytest.mark.parametrize("version", ["'unknown'", "None", "'0+untagged.1.gabc'", "'99.0'"])
def test_kernels_that_do_not_load_are_a_reason_too(version: str, tmp_path: Path) -> None:
    own, _, _ = reasons(fake_numba(tmp_path, f"__version__ = {version}"))
    assert "its kernels do not load (" in own
    assert "pip install -U 'refkd[numba]'" in own


@needs_numba
def test_a_numpy_without_openblas_needs_scipy() -> None:
    first = """
import ctypes, sys
import numba
def refuse(name):
    raise OSError(name)
ctypes.CDLL = refuse
"""
    program = "import refkd_numba.blas; print(refkd_numba.blas.PROVIDER)"
    assert run(f"{first}\n{program}").stdout == "scipy\n"
    without = f"{first}\nsys.modules['scipy'] = None\nimport refkd_numba"
    said = run(f"{without}\nprint(refkd_numba.backend.unavailable_reason)").stdout
    assert "its kernels do not load (ModuleNotFoundError: " in said
    assert "pip install -U 'refkd[numba]'" in said


def test_where_numba_is_installed_the_backend_is_available() -> None:
    # Else all its tests would be skipped, and nobody would know.
    if importlib.util.find_spec("numba") is not None:
        assert available_backends()["numba"] is None


def test_doctor_says_why_numba_is_not_available() -> None:
    doctor = "import sys; from refkd.cli import main; sys.exit(main(['doctor']))"
    said = run(doctor, NUMBA_DISABLE_JIT="1").stdout
    assert "backend 'numba': NUMBA_DISABLE_JIT is set; unset it" in said


@needs_numba
def test_a_copy_without_the_package_says_so() -> None:
    said = run("from refkd.dispatch import available_backends as a; print(a()['numba'])", path=())
    assert "is not part of this installation" in said.stdout or said.stdout == "None\n"


@needs_numba
@pytest.mark.parametrize(
    "name",
    ["no folder", *(pytest.param(n, marks=pytest.mark.slow) for n in ("a file", "read-only"))],
)
def test_without_a_cache_kernels_are_compiled_each_time(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    if name == "a file":
        place.write_text("in the way")
    elif name == "read-only":
        place.mkdir()
        place.chmod(0o500)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write anywhere")
    chosen = "/proc/refkd" if name == "no folder" else str(place)
    program = """
import numpy as np
from refkd.dispatch import use_backend
from refkd.ops import relu_forward
x = np.linspace(-1, 1, 50_000, dtype=np.float32)
with use_backend("numba", strict=True):
    assert np.array_equal(relu_forward(x), np.maximum(x, 0))
"""
    for _ in range(2):
        said = run(program, NUMBA_CACHE_DIR=chosen).stderr
        assert "refkd: compiling activation._relu_forward ... " in said


@needs_numba
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_step_is_right_on_any_number_of_cores_and_always_the_same(threads: int) -> None:
    program = """
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
first = step("numba")
assert_near(first, step("numpy"))
assert_same(step("numba"), first)
found = b"".join(np.ascontiguousarray(value).tobytes() for value in first.values())
print(hashlib.sha256(found).hexdigest())
"""
    program = f"import hashlib, os, sys\n{STEP}{program}"
    said = {run(program, threads, OPENBLAS_NUM_THREADS=str(threads)).stdout for _ in range(2)}
    assert len(said) == 1


@needs_numba
def test_a_setting_that_makes_no_sense_is_named() -> None:
    program = "from refkd.dispatch import available_backends as a; print(a()['numba'])"
    said = run(program, REFKD_WINOGRAD="no").stdout
    assert "REFKD_WINOGRAD must be 0 or 1, got 'no'" in said


@needs_numba
def test_every_setting_chooses_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = importlib.import_module("refkd_numba.settings")
    for name in {*settings.__all__} - {"choices"}:
        before = get_backend("numba").choices()
        monkeypatch.setattr(settings, name, not getattr(settings, name))
        assert get_backend("numba").choices() != before, name


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_after_use_works_and_agrees() -> None:
    program = """
import os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
before = step("numba")
for _ in range(3):
    child = os.fork()
    if child == 0:
        try:
            assert_same(step("numba"), before)
        except BaseException as error:
            print("in the child:", repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert_same(step("numba"), before)
"""
    run(STEP + program, OPENBLAS_NUM_THREADS="2")


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_workers_of_a_pool_work_and_agree() -> None:
    program = """
import multiprocessing, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
before = step("numba")
with multiprocessing.get_context("fork").Pool(2) as pool:
    for found in pool.map(step, ["numba"] * 4):
        assert_same(found, before)
"""
    run(STEP + program, OPENBLAS_NUM_THREADS="2")


@needs_numba
def test_a_fork_while_another_thread_computes_does_not_hang() -> None:
    program = """
import os, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
before, going = step("numba"), True
def work():
    while going:
        step("numba")
thread = threading.Thread(target=work)
thread.start()
for _ in range(5):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        try:
            assert_same(step("numba"), before)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
going = False
thread.join()
"""
    run(STEP + program, OPENBLAS_NUM_THREADS="2")


@needs_numba
def test_threads_that_use_kernels_at_once_agree() -> None:
    program = """
import threading
from refkd.threads import side_by_side
alone, found = step("numba"), []
threads = [threading.Thread(target=lambda: found.extend(step("numba") for _ in range(5)))
           for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 15
for other in found:
    assert_same(other, alone)
# In a piece of work there is one thread, for which the same bits are not promised.
pieces = list(side_by_side(step, ["numba"] * 6))
for piece in pieces:
    assert_near(piece, alone)
    assert_same(piece, pieces[0])
"""
    run(STEP + program, OPENBLAS_NUM_THREADS="2")


@needs_numba
def test_importing_refkd_or_listing_its_commands_loads_no_numba() -> None:
    program = """
import sys
import refkd.cli, refkd.models, refkd.distill, refkd.train
refkd.cli.build_parser()
print(*sorted({"numba", "llvmlite", "refkd_numba"} & sys.modules.keys()))
"""
    assert run(program).stdout == "\n"
