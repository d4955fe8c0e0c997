"""Augmentation: transforms of one stored image, uint8 and (C, h, w), before it is normalised.

Each is a frozen dataclass that is called with the image and the generator of that image,
and returns an image that may be a view of the one it was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from refkd.data._pillow import MAX_SIDE, resize
from refkd.errors import ConfigError, DataError, check_unit_interval

__all__ = [
    "CenterCrop",
    "HorizontalFlip",
    "PaddedCrop",
    "RandomResizedCrop",
    "Resize",
    "Transform",
]

_TRIES = 10
_NARROWEST, _WIDEST = 1e-4, 1e4  # beyond a row or a column of MAX_SIDE pixels


class Transform(Protocol):
    """A transform of one image."""

    random: ClassVar[bool]
    """Whether it draws from the generator."""

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image (C, h, w) to one of shape (C, h', w')."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random part of random aspect, and resize it to ``size`` x ``size``.

    Attributes
    ----------
    size : int
    scale : (float, float), 0 < low <= high <= 1
        Bounds of the part's area, as a fraction of the image's.
    ratio : (float, float), 0.0001 <= low <= high <= 10000
        Bounds of its width over its height.

    Raises
    ------
    ConfigError
        On construction, if an attribute is out of range.
    MissingExtra
        On a call, if Pillow is not installed.

    Notes
    -----
    Up to ten times an area is drawn, a·h·w with a uniform in ``scale``, and an aspect r,
    log-uniform in ``ratio``: sides √(a·h·w·r) and √(a·h·w/r), rounded. The first part
    that fits into the image is taken, every position of it being equally likely. Where
    none fits it is the largest central part whose aspect lies within ``ratio``. The part
    is resized bilinearly with antialiasing, and sees no pixel around it.

    References
    ----------
    Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv:1409.4842, section 6;
    the ten tries and the central part are those of torchvision.
    """

    random: ClassVar[bool] = True

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_side("RandomResizedCrop", "size", self.size, 1)
        _check_range("RandomResizedCrop", "scale", self.scale, 0.0, 1.0)
        _check_range("RandomResizedCrop", "ratio", self.ratio, _NARROWEST, _WIDEST)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image."""
        top, left, height, width = self.part(image.shape[1], image.shape[2], rng)
        return resize(image[:, top : top + height, left : left + width], self.size)

    def part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw the part of an image of that size: its top, left, height and width."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return int(top), int(left), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability ``p``, in [0, 1]."""

    random: ClassVar[bool] = True

    p: float = 0.5

    def __post_init__(self) -> None:
        check_unit_interval("HorizontalFlip", "p", self.p)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image."""
        return image[:, :, ::-1] if rng.random() < self.p else image


@dataclass(frozen=True)
class PaddedCrop:
    """Pad with ``padding`` black pixels on every side, and crop ``size`` x ``size`` at random.

    Every position is equally likely. An image that is too small even with its padding
    is a DataError.
    """

    random: ClassVar[bool] = True

    size: int
    padding: int

    def __post_init__(self) -> None:
        _check_side("PaddedCrop", "size", self.size, 1)
        _check_side("PaddedCrop", "padding", self.padding, 0)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image."""
        channels, height, width = image.shape
        p, size = self.padding, self.size
        _check_fits("PaddedCrop", size, height + 2 * p, width + 2 * p)
        padded = np.zeros((channels, height + 2 * p, width + 2 * p), np.uint8)
        padded[:, p : p + height, p : p + width] = image
        top, left = rng.integers(height + 2 * p - size + 1), rng.integers(width + 2 * p - size + 1)
        return padded[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class CenterCrop:
    """Crop the central ``size`` x ``size``; a smaller image is a DataError."""

    random: ClassVar[bool] = False

    size: int

    def __post_init__(self) -> None:
        _check_side("CenterCrop", "size", self.size, 1)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image."""
        _, height, width = image.shape
        _check_fits("CenterCrop", self.size, height, width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return image[:, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class Resize:
    """Resize to ``size`` x ``size``, bilinearly with antialiasing; the aspect is not kept.

    It is what `refkd.data.ImageFiles` does for evaluation. Needs Pillow, else MissingExtra.
    """

    random: ClassVar[bool] = False

    size: int

    def __post_init__(self) -> None:
        _check_side("Resize", "size", self.size, 1)

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform an image."""
        return resize(image, self.size)


def _check_side(where: str, name: str, side: object, least: int) -> None:
    if not isinstance(side, int) or isinstance(side, bool) or not least <= side <= MAX_SIDE:
        raise ConfigError(
            f"{where}: {name} must be an integer from {least} to {MAX_SIDE}, got {side!r}"
        )


def _check_range(where: str, name: str, bounds: Any, least: float, most: float) -> None:
    try:
        low, high = bounds
        valid = low > 0 and least <= low <= high <= most
    except (TypeError, ValueError):
        valid = False
    if not valid:
        limit = f"{least:g} <=" if least else "0 <"
        raise ConfigError(
            f"{where}: {name} must be two numbers, {limit} low <= high <= {most:g}, got {bounds!r}"
        )


def _check_fits(where: str, size: int, height: int, width: int) -> None:
    if size > min(height, width):
        raise DataError(
            f"{where}: a crop of {size} x {size} does not fit into an image of "
            f"{height} x {width}; resize the images first"
        )
