"""A definition as text, by what reads it: nothing but its definition tells which word it is."""

from __future__ import annotations

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
from defemb_callbacks.reconstruction.prompts import definition_prompt, family_of, mask_text, slot_tokens
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
    """Of no family that transformers knows."""

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
        # A type that can be either, told by its setting.
        (lambda: tiny_bert(WORDPIECE, is_decoder=True), "decoder"),
    ],
)
def test_the_family_is_told_from_the_model_with_or_without_a_head(make, family):
    model = make()
    assert family_of(model) == family
    assert family_of(with_definition_head(model)) == family


# What stands for the word


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
        # In the gloss: in any case, beside punctuation, but no part of another word.
        (Definition("cat", "Cat's cradle; (cat), cat-like"), "cat", "<mask>: <mask>'s cradle; (<mask>), <mask>-like"),
        (Definition("cat", "category of cats; concat"), "cat", "<mask>: category of cats; concat"),
        (Definition("slovo", "slov, slovom"), "slov", "<mask>, slovo: <mask>, slovom"),
        # Words with characters that mean something to a regular expression.
        (Definition("c++", "what c++ compilers read; c, cc++"), "c++", "<mask>: what <mask> compilers read; c, cc++"),
        (Definition(".net", "a .net is no net"), ".net", "<mask>: a <mask> is no net"),
    ],
)  # fmt: skip
def test_the_word_is_masked_wherever_it_stands(definition, word, prompt):
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
