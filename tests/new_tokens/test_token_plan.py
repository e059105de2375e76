"""plan_tokens: terms match in running text, decode to the same text, and leave other text unchanged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from defemb_callbacks.definitions import Definition
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_plan import (
    INSERTS_SPACES,
    NO_TOKEN,
    NOT_DEFINED,
    NOTHING_KNOWN,
    TokenPlan,
    plan_tokens,
)
from tiny import WORDS, byte_bpe_tokenizer, gemma_tokenizer, unigram_tokenizer, wordpiece_tokenizer

TERMS = ("pembrolizumab", "Röntgenium", "COVID-19", "IgG4", "β-catenin", "tokamak")


def term(text: str) -> Term:
    return Term(text, (Definition(text, "something"),))


def plan(tokenizer: PreTrainedTokenizerBase, *texts: str, words: tuple[str, ...] = ()) -> TokenPlan:
    return plan_tokens(tokenizer, [term(text) for text in texts], words)


def sentencepiece_bpe(
    make: Callable[..., PreTrainedTokenizerBase], specials: tuple[str, ...]
) -> PreTrainedTokenizerBase:
    """A tokenizer like Llama's or Gemma's: BPE over `▁` with byte fallback."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:()-'▁"
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=list(letters),
        show_progress=False,
    )
    backend.train_from_iterator([f" {word}" for word in WORDS for _ in range(2)], trainer)
    state = json.loads(backend.to_str())["model"]
    return make(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def qwen() -> PreTrainedTokenizerBase:
    state = json.loads(byte_bpe_tokenizer().backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece": wordpiece_tokenizer,
    "byte-level BPE": byte_bpe_tokenizer,
    "byte-level BPE, Qwen's": qwen,
    "SentencePiece BPE, Llama's": partial(sentencepiece_bpe, LlamaTokenizer, ("<unk>", "<s>", "</s>")),
    "SentencePiece BPE, Gemma's": partial(
        sentencepiece_bpe, GemmaTokenizer, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    ),
    "Unigram": unigram_tokenizer,
    "Unigram, Gemma's specials": gemma_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def planned(request: pytest.FixtureRequest) -> TokenPlan:
    return plan(TOKENIZERS[request.param](), *TERMS)


def sentences(number: int, terms: tuple[str, ...], words: list[str]) -> list[str]:
    """Lower-case words and terms, separated by spaces, some followed by punctuation."""
    draw = random.Random(0)

    def sentence() -> str:
        parts = [draw.choice(words) for _ in range(draw.randrange(3, 12))]
        for _ in range(draw.randrange(1, 4)):
            parts.insert(draw.randrange(len(parts)), draw.choice(terms))
        return " ".join(part + draw.choice(("", "", "", ",", ")", ".")) for part in parts)

    return [sentence() for _ in range(number)]


def decoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    return tokenizer.batch_decode(tokenizer(texts, add_special_tokens=False)["input_ids"])


def check_round_trips(found: TokenPlan, words: list[str]) -> None:
    """Check that a thousand sentences round-trip; for WordPiece, those that do so without the terms."""
    terms = tuple(token.term.text for token in found.tokens)
    if type(found.before.backend_tokenizer.model).__name__ == "WordPiece":
        # It lower-cases, and puts spaces around punctuation of its own.
        terms = tuple(text for text in terms if text == text.lower() and text.isalpha())
        texts = [text.translate({ord(mark): None for mark in ",.)"}) for text in sentences(1000, terms, words)]
    else:
        texts = sentences(1000, terms, words)
    assert decoded(found.after, texts) == texts
    cut = found.after(texts, add_special_tokens=False)["input_ids"]
    for token in found.tokens:
        # At the start of a text, byte-level BPE can have no added token with such a letter.
        if token.term.text in terms and "ö" not in token.term.text:
            with_it = [ids for text, ids in zip(texts, cut, strict=True) if token.term.text in text]
            assert with_it
            assert all(set(token.ids) & set(ids) for ids in with_it), token


def test_a_thousand_sentences_round_trip(planned: TokenPlan):
    check_round_trips(planned, [word for word in WORDS if word.isalpha()])


@pytest.mark.parametrize("name", ["roberta-base", "t5-small", "minilm"])
def test_real_tokenizers_round_trip(name: str, data_dir: Path, minilm_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir if name == "minilm" else data_dir / "tokenizers" / name)
    found = plan(tokenizer, *TERMS)
    assert not found.refused
    check_round_trips(found, [word for word in WORDS if word.isalpha()])


@pytest.mark.parametrize("context", ["{}", "the {} is", "of {}.", "({})", "the {}, {} and {}"])
def test_a_term_matches_at_every_start_of_a_word(planned: TokenPlan, context: str):
    for token in planned.tokens:
        byte_level = "ByteLevel" in str(planned.before.backend_tokenizer.decoder)
        if byte_level and "ö" in token.term.text and context in ("{}", "({})"):
            continue  # there it decodes an added token with such a letter only together with a space
        ids = planned.after(context.format(*[token.term.text] * 3), add_special_tokens=False)["input_ids"]
        assert sum(index in token.ids for index in ids) == context.count("{}")


def test_text_without_the_terms_is_tokenized_as_before(planned: TokenPlan):
    texts = [*sentences(300, ("house", "cats"), list(WORDS)), "pembro", "COVID", "the IgG", "x-19"]
    texts = [text for text in texts if not any(name in text for name in TERMS)]
    before, after = (tokenizer(texts)["input_ids"] for tokenizer in (planned.before, planned.after))
    assert before == after


def test_a_text_full_of_terms_has_one_token_for_each(planned: TokenPlan):
    text = "the " + " ".join(token.term.text for token in planned.tokens)
    pieces = sum(len(token.pieces) for token in planned.tokens)
    before, after = (len(t(text, add_special_tokens=False)["input_ids"]) for t in (planned.before, planned.after))
    unknown = sum(index == planned.before.unk_token_id for index in planned.before(text)["input_ids"])
    assert before - after == pieces + unknown - len(planned.tokens)


def test_the_extended_tokenizer_can_be_saved_and_loaded(planned: TokenPlan, tmp_path: Path):
    planned.after.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = sentences(50, TERMS, list(WORDS))
    assert loaded(texts)["input_ids"] == planned.after(texts)["input_ids"]
    assert decoded(loaded, texts) == decoded(planned.after, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_extend_changes_the_tokenizer(name: str):
    tokenizer = TOKENIZERS[name]()
    size = len(tokenizer)
    found = plan(tokenizer, "zorblax")
    assert len(tokenizer) == size
    found.extend(tokenizer)
    assert tokenizer("the zorblax")["input_ids"] == found.after("the zorblax")["input_ids"]
    assert len(tokenizer) == len(found.after) == size + len(found.tokens[0].ids)


def test_new_ids_are_contiguous():
    for make in TOKENIZERS.values():
        tokenizer = make()
        found = plan(tokenizer, *TERMS)
        new = [index for token in found.tokens for index in token.ids]
        assert sorted(new) == list(range(len(tokenizer), len(tokenizer) + len(new)))


def test_existing_tokens_are_not_added_again():
    for tokenizer in (wordpiece_tokenizer(), byte_bpe_tokenizer(), unigram_tokenizer()):
        found = plan(tokenizer, "cat", "lynx")
        assert [token.is_new for token in found.tokens] == [False, True]
        assert found.tokens[0].word == tokenizer(" cat", add_special_tokens=False)["input_ids"][-1]
        again = plan(found.after, "cat", "lynx")
        assert [token.is_new for token in again.tokens] == [False, False]
        assert [token.word for token in again.tokens] == [token.word for token in found.tokens]


def test_uncased_tokenizers_match_any_case():
    found = plan(wordpiece_tokenizer(), "Pembrolizumab")
    assert found.after("the PEMBROLIZUMAB")["input_ids"] == found.after("the pembrolizumab")["input_ids"]
    assert found.tokens[0].word in found.after("the PEMBROLIZUMAB")["input_ids"]


def test_cased_tokenizers_match_the_given_case():
    found = plan(byte_bpe_tokenizer(), "IgG")
    assert found.tokens[0].word in found.after("the IgG")["input_ids"]
    assert found.tokens[0].word not in found.after("the igg")["input_ids"]


def test_a_prefix_of_other_words_matches_only_as_a_whole_word():
    tokenizer = byte_bpe_tokenizer()
    free, known = plan(tokenizer, "zorb"), plan(tokenizer, "zorb", words=("zorbing",))
    text = "the zorbing"
    assert known.after(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert free.after(text)["input_ids"] != tokenizer(text)["input_ids"]
    for found in (free, known):
        assert set(found.tokens[0].ids) & set(found.after("the zorb")["input_ids"])
        assert decoded(found.after, ["the zorb is"]) == ["the zorb is"]


def test_phrases_are_one_token_if_the_tokenizer_allows_it():
    for make in (wordpiece_tokenizer, byte_bpe_tokenizer, qwen):
        found = plan(make(), "car t cell")
        assert set(found.tokens[0].ids) & set(found.after("a car t cell dies")["input_ids"])
    found = plan(unigram_tokenizer(), "car t cell", "lynx")
    assert found.refused == {NO_TOKEN: ("car t cell",)}
    assert [token.term.text for token in found.tokens] == ["lynx"]
    assert len(found.after) == len(found.before) + 2


def test_terms_without_a_definition():
    tokenizer = wordpiece_tokenizer()
    found = plan_tokens(tokenizer, [Term("lynx"), Term("cat"), Term("猫")])
    assert [token.term.text for token in found.tokens] == ["lynx"]
    assert found.refused == {NOT_DEFINED: ("cat",), NOTHING_KNOWN: ("猫",)}
    assert len(found.after) == len(tokenizer) + 1


def test_pieces_are_the_previous_sub_tokens():
    found = plan(wordpiece_tokenizer(), "horseness")
    assert found.before.convert_ids_to_tokens(list(found.tokens[0].pieces)) == ["horse", "##ness"]


@pytest.mark.parametrize("special", ["[MASK]", "[CLS]"])
def test_a_special_token_raises(special: str):
    with pytest.raises(ValueError, match=r"is a special token.*another name"):
        plan(wordpiece_tokenizer(), special)


def test_two_terms_with_the_same_token_raise():
    with pytest.raises(ValueError, match="'IgG' and 'igg' are the same token"):
        plan(wordpiece_tokenizer(), "IgG", "igg")
    with pytest.raises(ValueError, match="'Cat' and 'cat' are the same token"):
        plan(wordpiece_tokenizer(), "Cat", "cat")


def test_added_tokens_behind_a_unigram_vocabulary_keep_their_ids():
    tokenizer = unigram_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    mask: Any = tokenizer.mask_token_id
    found = plan(tokenizer, "lynx")
    assert found.after.mask_token_id == mask
    assert found.tokens[0].word > mask
    ids = found.after("the [MASK] lynx")["input_ids"]
    assert ids.count(mask) == ids.count(found.tokens[0].word) == 1


def test_a_legacy_sentencepiece_tokenizer_is_refused_with_the_setting():
    legacy = sentencepiece_bpe(partial(LlamaTokenizer, legacy=True), ("<unk>", "<s>", "</s>"))
    assert plan(legacy, "tokamak").refused == {INSERTS_SPACES: ("tokamak",)}
    assert "load it with `legacy=False`" in INSERTS_SPACES
    # A phrase that no setting would allow is refused for its own reason.
    other = sentencepiece_bpe(LlamaTokenizer, ("<unk>", "<s>", "</s>"))
    assert not plan(other, "tokamak").refused
