"""Read Wiktionary extracts in wiktextract's JSON Lines format."""

from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary, read_wiktionary

__all__ = ["load_wiktionary", "read_wiktionary"]
