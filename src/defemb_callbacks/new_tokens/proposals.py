"""Propose words of a corpus to add as tokens: frequent, cut into several tokens, and defined."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.new_tokens.term_texts import with_texts
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_forms import at_word_start
from defemb_callbacks.reporting.tables import text_table
from defemb_callbacks.vocabulary.tokens import read_vocabulary

# Letters, with hyphens and apostrophes inside
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_BATCH_SIZE = 1000
_SHOWN_GLOSS = 60


@dataclass(frozen=True)
class Proposal:
    """A word that could become a token.

    Attributes:
        word: The word as written; lower-cased for an uncased tokenizer.
        count: Number of its occurrences in the corpus.
        tokens: Number of tokens that it is cut into now.
        definition: Its most important definition.
    """

    word: str
    count: int
    tokens: int
    definition: str

    @property
    def saved(self) -> int:
        """Number of tokens that the corpus would be shorter by if the word were one token."""
        return self.count * (self.tokens - 1)


@dataclass(frozen=True)
class Proposals:
    """Words to add, those that save most tokens first, and the size of the corpus.

    Attributes:
        words: The words.
        corpus_tokens: Number of tokens of the corpus now.
        uncased: Whether the tokenizer ignores case.
    """

    words: tuple[Proposal, ...]
    corpus_tokens: int
    uncased: bool = False

    @property
    def saved(self) -> int:
        """Number of tokens that all proposed words would save."""
        return sum(proposal.saved for proposal in self.words)

    def save(self, path: Path, corpus: Iterable[str] = (), *, texts_per_term: int = 25) -> None:
        """Write a file that `define_new_tokens` and `defemb define` read.

        Args:
            path: A `.csv` file, or a `.jsonl` file, which may contain texts.
            corpus: Texts to search for the words, for a `.jsonl` file.
            texts_per_term: Maximum number of texts of a word.
        """
        columns = ("word", "definition", "count", "tokens", "saved")
        rows = [(one.word, one.definition, one.count, one.tokens, one.saved) for one in self.words]
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                terms = [Term(one.word) for one in self.words]
                found = with_texts(terms, corpus, most=texts_per_term, ignore_case=self.uncased)
                for row, term in zip(rows, found, strict=True):
                    texts = {"texts": list(term.options.texts)} if term.options.texts else {}
                    file.write(json.dumps(dict(zip(columns, row, strict=True)) | texts, ensure_ascii=False) + "\n")
            else:
                table = csv.writer(file)
                table.writerows([columns, *rows])

    def __str__(self) -> str:
        if not self.words:
            return f"No word to add was found in {self.corpus_tokens:,} tokens."
        rows = [
            [found.word, f"{found.count:,}", str(found.tokens), f"{found.saved:,}", _shortened(found.definition)]
            for found in self.words
        ]
        number, size = len(self.words), self.corpus_tokens
        words = f"{number:,} word{'s' if number > 1 else ''}"
        headline = f"{words} would save {self.saved:,} of {size:,} tokens ({self.saved / size:.1%})."
        return f"{headline}\n\n{text_table(rows, ['word', 'count', 'tokens', 'saved', 'definition'], align='<>>><')}"


def propose_terms(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    dictionary: Lexicon,
    *,
    most: int = 50,
    min_count: int = 5,
) -> Proposals:
    """Propose words of a corpus that are frequent, cut into several tokens, and defined in a dictionary.

    Args:
        tokenizer: The tokenizer to extend; not changed.
        texts: The corpus, read once.
        dictionary: The dictionary that must define the words.
        most: Maximum number of words; those that save most tokens are kept.
        min_count: Minimum number of occurrences.

    Raises:
        ValueError: If `most` or `min_count` is below 1.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from defemb_callbacks import load_definitions
        >>> entries = {token: index for index, token in enumerate(["[UNK]", "a", "ly", "##nx", "cat"])}
        >>> backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> wild_cats = load_definitions({"lynx": "a wild cat"})
        >>> found = propose_terms(tokenizer, ["a lynx", "a cat, a lynx"], wild_cats, min_count=2)
        >>> found.words, found.corpus_tokens
        ((Proposal(word='lynx', count=2, tokens=2, definition='a wild cat'),), 9)
    """
    for name, value in (("most", most), ("min_count", min_count)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    uncased = read_vocabulary(tokenizer).uncased
    counts, total = Counter[str](), 0
    for batch in _batches(texts):
        counts.update(word.lower() if uncased else word for text in batch for word in _WORD.findall(text))
        total += sum(map(len, tokenizer(batch, add_special_tokens=False)["input_ids"]))
    frequent = [word for word, count in counts.most_common() if count >= min_count]
    found = []
    for words in _batches(frequent):
        cut = tokenizer([at_word_start(tokenizer, word) for word in words], add_special_tokens=False)["input_ids"]
        for word, ids in zip(words, cut, strict=True):
            if len(ids) > 1 and (definitions := dictionary.lookup(word, ignore_case=uncased)):
                found.append(Proposal(word, counts[word], len(ids), definitions[0].gloss))
    found.sort(key=lambda proposal: (-proposal.saved, proposal.word))
    return Proposals(tuple(found[:most]), total, uncased)


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH_SIZE)):
        yield batch


def _shortened(gloss: str) -> str:
    return gloss if len(gloss) <= _SHOWN_GLOSS else f"{gloss[: _SHOWN_GLOSS - 1].rstrip()}…"
