"""What watches a training of a run: the display, the log, and checkpoints in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from refkd.train.checkpoint import save_checkpoint
from refkd.train.progress import Progress
from refkd.train.run import NetworkSpec, RunFolder

__all__ = ["Display", "RunMonitor"]


class Display(Protocol):
    """Shows a person how far the run is."""

    def step(self, training: str, progress: Progress, steps_per_epoch: int, epochs: int) -> None:
        """Run after every step."""
        ...

    def epoch(self, training: str, record: Mapping[str, float], epochs: int) -> None:
        """Run after every epoch."""
        ...


@dataclass
class RunMonitor:
    """A :class:`refkd.train.Monitor` that logs, saves from time to time, and stops if asked.

    Attributes
    ----------
    folder : RunFolder
    display : Display
    stop_requested : callable
        True saves a checkpoint and raises KeyboardInterrupt.
    save_every : float
        Seconds between checkpoints.
    name : str
        Of the network that learns: ``"teacher"``, ``"student_alone"``, ...
    seed : int
    spec : NetworkSpec
    learns : tuple of str
        Prefixes of the parameters to save.
    epochs : int
    """

    folder: RunFolder
    display: Display
    stop_requested: Callable[[], bool]
    save_every: float
    name: str
    seed: int
    spec: NetworkSpec
    learns: tuple[str, ...]
    epochs: int
    saved_at: float = field(default_factory=time.monotonic)

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        """Show the step; save or stop if it is time to."""
        self.display.step(self._training, progress, steps_per_epoch, self.epochs)
        stop = self.stop_requested()
        if stop or time.monotonic() - self.saved_at > self.save_every:
            self._save(progress)
        if stop:
            raise KeyboardInterrupt

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        """Log and show the epoch."""
        self.folder.log({"training": self.name, "seed": self.seed, **record})
        self.display.epoch(self._training, record, self.epochs)

    @property
    def _training(self) -> str:
        return f"{self.name}-seed{self.seed}"

    def _save(self, progress: Progress) -> None:
        arrays, metadata = progress.to_checkpoint(self.learns)
        metadata["training"] = self._training
        metadata["network"] = self.spec.to_json()
        metadata["metrics_bytes"] = str(self.folder.metrics_bytes())
        save_checkpoint(self.folder.in_progress, arrays, metadata)
        self.saved_at = time.monotonic()
