"""Pictures: of a table, of its metrics, of a run."""

from defemb_callbacks.plots.figures import plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.plots.run import save_run_plots
from defemb_callbacks.plots.snapshot import TableSnapshot

__all__ = ["TableSnapshot", "plot_metrics", "plot_projection", "plot_singular_values", "save_run_plots"]
