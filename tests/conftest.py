"""What tests of several packages share: fixtures, and how hypothesis runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline would fail a correct test on a busy machine.
settings.register_profile("refkd", deadline=None)
settings.load_profile("refkd")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, which is not part of the repository."""
    beside_the_repository = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("REFKD_DATA") or beside_the_repository)
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is no folder; set REFKD_DATA to the one that has mnist/")
    return root
