"""What a report shows of a run besides its result: read from the run folder, no data needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from refkd.errors import CheckpointError
from refkd.report.examples import Examples, load_examples
from refkd.report.pixels import is_image
from refkd.train.run import RunFolder, load

__all__ = ["Attachments", "Filters", "read_attachments"]

T = TypeVar("T")


class Filters(NamedTuple):
    """The weight of a network's first convolution.

    ``network`` is its key in the result, ``parameter`` the weight's name, ``weight`` of
    shape (filters, 1 or 3, height, width).
    """

    network: str
    parameter: str
    weight: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Attachments:
    """Parts of a report that are not in the result.

    Attributes
    ----------
    examples : Examples or None
        The distilled student's most confident mistakes.
    filters : tuple of Filters
    complaints : tuple of str
        Why a part that the run should have is not there, a line each.
    """

    examples: Examples | None = None
    filters: tuple[Filters, ...] = ()
    complaints: tuple[str, ...] = ()


def read_attachments(folder: RunFolder, result: Mapping[str, Any]) -> Attachments:
    """Read the attachments of a run's report.

    Parameters
    ----------
    folder : RunFolder
    result : mapping
        The run's.

    Returns
    -------
    Attachments
        Empty for a run that is not on images, or is of a version that kept no examples. A
        file that is missing or damaged costs what would have been drawn from it, and
        leaves a complaint.
    """
    if "confusion" not in result or not is_image(result["data"]["image_shape"]):
        return Attachments()
    complaints: list[str] = []
    classes = len(result["data"]["class_names"])
    read_examples = partial(load_examples, folder.examples, num_classes=classes)
    examples = _attempt(read_examples, complaints)
    if examples is None:
        complaints[0] += (
            f"; to make the file anew, delete result.json and run: "
            f"refkd distill --resume {folder.path}"
        )
    names = [n for n in ("teacher", "student_distilled") if result.get(n) is not None]
    filters = [_attempt(partial(_first_filters, folder, n), complaints) for n in names]
    return Attachments(examples, tuple(f for f in filters if f is not None), tuple(complaints))


def _attempt(read: Callable[[], T], complaints: list[str]) -> T | None:
    try:
        return read()
    except CheckpointError as error:
        complaints.append(" ".join(str(error).split()))
        return None


def _first_filters(folder: RunFolder, name: str) -> Filters | None:
    for parameter, weight in load(folder.path, name).params.items():
        if weight.ndim == 4 and weight.shape[1] in (1, 3):
            return Filters(name, parameter, weight)
    return None
