"""Words and their definitions, from one dictionary or several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.definitions.definition import Definition, Relation
from defemb_callbacks.definitions.morphology import Forms, Morphology
from defemb_callbacks.definitions.source import Source

__all__ = ["Definition", "Lexicon", "Relation"]


class Lexicon:
    """An immutable dictionary of one or more sources.

    Each source answers for itself, with definitions ranked 1, 2, 3 … and marked with its name, so that whoever
    averages them can give every source an equal say. Lexicons are made by [`Lexicon.from_definitions`],
    [`Lexicon.merge`], [`Lexicon.load`] and `load_definitions`.

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
        """Build a lexicon of one source.

        Args:
            definitions: in any order; the best definition of a word is the one with the highest `tag_count`, then the
                lowest `rank`, then nouns before verbs before adjectives before adverbs.
            name: what its definitions carry as their `source`, whatever they said before.
            relations: pairs of words. Of those that join the same two words the first is kept; those of one word with
                itself, of unknown words and of words that share a concept or a gloss are dropped.
            morphology: lets inflected forms find their lemma.
            explicit: the user wrote it, so its entries may also define literal tokens ([`Lexicon.lookup_token`]).

        Raises:
            ValueError: no definition at all, an empty word or gloss, or an unknown part of speech.

        Example:
            >>> Lexicon.from_definitions([Definition("##ing", "forms nouns")], name="mine", explicit=True).name
            'mine'
        """
        source = Source.build(definitions, name=name, relations=relations, morphology=morphology, explicit=explicit)
        return cls([source])

    @classmethod
    def merge(cls, lexicons: Iterable[Lexicon]) -> Lexicon:
        """Join lexicons, first come first asked; equal names become `"glossary"`, `"glossary-2"`, ….

        Raises:
            ValueError: there is nothing to merge.

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
            raise ValueError("There is no lexicon to merge; give at least one.")
        return cls(list(sources.values()))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the dictionaries, in the order in which they answer."""
        return tuple(source.name for source in self._sources)

    @property
    def name(self) -> str:
        """The names of the dictionaries, joined by `+`."""
        return "+".join(self.sources)

    @cached_property
    def fingerprint(self) -> str:
        """Hex string that changes with the content and with the order of the sources, not with their names."""
        return fingerprint(*(source.fingerprint for source in self._sources))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every different word as written; source by source, sorted by lower-cased form."""
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
        """The definitions of a word, source by source, best first and ranked from 1 within each source.

        Each source gives its entries that are written exactly so; if it has none, those that differ in case only; if
        none, those of the word's lemmas with the part of speech that the inflection shows.

        Args:
            word: a word, not a token: without the tokenizer's start-of-word mark.
            ignore_case: take all spellings at once, for uncased tokenizers: "china" is the porcelain and the country.

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
        """The definitions of a literal token text such as `"##ing"`, `"Ġthe"` or `"1990"`.

        Only sources that the user wrote are asked, and only entries written exactly so are given: for a dictionary of
        words a word piece means nothing.

        Example:
            >>> lexicon = Lexicon.from_definitions([Definition("##ing", "forms nouns")], name="mine", explicit=True)
            >>> lexicon.lookup_token("##ing")[0].gloss
            'forms nouns'
        """
        return [found for source in self._sources for found in source.lookup_token(token)]

    def without(self, words: Iterable[str]) -> Lexicon:
        """A copy in which these words, in any case, are not found, nor the inflected forms that lead to them.

        Other words' glosses and synonyms may still mention them.

        Raises:
            TypeError: `words` is a single string, which would take out its letters.

        Example:
            >>> lexicon = Lexicon.from_definitions(
            ...     [Definition("cat", "a feline"), Definition("dog", "a canine")], name="pets"
            ... )
            >>> list(lexicon.without(["CAT"]))
            ['dog']
        """
        if isinstance(words, str):
            raise TypeError(f"without() takes several words, not the single string {words!r}; pass [{words!r}].")
        removed = frozenset(word.lower() for word in words)
        return Lexicon([source.without(removed) for source in self._sources]) if removed else self

    def relations(self, words: Iterable[str] | None = None) -> list[Relation]:
        """Pairs of different words that are related but share no concept and no gloss; each unordered pair once.

        `right` is the `kind` of `left`: `Relation("dog", "canine", "hypernym")`.

        Args:
            words: give only pairs of which both words are among these, compared in lower case; `None` for all.

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
                # Sources check their own glosses when they are built; here another one may still give both words one.
                if not any(other.same_meaning(relation.left, relation.right) for other in others):
                    pairs.setdefault(frozenset((relation.left.lower(), relation.right.lower())), relation)
        return list(pairs.values())

    def save(self, folder: Path) -> None:
        """Write Arrow files and `lexicon.json` into an existing folder; no pickle."""
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
        """Read what [`Lexicon.save`] wrote, memory-mapped: processes of one machine share it.

        Raises:
            FileNotFoundError: the folder holds no lexicon.
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
                    # Folders written before there were forms do not say.
                    Forms(_read_table(folder / f"forms-{number}.arrow")) if entry.get("forms") else None,
                )
                for number, entry in enumerate(entries)
            ]
        )


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks().unify_dictionaries())


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
