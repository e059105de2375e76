"""Read the WordNet database files.

The format is described in the manual pages wndb(5WN), wninput(5WN), senseidx(5WN), cntlist(5WN) and lexnames(5WN) of
WordNet 3.0; see https://wordnet.princeton.edu/documentation.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar

from defemb_callbacks.definitions.definition import Definition, Relation
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import Morphology

T = TypeVar("T")
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
FILES = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in PARTS),
    *(f"{part}.exc" for part in PARTS),
    "cntlist.rev",
)

# Indexed by number, as Debian's wordnet-base lacks the file lexnames.
CATEGORIES = (
    *("adj.all", "adj.pert", "adv.all"),
    *("noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute", "noun.body", "noun.cognition"),
    *("noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive"),
    *("noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
    *("verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption"),
    *("verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession"),
    *("verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)

# Named as in WN-LMF, so that the `wn` library gives the same relations. Reverse pointers are left out as redundant,
# and so are usage domains ("ethnic slur", "trademark"), which describe how a word is used, not what it means.
POINTERS = {
    "!": "antonym",
    "@": "hypernym",
    "@i": "instance_hypernym",
    "%m": "mero_member",
    "%s": "mero_substance",
    "%p": "mero_part",
    "=": "attribute",
    "+": "derivation",
    "&": "similar",
    "$": "similar",  # verb groups
    "*": "entails",
    ">": "causes",
    "^": "also",
    "<": "participle",
    "\\": "pertainym",
    ";c": "domain_topic",
    ";r": "domain_region",
}
_POS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
_TYPE_NUMBERS = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # the syntactic position of an adjective

# An example starts with a quote after punctuation. Other quotes, as in `the phrase "make strides"`, are part of the
# definition.
_EXAMPLE = re.compile(r'[;:,.)]\s*"')
_LEAD_IN = re.compile(r"(?:[;,:\s]|\b(?:as in )?e\.g\.)+$")


class Pointer(NamedTuple):
    """A link between synsets, or between two of their words (counted from 1; 0 means all words)."""

    kind: str
    synset: tuple[str, int]
    source_word: int
    target_word: int


class Synset(NamedTuple):
    """One line of a data file."""

    type: str  # n, v, a, r, or s for the satellite of another adjective
    offset: int
    category: int
    first_word: str  # as in the file, with its marker, as it is part of the sense keys of satellites
    words: tuple[str, ...]
    lexical_ids: tuple[int, ...]
    pointers: tuple[Pointer, ...]
    gloss: str

    @property
    def key(self) -> tuple[str, int]:
        """The key used by pointers, which do not distinguish satellites from other adjectives."""
        return ("a" if self.type == "s" else self.type), self.offset


def read_wordnet(folder: Path) -> Lexicon:
    """Parse the WordNet database files of a folder, which takes some seconds for WordNet 3.0.

    Raises:
        ValueError: If a file is not in the format of wndb(5WN), named with its line, or if the files are inconsistent.
        OSError: If a file cannot be read.
    """
    with _no_garbage_collection():
        synsets = {synset.key: synset for part in PARTS for synset in _parse(folder / f"data.{part}", _synset)}
        ranks = {
            (pos, lemma, offset): rank
            for part, pos in PARTS.items()
            for lemma, offsets in _parse(folder / f"index.{part}", _index_entry)
            for rank, offset in enumerate(offsets, start=1)
        }
        counts = dict(_parse(folder / "cntlist.rev", _sense_count))
        exceptions = {pos: dict(_parse(folder / f"{part}.exc", _exception)) for part, pos in PARTS.items()}
        try:
            return Lexicon.from_definitions(
                _definitions(synsets, ranks, counts),
                name="wordnet",
                relations=_relations(synsets),
                morphology=Morphology(exceptions),
            )
        except KeyError as error:
            raise ValueError(
                f"The WordNet files in {folder} are inconsistent: one refers to {error}, which another one lacks. "
                "Install all files again, from one release."
            ) from error


def definition_of(gloss: str) -> str:
    """Remove the usage examples and everything after them from a gloss.

    Example:
        >>> definition_of('a small cat; "the kitten; it purred"; "kittens" (young cats)')
        'a small cat'
        >>> definition_of('significant progress (especially in the phrase "make strides"); "they made big strides"')
        'significant progress (especially in the phrase "make strides")'
    """
    definition = gloss
    for example in _EXAMPLE.finditer(gloss):
        before = gloss[: example.start() + 1]
        if before.count("(") <= before.count(")"):  # a quote in parentheses is part of the definition
            definition = before
            break
    if definition.count('"') % 2:
        # An example without its opening quote, as in `focus once again; The physicist refocused the light beam"`.
        definition = (definition.rpartition(";")[0] or definition).replace('"', "")
    return _LEAD_IN.sub("", definition).strip()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection: scanning millions of tuples without cycles would take a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse(path: Path, parse_line: Callable[[str], T]) -> Iterator[T]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("  "):  # the license at the top of data and index files
                continue
            try:
                yield parse_line(line)
            except (ValueError, IndexError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number} is not in the WordNet database format ({error!r}): {line[:80]!r}. "
                    "Install the files again."
                ) from error


def _synset(line: str) -> Synset:
    fields, bar, gloss = line.partition(" | ")
    if not bar:
        raise ValueError("the gloss is missing")
    offset, category, kind, word_count, *rest = fields.split()
    end = 2 * int(word_count, 16)
    pointers = tuple(
        Pointer(POINTERS[symbol], (target_type, int(target)), int(ends[:2], 16), int(ends[2:], 16))
        for symbol, target, target_type, ends in zip(*_quarters(rest[end + 1 :], int(rest[end])), strict=True)
        if symbol in POINTERS
    )
    words = tuple(_MARKER.sub("", word).replace("_", " ") for word in rest[0:end:2])
    ids = tuple(int(number, 16) for number in rest[1:end:2])
    return Synset(kind, int(offset), int(category), rest[0], words, ids, pointers, definition_of(gloss.strip()))


def _quarters(fields: list[str], count: int) -> list[list[str]]:
    if len(fields) < 4 * count:
        raise ValueError(f"there are fewer than {count} pointers")
    return [fields[column : 4 * count : 4] for column in range(4)]


def _index_entry(line: str) -> tuple[str, list[int]]:
    lemma, _, synset_count, *rest = line.split()
    offsets = [int(offset) for offset in rest[-int(synset_count) :]]
    return lemma.replace("_", " "), offsets


def _sense_count(line: str) -> tuple[str, int]:
    sense_key, _, count = line.split()
    return sense_key, int(count)


def _exception(line: str) -> tuple[str, list[str]]:
    form, *lemmas = (field.replace("_", " ") for field in line.split())
    if not lemmas:
        raise ValueError("the lemma is missing")
    return form, lemmas


def _definitions(
    synsets: dict[tuple[str, int], Synset], ranks: dict[tuple[str, str, int], int], counts: dict[str, int]
) -> Iterator[Definition]:
    for synset in synsets.values():
        pos = _POS[synset.type]
        head = next((p.synset for p in synset.pointers if p.kind == "similar"), None) if synset.type == "s" else None
        for word, lexical_id in zip(synset.words, synset.lexical_ids, strict=True):
            lemma = word.lower()
            sense_key = _sense_key(lemma, lexical_id, synset, synsets[head] if head else None)
            yield Definition(
                word=word,
                gloss=synset.gloss,
                pos=pos,
                synonyms=tuple(other for other in synset.words if other != word),
                category=CATEGORIES[synset.category],
                rank=ranks[pos, lemma, synset.offset],
                tag_count=counts.get(sense_key, 0),
                concept=f"{synset.offset:08d}-{synset.key[0]}",
            )


def _sense_key(lemma: str, lexical_id: int, synset: Synset, head: Synset | None) -> str:
    """The key of a sense in senseidx(5WN); the key of a satellite ends with the first word of its head."""
    suffix = f"{head.first_word.lower()}:{head.lexical_ids[0]:02d}" if head else ":"
    key = f"{lemma}%{_TYPE_NUMBERS[synset.type]}:{synset.category:02d}:{lexical_id:02d}:{suffix}"
    return key.replace(" ", "_")


def _relations(synsets: dict[tuple[str, int], Synset]) -> Iterator[Relation]:
    for synset in synsets.values():
        for pointer in synset.pointers:
            target = synsets[pointer.synset]
            left = synset.words[pointer.source_word - 1 : pointer.source_word] or synset.words
            right = target.words[pointer.target_word - 1 : pointer.target_word] or target.words
            for one, other in product(left, right):
                yield Relation(one, other, pointer.kind)
