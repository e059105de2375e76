"""Terms that a tokenizer does not have, as tokens whose rows are made from their definitions."""

from defemb_callbacks.new_tokens.define import define_new_tokens

__all__ = ["define_new_tokens"]
