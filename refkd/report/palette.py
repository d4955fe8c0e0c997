"""The colour of every role in a report, for a light and for a dark page.

The pictures, the table's swatches and the page's text all take theirs from here.
"""

__all__ = ["DARK", "LIGHT", "MARKERS"]

# Distinct under the common colour-vision deficiencies (after Okabe and Ito, darkened until
# they can be read as text). Every role has a colour of its own: the colour finds the role.
LIGHT = {
    "ink": "#1f2328",
    "muted": "#656d76",
    "grid": "#dfe3e8",
    "teacher": "#474d57",
    "alone": "#bf4f00",
    "distilled": "#0069a8",
    "arm1": "#00785a",
    "arm2": "#a33c7d",
    "arm3": "#7d6200",
    "arm4": "#5b4fc4",
}
DARK = {
    "ink": "#e6e9ed",
    "muted": "#9aa4af",
    "grid": "#30363d",
    "teacher": "#c3cad3",
    "alone": "#f79a52",
    "distilled": "#5bb8f5",
    "arm1": "#3cc79b",
    "arm2": "#ea93c8",
    "arm3": "#d6b93f",
    "arm4": "#a79bff",
}
MARKERS = {
    "teacher": "D",
    "alone": "s",
    "distilled": "o",
    "arm1": "^",
    "arm2": "v",
    "arm3": "P",
    "arm4": "X",
}
