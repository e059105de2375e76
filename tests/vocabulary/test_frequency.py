"""Frequency ranks, frequency groups, and token counts from files and datasets."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.vocabulary import frequency as frequency_module
from defemb_callbacks.vocabulary.frequency import (
    GROUPS,
    configured_rank,
    count_tokens,
    frequency_groups,
    frequency_rank,
    rarity,
    read_counts,
)
from defemb_callbacks.vocabulary.tokens import NUMBER, PADDING, PIECE, SPECIAL, UNUSED, Vocabulary, read_vocabulary
from tiny import tiny_dataset, wordpiece_tokenizer

VOCABULARY = Vocabulary(
    tokens=("[UNK]", "the", "[unused0]", "cat", "##s", "7", "dog", ""),
    words=(None, "the", None, "cat", None, None, "dog", None),
    reasons=(SPECIAL, None, UNUSED, None, PIECE, NUMBER, None, PADDING),
    uncased=True,
)
VOCABULARY_ORDER = [-1, 0, -1, 1, 2, 3, 4, -1]


def counts_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_vocabulary_order_skips_tokens_outside_text():
    assert frequency_rank(VOCABULARY).tolist() == VOCABULARY_ORDER


def test_counts_order_the_tokens_and_ties_keep_vocabulary_order():
    counts = torch.tensor([99, 5, 99, 0, 7, 5, 7, 99])
    assert frequency_rank(VOCABULARY, counts).tolist() == [-1, 2, -1, 4, 0, 3, 1, -1]


@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_many_equal_counts_keep_vocabulary_order(distinct):
    """An unstable sort only reorders ties of longer vectors, from 17 elements on."""
    size = 1000
    vocabulary = Vocabulary(tuple(map(str, range(size))), (None,) * size, (NUMBER,) * size, True)
    counts = torch.arange(size) * 7919 % distinct
    by_frequency = sorted(range(size), key=lambda index: (-int(counts[index]), index))
    rank = frequency_rank(vocabulary, counts)
    assert rank[by_frequency].tolist() == list(range(size))


def test_without_a_token_in_text_there_is_no_rank():
    empty = Vocabulary(("[UNK]",), (None,), (SPECIAL,), True)
    assert frequency_rank(empty).tolist() == [-1]
    assert rarity(frequency_rank(empty)).tolist() == [0.0]
    assert all(len(ids) == 0 for ids in frequency_groups(frequency_rank(empty)).values())


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1)])
def test_refuses_counts_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"`counts` must have shape \(8,\), got \("):
        frequency_rank(VOCABULARY, torch.zeros(shape))


def test_rarity_grows_evenly_from_0_to_1():
    rank = torch.tensor([2, 0, -1, 4, 1, 3])
    assert rarity(rank).tolist() == [0.5, 0.0, 0.0, 1.0, 0.25, 0.75]
    assert rarity(rank).dtype == torch.float64


@pytest.mark.parametrize("size", [0, 1, 2, 7, 10, 1000, 32_100, 50_265])
def test_groups_split_the_tokens_30_50_20_in_order_of_frequency(size):
    rank = torch.randperm(size)
    groups = frequency_groups(rank)
    assert list(groups) == ["all", *GROUPS]
    assert rank[groups["all"]].tolist() == list(range(size))
    assert torch.equal(torch.cat([groups[name] for name in GROUPS]), groups["all"])
    for name, share in zip(GROUPS, (0.3, 0.5, 0.2), strict=True):
        assert abs(len(groups[name]) - share * size) <= 1


def test_group_shares_are_exact_where_they_are_whole_numbers():
    assert [len(frequency_groups(torch.arange(10))[name]) for name in GROUPS] == [3, 5, 2]
    assert [len(frequency_groups(torch.arange(100), (0.29, 0.57))[name]) for name in GROUPS] == [29, 28, 43]


@pytest.mark.parametrize("name", ["roberta-base", "t5-small"])
def test_groups_of_real_vocabularies(name, data_dir):
    vocabulary = read_vocabulary(AutoTokenizer.from_pretrained(data_dir / "tokenizers" / name))
    groups = frequency_groups(frequency_rank(vocabulary))
    in_text = sum(reason not in (SPECIAL, UNUSED, PADDING) for reason in vocabulary.reasons)
    assert len(groups["all"]) == in_text
    for group, share in zip(GROUPS, (0.3, 0.5, 0.2), strict=True):
        assert len(groups[group]) / in_text == pytest.approx(share, abs=1e-4)
    # These vocabularies are ordered by frequency.
    the = vocabulary.words.index("the")
    assert the in groups["frequent"][:20]


def test_config_chooses_the_order(tmp_path):
    counts = torch.tensor([0, 1, 0, 2, 3, 4, 5, 0])
    by_counts = [-1, 4, -1, 3, 2, 1, 0, -1]
    path = counts_file(tmp_path, "counts.tsv", "cat\t9\n")
    for frequency, expected in (
        ("vocabulary", VOCABULARY_ORDER),
        ("training_data", by_counts),
        (str(path), [-1, 1, -1, 0, 2, 3, 4, -1]),
    ):
        rank = configured_rank(VOCABULARY, DefinitionEMBConfig(frequency=frequency), counts)
        assert rank.tolist() == expected


def test_refuses_training_data_without_counts():
    with pytest.raises(ValueError, match="`frequency='training_data'` needs the token counts"):
        configured_rank(VOCABULARY, DefinitionEMBConfig(frequency="training_data"))


def test_reads_counts_from_json_and_from_lines_alike(tmp_path):
    entries = {"cat": 3, "##s": 12, "unknown to it": 5, "the": 0}
    written = counts_file(tmp_path, "counts.json", json.dumps(entries))
    lines = counts_file(tmp_path, "counts.tsv", "".join(f"{token}\t{count}\n" for token, count in entries.items()))
    for path in (written, str(written), lines):
        counts = read_counts(path, VOCABULARY)
        assert counts.dtype == torch.int64
        assert counts.tolist() == [0, 0, 0, 3, 12, 0, 0, 0]


def test_counts_of_a_token_on_several_lines_add_up(tmp_path):
    assert read_counts(counts_file(tmp_path, "c.txt", "cat\t3\r\ndog\t1\r\ncat\t4"), VOCABULARY)[3] == 7


def test_a_token_may_hold_a_tab_or_one_of_unicodes_line_breaks(tmp_path):
    odd = Vocabulary(("a\tb", "c\u2028d", "e\x85f"), ("x",) * 3, (None,) * 3, True)
    path = counts_file(tmp_path, "counts.tsv", "a\tb\t1\nc\u2028d\t2\ne\x85f\t3\n")
    assert read_counts(path, odd).tolist() == [1, 2, 3]


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"frequency='.*none\.tsv' does not exist\. Pass an existing"):
        read_counts(tmp_path / "none.tsv", VOCABULARY)


def test_refuses_a_line_without_a_tab_and_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"line 2 must be 'token<TAB>count', got 'dog 4'"):
        read_counts(counts_file(tmp_path, "counts.tsv", "cat\t3\ndog 4\n"), VOCABULARY)


@pytest.mark.parametrize("count", ["-1", "1.5", "many", "", "²"])
def test_refuses_a_count_that_is_not_a_non_negative_integer(tmp_path, count):
    with pytest.raises(ValueError, match=r"entry 2: the count of 'dog' must be a non-negative integer .*, got '"):
        read_counts(counts_file(tmp_path, "counts.tsv", f"cat\t3\ndog\t{count}\n"), VOCABULARY)


@pytest.mark.parametrize("count", ["-1", "1.5", "true", "null", "[1]"])
def test_refuses_a_json_count_that_is_not_a_non_negative_integer(tmp_path, count):
    with pytest.raises(ValueError, match=r"entry 1: the count of 'dog' must be a non-negative integer .*, got "):
        read_counts(counts_file(tmp_path, "counts.json", f'{{"dog": {count}}}'), VOCABULARY)


@pytest.mark.parametrize("text", ['["cat", 3]', "3", "{", ""])
def test_refuses_json_that_is_not_an_object(tmp_path, text):
    with pytest.raises(ValueError, match=r"counts\.json must contain a JSON object \{token: count\}"):
        read_counts(counts_file(tmp_path, "counts.json", text), VOCABULARY)


def test_refuses_a_file_without_any_token_of_the_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"has no token of this vocabulary\. Tokens must be literal, e\.g\. '##s'"):
        read_counts(counts_file(tmp_path, "counts.tsv", "Ġcat\t3\n"), VOCABULARY)


def test_counts_equal_a_plain_count():
    tokenizer = wordpiece_tokenizer()
    dataset = tiny_dataset(tokenizer)
    expected = Counter(token for row in dataset["input_ids"] for token in row)
    counts = count_tokens(dataset, len(tokenizer) + 3)
    assert counts.shape == (len(tokenizer) + 3,)
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == dict(expected)


def test_counting_neither_consumes_nor_reorders_nor_reformats_a_dataset():
    tokenizer = wordpiece_tokenizer()
    for output_format in (None, "torch", "numpy"):
        dataset = tiny_dataset(tokenizer).shuffle(seed=1).with_format(output_format)
        before, fingerprint, state = dataset.with_format(None)[:], dataset._fingerprint, torch.get_rng_state()
        first, second = (count_tokens(dataset, len(tokenizer)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.sum() == 64 * 16
        assert (dataset.with_format(None)[:], dataset._fingerprint) == (before, fingerprint)
        assert dataset.format["type"] == output_format
        assert torch.equal(torch.get_rng_state(), state)


class MapStyle(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A dataset with a length whose indices wrap around, so that iterating over it would never end."""

    rows = ([1, 2, 2], [3])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": torch.tensor(self.rows[index % 2])}


def test_a_map_style_dataset_is_read_up_to_its_length():
    assert count_tokens(MapStyle(), 5).tolist() == [0, 1, 2, 1, 0]


def test_labels_are_counted_where_they_are_text():
    rows = [{"input_ids": [1, 2], "labels": [3, 3, -100]}, {"input_ids": [2]}]
    assert count_tokens(rows, 5).tolist() == [0, 1, 2, 0, 0]
    assert count_tokens(rows, 5, labels=True).tolist() == [0, 1, 2, 2, 0]


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda ids: torch.tensor(ids, dtype=torch.int32)])
def test_counts_of_many_blocks_equal_a_loop_over_all_ids(kind, monkeypatch):
    monkeypatch.setattr(frequency_module, "_SMALLEST_BLOCK", 16)
    drawn, size = random.Random(0), 20
    rows = [
        {
            "input_ids": kind([drawn.randrange(size + 2) for _ in range(drawn.randrange(8))]),
            "attention_mask": [0, 0],
            "labels": kind([drawn.choice([-100, 0, 0, size - 1]) for _ in range(3)]),
        }
        for _ in range(300)
    ]
    for labels in (False, True):
        expected = [0] * size
        for row in rows:
            for column in ("input_ids", "labels")[: 1 + labels]:
                for token in map(int, row[column]):
                    if 0 <= token < size:
                        expected[token] += 1
        counts = count_tokens(rows, size, labels=labels)
        assert counts.tolist() == expected
        assert counts.dtype == torch.int64
        assert torch.equal(counts, count_tokens(rows[::-1], size, labels=labels))


def test_counting_costs_no_more_for_a_large_vocabulary(monkeypatch):
    """The work is that of `bincount`: its input and its output, the latter as large as the vocabulary."""
    bincount, work = torch.bincount, []

    def counted(ids, *, minlength):
        work.append(len(ids) + minlength)
        return bincount(ids, minlength=minlength)

    monkeypatch.setattr(torch, "bincount", counted)
    rows, size = [{"input_ids": [0, 7, 255_999, 5]}] * 100_000, 256_000
    assert count_tokens(rows, size)[7] == 100_000
    assert sum(work) <= 3 * (4 * len(rows) + size), "each row costs as much as the vocabulary is large"


def test_an_empty_dataset_has_no_counts():
    assert count_tokens([], 3).tolist() == [0, 0, 0]


def test_refuses_a_stream_without_touching_it():
    stream = iter([{"input_ids": [1]}])
    with pytest.raises(ValueError, match=r"is a stream, which counting would consume\. .*frequency='counts.tsv'"):
        count_tokens(stream, 3)
    assert len(list(stream)) == 1
    with pytest.raises(ValueError, match="is a stream"):
        count_tokens(Dataset.from_dict({"input_ids": [[1]]}).to_iterable_dataset(), 3)


def test_refuses_rows_without_input_ids_and_names_their_columns():
    with pytest.raises(ValueError, match=r"the columns \['label', 'text'\], but no 'input_ids'\. Tokenize it first"):
        count_tokens(Dataset.from_dict({"text": ["a"], "label": [0]}), 3)


def test_refuses_an_alphabetical_vocabulary_unless_there_are_counts():
    words = tuple(sorted(f"{first}{second}" for first in "abcdefghijk" for second in "abcdefghijk"))
    vocabulary = Vocabulary(("[UNK]", *words), (None, *words), (SPECIAL, *([None] * len(words))), uncased=True)
    with pytest.raises(ValueError, match=r"is in alphabetical order.*frequency='training_data'"):
        configured_rank(vocabulary, DefinitionEMBConfig())
    counts = torch.arange(len(vocabulary))
    rank = configured_rank(vocabulary, DefinitionEMBConfig(frequency="training_data"), counts)
    assert rank[-1] == 0


@pytest.mark.parametrize("name", ["roberta-base", "t5-small"])
def test_real_vocabularies_are_not_considered_alphabetical(name, data_dir):
    vocabulary = read_vocabulary(AutoTokenizer.from_pretrained(data_dir / "tokenizers" / name))
    assert torch.equal(configured_rank(vocabulary, DefinitionEMBConfig()), frequency_rank(vocabulary))
