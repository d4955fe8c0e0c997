"""The profile of a training step: kernels are named, and their times are a step's."""

from __future__ import annotations

import re
import sys

import pytest

from bench.__main__ import main
from refkd.dispatch import available_backends, current_backend

pytestmark = pytest.mark.skipif(
    available_backends()["numba"] is not None, reason=str(available_backends()["numba"])
)


def test_the_kernels_of_a_step_are_named_with_their_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    share = sys.modules["refkd_numba.team"].share
    assert main(["profile", "--workload", "mlp_student_b32", "--steps", "20"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"mlp_student_b32: ([\d.]+) ms a step, ([\d.]+) in kernels", head)
    assert found is not None
    step, in_kernels = map(float, found.groups())
    assert 0 < in_kernels < 3 * step  # one is a mean, the other a median
    assert any(line.endswith(" mlp.kernels.run") for line in lines)
    shares = [float(line.split()[0].removesuffix("%")) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(lines))
    assert shares == sorted(shares, reverse=True)
    assert sys.modules["refkd_numba.mlp.step"].share is share
    assert current_backend().name == "numpy"
