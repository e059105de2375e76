"""New tokens: terms that become tokens of a tokenizer, with embeddings made from their definitions."""

from defemb_callbacks.new_tokens.define import define_new_tokens
from defemb_callbacks.new_tokens.trained_rows import TrainedRows

__all__ = ["TrainedRows", "define_new_tokens"]
