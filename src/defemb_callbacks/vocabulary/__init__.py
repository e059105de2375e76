"""Map tokens to words and definitions, and order them by frequency."""

from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary

__all__ = ["Vocabulary", "read_vocabulary"]
