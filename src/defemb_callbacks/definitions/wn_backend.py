"""Read WordNet through the `wn` library (extra `wordnet`), which downloads it once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from accelerate import PartialState

from defemb_callbacks.definitions.definition import Definition, Relation
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import Morphology
from defemb_callbacks.definitions.wndb import POINTERS
from defemb_callbacks.progress import show_status

if TYPE_CHECKING:
    import wn


# WordNet 3.0, the same release as Debian's database files.
SPECIFIER = "omw-en:1.4"
_PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
_KINDS = frozenset(POINTERS.values())


def open_wordnet(specifier: str = SPECIFIER) -> wn.Wordnet:
    """Open the `wn` library's WordNet; the main process downloads it if necessary.

    Raises:
        FileNotFoundError: If the library is not installed or the download failed; raised on every process.
    """
    try:
        import wn
    except ImportError as error:
        raise FileNotFoundError("the `wn` library is not installed") from error
    import httpx  # used by wn for downloads; wn does not catch all of its errors

    failure: Exception | None = None
    wordnet: wn.Wordnet | None = None
    # Catch errors inside the block, otherwise the other processes would wait forever for the main process.
    with PartialState().main_process_first():
        try:
            wordnet = _installed(specifier)
            if wordnet is None:
                show_status(f"Downloading WordNet ({specifier}) with the `wn` library.", is_build=False)
                wn.download(specifier)
                wordnet = _installed(specifier)
        except (wn.Error, httpx.HTTPError, OSError) as error:
            failure = error
    if wordnet is None:
        raise FileNotFoundError(f"the `wn` library could not download {specifier} ({failure!r})") from failure
    return wordnet


def _installed(specifier: str) -> wn.Wordnet | None:
    import wn

    if not wn.lexicons(lexicon=specifier):
        return None
    # By default, the library would also look for relations in wordnets of other languages.
    return wn.Wordnet(specifier, expand="")


def wordnet_version(wordnet: wn.Wordnet) -> str:
    """The versions of the library and of its lexicons, for the cache key."""
    import wn

    return " ".join([wn.__version__, *(lexicon.specifier() for lexicon in wordnet.lexicons())])


def read_wordnet(wordnet: wn.Wordnet) -> Lexicon:
    """Build the same lexicon as from the database files, as far as the library's release has the same data.

    This is slower than reading the database files, as the library queries its database for each word.
    """
    words = wordnet.words()
    exceptions: dict[str, dict[str, list[str]]] = {}
    for word in words:
        lemma, *forms = word.forms()
        for form in forms:
            lemmas = exceptions.setdefault(_PARTS.get(word.pos, ""), {}).setdefault(form.lower(), [])
            lemmas.append(lemma.lower())
    return Lexicon.from_definitions(
        _definitions(words),
        name="wordnet",
        relations=_relations(wordnet),
        morphology=Morphology(exceptions),
    )


def _definitions(words: list[wn.Word]) -> Iterator[Definition]:
    for word in words:
        lemma = word.lemma()
        for rank, sense in enumerate(word.senses(), start=1):
            synset = sense.synset()
            gloss = synset.definition()
            if gloss:
                yield Definition(
                    word=lemma,
                    gloss=gloss,
                    pos=_PARTS.get(synset.pos, ""),
                    synonyms=tuple(other for other in synset.lemmas() if other != lemma),
                    category=synset.lexfile() or "",
                    rank=rank,
                    tag_count=sum(sense.counts()),
                    concept=synset.id,
                )


def _relations(wordnet: wn.Wordnet) -> Iterator[Relation]:
    for synset in wordnet.synsets():
        lemmas = synset.lemmas()
        for kind, targets in synset.relations().items():
            if kind in _KINDS:
                for target in targets:
                    yield from (Relation(left, right, kind) for left in lemmas for right in target.lemmas())
    for sense in wordnet.senses():
        left = sense.word().lemma()
        for kind, senses in sense.relations().items():
            if kind in _KINDS:
                yield from (Relation(left, other.word().lemma(), kind) for other in senses)
