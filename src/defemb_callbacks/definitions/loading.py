"""Load any kind of dictionary: choose the reader for a name, a file extension or an object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from defemb_callbacks.definitions.glossary import Glossary, glossary_from_dict, read_json, read_table
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary
from defemb_callbacks.definitions.wordnet import load_wordnet

DefinitionSource: TypeAlias = str | os.PathLike[str] | Glossary | Lexicon | Sequence["DefinitionSource"]
READERS: dict[str, Callable[[Path], Lexicon]] = {
    ".tsv": read_table,
    ".csv": read_table,
    ".json": read_json,
    ".jsonl": load_wiktionary,
    ".jsonl.gz": load_wiktionary,
}
_ACCEPTED = (
    '"wordnet", a path to a glossary (.tsv, .csv, .json) or to a Wiktionary extract (.jsonl, .jsonl.gz), a dict '
    "{word: gloss or list of glosses}, a Lexicon, or a list of these"
)


def load_definitions(source: DefinitionSource) -> Lexicon:
    """Load a dictionary, or merge several.

    Args:
        source: One of

            - `"wordnet"`;
            - a path to a `.tsv`, `.csv` or `.json` glossary;
            - a path to a `.jsonl` or `.jsonl.gz` extract of Wiktionary, of which the English entries are read (for
              other languages see `load_wiktionary`);
            - a dict that maps words to a gloss or a list of glosses, where a gloss may be a dict
              `{"definition": …, "synonyms": […]}`;
            - a `Lexicon`;
            - a list of these. Every dictionary keeps its own definitions.

    Raises:
        FileNotFoundError: If the file does not exist or WordNet is not found.
        ValueError: If the name or suffix is unknown, the list is empty, a glossary has an error (named with its
            line), or the Wiktionary extract is malformed.
        TypeError: If `source` has another type.

    Example:
        >>> lexicon = load_definitions([{"cat": "a small feline"}, {"cat": ["a feline", "a bulldozer"]}])
        >>> [(found.source, found.rank, found.gloss) for found in lexicon.lookup("cat")]
        [('glossary', 1, 'a small feline'), ('glossary-2', 1, 'a feline'), ('glossary-2', 2, 'a bulldozer')]
    """
    if isinstance(source, Lexicon):
        return source
    if isinstance(source, Mapping):
        return glossary_from_dict(source)
    if isinstance(source, str) and source == "wordnet":
        return load_wordnet()
    if isinstance(source, str | os.PathLike):
        return _read_file(source)
    if isinstance(source, list | tuple):
        return Lexicon.merge(map(load_definitions, _flattened(source)))
    raise TypeError(f"Cannot load definitions from {source!r} ({type(source).__name__}). Pass {_ACCEPTED}.")


def _flattened(sources: Sequence[DefinitionSource]) -> Iterator[DefinitionSource]:
    if not sources:
        raise ValueError(f"The list of definitions is empty. Add at least one item: {_ACCEPTED}.")
    for source in sources:
        if isinstance(source, list | tuple):
            yield from _flattened(source)
        else:
            yield source


def _read_file(source: str | os.PathLike[str]) -> Lexicon:
    path = Path(source).expanduser()
    suffix = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"Cannot load definitions from {str(source)!r}. Pass {_ACCEPTED}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(source)!r}. Check the path of the definitions.")
    return READERS[suffix](path)
