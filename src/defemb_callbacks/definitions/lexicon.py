"""The `Lexicon`: words and their definitions, from one or several dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.definitions.definition import Definition, Relation
from defemb_callbacks.definitions.morphology import FormTable, Morphology
from defemb_callbacks.definitions.source import Source

__all__ = ["Definition", "Lexicon", "Relation"]


class Lexicon:
    """An immutable dictionary with one or several sources.

    Lookups return the definitions of every source, ranked 1, 2, 3, … within the source and marked with its name, so
    that sources can be weighted equally. Create a lexicon with `load_definitions`, `Lexicon.from_definitions`,
    `Lexicon.merge` or `Lexicon.load`.

    Example:
        >>> lexicon = Lexicon.from_definitions(
        ...     [Definition("cat", "a small feline"), Definition("Cat", "a brand of bulldozer")], name="mine"
        ... )
        >>> [definition.gloss for definition in lexicon.lookup("cat")]
        ['a small feline']
        >>> "CAT" in lexicon, "dog" in lexicon, len(lexicon)
        (True, False, 2)
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    @classmethod
    def from_definitions(
        cls,
        definitions: Iterable[Definition],
        *,
        name: str,
        relations: Iterable[Relation] = (),
        morphology: Morphology | None = None,
        explicit: bool = False,
    ) -> Lexicon:
        """Build a lexicon with one source.

        Args:
            definitions: The definitions, in any order. They are ranked by highest `tag_count`, then lowest `rank`, then
                part of speech (noun, verb, adjective, adverb).
            name: The name of the dictionary, which replaces the `source` of its definitions.
            relations: Pairs of words. Only the first relation of each pair is kept. Relations are dropped if a word is
                unknown or related to itself, or if both words share a concept or a gloss.
            morphology: Rules that map inflected forms to lemmas.
            explicit: Whether this is a user's glossary, whose entries may also define literal tokens; see
                `Lexicon.lookup_token`.

        Raises:
            ValueError: If there is no definition, or one has an empty word, an empty gloss or an unknown part of
                speech.

        Example:
            >>> Lexicon.from_definitions([Definition("##ing", "forms nouns")], name="mine", explicit=True).name
            'mine'
        """
        source = Source.build(definitions, name=name, relations=relations, morphology=morphology, explicit=explicit)
        return cls([source])

    @classmethod
    def merge(cls, lexicons: Iterable[Lexicon]) -> Lexicon:
        """Merge lexicons, keeping the order of their sources; equal names become `"glossary"`, `"glossary-2"`, ….

        Raises:
            ValueError: If there is no lexicon to merge.

        Example:
            >>> one = Lexicon.from_definitions([Definition("cat", "a feline")], name="mine")
            >>> [definition.source for definition in Lexicon.merge([one, one]).lookup("cat")]
            ['mine', 'mine-2']
        """
        sources: dict[str, Source] = {}
        for source in (source for lexicon in lexicons for source in lexicon._sources):
            name, copies = source.name, 1
            while name in sources:
                copies += 1
                name = f"{source.name}-{copies}"
            sources[name] = replace(source, name=name)
        if not sources:
            raise ValueError("There is no lexicon to merge. Pass at least one.")
        return cls(list(sources.values()))

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the dictionaries, in lookup order."""
        return tuple(source.name for source in self._sources)

    @property
    def name(self) -> str:
        """The names of the dictionaries, joined by `+`."""
        return "+".join(self.sources)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the content and order of the sources; independent of their names."""
        return fingerprint(*(source.fingerprint for source in self._sources))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words as spelled, without duplicates: source by source, sorted by lower-cased word."""
        return tuple(dict.fromkeys(word for source in self._sources for word in source.words))

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and any(word in source for source in self._sources)

    def __repr__(self) -> str:
        return f"Lexicon(name={self.name!r}, words={len(self)})"

    def lookup(self, word: str, *, ignore_case: bool = False) -> list[Definition]:
        """Look up the definitions of a word, source by source, best first and ranked from 1 within each source.

        Each source returns the entries with exactly this spelling; if there are none, those that differ only in case;
        if there are none either, those of the word's lemmas, with the part of speech that the inflection implies.

        Args:
            word: A word, not a token: without the tokenizer's start-of-word mark.
            ignore_case: Return the entries of all spellings, for uncased tokenizers: "china" is both the porcelain and
                the country.

        Example:
            >>> lexicon = Lexicon.from_definitions(
            ...     [Definition("china", "porcelain"), Definition("China", "a country", rank=2)], name="mine"
            ... )
            >>> [definition.gloss for definition in lexicon.lookup("China")]
            ['a country']
            >>> [(definition.rank, definition.gloss) for definition in lexicon.lookup("china", ignore_case=True)]
            [(1, 'porcelain'), (2, 'a country')]
        """
        return [found for source in self._sources for found in source.lookup(word, ignore_case=ignore_case)]

    def lookup_token(self, token: str) -> list[Definition]:
        """Look up the definitions of a literal token, such as `"##ing"`, `"Ġthe"` or `"1990"`.

        Only users' glossaries are searched, and only for exactly this spelling, as dictionaries of words do not define
        word pieces.

        Example:
            >>> lexicon = Lexicon.from_definitions([Definition("##ing", "forms nouns")], name="mine", explicit=True)
            >>> lexicon.lookup_token("##ing")[0].gloss
            'forms nouns'
        """
        return [found for source in self._sources for found in source.lookup_token(token)]

    def without(self, words: Iterable[str]) -> Lexicon:
        """Return a copy without these words, in any case, and without the inflected forms that lead to them.

        Glosses and synonyms of other words may still mention them.

        Raises:
            TypeError: If `words` is a single string, which would be read as a list of letters.

        Example:
            >>> lexicon = Lexicon.from_definitions(
            ...     [Definition("cat", "a feline"), Definition("dog", "a canine")], name="pets"
            ... )
            >>> list(lexicon.without(["CAT"]))
            ['dog']
        """
        if isinstance(words, str):
            raise TypeError(f"`words` must be a list of words, got the string {words!r}. Pass [{words!r}].")
        removed = frozenset(word.lower() for word in words)
        return Lexicon([source.without(removed) for source in self._sources]) if removed else self

    def relations(self, words: Iterable[str] | None = None) -> list[Relation]:
        """Return the pairs of related words that share no concept and no gloss, one relation per unordered pair.

        `right` is the `kind` of `left`: `Relation("dog", "canine", "hypernym")`.

        Args:
            words: Return only pairs with both words in this list, ignoring case; `None` returns all pairs.

        Example:
            >>> lexicon = Lexicon.from_definitions(
            ...     [Definition("cat", "a small feline"), Definition("feline", "an animal of the cat family")],
            ...     name="mine",
            ...     relations=[Relation("cat", "feline", "hypernym")],
            ... )
            >>> lexicon.relations(["Cat", "feline", "dog"])
            [Relation(left='cat', right='feline', kind='hypernym')]
        """
        wanted = None if words is None else frozenset(word.lower() for word in words)
        if len(self._sources) == 1:
            return list(self._sources[0].relations(wanted))
        pairs: dict[frozenset[str], Relation] = {}
        for source in self._sources:
            others = [other for other in self._sources if other is not source]
            for relation in source.relations(wanted):
                # A source checks its own glosses when it is built, but another one may give both words the same gloss.
                if not any(other.same_meaning(relation.left, relation.right) for other in others):
                    pairs.setdefault(frozenset((relation.left.lower(), relation.right.lower())), relation)
        return list(pairs.values())

    def save(self, folder: Path) -> None:
        """Write Arrow files and `lexicon.json` into an existing folder; nothing is pickled."""
        entries = []
        for number, source in enumerate(self._sources):
            _write_table(source.table, folder / f"definitions-{number}.arrow")
            _write_table(source.relation_table, folder / f"relations-{number}.arrow")
            if source.forms is not None:
                _write_table(source.forms.table, folder / f"forms-{number}.arrow")
            entries.append(
                {
                    "name": source.name,
                    "content": source.content,
                    "explicit": source.explicit,
                    "morphology": source.morphology.exceptions if source.morphology else None,
                    "removed": sorted(source.removed),
                    "forms": source.forms is not None,
                }
            )
        (folder / "lexicon.json").write_text(json.dumps({"sources": entries}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Lexicon:
        """Load a saved lexicon. The tables are memory-mapped, so processes on one machine share them.

        Raises:
            FileNotFoundError: If the folder does not contain a lexicon.
        """
        entries = json.loads((folder / "lexicon.json").read_text(encoding="utf-8"))["sources"]
        return cls(
            [
                Source(
                    entry["name"],
                    _read_table(folder / f"definitions-{number}.arrow"),
                    _read_table(folder / f"relations-{number}.arrow"),
                    entry["content"],
                    entry["explicit"],
                    None if entry["morphology"] is None else Morphology(entry["morphology"]),
                    frozenset(entry["removed"]),
                    # Folders of earlier versions have no "forms" entry.
                    FormTable(_read_table(folder / f"forms-{number}.arrow")) if entry.get("forms") else None,
                )
                for number, entry in enumerate(entries)
            ]
        )


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks().unify_dictionaries())


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
