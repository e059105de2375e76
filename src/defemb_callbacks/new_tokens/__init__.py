"""New tokens: terms that become tokens of a tokenizer, with embeddings made from their definitions."""

from defemb_callbacks.new_tokens.define import define_new_tokens

__all__ = ["define_new_tokens"]
