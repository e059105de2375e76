"""Finds WordNet on this machine and keeps what was read of it in the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from defemb_callbacks.cache import cache_root, cached, file_fingerprint, fingerprint
from defemb_callbacks.definitions import wndb
from defemb_callbacks.definitions.closed_class import CLOSED_CLASS_WORDS
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
    from defemb_callbacks.definitions import wn_library

    try:
        wordnet = wn_library.open_wordnet()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"WordNet was not found: $WORDNET_DIR is not set, its database files are not in {DEBIAN_FOLDER}, and "
            f"{error}. Do one of these: set WORDNET_DIR to a folder with the WordNet 3.0 database files; "
            '`apt-get install wordnet-base`; `pip install "defemb-callbacks[wordnet]"` on a machine with network.'
        ) from error
    return _kept(wn_library.describe(wordnet), lambda: wn_library.read_wordnet(wordnet))


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
