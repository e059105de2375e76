"""Coverage of real vocabularies by dictionaries, by frequency group.

    python benchmarks/coverage.py

Vocabularies: RoBERTa (and BART) and T5. Dictionaries: WordNet, a small Wiktionary extract, and both. A token counts as
defined if `build_definition_embeddings` would compute a vector for it; all definitions of the dictionary are counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from common import DATA, RESULTS, WIKTIONARY, environment
from transformers import AutoTokenizer

from defemb_callbacks import load_definitions
from defemb_callbacks.reconstruction.prompts import definition_prompt, mask_text
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary

TOKENIZERS = ("roberta-base", "t5-small")
DICTIONARIES: dict[str, Any] = {
    "WordNet": "wordnet",
    "Wiktionary 2015": str(WIKTIONARY),
    "both": ["wordnet", str(WIKTIONARY)],
}
MOST = 1_000  # definitions per word, that is, all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "coverage.json")
    arguments = parser.parse_args()
    lexicons = {name: load_definitions(source) for name, source in DICTIONARIES.items()}
    result: dict[str, Any] = {"environment": environment(), "vocabularies": {}}
    for name in TOKENIZERS:
        tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / name)
        vocabulary, mask = read_vocabulary(tokenizer), mask_text(tokenizer)
        groups = {group: set(ids.tolist()) for group, ids in frequency_groups(frequency_rank(vocabulary)).items()}
        words = set(vocabulary.word_ids.tolist())
        found: dict[str, Any] = {
            "tokens": len(vocabulary),
            "why_no_word": dict(Counter(reason for reason in vocabulary.reasons if reason).most_common()),
            "words": {group: len(words & ids) for group, ids in groups.items()},
            "dictionaries": {},
        }
        for dictionary, lexicon in lexicons.items():
            defined = definitions_of_tokens(vocabulary, lexicon, MOST)
            first = [
                definition_prompt(definitions[0], vocabulary.words[index] or "", mask)
                for index, definitions in defined.items()
            ]
            lengths = [len(ids) for ids in tokenizer(first)["input_ids"]]
            found["dictionaries"][dictionary] = {
                "entries": len(lexicon),
                "defined": {group: len(defined.keys() & ids) for group, ids in groups.items()},
                "definitions": {
                    group: sum(len(defined[index]) for index in defined.keys() & ids) for group, ids in groups.items()
                },
                "tokens_of_first_definition": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
            }
            print(name, dictionary, json.dumps(found["dictionaries"][dictionary]), flush=True)
        result["vocabularies"][name] = found
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
