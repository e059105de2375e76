"""Reconstruction: from definitions to embeddings, by ridge regression or by a learned constructor."""

from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.reconstruction.constructor.learned_rows import (
    LearnedRows,
    held_out_words,
    learned_rows,
    read_definitions,
)
from defemb_callbacks.reconstruction.definition_head import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.reconstruction.features import own_bag, word_features
from defemb_callbacks.reconstruction.model_settings import resolve_settings
from defemb_callbacks.reconstruction.prompts import definition_texts, prompt_style
from defemb_callbacks.reconstruction.reader import DefinitionReader
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows, mapped

__all__ = [
    "DefinitionEMBMixin",
    "DefinitionReader",
    "LearnedRows",
    "cross_fitted_rows",
    "definition_texts",
    "held_out_words",
    "last_states",
    "learned_rows",
    "mapped",
    "own_bag",
    "prompt_style",
    "read_definitions",
    "resolve_settings",
    "with_definition_head",
    "word_features",
]
