"""Definition embeddings as a value: built from a model and a dictionary, saved, shared, applied to a model."""

from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings

__all__ = ["DefinitionEmbeddings", "build_definition_embeddings"]
