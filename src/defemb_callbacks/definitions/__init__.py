"""Load definitions from WordNet, Wiktionary and glossaries into a `Lexicon`."""

from defemb_callbacks.definitions.lexicon import Definition, Lexicon, Relation
from defemb_callbacks.definitions.loading import load_definitions
from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary

__all__ = ["Definition", "Lexicon", "Relation", "load_definitions", "load_wiktionary"]
