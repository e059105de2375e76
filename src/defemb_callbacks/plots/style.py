"""How every picture looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = {"all": "#555555", "frequent": "#0072B2", "medium": "#E69F00", "rare": "#D55E00"}
MARKERS = {"all": "o", "frequent": "s", "medium": "^", "rare": "D"}
SNAPSHOT_COLOURS = ("#555555", "#0072B2", "#D55E00")


def figure_class() -> type[Figure]:
    """Matplotlib's `Figure`, or an ImportError with the pip line."""
    # Figure rather than pyplot: no global state, no window, no choice of backend for the user's own plots.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "defemb-callbacks[plots]".') from error
    return Figure


def tidy(axis: Axes, title: str) -> None:
    """Title on the left, faint grid, no box."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
