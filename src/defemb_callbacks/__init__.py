"""Rebuild a model's token embeddings from dictionary definitions, inside any Hugging Face Trainer run."""

from defemb_callbacks.callbacks import (
    CalibrationCallback,
    DefinitionEMBCallback,
    EmbeddingMonitorCallback,
    SenseMonitorCallback,
    TrainNewTokensCallback,
)
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.metrics.model_metrics import measure_embeddings
from defemb_callbacks.new_tokens import define_new_tokens
from defemb_callbacks.reconstruction import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.reporting.model_card import update_model_card
from defemb_callbacks.reporting.summary import RebuildReport

__all__ = [
    "CalibrationCallback",
    "ConstructorConfig",
    "Definition",
    "DefinitionEMBCallback",
    "DefinitionEMBConfig",
    "DefinitionEMBMixin",
    "DefinitionEmbeddings",
    "EmbeddingMonitorCallback",
    "Lexicon",
    "RebuildReport",
    "SenseMonitorCallback",
    "TrainNewTokensCallback",
    "build_definition_embeddings",
    "define_new_tokens",
    "load_definitions",
    "measure_embeddings",
    "update_model_card",
    "with_definition_head",
]
