"""The style of all pictures, on paper and on the page, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours on light and on dark backgrounds, by name of the CSS variable. The data colours are those of Okabe and Ito,
# which colour-blind readers can distinguish; on the dark background, lighter variants replace those that are too dark.
PALETTE = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1b1f24", "#e8eaed"),
    "faint": ("#cfd4da", "#3d444d"),  # lines that are not data
    "grey": ("#555555", "#c4c9cf"),
    "blue": ("#0072b2", "#56b4e9"),
    "green": ("#009e73", "#009e73"),
    "orange": ("#d55e00", "#e8742b"),
    "purple": ("#b0578d", "#cc79a7"),
    "muted": ("#57606a", "#a3adb8"),  # from here on, colours of text
    "link": ("#005a8f", "#7cc4f0"),
    "better": ("#005a8f", "#7cc4f0"),
    "worse": ("#9c4500", "#f5a06a"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
COLOURS = {"all": LIGHT["grey"], "frequent": LIGHT["blue"], "medium": LIGHT["green"], "rare": LIGHT["orange"]}
MARKERS = {"all": "o", "frequent": "s", "medium": "^", "rare": "D"}

# Styles of the snapshots, in order; reused if there are more snapshots than styles.
SNAPSHOT_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": LIGHT[name], "linestyle": line}
    for name, line in (
        ("grey", "-"),
        ("blue", "--"),
        ("orange", ":"),
        ("green", "-."),
        ("purple", (0, (6, 1, 1, 1, 1, 1))),
    )
)


@contextmanager
def figures() -> Iterator[type[Figure]]:
    """Yield matplotlib's `Figure`, with the style of this package while the context lasts.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    # `Figure` instead of pyplot: no global state, no windows, no effect on the backend of the user's own plots.
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots require matplotlib. Run pip install "defemb-callbacks[plots]".') from error
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(ink, LIGHT["ink"]) | {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "figure.facecolor": LIGHT["paper"],
        "axes.facecolor": "none",
        "grid.color": LIGHT["faint"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "text.parse_math": False,  # a name with two dollar signs is not a formula
    }
    with rc_context(style):
        yield Figure
