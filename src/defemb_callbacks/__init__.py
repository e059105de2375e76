"""Rebuild a model's token embeddings from dictionary definitions, inside any Hugging Face Trainer run."""

from defemb_callbacks.build import build_definition_embeddings
from defemb_callbacks.callback import DefinitionEMBCallback
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.embeddings import DefinitionEmbeddings
from defemb_callbacks.model_card import update_model_card
from defemb_callbacks.monitoring import EmbeddingMonitorCallback, measure_embeddings
from defemb_callbacks.new_tokens import define_new_tokens
from defemb_callbacks.reconstruction import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.report import RebuildReport

__all__ = [
    "ConstructorConfig",
    "Definition",
    "DefinitionEMBCallback",
    "DefinitionEMBConfig",
    "DefinitionEMBMixin",
    "DefinitionEmbeddings",
    "EmbeddingMonitorCallback",
    "Lexicon",
    "RebuildReport",
    "build_definition_embeddings",
    "define_new_tokens",
    "load_definitions",
    "measure_embeddings",
    "update_model_card",
    "with_definition_head",
]
