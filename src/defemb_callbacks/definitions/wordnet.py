"""Load WordNet from its database files or the `wn` library; the parsed lexicon is cached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from defemb_callbacks.cache import cache_root, cached, file_fingerprint, fingerprint
from defemb_callbacks.definitions import wndb
from defemb_callbacks.definitions.lexicon import Lexicon

DEBIAN_FOLDER = Path("/usr/share/wordnet")

# Part of the cache key. Increment it when a change of the readers changes the lexicon of the same files.
READER_VERSION = "1"


def load_wordnet() -> Lexicon:
    """Load WordNet 3.0 from the cache, or read it and cache it.

    Database files (`find_wordnet`) take precedence over the `wn` library, which downloads WordNet once. Closed-class
    words are removed, as WordNet defines only homographs of them (`CLOSED_CLASS_WORDS`).

    Raises:
        FileNotFoundError: If WordNet is not found; names the ways to install it.
        ValueError: If the database files are damaged.
    """
    folder = find_wordnet()
    if folder is not None:
        content = file_fingerprint(folder / name for name in wndb.FILES)
        return _cached_lexicon(content, lambda: wndb.read_wordnet(folder))
    # Imported here because it imports accelerate, which takes longer than loading the cached WordNet.
    from defemb_callbacks.definitions import wn_backend

    try:
        wordnet = wn_backend.open_wordnet()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"WordNet was not found: $WORDNET_DIR is not set, {DEBIAN_FOLDER} has no database files, and {error}. "
            "Do one of these: set WORDNET_DIR to a folder with the WordNet 3.0 database files; "
            '`apt-get install wordnet-base`; `pip install "defemb-callbacks[wordnet]"`, which needs network access.'
        ) from error
    return _cached_lexicon(wn_backend.wordnet_version(wordnet), lambda: wn_backend.read_wordnet(wordnet))


def find_wordnet() -> Path | None:
    """Find the folder of the WordNet database files: `$WORDNET_DIR` or that of Debian's `wordnet-base`.

    Raises:
        FileNotFoundError: If `$WORDNET_DIR` is set but files are missing there; names them.
    """
    chosen = os.environ.get("WORDNET_DIR")
    folder = Path(chosen).expanduser() if chosen else DEBIAN_FOLDER
    missing = [name for name in wndb.FILES if not (folder / name).is_file()]
    if chosen and missing:
        raise FileNotFoundError(
            f"$WORDNET_DIR is {chosen!r}, where {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. "
            "Set it to a folder with all WordNet 3.0 database files, or unset it."
        )
    return None if missing else folder


def _cached_lexicon(content: str, read: Callable[[], Lexicon]) -> Lexicon:
    def build() -> Lexicon:
        # Imported here because it imports transformers, which takes longer than loading the cached WordNet.
        from defemb_callbacks.progress import show_status

        show_status("Reading WordNet; this is done once.", is_build=False)
        return read().without(CLOSED_CLASS_WORDS)

    folder = cache_root() / "wordnet" / fingerprint(READER_VERSION, content)
    return cached(folder, build, Lexicon.save, Lexicon.load)


# WordNet covers nouns, verbs, adjectives and adverbs only. Its definitions of "in" (inch, indium), "he" (helium), "us"
# (United States) or "who" (World Health Organization) belong to homographs and are wrong for the frequent words.
# Dictionaries that define closed-class words are not filtered.
CLOSED_CLASS_WORDS = frozenset(
    """
    a an the this that these those

    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves who whom whose which what whoever whatever whichever
    someone somebody something anyone anybody anything everyone everybody everything nobody nothing none

    and or nor but so yet if then else because although though while whereas unless until since as than whether

    of in on at by to for from with within without into onto upon over under above below between among against about
    around across after before behind beneath beside besides beyond down up off out through throughout toward towards
    during along near per via

    will would shall should can could may might must ought

    not no all any both each every either neither some there here when where why how
    """.split()  # noqa: SIM905 - a list of quoted words would be harder to read
)
