"""A tiny WordNet in the format of wndb(5WN)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """A synset; its pointers are (symbol, name of the target[, source and target word numbers])."""

    name: str
    part: str
    category: int
    type: str
    words: str
    pointers: list[tuple[str, str] | tuple[str, str, str]]
    gloss: str


SYNSETS = [
    Line("canine", "noun", 5, "n", "canine 0", [("~", "dog")], "a flesh-eating mammal"),
    Line("dog", "noun", 5, "n", "dog 0 domestic_dog 1", [("@", "canine")], 'a pet; "the dog; it barked"'),
    Line("cad", "noun", 18, "n", "cad 0 dog 1", [], "a dull person"),
    Line("goose", "noun", 5, "n", "goose 0", [], "a bird (usually white)"),
    Line("china", "noun", 6, "n", "china 0", [], "high quality porcelain"),
    Line("China", "noun", 15, "n", "China 1 PRC 0", [(";u", "dog")], "a country"),
    Line("good", "adj", 0, "a", "good(p) 1", [("!", "bad", "0101"), ("&", "able")], "having desirable qualities"),
    Line("bad", "adj", 0, "a", "bad 0 evil 0", [("!", "good", "0101")], "having undesirable qualities"),
    Line("able", "adj", 0, "s", "able 0", [("&", "good")], "skilled"),
    Line("run", "verb", 38, "v", "run 0", [], "move fast"),
    Line("well", "adv", 2, "r", "well 0", [("\\", "good", "0101")], "in a good manner"),
]


RANKS = {("noun", "dog"): ["dog", "cad"], ("noun", "china"): ["china", "China"]}


EXCEPTIONS = {"noun": "geese goose\n", "verb": "ran run\n", "adj": "better good well\n", "adv": "better well\n"}


COUNTS = "able%5:00:00:good(p):01 1 4\ndog%1:05:00:: 1 42\nxyzzy%1:05:00:: 1 7\n"


LICENCE = "  1 This software and database is being provided to you, the LICENSEE.  \n"


TYPES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def write_wordnet(folder: Path) -> Path:
    """Write `SYNSETS` in the format of wndb(5WN), each synset at the byte offset that refers to it."""
    folder.mkdir()

    def text(line: Line, offsets: dict[str, int]) -> str:
        words = line.words.split()
        pointers = [
            f"{pointer[0]} {offsets.get(pointer[1], 0):08d} {TYPES[parts[pointer[1]]]} {(*pointer, '0000')[2]} "
            for pointer in line.pointers
        ]
        frames = "01 + 02 00 " if line.part == "verb" else ""
        return (
            f"{offsets.get(line.name, 0):08d} {line.category:02d} {line.type} {len(words) // 2:02x} {' '.join(words)} "
            f"{len(pointers):03d} {''.join(pointers)}{frames}| {line.gloss}  \n"
        )

    parts = {line.name: line.part for line in SYNSETS}
    offsets: dict[str, int] = {}
    for part in TYPES:
        position = len(LICENCE)
        for line in (line for line in SYNSETS if line.part == part):
            offsets[line.name] = position
            position += len(text(line, {}))  # offsets have a fixed width
        data = LICENCE + "".join(text(line, offsets) for line in SYNSETS if line.part == part)
        (folder / f"data.{part}").write_text(data)
    for part, kind in TYPES.items():  # again, now that all offsets are known
        lines = [line for line in SYNSETS if line.part == part]
        data = LICENCE + "".join(text(line, offsets) for line in lines)
        assert all(data[offsets[line.name] :].startswith(f"{offsets[line.name]:08d} ") for line in lines)
        (folder / f"data.{part}").write_text(data)
        senses: dict[str, list[str]] = {}
        for line in lines:
            for word in line.words.split()[::2]:
                senses.setdefault(word.lower().removesuffix("(p)"), []).append(line.name)
        index = ""
        for lemma, names in sorted(senses.items()):
            ordered = " ".join(f"{offsets[name]:08d}" for name in RANKS.get((part, lemma), names))
            index += f"{lemma} {kind} {len(names)} 2 @ ~ {len(names)} 0 {ordered}  \n"
        (folder / f"index.{part}").write_text(LICENCE + index)
        (folder / f"{part}.exc").write_text(EXCEPTIONS[part])
    (folder / "cntlist.rev").write_text(COUNTS)
    return folder
