"""Pictures: of a table, of its metrics, of a run."""

from defemb_callbacks.plots.figures import plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.plots.projector import save_projector
from defemb_callbacks.plots.record import RunRecord
from defemb_callbacks.plots.run import save_pictures, write_pictures
from defemb_callbacks.plots.snapshot import TableSnapshot, watched_tokens

__all__ = [
    "RunRecord",
    "TableSnapshot",
    "plot_metrics",
    "plot_projection",
    "plot_singular_values",
    "save_pictures",
    "save_projector",
    "watched_tokens",
    "write_pictures",
]
