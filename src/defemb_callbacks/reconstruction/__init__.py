"""From definitions to vectors."""

from defemb_callbacks.reconstruction.encode import definition_texts, word_features
from defemb_callbacks.reconstruction.mixin import DefinitionEMBMixin, last_states, with_definition_head
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows

__all__ = [
    "DefinitionEMBMixin",
    "cross_fitted_rows",
    "definition_texts",
    "last_states",
    "with_definition_head",
    "word_features",
]
