"""English words that WordNet leaves out on purpose, though it has entries that are spelled like them."""

from __future__ import annotations

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
