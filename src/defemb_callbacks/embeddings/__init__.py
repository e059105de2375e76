"""The rebuilt rows as a value: built, saved, loaded, applied."""

from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings

__all__ = ["DefinitionEmbeddings", "build_definition_embeddings"]
