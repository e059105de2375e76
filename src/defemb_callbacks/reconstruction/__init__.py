"""From definitions to vectors."""

from defemb_callbacks.reconstruction.encode import definition_texts, word_features
from defemb_callbacks.reconstruction.learned import LearnedRows, learned_rows
from defemb_callbacks.reconstruction.mixin import DefinitionEMBMixin, last_states, with_definition_head
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows

__all__ = [
    "DefinitionEMBMixin",
    "LearnedRows",
    "cross_fitted_rows",
    "definition_texts",
    "last_states",
    "learned_rows",
    "with_definition_head",
    "word_features",
]
