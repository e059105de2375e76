"""Finds WordNet on this machine and keeps what was read of it in the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from defemb_callbacks.cache import cache_root, cached, file_fingerprint, fingerprint
from defemb_callbacks.definitions import wndb
from defemb_callbacks.definitions.lexicon import Lexicon

logger = logging.getLogger(__name__)
DEBIAN_FOLDER = Path("/usr/share/wordnet")

# Part of every cache key; to be raised when the same files come to be read differently.
READER_VERSION = "1"


def load_wordnet() -> Lexicon:
    """WordNet 3.0, from the cache where it was read before.

    It comes without the words of the closed classes, of which it has homographs only ([`CLOSED_CLASS_WORDS`]).
    Looks for the database files ([`find_wordnet`]), then asks the `wn` library, which downloads WordNet once.

    Raises:
        FileNotFoundError: WordNet is nowhere; names the cures.
        ValueError: the files found are damaged.
    """
    folder = find_wordnet()
    if folder is not None:
        content = file_fingerprint(folder / name for name in wndb.FILES)
        return _kept(content, lambda: wndb.read_wordnet(folder))
    # With it comes accelerate, whose import takes longer than to load a cached WordNet.
    from defemb_callbacks.definitions import wn_backend

    try:
        wordnet = wn_backend.open_wordnet()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"WordNet was not found: $WORDNET_DIR is not set, its database files are not in {DEBIAN_FOLDER}, and "
            f"{error}. Do one of these: set WORDNET_DIR to a folder with the WordNet 3.0 database files; "
            '`apt-get install wordnet-base`; `pip install "defemb-callbacks[wordnet]"` on a machine with network.'
        ) from error
    return _kept(wn_backend.describe(wordnet), lambda: wn_backend.read_wordnet(wordnet))


def find_wordnet() -> Path | None:
    """The folder of the WordNet database files: `$WORDNET_DIR`, else where Debian's `wordnet-base` puts them.

    Raises:
        FileNotFoundError: `$WORDNET_DIR` is set, but lacks files; names them.
    """
    chosen = os.environ.get("WORDNET_DIR")
    folder = Path(chosen).expanduser() if chosen else DEBIAN_FOLDER
    missing = [name for name in wndb.FILES if not (folder / name).is_file()]
    if chosen and missing:
        raise FileNotFoundError(
            f"$WORDNET_DIR is {chosen!r}, where {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. "
            "Set it to a folder with the WordNet 3.0 database files, or unset it."
        )
    return None if missing else folder


def _kept(content: str, read: Callable[[], Lexicon]) -> Lexicon:
    def build() -> Lexicon:
        logger.info("Reading WordNet; this is done once.")
        return read().without(CLOSED_CLASS_WORDS)

    folder = cache_root() / "wordnet" / fingerprint(READER_VERSION, content)
    return cached(folder, build, Lexicon.save, Lexicon.load)


# WordNet covers nouns, verbs, adjectives and adverbs. What it says of "in" (the inch, indium), "he" (helium), "us" (the
# United States) or "who" (the World Health Organization) is right of those homographs and wrong of the word that
# text is full of. Dictionaries that define the closed classes themselves are not filtered.
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
