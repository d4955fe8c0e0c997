"""Fixtures for the tests of readers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refkd.errors import DataError


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for every example of a property test."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def measured() -> Callable[..., tuple[int, str]]:
    """measured(read, path): bytes allocated at the most, and the text of its DataError or ""."""

    def measure(read: Callable[[Path], Any], path: Path) -> tuple[int, str]:
        message = ""
        tracemalloc.start()
        try:
            read(path)
        except DataError as error:
            message = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak, message

    return measure
