"""Metrics of an embedding table: tensor in, Python float out."""

from defemb_callbacks.metrics.drift import drift, neighbour_overlap
from defemb_callbacks.metrics.isoscore import isoscore
from defemb_callbacks.metrics.isotropy import average_cosine, effective_rank, isotropy, mean_norm, singular_values
from defemb_callbacks.metrics.measure import TableMeasure, measure_table, spectra_by_group
from defemb_callbacks.metrics.ratings import Ratings, rating_correlation, read_ratings
from defemb_callbacks.metrics.semantics import pairs_by_group, relation_auc

__all__ = [
    "Ratings",
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
