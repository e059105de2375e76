"""From definitions to vectors."""

from defemb_callbacks.reconstruction.encode import definition_texts, word_features
from defemb_callbacks.reconstruction.learned import LearnedRows, held_out_words, learned_rows, read_definitions
from defemb_callbacks.reconstruction.mixin import DefinitionEMBMixin, last_states, with_definition_head
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows, mapped

__all__ = [
    "DefinitionEMBMixin",
    "LearnedRows",
    "cross_fitted_rows",
    "definition_texts",
    "held_out_words",
    "last_states",
    "learned_rows",
    "mapped",
    "read_definitions",
    "with_definition_head",
    "word_features",
]
