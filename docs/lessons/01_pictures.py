"""Draw the pictures of lesson 1: ``python docs/lessons/01_pictures.py`` writes the SVG files anew.

Trains a teacher and a weak student on the shipped digits, in about a second and in float64, so
that every machine draws the same picture. The SVG is written by hand and needs only NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refkd.data import Split, load_digits
from refkd.distill import Stage, Supervised, select
from refkd.models import create
from refkd.ops import softmax_forward
from refkd.train import Adam, Constant, begin, train
from refkd.train.evaluate import evaluate_logits

FOLDER = Path(__file__).parent
NINES = (9, 265, 349)  # test images: a plain nine, one that resembles a 7, one that resembles a 3
TEMPERATURES = (1, 4, 20)
INK, MUTED, GRID = "#1f2328", "#656d76", "#dfe3e8"
BLUE, ORANGE, GREEN = "#0069a8", "#bf4f00", "#00785a"


class Measured(NamedTuple):
    """Test images with the logits of both networks on them."""

    test: Split
    teacher: np.ndarray
    student: np.ndarray


def measure() -> Measured:
    """Train both networks and evaluate them on the 500 test images."""
    return Measured(
        load_digits().test,
        test_logits(hidden=(128,), epochs=40),
        test_logits(hidden=(16,), epochs=6),
    )


def test_logits(*, hidden: Sequence[int], epochs: int) -> np.ndarray:
    """Train an MLP on the labels and return its logits on the test images."""
    digits = load_digits()
    network = create("mlp", in_features=64, hidden=hidden, num_classes=10)
    stages = [Stage(Supervised(network), Adam(1e-3), Constant(), epochs, batch_size=32)]
    progress = begin(stages, seed=0)
    progress.params = {name: p.astype(np.float64) for name, p in progress.params.items()}
    train(stages, progress, digits.train, normalization=digits.normalization)
    params = select(progress.params, "student")
    return evaluate_logits(
        network, params, {}, digits.test.images, normalization=digits.normalization
    )


def draw(measured: Measured) -> dict[str, str]:
    """Return the pictures by file name."""
    return {
        "01-soft-targets.svg": draw_soft_targets(measured),
        "01-t-squared.svg": draw_t_squared(measured),
    }


def draw_soft_targets(measured: Measured) -> str:
    """Three nines and what the teacher thinks of them at three temperatures."""
    left, top, image, panel, gap, row = 8, 34, 72, 186, 14, 112
    parts = [text(left, 18, "label 9", MUTED)]
    columns = [left + image + 22 + i * (panel + gap) for i in range(len(TEMPERATURES))]
    for x, temperature in zip(columns, TEMPERATURES, strict=True):
        parts.append(text(x, 18, f"softmax(v/T), T = {temperature}", MUTED))
    for i, index in enumerate(NINES):
        y = top + i * row
        parts += draw_digit(measured.test.images[index], left, y, image)
        for x, temperature in zip(columns, TEMPERATURES, strict=True):
            t = softmax_forward(measured.teacher[index], temperature=temperature)
            parts += draw_bars(t, x, y, panel, image)
    width, height = columns[-1] + panel + left, top + len(NINES) * row - 10
    return svg(width, height, "Three nines: one label, three different soft targets", parts)


def draw_digit(pixels: np.ndarray, x: float, y: float, size: float) -> list[str]:
    """An 8x8 image, ink dark."""
    cell = size / len(pixels)
    parts = [f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="none" stroke="{GRID}"/>']
    for (i, j), value in np.ndenumerate(pixels):
        if value:
            place = f'x="{x + j * cell:g}" y="{y + i * cell:g}" width="{cell:g}" height="{cell:g}"'
            parts.append(f'<rect {place} fill="{INK}" fill-opacity="{value / 16:.3f}"/>')
    return parts


def draw_bars(t: np.ndarray, x: float, y: float, width: float, height: float) -> list[str]:
    """Ten probabilities as bars (full height is 1) above the names of their classes."""
    step = width / len(t)
    baseline = y + height
    parts = [line([(x, baseline), (x + width, baseline)], MUTED, 0.8)]
    for digit, probability in enumerate(t):
        center = x + (digit + 0.5) * step
        bar = height * float(probability)
        colour = BLUE if digit == 9 else ORANGE
        place = f'x="{center - 6:.1f}" y="{baseline - bar:.1f}" width="12" height="{bar:.1f}"'
        parts.append(f'<rect {place} fill="{colour}"/>')
        parts.append(text(center, baseline + 13, str(digit), MUTED, anchor="middle"))
        if probability >= 0.01:
            label = f"{probability:.2f}".removeprefix("0")
            parts.append(text(center, baseline - bar - 3, label, colour, size=8, anchor="middle"))
    return parts


def draw_t_squared(measured: Measured) -> str:
    """Mean norm of the soft gradient against T, with and without T², beside the hard one."""
    z, v = measured.student, measured.teacher
    temperatures = np.geomspace(1, 64, 49)
    softened = [
        softmax_forward(z, temperature=T) - softmax_forward(v, temperature=T) for T in temperatures
    ]
    with_t2 = [T * norm(d) for T, d in zip(temperatures, softened, strict=True)]
    without = [norm(d) / T for T, d in zip(temperatures, softened, strict=True)]
    hard = norm(softmax_forward(z) - np.eye(10)[measured.test.labels])
    centered = [a - a.mean(axis=1, keepdims=True) for a in (z, v)]
    limit = norm(centered[0] - centered[1]) / 10

    x0, x1, y0, y1 = 62.0, 470.0, 300.0, 40.0
    low, high = -4, 1

    def place(T: float, value: float) -> tuple[float, float]:
        across = math.log(T) / math.log(64)
        up = (math.log10(value) - low) / (high - low)
        return x0 + across * (x1 - x0), y0 + up * (y1 - y0)

    parts = [text(8, 18, "mean norm of the gradient with respect to the logits", MUTED)]
    for decade in range(low, high + 1):
        y = place(1, 10.0**decade)[1]
        parts.append(line([(x0, y), (x1, y)], GRID, 0.8))
        parts.append(text(x0 - 8, y + 4, f"{10.0**decade:g}", MUTED, anchor="end"))
    for T in (1, 2, 4, 8, 16, 32, 64):
        parts.append(text(place(T, 1)[0], y0 + 18, str(T), MUTED, anchor="middle"))
    parts.append(text((x0 + x1) / 2, y0 + 38, "temperature T", MUTED, anchor="middle"))
    curves = (
        (with_t2, GREEN, "", "soft, with T²: T(s − t)", 2),
        (np.full(len(temperatures), hard), INK, "", "hard: q − y", 6),
        (without, ORANGE, "", "soft, no T²: (s − t)/T", 0),
        (np.full(len(temperatures), limit), MUTED, "5 4", "its limit, T → ∞", -13),
    )
    for values, colour, dashes, label, shift in curves:
        points = [place(T, value) for T, value in zip(temperatures, values, strict=True)]
        parts.append(line(points, colour, 2, dashes))
        parts.append(text(x1 + 8, points[-1][1] + 4 + shift, label, colour))
    return svg(650, 350, "Without T² the soft gradient fades like 1/T²", parts)


def norm(gradients: np.ndarray) -> float:
    """Mean over the examples of the Euclidean norm."""
    return float(np.sqrt((gradients**2).sum(axis=1)).mean())


def text(
    x: float, y: float, content: str, colour: str, *, size: float = 12, anchor: str = "start"
) -> str:
    """One line of text at its baseline."""
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"'
    return f'<text {where} fill="{colour}">{content}</text>'


def line(points: Sequence[tuple[float, float]], colour: str, width: float, dashes: str = "") -> str:
    """A polyline."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
    return f'<polyline points="{path}" {style}/>'


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole file, on white so that it can be read on a dark page too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="sans-serif">'
    )
    page = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{title}</title>", page, *parts, "</svg>", ""])


if __name__ == "__main__":
    for file_name, picture in draw(measure()).items():
        (FOLDER / file_name).write_text(picture, encoding="utf-8")
