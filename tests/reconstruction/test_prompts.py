"""Definitions as prompts for each model family: the word can be inferred from its definition only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    BartConfig,
    BertForMaskedLM,
    DebertaV2Model,
    ElectraForPreTraining,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GemmaModel,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Model,
    RobertaForMaskedLM,
    T5EncoderModel,
    T5GemmaForConditionalGeneration,
    T5Model,
)
from transformers.models.bart import BartForConditionalGeneration

from defemb_callbacks import Definition, with_definition_head
from defemb_callbacks.reconstruction.prompts import (
    definition_prompt,
    definition_texts,
    family_of,
    mask_text,
    prompt_style,
    slot_tokens,
    synonyms_prompt,
)
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

MASK = "<mask>"
WORDPIECE = wordpiece_tokenizer()


# Which family


class HouseConfig(BartConfig):
    """A type that is not registered in transformers."""

    model_type = "house"


class House(BartForConditionalGeneration):
    config_class = HouseConfig


def bert2bert() -> PreTrainedModel:
    encoder, decoder = tiny_bert(WORDPIECE), tiny_bert(WORDPIECE, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    return EncoderDecoderModel(config)


def house() -> PreTrainedModel:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    return House(HouseConfig(vocab_size=20, d_model=8, **sizes, **heads))


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (lambda: tiny_bert(WORDPIECE), "encoder"),
        (lambda: tiny_bert(WORDPIECE, BertForMaskedLM), "encoder"),
        (lambda: tiny_roberta(byte_bpe_tokenizer(), RobertaForMaskedLM), "encoder"),
        (lambda: tiny_model(DebertaV2Model, WORDPIECE), "encoder"),
        (lambda: tiny_model(ElectraForPreTraining, WORDPIECE), "encoder"),
        # Of an encoder-decoder type, but without the decoder.
        (lambda: tiny_model(T5EncoderModel, unigram_tokenizer()), "encoder"),
        (lambda: tiny_model(T5Model, unigram_tokenizer()), "encoder-decoder"),
        (lambda: tiny_model(T5GemmaForConditionalGeneration, gemma_tokenizer()), "encoder-decoder"),
        (bert2bert, "encoder-decoder"),
        (house, "encoder-decoder"),
        (lambda: tiny_model(GPT2Model, byte_bpe_tokenizer()), "decoder"),
        (lambda: tiny_model(GPT2ForSequenceClassification, byte_bpe_tokenizer()), "decoder"),
        (lambda: tiny_model(LlamaForCausalLM, byte_bpe_tokenizer()), "decoder"),
        (lambda: tiny_model(GemmaModel, gemma_tokenizer()), "decoder"),
        (lambda: tiny_model(Qwen2Model, byte_bpe_tokenizer()), "decoder"),
        # A type that can be either, depending on its config.
        (lambda: tiny_bert(WORDPIECE, is_decoder=True), "decoder"),
    ],
)
def test_the_family_is_determined_with_or_without_a_head(make, family):
    model = make()
    assert family_of(model) == family
    assert family_of(with_definition_head(model)) == family


# The token that replaces the word


@pytest.mark.parametrize(
    ("make", "slots"),
    [
        (wordpiece_tokenizer, ("[MASK]",)),
        (byte_bpe_tokenizer, ("<mask>",)),
        (unigram_tokenizer, ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<extra_id_3>")),
        (gemma_tokenizer, ("<mask>",)),
        (lambda: wordpiece_tokenizer(mask=False), ()),
    ],
)
def test_the_mask_is_the_tokenizers_own_or_its_sentinels_or_none(make, slots):
    tokenizer = make()
    assert slot_tokens(tokenizer) == slots
    assert mask_text(tokenizer) == (slots[0] if slots else "")


def test_a_mask_that_is_split_in_text_is_not_used(monkeypatch):
    """As TapasTokenizer does, which reads tables."""
    tokenizer = wordpiece_tokenizer()
    call = type(tokenizer).__call__

    def split(self: Any, text: Any, **options: Any) -> Any:
        pieces = text.replace("[MASK]", "mask") if isinstance(text, str) else text
        return call(self, pieces, **options)

    assert mask_text(tokenizer) == "[MASK]"
    monkeypatch.setattr(type(tokenizer), "__call__", split)
    assert slot_tokens(tokenizer) == ()
    assert mask_text(tokenizer) == ""


@pytest.mark.parametrize(
    ("name", "slots"),
    [("roberta-base", ("<mask>",)), ("t5-small", tuple(f"<extra_id_{number}>" for number in range(4)))],
)
def test_the_slots_of_real_tokenizers_are_single_tokens(data_dir: Path, name: str, slots: tuple[str, ...]):
    tokenizer: Any = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / name)
    assert slot_tokens(tokenizer) == slots
    for slot in slots:
        assert tokenizer(f"a {slot}: b")["input_ids"].count(tokenizer.get_vocab()[slot]) == 1


# The text


@pytest.mark.parametrize(
    ("definition", "word", "prompt"),
    [
        (Definition("cat", "a small feline"), "cat", "<mask>: a small feline"),
        (Definition("cat", "a small feline", synonyms=("mog", "puss")), "cat", "<mask>, mog, puss: a small feline"),
        # The lemma of an inflected form and the other case of a lower-cased one.
        (Definition("cat", "a small feline"), "cats", "<mask>, cat: a small feline"),
        (Definition("Paris", "the capital of France"), "paris", "<mask>: the capital of France"),
        # Itself among the synonyms, twice, and within longer names.
        (Definition("cat", "a pet", synonyms=("Cat", "true cat", "true Cat")), "cat", "<mask>, true <mask>: a pet"),
        # In the gloss: in any case, next to punctuation, but not within another word.
        (Definition("cat", "Cat's cradle; (cat), cat-like"), "cat", "<mask>: <mask>'s cradle; (<mask>), <mask>-like"),
        (Definition("cat", "category of cats; concat"), "cat", "<mask>: category of cats; concat"),
        (Definition("slovo", "slov, slovom"), "slov", "<mask>, slovo: <mask>, slovom"),
        # Words with special characters of regular expressions.
        (Definition("c++", "what c++ compilers read; c, cc++"), "c++", "<mask>: what <mask> compilers read; c, cc++"),
        (Definition(".net", "a .net is no net"), ".net", "<mask>: a <mask> is no net"),
    ],
)  # fmt: skip
def test_every_occurrence_of_the_word_is_masked(definition, word, prompt):
    assert definition_prompt(definition, word, MASK) == prompt


def test_without_a_mask_the_word_is_left_out():
    assert definition_prompt(Definition("cat", "a small feline"), "cat", "") == "a small feline"
    assert definition_prompt(Definition("cat", "a feline", synonyms=("mog",)), "cat", "") == "mog: a feline"


@pytest.mark.parametrize("word", ["dog", "river", "happy"])
def test_the_tokenized_prompt_holds_the_mask_and_not_the_word(word):
    tokenizer = byte_bpe_tokenizer()
    definition = Definition(word, f"the {word} of a {word.upper()}", synonyms=("animal", f"big {word}"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(definition_prompt(definition, word, MASK))["input_ids"])
    assert tokens.count("<mask>") == 4
    assert word not in "".join(tokens).lower()


@pytest.mark.parametrize(
    ("definition", "word", "prompt"),
    [
        (Definition("cat", "a small feline"), "cat", "a small feline, i.e."),
        (Definition("cat", "a feline", synonyms=("mog", "puss")), "cat", "Synonyms of mog, puss: a feline, i.e."),
        # The lemma of an inflected form, but not the other case of the word itself.
        (Definition("cat", "a small feline"), "cats", "Synonyms of cat: a small feline, i.e."),
        (Definition("Paris", "the capital of France"), "paris", "the capital of France, i.e."),
        # The word is removed from names, which may leave the same name twice or none, and replaced in the gloss.
        (
            Definition("cat", "a cat, or CAT; concat", synonyms=("true cat", "Cat", "true Cat", "cat cat")),
            "cat",
            "Synonyms of true: a it, or it; concat, i.e.",
        ),
    ],
)
def test_the_prompt_of_decoders_ends_where_the_word_would_follow(definition, word, prompt):
    assert synonyms_prompt(definition, word) == prompt


def test_only_decoders_read_the_prompt_that_ends_before_the_word():
    tokenizer = byte_bpe_tokenizer()
    assert prompt_style(tiny_model(GPT2Model, tokenizer)) == "synonyms"
    assert prompt_style(tiny_roberta(tokenizer)) == prompt_style(tiny_model(T5Model, unigram_tokenizer())) == "mask"


DECODER_TOKENIZERS = {
    "byte BPE, with a closing token": byte_bpe_tokenizer,
    "unigram": gemma_tokenizer,
    "unigram, with a closing token": unigram_tokenizer,
    "word pieces": wordpiece_tokenizer,
}


@pytest.mark.parametrize("make", DECODER_TOKENIZERS.values(), ids=DECODER_TOKENIZERS)
def test_truncated_prompts_keep_their_ending(make):
    tokenizer = make()
    gloss = "an animal with wings and feathers that lays eggs"
    definitions = [Definition("bird", " ".join([gloss] * repeats), synonyms=("owl",)) for repeats in (1, 5, 40)]
    whole = definition_texts(["bird"], [definitions], tokenizer, 10_000, "synonyms").input_ids
    special = set(tokenizer.all_special_ids)
    prompts = [synonyms_prompt(definition, "bird") for definition in definitions]
    assert whole == tokenizer(prompts, verbose=False)["input_ids"]
    for max_length in (24, 32, 64):
        texts = definition_texts(["bird"], [definitions], tokenizer, max_length, "synonyms").input_ids
        for cut, full in zip(texts, whole, strict=True):
            assert len(cut) == min(len(full), max_length)
            assert cut[0] == full[0]
            text = tokenizer.decode([index for index in cut if index not in special])
            assert text.replace(" ", "").endswith(",i.e.")
            if len(full) > max_length:
                # The ending and the closing tokens, and before them only the start of the gloss.
                kept = next(n for n in range(max_length, 0, -1) if cut[:n] == full[:n])
                assert cut[kept:] == full[-(max_length - kept) :]
                assert max_length - kept < 14


def test_a_prompt_without_room_for_its_ending_is_truncated_as_usual():
    tokenizer = byte_bpe_tokenizer()
    definition = Definition("bird", "an animal with wings")
    (ids,) = definition_texts(["bird"], [[definition]], tokenizer, 4, "synonyms").input_ids
    assert ids == tokenizer(synonyms_prompt(definition, "bird"), truncation=True, max_length=4)["input_ids"]


def test_long_prompts_do_not_warn(caplog):
    tokenizer = byte_bpe_tokenizer()
    with caplog.at_level(logging.WARNING, "transformers"):
        definition_texts(["bird"], [[Definition("bird", "wings " * 500)]], tokenizer, 64, "synonyms")
    assert not caplog.records
