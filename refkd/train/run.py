"""A run on disk: its folder, its networks, and getting one back with :func:`load`.

::

    config.toml                       the recipe and the options it was run with
    class_to_idx.json                 the classes and their indices
    metrics.jsonl                     a line per epoch of every training
    networks/NAME-seedK.safetensors   a trained network, PyTorch state_dict keys
    in-progress.safetensors           the training under way, until the last one is finished
    examples.safetensors              the test images that the report shows
    result.json, report.html          what came out
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refkd import models
from refkd.data.dataset import Normalization
from refkd.dispatch import Array
from refkd.errors import CheckpointError, ShapeError
from refkd.nn.layer import Arrays, Layer
from refkd.ops.softmax import softmax_forward
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.evaluate import evaluate_logits

try:
    import fcntl
except ImportError:  # of Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["NetworkSpec", "RunFolder", "TrainedNetwork", "load"]


@dataclass(frozen=True)
class NetworkSpec:
    """How to build a network again, and what its inputs and outputs mean.

    Attributes
    ----------
    model : str
        Name for :func:`refkd.models.create`.
    hyperparameters : dict
    image_shape : tuple of int
        Shape of one image, without the batch axis.
    normalization : Normalization
        What makes stored images model inputs.
    class_names : tuple of str
    """

    model: str
    hyperparameters: dict[str, Any]
    image_shape: tuple[int, ...]
    normalization: Normalization
    class_names: tuple[str, ...]

    def build(self) -> Layer:
        """Return the network."""
        return models.create(self.model, **self.hyperparameters)

    def to_json(self) -> str:
        """Return the form in which a checkpoint's metadata holds it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """Rebuild what :meth:`to_json` wrote; raises ValueError, KeyError or TypeError."""
        values = json.loads(text)
        return cls(
            str(values["model"]),
            dict(values["hyperparameters"]),
            tuple(values["image_shape"]),
            Normalization(
                float(values["normalization"]["scale"]),
                tuple(map(float, values["normalization"]["mean"])),
                tuple(map(float, values["normalization"]["std"])),
            ),
            tuple(values["class_names"]),
        )


@dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """A network with its trained parameters.

    Attributes
    ----------
    spec : NetworkSpec
    network : Layer
    params, state : dict of str to array
    history : list of dict
        The training's record, one per epoch.
    """

    spec: NetworkSpec
    network: Layer
    params: Arrays
    state: Arrays
    history: list[dict[str, float]]

    def __repr__(self) -> str:
        """Name the model, without its arrays."""
        count = models.parameter_count(self.network)
        return (
            f"TrainedNetwork({self.spec.model}, {self.spec.hyperparameters}, "
            f"{count:,} parameters, {len(self.history)} epochs)"
        )

    def predict(self, images: Array) -> Array:
        """Return class probabilities.

        Parameters
        ----------
        images : array, shape (N, ...), uint8 or floating
            As the data set stores them: they are normalised here.

        Returns
        -------
        probabilities : array, shape (N, C)

        Raises
        ------
        ShapeError
            If the images have another shape than the network was trained on.
        """
        expected = self.spec.image_shape
        if tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"predict: expected images of shape (N, {', '.join(map(str, expected))}), "
                f"got {tuple(images.shape)}"
            )
        logits = evaluate_logits(
            self.network, self.params, self.state, images, normalization=self.spec.normalization
        )
        return softmax_forward(logits)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; knows where things are and writes them safely.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: str) -> RunFolder:
        """Make a new run folder with its configuration.

        Raises
        ------
        CheckpointError
            If the folder exists with something in it, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise CheckpointError(
                    f"run folder {path} is not empty; continue it with --resume {path}, "
                    f"or give another --run"
                )
            (path / "networks").mkdir()
            cls(path).config.write_text(config, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"run folder {path} cannot be written ({error.strerror}); give another --run"
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises
        ------
        CheckpointError
            If it is no run folder.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise CheckpointError(
                f"{path} is no run folder: it has no config.toml; give the folder that "
                f"`refkd distill` printed"
            )
        return folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from continuing this run meanwhile.

        Where the system has no locks for that (Windows, some shared disks) nothing does.

        Raises
        ------
        CheckpointError
            If another process has locked it.
        """
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise CheckpointError(
                f"another process is at work on the run in {self.path}; wait for it, or stop it"
            ) from error
        except OSError:  # this disk has no locks
            pass
        try:
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    @property
    def config(self) -> Path:
        """The recipe and the options it was run with."""
        return self.path / "config.toml"

    @property
    def class_to_idx(self) -> Path:
        """The classes and their indices."""
        return self.path / "class_to_idx.json"

    @property
    def examples(self) -> Path:
        """The test images that the report shows."""
        return self.path / "examples.safetensors"

    @property
    def result(self) -> Path:
        """What came out, once all is trained."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The page that shows the result."""
        return self.path / "report.html"

    @property
    def in_progress(self) -> Path:
        """The checkpoint of the training under way."""
        return self.path / "in-progress.safetensors"

    @property
    def metrics(self) -> Path:
        """The log of all trainings."""
        return self.path / "metrics.jsonl"

    def network(self, name: str, seed: int) -> Path:
        """Return where the network ``name`` of ``seed`` is kept."""
        return self.path / "networks" / f"{name}-seed{seed}.safetensors"

    def networks(self) -> list[Path]:
        """Return the files of all networks that are kept, sorted."""
        return sorted((self.path / "networks").glob("*.safetensors"))

    def save_network(self, path: Path, trained: TrainedNetwork, *, metrics_bytes: int) -> None:
        """Keep a trained network; ``metrics_bytes`` is how far the log belongs to it."""
        save_checkpoint(
            path,
            trained.network.merge_state_dict(trained.params, trained.state),
            {
                "network": trained.spec.to_json(),
                "history": json.dumps(trained.history),
                "metrics_bytes": str(metrics_bytes),
            },
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.metrics} cannot be written ({error.strerror})") from error

    def metrics_bytes(self) -> int:
        """Return the length of the log."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Drop what was logged after the checkpoint that a run resumes from."""
        if self.metrics_bytes() > size:
            os.truncate(self.metrics, size)


def read_network(path: Path) -> tuple[TrainedNetwork, int]:
    """Return a kept network and how many bytes of the log belong to it.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds another network than it says.
    """
    arrays, metadata = load_checkpoint(path)
    try:
        spec = NetworkSpec.from_json(metadata["network"])
        history = json.loads(metadata["history"])
        metrics_bytes = int(metadata["metrics_bytes"])
        network = spec.build()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds no trained network of this version ({type(error).__name__}: {error})"
        ) from error
    params, state = network.split_state_dict(arrays)
    return TrainedNetwork(spec, network, params, state, history), metrics_bytes


def load(
    run: str | os.PathLike[str], network: str = "student_distilled", *, seed: int | None = None
) -> TrainedNetwork:
    """Load a network of a finished run, ready to predict.

    Parameters
    ----------
    run : str or path
        The run folder.
    network : str
        ``"teacher"``, ``"student_alone"``, ``"student_distilled"`` or another student
        of the recipe.
    seed : int, optional
        Which of the run's seeds; the first one by default.

    Raises
    ------
    CheckpointError
        If the folder is no run, or has no such network.

    Examples
    --------
    >>> student = refkd.load("runs/digits")                       # doctest: +SKIP
    >>> student.predict(images).argmax(axis=1)                    # doctest: +SKIP
    """
    folder = RunFolder.open(Path(run))
    kept = folder.networks()
    if seed is not None:
        path = folder.network(network, seed)
    else:
        seeds = [p.stem.removeprefix(f"{network}-seed") for p in kept]
        path = folder.network(network, min((int(s) for s in seeds if s.isdecimal()), default=0))
    if not path.exists():
        raise CheckpointError(
            f"{folder.path} holds no network {path.stem!r}; it has: "
            f"{', '.join(p.stem for p in kept) or 'none yet'}"
        )
    return read_network(path)[0]
