"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refkd.errors import MissingExtra, import_extra
from refkd.train.progress import Progress

__all__ = ["BarDisplay", "LineDisplay", "QuietDisplay", "choose_display"]

# Without the loss and the step, so that 80 columns leave room for the bar itself.
_BAR = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}"
_COLUMNS = 80


class QuietDisplay:
    """Shows nothing."""

    def step(self, training: str, progress: Progress, steps_per_epoch: int, epochs: int) -> None:
        """Ignore a step."""

    def epoch(self, training: str, record: Mapping[str, float], epochs: int) -> None:
        """Ignore an epoch."""

    def close(self) -> None:
        """Leave the terminal to others."""


@dataclass
class _Counter:
    """Knows that a training is the third of 21.

    Attributes
    ----------
    trainings : int
        How many the run has.
    begun : int
        How many of them have begun, those that an earlier session has finished included.
    training : str
        The one under way.
    """

    trainings: int
    begun: int
    training: str = ""

    def begins(self, training: str) -> bool:
        """Return whether ``training`` is heard of for the first time, and count it."""
        if training == self.training:
            return False
        self.training = training
        self.begun += 1
        return True

    @property
    def title(self) -> str:
        """``[3/21] distilled-seed0``: the training under way."""
        return f"[{self.begun}/{self.trainings}] {self.training.removeprefix('student_')}"


class LineDisplay:
    """Prints a line when an epoch ends, or within a long one, every few seconds at most."""

    def __init__(self, trainings: int, finished: int = 0, *, every: float = 5.0) -> None:
        self.counter = _Counter(trainings, finished)
        self.every = every
        self.printed_at = time.monotonic()

    def step(self, training: str, progress: Progress, steps_per_epoch: int, epochs: int) -> None:
        """Print how far the epoch is, if the last line is old enough."""
        self.counter.begins(training)
        if progress.step < steps_per_epoch:
            self._print(progress.epoch + 1, epochs, f"step {progress.step}/{steps_per_epoch}")

    def epoch(self, training: str, record: Mapping[str, float], epochs: int) -> None:
        """Print the epoch's figures, if the last line is old enough."""
        self.counter.begins(training)
        figures = f"loss {record['loss']:.4f}, test accuracy {record['test_accuracy']:.2%}"
        self._print(record["epoch"], epochs, figures)

    def close(self) -> None:
        """Leave the lines as they are."""

    def _print(self, epoch: float, epochs: int, what: str) -> None:
        if time.monotonic() - self.printed_at >= self.every:
            self.printed_at = time.monotonic()
            line = f"{self.counter.title}: epoch {epoch:g}/{epochs}, {what}"
            print(line, file=sys.stderr, flush=True)


class BarDisplay:
    """One tqdm bar per training, with rate and time left."""

    def __init__(self, tqdm: Any, trainings: int, finished: int = 0) -> None:
        self.counter = _Counter(trainings, finished)
        self.tqdm = tqdm
        self.bar: Any = None

    def step(self, training: str, progress: Progress, steps_per_epoch: int, epochs: int) -> None:
        """Advance the bar."""
        if self.counter.begins(training):
            self.close()
            self.bar = self.tqdm(
                total=steps_per_epoch * epochs,
                initial=progress.epoch * steps_per_epoch + progress.step - 1,
                desc=self.counter.title,
                unit=" steps",
                leave=False,
                ncols=_columns(),
                bar_format=_BAR,
            )
        self.bar.update(progress.epoch * steps_per_epoch + progress.step - self.bar.n)

    def epoch(self, training: str, record: Mapping[str, float], epochs: int) -> None:
        """Show the test accuracy."""
        if self.bar is None:  # resumed between an epoch's last step and its end
            return
        self.bar.set_postfix_str(f"test {record['test_accuracy']:.1%}", refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def choose_display(
    *, quiet: bool, trainings: int, finished: int
) -> QuietDisplay | LineDisplay | BarDisplay:
    """Return the display that fits stderr, for a run with that many trainings."""
    if quiet:
        return QuietDisplay()
    if sys.stderr.isatty():
        try:
            tqdm = import_extra("tqdm", "progress", "the progress bar").tqdm
            return BarDisplay(tqdm, trainings, finished)
        except MissingExtra:
            pass
    return LineDisplay(trainings, finished)


def _columns() -> int:
    # A terminal that does not know its width says 0, and tqdm would then draw nothing.
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS
