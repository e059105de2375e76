"""Masks, targets and the positions where they are read, on hand-written rows of real tokenizers.

Most tests use definitions of "mongoose": three sub-tokens for RoBERTa and BART, five for T5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BartModel,
    GPT2Model,
    PreTrainedModel,
    T5EncoderModel,
    T5GemmaModel,
    T5Model,
)

from defemb_callbacks import Definition, with_definition_head
from defemb_callbacks.reconstruction.constructor.data import (
    DefinitionCollator,
    ReadingStyle,
    definition_rows,
    sub_tokens_of,
)
from tiny import gemma_tokenizer, tiny_bert, tiny_model, tiny_roberta, wordpiece_tokenizer

MONGOOSE = Definition("mongoose", "it eats snakes; any mongoose", synonyms=("true mongoose",))
PIECES = ["Ġm", "ongo", "ose"]
T5_PIECES = ["▁mon", "go", "o", "s", "e"]


@pytest.fixture(scope="module")
def roberta(data_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "roberta-base")


@pytest.fixture(scope="module")
def gpt2(data_dir: Path) -> Any:
    """RoBERTa's tokenizer without special tokens around a text, like GPT-2's."""
    tokenizer: Any = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "roberta-base")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


@pytest.fixture(scope="module")
def t5(data_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "t5-small")


def tiny_large_roberta(tokenizer: Any) -> PreTrainedModel:
    return tiny_roberta(tokenizer, num_hidden_layers=1)


def made(model: PreTrainedModel, tokenizer: Any, *entries: Any, **options: Any) -> tuple[ReadingStyle, Dataset]:
    """Rows of words with one definition each, or of (word, definitions)."""
    pairs = [entry if isinstance(entry, tuple) else (entry.word, [entry]) for entry in entries]
    words, definitions = [word for word, _ in pairs], [found for _, found in pairs]
    style = ReadingStyle.of(model, tokenizer)
    sub_tokens = sub_tokens_of(words, tokenizer)
    return style, definition_rows(style, tokenizer, words, sub_tokens, definitions, **{"max_length": 64, **options})


def shown(tokenizer: Any, rows: Dataset) -> list[tuple[list[str], list[str], int, list[str]]]:
    read = tokenizer.convert_ids_to_tokens
    return [
        (read(row["input_ids"]), read(row["decoder_input_ids"]), row["position"], read(row["labels"])) for row in rows
    ]


# Rows


def test_encoder_rows_with_autoregressive_masking(roberta):
    _, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE)
    mask, rest = "<mask>", [",", "Ġtrue", "<mask>", ":", "Ġit", "Ġeats", "Ġsnakes", ";", "Ġany", "<mask>", "</s>"]
    assert shown(roberta, rows) == [
        (["<s>", mask, mask, mask, *rest], [], 1, ["Ġm"]),
        (["<s>", "Ġm", mask, mask, *rest], [], 2, ["ongo"]),
        (["<s>", "Ġm", "ongo", mask, *rest], [], 3, ["ose"]),
    ]
    assert rows["redrawn"][:] == [False] * 3


def test_encoder_rows_with_random_masking(roberta):
    _, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE, masking="random")
    mask, rest = "<mask>", [",", "Ġtrue", "<mask>", ":", "Ġit", "Ġeats", "Ġsnakes", ";", "Ġany", "<mask>", "</s>"]
    assert shown(roberta, rows) == [(["<s>", mask, mask, mask, *rest], [], 1, PIECES)]
    assert rows["redrawn"][:] == [True]


def test_rows_of_bart(roberta):
    _, rows = made(tiny_model(BartModel, roberta), roberta, MONGOOSE)
    rest = [",", "Ġtrue", "<mask>", ":", "Ġit", "Ġeats", "Ġsnakes", ";", "Ġany", "<mask>", "</s>"]
    source = ["<s>", "<mask>", "<mask>", "<mask>", *rest]
    assert shown(roberta, rows) == [
        (source, ["</s>", "<s>"], 1, ["Ġm"]),
        (source, ["</s>", "<s>", "Ġm"], 2, ["ongo"]),
        (source, ["</s>", "<s>", "Ġm", "ongo"], 3, ["ose"]),
    ]


def test_rows_of_t5(t5):
    _, rows = made(tiny_model(T5Model, t5, decoder_start_token_id=0), t5, MONGOOSE)
    sentinels = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<extra_id_3>", "<extra_id_3>"]
    name = ["▁", ",", "▁true", "<extra_id_0>", "▁", ":"]
    gloss = ["▁it", "▁", "eat", "s", "▁snake", "s", ";", "▁any", "<extra_id_0>", "</s>"]
    source = [*sentinels, *name, *gloss]
    assert shown(t5, rows) == [
        (source, ["<pad>"], 0, ["▁mon"]),
        (source, ["<pad>", "▁mon"], 1, ["go"]),
        (source, ["<pad>", "▁mon", "go"], 2, ["o"]),
        (source, ["<pad>", "▁mon", "go", "o"], 3, ["s"]),
        (source, ["<pad>", "▁mon", "go", "o", "s"], 4, ["e"]),
    ]


def test_rows_of_the_encoder_of_t5(t5):
    _, rows = made(tiny_model(T5EncoderModel, t5), t5, MONGOOSE)
    first, _, third = (shown(t5, rows)[number] for number in (0, 1, 2))
    assert first[0][:5] == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<extra_id_3>", "<extra_id_3>"]
    assert third[0][:5] == ["▁mon", "go", "<extra_id_2>", "<extra_id_3>", "<extra_id_3>"]
    assert (first[2:], third[2:]) == ((0, ["▁mon"]), (2, ["o"]))


def test_rows_of_a_decoder(gpt2):
    _, rows = made(tiny_model(GPT2Model, gpt2), gpt2, MONGOOSE)
    text = ["true", ":", "Ġit", "Ġeats", "Ġsnakes", ";", "Ġany"]
    found = [(tokens[: len(text)], tokens[len(text) :], *rest) for tokens, *rest in shown(gpt2, rows)]
    # What is left of "any mongoose" is "any ".
    assert found == [
        (text, ["Ġ"], [], 7, ["Ġm"]),
        (text, ["Ġ", "Ġm"], [], 8, ["ongo"]),
        (text, ["Ġ", "Ġm", "ongo"], [], 9, ["ose"]),
    ]


def test_gemmas_encoder_uses_its_undeclared_mask_token():
    tokenizer = gemma_tokenizer()
    _, rows = made(tiny_model(T5GemmaModel, tokenizer), tokenizer, Definition("wolf", "a dog", synonyms=("bear",)))
    text = ["<bos>", "<mask>", "▁", ",", "▁bear", ":", "▁a", "▁dog"]
    [(source, *rest)] = shown(tokenizer, rows)
    assert [token for token in source if token != "▁"] == [token for token in text if token != "▁"]
    assert rest == [["<bos>", "<bos>"], 1, ["▁wolf"]]


def test_an_encoder_without_a_mask_uses_the_unknown_token():
    tokenizer = wordpiece_tokenizer(mask=False)
    _, rows = made(tiny_bert(tokenizer), tokenizer, Definition("wolf", "a dog"), Definition("wolfing", "to run"))
    assert shown(tokenizer, rows) == [
        (["[CLS]", "[UNK]", "a", "dog", "[SEP]"], [], 1, ["wolf"]),
        (["[CLS]", "[UNK]", "[UNK]", "to", "run", "[SEP]"], [], 1, ["wolf"]),
        (["[CLS]", "wolf", "[UNK]", "to", "run", "[SEP]"], [], 2, ["##ing"]),
    ]


def test_words_of_one_sub_token_have_one_row_a_definition_and_their_weights(roberta, t5):
    cats = [Definition("cat", "a pet"), Definition("cat", "a whip", rank=2)]
    words = [("cat", cats), ("dog", [Definition("dog", "a friend")])]
    for model, tokenizer in ((tiny_large_roberta(roberta), roberta), (tiny_model(T5Model, t5), t5)):
        _, rows = made(model, tokenizer, *words)
        cat, dog = (tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][-1] for word in ("cat", "dog"))
        assert rows["labels"][:] == [[cat], [cat], [dog]]
        assert rows["word"][:] == [0, 0, 1]
        assert rows["weight"][:] == pytest.approx([2 / 3, 1 / 3, 1])
    _, rows = made(tiny_large_roberta(roberta), roberta, *words)
    assert [tokens for tokens, *_ in shown(roberta, rows)][1:] == [
        ["<s>", "<mask>", ":", "Ġa", "Ġwhip", "</s>"],
        ["<s>", "<mask>", ":", "Ġa", "Ġfriend", "</s>"],
    ]


def test_no_words_give_no_rows(roberta):
    _, rows = made(tiny_large_roberta(roberta), roberta)
    assert len(rows) == 0
    assert set(rows.column_names) == {
        "input_ids", "decoder_input_ids", "position", "labels", "word", "weight", "redrawn",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model_class", "name", "family"), [(BartModel, "roberta", "encoder-decoder"), (GPT2Model, "gpt2", "decoder")]
)
def test_random_masking_requires_an_encoder(model_class, name, family, request):
    tokenizer = request.getfixturevalue(name)
    with pytest.raises(
        ValueError, match=f"requires an encoder, got a model of family '{family}'. Use `masking='autoregressive'`"
    ):
        made(tiny_model(model_class, tokenizer), tokenizer, MONGOOSE, masking="random")


# Truncation

STYLES: dict[str, Callable[[Any], PreTrainedModel]] = {
    "roberta": tiny_large_roberta,
    "bart": lambda tokenizer: tiny_model(BartModel, tokenizer),
    "t5": lambda tokenizer: tiny_model(T5Model, tokenizer),
    "gpt2": lambda tokenizer: tiny_model(GPT2Model, tokenizer),
    "maskless": lambda tokenizer: tiny_bert(tokenizer, max_position_embeddings=16),
}


def of_style(style: str, request: pytest.FixtureRequest) -> tuple[PreTrainedModel, Any]:
    names = {"bart": "roberta", "maskless": None}
    name = names.get(style, style)
    tokenizer = request.getfixturevalue(name) if name else wordpiece_tokenizer(mask=False)
    return STYLES[style](tokenizer), tokenizer


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("word", ["cat", "mongoose"])
def test_a_truncated_definition_keeps_its_targets(style, word, request):
    model, tokenizer = of_style(style, request)
    long = Definition(word, "a small animal that eats snakes and lives in the old " * 5)
    how, rows = made(model, tokenizer, long, max_length=16)
    target = sub_tokens_of([word], tokenizer)[0]
    assert [row["labels"] for row in rows] == [[label] for label in target]
    longest = max(len(row["input_ids"]) for row in rows)
    assert longest == 16  # exactly this number, as the definition is long
    for j, row in enumerate(rows):
        read = row["decoder_input_ids"] or row["input_ids"]
        assert 0 <= row["position"] < len(read) <= 16
        if how.family == "encoder":
            assert row["input_ids"][row["position"]] == how.slots[0]
        else:
            assert read[-j:] == target[:j] or j == 0
            assert row["position"] == len(read) - 1
        if how.slots:
            assert row["input_ids"].count(how.slots[min(j, len(how.slots) - 1)]) >= 1


@pytest.mark.parametrize("style", STYLES)
def test_an_empty_definition_has_a_row(style, request):
    model, tokenizer = of_style(style, request)
    how, rows = made(model, tokenizer, Definition("cat", "cat"))
    batch = DefinitionCollator(how.pad, len(tokenizer))(list(rows))
    assert with_definition_head(model)(**batch).logits.shape == (1, 32)


# Leakage


@pytest.mark.parametrize("style", ["bart", "t5", "gpt2"])
def test_the_prediction_does_not_depend_on_the_target_or_later_tokens(style, request):
    model, tokenizer = of_style(style, request)
    wrapped = with_definition_head(model)
    how, rows = made(model, tokenizer, MONGOOSE)
    word = sub_tokens_of(["mongoose"], tokenizer)[0]
    column = "decoder_input_ids" if how.family == "encoder-decoder" else "input_ids"
    collate = DefinitionCollator(how.pad, len(tokenizer))
    others = [label + 7 for label in word]
    for j, row in enumerate(rows):
        alone = wrapped.reconstruct(collate([row]))
        for following in (word[j:], others[j:], []):
            full = {**row, column: row[column] + following}
            torch.testing.assert_close(wrapped.reconstruct(collate([full])), alone, rtol=0, atol=1e-5)
        if j:  # but earlier tokens do
            before = [*row[column][:-1], others[j - 1]]
            changed = wrapped.reconstruct(collate([{**row, column: before}]))
            assert (changed - alone).abs().max() > 1e-2


def test_an_encoder_never_has_the_target_in_its_input(roberta):
    _, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE)
    word = sub_tokens_of(["mongoose"], roberta)[0]
    for j, row in enumerate(rows):
        assert not set(row["input_ids"]) & set(word[j:])
        assert row["input_ids"][row["position"] - j : row["position"]] == word[:j]


# Batches


def test_a_batch_without_padding_has_no_attention_mask(roberta):
    _, rows = made(tiny_large_roberta(roberta), roberta, Definition("cat", "a pet"), Definition("dog", "a friend"))
    batch = DefinitionCollator(roberta.pad_token_id, len(roberta))(list(rows))
    assert set(batch) == {"input_ids", "target_mask", "labels"}


def test_batches_written_out():
    rows = [
        {"input_ids": [5, 6, 7], "decoder_input_ids": [2, 8], "position": 1, "labels": [9], "redrawn": False},
        {"input_ids": [5, 6], "decoder_input_ids": [2, 8, 9], "position": 1, "labels": [3, 4], "redrawn": False},
    ]
    batch = DefinitionCollator(pad=1, vocabulary=10)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [5, 6, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[2, 8, 1], [2, 8, 9]],
        "target_mask": [[False, True, False], [False, True, True]],
        "labels": [9, 3, 4],
    }


def test_labels_are_in_reading_order(roberta):
    model = tiny_large_roberta(roberta)
    style, rows = made(model, roberta, Definition("cat", "a pet"), MONGOOSE, masking="random")
    batch = DefinitionCollator(style.pad, len(roberta))(list(rows)[::-1])
    assert roberta.convert_ids_to_tokens(batch["labels"].tolist()) == [*PIECES, "Ġcat"]
    assert batch["target_mask"].nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]


# Random masking


def test_shares_of_random_masking(roberta):
    style, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE, masking="random")
    draws = 4000
    batch = DefinitionCollator(style.pad, len(roberta))(list(rows) * draws)
    assert batch["labels"].tolist() == rows[0]["labels"] * draws
    assert (batch["target_mask"].sum(dim=1) == 3).all()
    drawn, labels = batch["input_ids"][:, 1:4], torch.tensor(rows[0]["labels"])
    untouched = torch.cat([batch["input_ids"][:, :1], batch["input_ids"][:, 4:]], dim=1)
    assert (untouched == untouched[0]).all()
    masked, kept = drawn == roberta.mask_token_id, drawn == labels
    random = drawn[~masked & ~kept]
    # Four standard deviations of 12,000 draws.
    assert float(masked.float().mean()) == pytest.approx(0.5, abs=0.018)
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.016)
    # Each position is drawn independently, uniformly from the whole vocabulary.
    patterns = Counter(map(tuple, masked.tolist()))
    assert len(patterns) == 8
    assert all(count / draws == pytest.approx(1 / 8, abs=0.021) for count in patterns.values())
    quarters = torch.histc(random.float(), bins=4, min=0, max=len(roberta)) / len(random)
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.032)


def test_rows_that_are_not_redrawn_never_change(roberta):
    style, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE)
    collate = DefinitionCollator(style.pad, len(roberta))
    for _ in range(20):
        assert collate(list(rows))["input_ids"].tolist() == rows["input_ids"][:]


def test_random_masking_does_not_change_the_rows(roberta):
    style, rows = made(tiny_large_roberta(roberta), roberta, MONGOOSE, masking="random")
    row = rows[0]
    before = list(row["input_ids"])
    seen = {tuple(DefinitionCollator(style.pad, 50)([row])["input_ids"][0].tolist()) for _ in range(30)}
    assert row["input_ids"] == before
    assert len(seen) > 5


# Sub-tokens of words


def test_words_are_tokenized_as_within_a_sentence(roberta, t5):
    assert [roberta.convert_ids_to_tokens(ids) for ids in sub_tokens_of(["cat", "mongoose", "Paris"], roberta)] == [
        ["Ġcat"], PIECES, ["ĠParis"],
    ]  # fmt: skip
    assert [t5.convert_ids_to_tokens(ids) for ids in sub_tokens_of(["cat", "mongoose"], t5)] == [["▁cat"], T5_PIECES]
    assert sub_tokens_of([], t5) == []
