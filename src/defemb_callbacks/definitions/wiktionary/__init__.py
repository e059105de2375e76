"""Extracts of Wiktionary in the layout of wiktextract."""

from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary, read_wiktionary

__all__ = ["load_wiktionary", "read_wiktionary"]
