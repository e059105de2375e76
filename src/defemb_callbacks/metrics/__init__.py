"""Metrics of an embedding table: tensor in, Python float out."""

from defemb_callbacks.metrics.drift import drift, neighbour_overlap
from defemb_callbacks.metrics.isotropy import average_cosine, effective_rank, isotropy, mean_norm, singular_values
from defemb_callbacks.metrics.measure import measure_table
from defemb_callbacks.metrics.semantics import pairs_by_group, relation_auc

__all__ = [
    "average_cosine",
    "drift",
    "effective_rank",
    "isotropy",
    "mean_norm",
    "measure_table",
    "neighbour_overlap",
    "pairs_by_group",
    "relation_auc",
    "singular_values",
]
