"""Metrics of an embedding table: tensor in, Python float out."""

from defemb_callbacks.metrics.drift import drift
from defemb_callbacks.metrics.isotropy import isoscore, isotropy
from defemb_callbacks.metrics.measure import TableMeasure, measure_table, spectra_by_group
from defemb_callbacks.metrics.neighbours import neighbour_overlap
from defemb_callbacks.metrics.ratings import Ratings, rating_correlation, read_ratings
from defemb_callbacks.metrics.semantics import pairs_by_group, relation_auc
from defemb_callbacks.metrics.spectrum import Spectrum, effective_rank, singular_values
from defemb_callbacks.metrics.sums import average_cosine, mean_norm

__all__ = [
    "Ratings",
    "Spectrum",
    "TableMeasure",
    "average_cosine",
    "drift",
    "effective_rank",
    "isoscore",
    "isotropy",
    "mean_norm",
    "measure_table",
    "neighbour_overlap",
    "pairs_by_group",
    "rating_correlation",
    "read_ratings",
    "relation_auc",
    "singular_values",
    "spectra_by_group",
]
