"""The pictures of a report, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refkd.report.attachments import Filters
from refkd.report.figure_confusion import confusions
from refkd.report.figure_filters import first_filters
from refkd.report.figure_networks import calibration, sizes, soft_targets
from refkd.report.figure_seeds import accuracy_per_seed, paired_differences
from refkd.report.figure_training import accuracy_curves, loss_curves
from refkd.report.svg import Picture, drawing

__all__ = ["draw_pictures"]


def draw_pictures(result: Mapping[str, Any], filters: Sequence[Filters] = ()) -> list[Picture]:
    """Draw every picture that the result has the numbers for, and the networks' filters.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    with drawing():
        pictures = (
            accuracy_curves(result),
            loss_curves(result),
            accuracy_per_seed(result),
            paired_differences(result),
            sizes(result),
            soft_targets(result),
            calibration(result),
            *confusions(result),
            first_filters(result, filters),
        )
        return [picture for picture in pictures if picture is not None]
