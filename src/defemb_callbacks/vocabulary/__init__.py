"""The tokens of a tokenizer as words, and how frequent they are."""

from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary

__all__ = ["Vocabulary", "read_vocabulary"]
