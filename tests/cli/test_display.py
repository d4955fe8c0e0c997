from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refkd.cli.display import BarDisplay, LineDisplay, QuietDisplay, choose_display
from refkd.train.progress import Progress

ARGUMENTS = ("distill", "mini.toml", "--data", "data.npz", "--run", "run")


def progress(epoch: int, step: int) -> Progress:
    return Progress(seed=0, rng=None, params={}, state={}, epoch=epoch, step=step)  # type: ignore[arg-type]


def record(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "loss": 0.5, "test_accuracy": 0.875}


def show_run(display: QuietDisplay | LineDisplay | BarDisplay) -> None:
    """Two trainings of two epochs of two steps."""
    for training in ("teacher-seed0", "student_alone-seed0"):
        for epoch in range(2):
            for step in (1, 2):
                display.step(training, progress(epoch, step), 2, 2)
            display.epoch(training, record(epoch + 1), 2)
    display.close()


def test_lines_say_which_training_which_epoch_and_its_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_run(LineDisplay(5, 2, every=0.0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[3/5] teacher-seed0: epoch 1/2, step 1/2",
        "[3/5] teacher-seed0: epoch 1/2, loss 0.5000, test accuracy 87.50%",
        "[3/5] teacher-seed0: epoch 2/2, step 1/2",
        "[3/5] teacher-seed0: epoch 2/2, loss 0.5000, test accuracy 87.50%",
        "[4/5] alone-seed0: epoch 1/2, step 1/2",
        "[4/5] alone-seed0: epoch 1/2, loss 0.5000, test accuracy 87.50%",
        "[4/5] alone-seed0: epoch 2/2, step 1/2",
        "[4/5] alone-seed0: epoch 2/2, loss 0.5000, test accuracy 87.50%",
    ]


def test_lines_are_seconds_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = LineDisplay(2, every=5.0)
    for _ in range(60):
        now += 0.5
        display.epoch("teacher-seed0", record(1), 9)
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_run(choose_display(quiet=True, trainings=2, finished=0))
    assert capsys.readouterr() == ("", "")


def test_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_display(quiet=False, trainings=2, finished=0), LineDisplay)


class FakeBar:
    """Records what tqdm is asked to draw."""

    made: list[FakeBar]

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.closed = options, options["initial"], False
        self.made.append(self)

    def update(self, steps: int) -> None:
        assert not self.closed
        self.n += steps

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        self.postfix = text

    def close(self) -> None:
        self.closed = True


def test_each_training_has_one_bar_that_is_filled_and_taken_away() -> None:
    FakeBar.made = []
    show_run(BarDisplay(FakeBar, 2))
    assert [bar.options["desc"] for bar in FakeBar.made] == [
        "[1/2] teacher-seed0",
        "[2/2] alone-seed0",
    ]
    for bar in FakeBar.made:
        assert (bar.n, bar.options["total"], bar.closed) == (4, 4, True)
        assert bar.postfix == "test 87.5%"


def test_the_bar_of_a_resumed_training_starts_where_it_stopped() -> None:
    FakeBar.made = []
    display = BarDisplay(FakeBar, 2)
    display.epoch("teacher-seed0", record(1), 3)  # stopped between the last step and its epoch
    display.step("teacher-seed0", progress(1, 2), 2, 3)
    assert FakeBar.made[0].options["initial"] == 3
    assert FakeBar.made[0].n == 4


@pytest.fixture
def on_terminal(process: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """What a process prints on stdout, and what it draws on a terminal as stderr."""

    def run(columns: int, first: str = "") -> tuple[str, str]:
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TQDM_MININTERVAL", "0")  # draw every step, however quick
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        running = process(*ARGUMENTS, first=first, stderr=slave)
        os.close(slave)
        drawn = b"".join(_read_all(master))
        out, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        return out, drawn.decode()

    return run


def _read_all(master: int) -> Iterator[bytes]:
    try:
        while block := os.read(master, 65536):
            yield block
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(master)


@pytest.fixture
def longer(place: Path, recipe: str) -> None:
    (place / "mini.toml").write_text(recipe.replace("epochs = ", "epochs = 4"))


@pytest.mark.parametrize("columns", [pytest.param(120, marks=pytest.mark.slow), 80, 0])
def test_a_terminal_gets_a_bar_with_rate_and_time_left(
    on_terminal: Any, longer: None, columns: int
) -> None:
    pytest.importorskip("tqdm")
    out, drawn = on_terminal(columns)
    assert "A miniature" in out
    assert "\r[1/5] teacher-seed0   0%|" in drawn
    assert "[5/5] distilled-seed1" in drawn
    assert re.search(r"\d+%\|\S+ *\| +[\d.]+ steps/s, \d\d:\d\d left, test \d+\.\d%", drawn)
    assert "\x1b" not in drawn
    frames = drawn.replace("\n", "\r").split("\r")
    assert max(map(len, frames)) <= (columns or 80)
    assert "\n" not in drawn  # every bar was taken away again
    assert frames[-1] == frames[-2].strip() == ""


def test_a_terminal_without_tqdm_gets_lines(on_terminal: Any, longer: None) -> None:
    first = (
        "import sys; sys.modules['tqdm'] = None\n"
        "from refkd.cli import display; display.LineDisplay.__init__.__kwdefaults__['every'] = 0.0"
    )
    out, drawn = on_terminal(80, first)
    assert "A miniature" in out
    assert "[1/5] teacher-seed0: epoch 43/43, loss " in drawn
    assert not set("\x1b%|") & set(drawn.replace("%\r\n", ""))


def test_a_pipe_gets_no_bar(process: Any, longer: None) -> None:
    running = process(*ARGUMENTS)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "\r" not in err
    assert "\x1b" not in err
