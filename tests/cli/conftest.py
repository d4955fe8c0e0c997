"""A miniature recipe and data set, and the command line called in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from refkd import cli
from refkd.cli import report

RECIPE = """
title = "A miniature"
data = "an .npz"

[teacher]
model = "mlp"
hyperparameters = { hidden = [8] }

[student]
model = "mlp"
hyperparameters = { hidden = [4], dropout = 0.1 }

[protocols.fair]
description = "two seeds"
seeds = 2
explanation = "Alone {alone.figure}, distilled {distilled.figure}: {distilled_gain.figure}."

[protocols.fair.teacher]
epochs = 3
batch_size = 8
optimizer = { name = "adam", parameters = { lr = 1e-2 } }
published = 0.9

[protocols.fair.student]
epochs = 2
batch_size = 8
optimizer = { name = "sgd", parameters = { lr = 0.1, momentum = 0.9 } }

[protocols.fair.students.alone]
label = "alone"

[protocols.fair.students.distilled]
label = "distilled"
train_images = 20
distill = { name = "hinton", parameters = { temperature = 4.0, alpha = 0.1 } }

[protocols.short]
description = "one seed, one epoch"
seeds = 1

[protocols.short.teacher]
epochs = 1
batch_size = 16
optimizer = { name = "adam" }

[protocols.short.students.alone]
epochs = 1
batch_size = 16
optimizer = { name = "adam" }

[protocols.short.students.distilled]
epochs = 1
batch_size = 16
optimizer = { name = "adam" }
distill = { name = "hinton", parameters = { temperature = 2.0, alpha = 0.5 } }
"""

NO_PICTURES = "from refkd.cli import report; report.html_report = lambda *a: ''"
RUN = "import sys; from refkd.cli import main; sys.exit(main())"


class Outcome(NamedTuple):
    """What a call of the command line came to."""

    code: int
    out: str
    err: str


def make_arrays() -> dict[str, Any]:
    """80 images of 3x3 pixels in three classes that can be told apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 3
    images = (60 * labels[:, None, None] + rng.integers(0, 100, (80, 3, 3))).astype(np.uint8)
    return {"x": images, "y": labels}


@pytest.fixture
def recipe() -> str:
    """The TOML of the miniature recipe."""
    return RECIPE


@pytest.fixture
def arrays() -> dict[str, Any]:
    """The arrays of the miniature data set."""
    return make_arrays()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test, with ``mini.toml`` and ``data.npz`` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.toml").write_text(RECIPE, encoding="utf-8")
    np.savez(tmp_path / "data.npz", **make_arrays())
    return tmp_path


@pytest.fixture
def refkd(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """refkd(*arguments): the command line, whose errors are never tracebacks."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)

    return call


@pytest.fixture
def distill(place: Path, refkd: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """distill(*arguments): the miniature recipe on its data."""

    def call(*arguments: object) -> Outcome:
        return refkd("distill", "mini.toml", "--data", "data.npz", *arguments)

    return call


@pytest.fixture
def process(place: Path) -> Callable[..., subprocess.Popen[str]]:
    """process(*arguments): the command line as a process of its own."""

    def start(
        *arguments: object, first: str = "", draws: bool = False, **options: Any
    ) -> subprocess.Popen[str]:
        program = f"{first}\n{'' if draws else NO_PICTURES}\n{RUN}"
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
        )

    return start


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the miniature, made once; use ``finished``."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mini.toml").write_text(RECIPE, encoding="utf-8")
    np.savez(folder / "data.npz", **make_arrays())
    recipe, data, run = (str(folder / name) for name in ("mini.toml", "data.npz", "run"))
    assert cli.main(["distill", recipe, "--data", data, "--run", run, "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def finished(finished_once: Path, place: Path) -> Path:
    """A finished run of the miniature, free to be damaged, in the working directory."""
    shutil.copytree(finished_once, place / "finished")
    return Path("finished")


@pytest.fixture(autouse=True)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the pictures, except those marked ``pictures``."""
    if "draws_pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "html_report", lambda *arguments: "<html></html>")


@pytest.fixture
def draws_pictures() -> None:
    """Ask for the real report."""
