"""Speed and memory of reading Wiktionary: a large synthetic extract, and real samples.

    python benchmarks/wiktionary.py

The large extract repeats the real records with altered words, in a temporary folder. `--megabytes 20` creates a small
one and saves results only with `--output`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from common import DATA, RESULTS, environment, held_mb

from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary, read_wiktionary

FILES = ("kaikki-en-sample.jsonl", "enwiktionary-2015-glosses.jsonl.gz", "enwiktionary-slice-definitions.jsonl.gz")
# With this many short records and inflected forms per full record, a line has 2 kB on average, as in the English file.
SHORT, FORMS = 5, 4
MEGABYTES = 1000


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def synthetic_lines() -> Iterator[bytes]:
    """Yield an endless stream of records; no word occurs twice."""
    full, *short = (read_lines(DATA / "dictionaries" / name) for name in FILES)
    rest = cycle([entry for entries in short for entry in entries])
    for number, entry in enumerate(cycle(full)):
        defined = [entry, *islice(rest, SHORT)]
        for one in defined:
            yield line_of({**one, "word": f"{one['word']}{number}"})
        for one in defined[:FORMS]:
            lemma = f"{one['word']}{number}"
            sense = {
                "glosses": [f"plural of {lemma}"],
                "tags": ["form-of", "plural"],
                "form_of": [{"word": lemma}],
                "links": [[lemma, f"{lemma}#English"]],
                "categories": ["English entries with incorrect language header", "English noun forms"],
            }
            yield line_of(
                {**one, "word": f"{lemma}s", "senses": [sense], "head_templates": [{"expansion": lemma}]}, 600
            )


def line_of(entry: dict[str, Any], longest: int = 1 << 20) -> bytes:
    """Write a record as a line; records of inflected forms have only some of the keys."""
    if longest < 1 << 20:
        kept = ("word", "pos", "senses", "head_templates", "lang", "lang_code")
        entry = {key: entry[key] for key in kept}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def write_extract(path: Path, megabytes: int) -> dict[str, int]:
    """Write an extract of this size, plain and gzipped."""
    written = lines = 0
    with path.open("wb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
        for line in synthetic_lines():
            plain.write(line)
            packed.write(line)
            written, lines = written + len(line), lines + 1
            if written >= megabytes * 1_000_000:
                return {"bytes": written, "entries": lines}
    raise AssertionError("synthetic_lines is endless")


def in_fresh_process(what: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, f"--{what}", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def read_here(path: Path) -> dict[str, float]:
    """Read in this process, which must be new."""
    read_wiktionary(DATA / "dictionaries" / FILES[0])  # load libraries
    before, start = held_mb("VmRSS"), time.perf_counter()
    lexicon = read_wiktionary(path)
    seconds, peak = time.perf_counter() - start, held_mb("VmHWM") - before
    words = len(lexicon)
    return {
        "seconds": seconds,
        "extra_peak_mb": peak,
        "words": words,
        "senses": sum(len(source.table) for source in lexicon._sources),
        "forms": sum(len(source.forms.table) for source in lexicon._sources if source.forms),
        "extra_peak_mb_with_lookups": held_mb("VmHWM") - before,
    }


def load_here(path: Path) -> dict[str, float]:
    """Load from the cache, which an earlier process filled."""
    start = time.perf_counter()
    lexicon = load_wiktionary(path)
    loaded = time.perf_counter()
    lexicon.lookup("bring0")
    return {"load_seconds": loaded - start, "first_lookup_seconds": time.perf_counter() - loaded}


def large(megabytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "extract.jsonl")
        size = write_extract(path, megabytes)
        packed = Path(f"{path}.gz")
        size["gzip_bytes"] = packed.stat().st_size  # complete, because it is closed now
        os.environ["DEFEMB_CACHE"] = str(Path(folder, "cache"))
        plain, zipped = in_fresh_process("read", path), in_fresh_process("read", packed)
        for run in (plain, zipped):
            run["mb_per_second"] = size["bytes"] / 1e6 / run["seconds"]
            run["entries_per_second"] = size["entries"] / run["seconds"]
        cold, warm = in_fresh_process("load", path), in_fresh_process("load", path)
        return {**size, "plain": plain, "gzip": zipped, "cold": cold, "warm": warm}


def real(name: str) -> dict[str, float]:
    path = DATA / "dictionaries" / name
    start = time.perf_counter()
    lexicon = read_wiktionary(path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "words": len(lexicon), "senses": sum(len(lexicon.lookup(word)) for word in lexicon)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    if arguments.read or arguments.load:
        print(json.dumps(read_here(arguments.read) if arguments.read else load_here(arguments.load)))
        return
    result = {
        "large": large(arguments.megabytes),
        "real": {name: real(name) for name in FILES},
        "load_average": os.getloadavg()[0],
        "environment": environment(),
    }
    text = json.dumps(result, indent=1)
    output = arguments.output or (RESULTS / "wiktionary.json" if arguments.megabytes == MEGABYTES else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
