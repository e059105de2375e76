"""The tiny tokenizers, models and data behave like real ones: a wrong tokenizer would invalidate every other test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    RobertaForMaskedLM,
    Trainer,
)

from tiny import (
    NAMES,
    NUMBERS,
    WORDS,
    byte_bpe_tokenizer,
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_roberta,
    training_args,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

FAMILIES = {"wordpiece": wordpiece_tokenizer, "byte_bpe": byte_bpe_tokenizer, "unigram": unigram_tokenizer}
MARKS = {"wordpiece": "", "byte_bpe": "Ġ", "unigram": "▁"}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer(family):
    return FAMILIES[family]()


def test_every_word_is_one_token_with_the_marker_of_its_family(family, tokenizer):
    for word in WORDS:
        if "'" not in word:
            assert tokenizer.tokenize(f"a {word}")[1:] == [MARKS[family] + word]
    for number in NUMBERS:
        assert tokenizer.tokenize(f"a {number}")[1:] == [MARKS[family] + number]


def test_words_are_ordered_by_frequency(family, tokenizer):
    ids = tokenizer.convert_tokens_to_ids([MARKS[family] + word for word in ("the", "house", "wolves", "pillow")])
    assert ids == sorted(ids)
    assert len(set(ids)) == 4


@pytest.mark.parametrize("text", ["the geese ran to two houses, in 1990.", "a zebra quizzed"])
def test_text_is_restored_by_decoding(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_wordpiece_is_lower_cased_and_marks_continuations():
    tokenizer = wordpiece_tokenizer()
    assert tokenizer.tokenize("The LONDON jumping") == ["the", "london", "j", "##u", "##m", "##p", "##ing"]
    assert tokenizer.tokenize("Ω") == ["[UNK]"]
    assert tokenizer("dog")["input_ids"][0] == tokenizer.cls_token_id
    assert tokenizer("dog")["input_ids"][-1] == tokenizer.sep_token_id
    assert {f"[unused{i}]" for i in range(4)} <= set(tokenizer.get_vocab())


def test_byte_bpe_is_cased_and_has_every_byte():
    tokenizer = byte_bpe_tokenizer()
    assert tokenizer.tokenize("The dog of Paris") == ["The", "Ġdog", "Ġof", "ĠParis"]
    assert tokenizer.tokenize("of the The") == ["o", "f", "Ġthe", "ĠThe"]
    assert tokenizer.decode(tokenizer("Ω")["input_ids"], skip_special_tokens=True) == "Ω"
    assert tokenizer("The <mask>", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("The"),
        tokenizer.mask_token_id,
    ]
    assert tokenizer("dog")["input_ids"][0] == tokenizer.bos_token_id == 0
    assert tokenizer.mask_token_id == len(tokenizer) - 1


def test_unigram_is_cased_and_ends_with_sentinels():
    tokenizer = unigram_tokenizer()
    assert tokenizer.tokenize("the dog of Paris") == ["▁the", "▁dog", "▁of", "▁Paris"]
    assert tokenizer("Ω")["input_ids"][-2:] == [tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    assert "<extra_id_3>" in tokenizer.all_special_tokens


def test_names_are_capitalised_except_in_wordpiece(family, tokenizer):
    for name in NAMES:
        assert MARKS[family] + (name.lower() if family == "wordpiece" else name) in tokenizer.get_vocab()


def test_vocabulary_is_the_same_in_another_process_with_another_hash_seed():
    # Training breaks ties between merges. If ids changed between runs, failures could not be reproduced.
    code = "import json, tiny; print(json.dumps(tiny.byte_bpe_tokenizer().get_vocab()))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(other.stdout) == byte_bpe_tokenizer().get_vocab()


def test_a_saved_tokenizer_can_be_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "the geese of Paris"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


def test_glossary_defines_lemmas_only():
    glossary = tiny_glossary()
    assert len(glossary) == 66
    assert set(glossary) <= set(WORDS)
    assert {"goose", "house"} <= set(glossary)
    assert not {"geese", "houses"} & set(glossary)
    assert all(glossary.values())


@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta])
def test_models_are_reproducible_and_leave_the_seed_unchanged(build):
    tokenizer = byte_bpe_tokenizer()
    state = torch.get_rng_state()
    first, second = (build(tokenizer).get_input_embeddings().weight for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert first.shape == (len(tokenizer), 32)


def test_rows_differ_enough_for_meaningful_cosines():
    rows = torch.nn.functional.normalize(tiny_bert(wordpiece_tokenizer()).get_input_embeddings().weight[1:], dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(0)
    assert cosines.abs().max() < 0.95
    assert cosines.std() > 0.1


def test_different_definitions_have_different_states():
    tokenizer, glossary = wordpiece_tokenizer(), tiny_glossary()
    batch = tokenizer(list(glossary.values()), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        states = tiny_bert(tokenizer)(**batch).last_hidden_state[:, 0]
    states = torch.nn.functional.normalize(states, dim=1)
    assert (states @ states.T).fill_diagonal_(0).max() < 0.999


@pytest.mark.parametrize(("build", "model_class"), [(tiny_bert, BertForMaskedLM), (tiny_roberta, RobertaForMaskedLM)])
def test_masked_language_models_tie_their_output(build, model_class):
    model = build(byte_bpe_tokenizer(), model_class)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_full_length_input_fits(family, tokenizer):
    build = tiny_roberta if family == "byte_bpe" else tiny_bert
    batch = tokenizer("the " * 300, truncation=True, return_tensors="pt", return_token_type_ids=False)
    assert batch["input_ids"].shape[1] == tokenizer.model_max_length
    assert torch.isfinite(build(tokenizer)(**batch).last_hidden_state).all()


def test_dataset_trains(tokenizer, tmp_path):
    data = tiny_dataset(tokenizer)
    assert len(data) == 64
    assert sum(data["labels"]) == 32
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    trainer = Trainer(model, training_args(tmp_path, num_train_epochs=20), train_dataset=data)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 20 * 8
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert list(tmp_path.iterdir()) == []
