"""What a run's figures belong to."""

from __future__ import annotations

import numpy as np
import pytest

from refkd import dispatch
from refkd.dispatch import Backend, use_backend
from refkd.recipes.environment import environment
from refkd.threads import blas_threads, worker_threads


def test_the_backend_that_computes_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment()["backend"] == "numpy"
    assert environment()["threads"] == blas_threads()
    own = Backend("own", np.ndarray, np.asarray, np.asarray, lambda: None, blas_threads=1)
    monkeypatch.setitem(dispatch._loaded, "own", own)
    threads = worker_threads()
    with use_backend("own"):
        assert environment()["backend"] == "own"
        assert environment()["threads"] == threads  # its own, where BLAS has one
