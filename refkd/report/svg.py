"""Matplotlib figures as inline SVG: the settings, the canvas, and SVG fit for a page.

Text stays text in the page's own font, and every colour becomes a CSS variable, so that
one picture serves a light page, a dark one and paper. Equal figures give equal bytes.
Matplotlib is loaded on first use, without pyplot, and the user's settings are neither
used nor changed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from refkd.errors import import_extra
from refkd.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FONT_SIZE",
    "WIDTH",
    "Picture",
    "add_axes",
    "drawing",
    "inline_svg",
    "new_figure",
]

WIDTH = 360.0  # points; all pictures are equally wide, so that their text is equally large
FONT_SIZE = 9.5

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "refkd",
    "font.size": FONT_SIZE,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,
    "text.color": LIGHT["ink"],
    "axes.titlesize": FONT_SIZE,
    "axes.titlelocation": "left",
    "axes.titlecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "figure.dpi": 72,  # pixels are points
}


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes
    ----------
    name : str
        Prefix of the ids inside, unique in the page.
    title : str
    caption : str
        How to read it, in a sentence or two of plain text.
    svg : str
        An ``<svg>`` element.
    """

    name: str
    title: str
    caption: str
    svg: str


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the report's settings; whatever the user had set returns afterwards.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    import_extra("matplotlib", "plot", "html_report: the report with pictures")
    style = import_extra("matplotlib.style", "plot", "html_report: the report with pictures")
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width and ``height`` points."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72))


def add_axes(
    figure: Figure, *, left: float, right: float, top: float, bottom: float, title: str = ""
) -> Axes:
    """Return axes inset by margins in points; ``title`` names the vertical axis."""
    height = 72 * figure.get_figheight()
    axes = figure.add_axes(
        (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    )
    # Above the axis a name can be read without tilting the head.
    if title:
        axes.set_title(title, x=-left / (WIDTH - left - right), pad=8)
    return axes


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element for an HTML page.

    Parameters
    ----------
    figure : Figure
    name : str
        Prefix of the ids in the picture, unique in the page.
    alt : str
        What the picture shows, for those who do not see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    drawn = buffer.getvalue()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    # Matplotlib's style sheet would apply to the whole page; the page has its own.
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    # Tags only: a class may be called anything.
    body = re.sub(r"<[^>]*>", lambda tag: _for_page(tag[0], name, used), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    height = 72 * figure.get_figheight()
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(alt)}">{body}</svg>'
    )


def _for_page(tag: str, name: str, used: Set[str]) -> str:
    """Prefix the ids that are referred to and drop the others; let the page set the font."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]*(; )?", "", tag)
    tag = re.sub(
        r'\s+id="([^"]*)"', lambda id: f' id="{name}-{id[1]}"' if id[1] in used else "", tag
    )
    tag = re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{name}-\g<2>", tag)
    for role, colour in LIGHT.items():
        tag = tag.replace(colour, f"var(--{role})")
    return tag
