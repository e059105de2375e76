"""plan_tokens: terms match in running text, decode to the same text, and leave other text unchanged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

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
from tokenizer_kinds import gemma, llama, qwen, special_term, term

TERMS = ("pembrolizumab", "Röntgenium", "COVID-19", "IgG4", "β-catenin", "tokamak")


def plan(tokenizer: PreTrainedTokenizerBase, *texts: str, words: tuple[str, ...] = ()) -> TokenPlan:
    return plan_tokens(tokenizer, [term(text) for text in texts], words)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece": wordpiece_tokenizer,
    "byte-level BPE": byte_bpe_tokenizer,
    "byte-level BPE, Qwen's": qwen,
    "SentencePiece BPE, Llama's": llama,
    "SentencePiece BPE, Gemma's": gemma,
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
    legacy = llama(legacy=True)
    assert plan(legacy, "tokamak").refused == {INSERTS_SPACES: ("tokamak",)}
    assert "load it with `legacy=False`" in INSERTS_SPACES
    # A phrase that no setting would allow is refused for its own reason.
    assert not plan(llama(), "tokamak").refused


# Special tokens


CONTROL = ("<|svg|>", "<reasoning>", "[START OF SVG]")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_and_plain_terms_round_trip_everywhere(name: str, tmp_path: Path):
    tokenizer = TOKENIZERS[name]()
    found = plan_tokens(tokenizer, [*map(special_term, CONTROL), *map(term, TERMS)])
    assert not found.refused
    found.extend(tokenizer)
    is_wordpiece = type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"
    plain = ("tokamak", "pembrolizumab") if is_wordpiece else TERMS
    texts = sentences(1000, (*CONTROL, *plain), [word for word in WORDS if word.isalpha()])
    inserts = is_wordpiece or decoded(tokenizer, ["the<|svg|>is"]) != ["the<|svg|>is"]
    if inserts:  # a space after each special token, also its own, so it must be followed by one
        texts = [text.translate({ord(mark): None for mark in ",.)"}) for text in texts]
    else:
        texts += ["<|svg|>the<|svg|>", "the<reasoning>tokamak", "(<|svg|>)\n<|svg|>", "[START OF SVG]<|svg|>"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    special = {token.word: token.term.text for token in found.tokens[:3]}
    for text, cut in zip(texts, ids, strict=True):
        assert sum(index in special for index in cut) == sum(text.count(control) for control in CONTROL)
    skipped = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert not any(control in text for text in skipped for control in CONTROL)
    tokenizer.save_pretrained(tmp_path)
    loaded, alone = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded(texts, add_special_tokens=False)["input_ids"] == ids
    assert loaded.batch_decode(ids) == texts
    assert set(special) <= set(loaded.all_special_ids)
    assert [found.ids for found in alone.encode_batch(texts, add_special_tokens=False)] == ids
    assert alone.decode_batch(ids, skip_special_tokens=False) == texts


def test_a_special_token_that_exists_keeps_its_id():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|svg|>"]})
    found = plan_tokens(tokenizer, [special_term("<|svg|>")])
    (token,) = found.tokens
    assert (token.word, token.is_new, token.replaces_row) == (tokenizer.convert_tokens_to_ids("<|svg|>"), False, True)
    assert len(found.after) == len(tokenizer)


def test_an_entry_of_the_vocabulary_becomes_special():
    found = plan_tokens(wordpiece_tokenizer(), [special_term("[unused1]")])
    assert found.before.tokenize("a [unused1]") != ["a", "[unused1]"] == found.after.tokenize("a [unused1]")
    assert len(found.after) == len(found.before)
    assert found.tokens[0].word in found.after.all_special_ids


def test_special_tokens_are_not_normalized():
    found = plan_tokens(wordpiece_tokenizer(), [special_term("<|SVG|>"), special_term("<|svg|>")])
    first, second = (token.word for token in found.tokens)
    assert found.after("<|SVG|><|svg|>", add_special_tokens=False)["input_ids"] == [first, second]


def test_a_role_is_not_given_another_row():
    with pytest.raises(ValueError, match=r"'\[MASK\]' is the mask_token of this tokenizer.*another name"):
        plan_tokens(wordpiece_tokenizer(), [special_term("[MASK]")])


def test_spaces_after_special_tokens_are_a_warning(caplog):
    plan_tokens(unigram_tokenizer(), [special_term("<|svg|>")])
    assert "'the<|svg|>is' is decoded as 'the<|svg|> is'" in caplog.text
    caplog.clear()
    plan_tokens(byte_bpe_tokenizer(), [special_term("<|svg|>")])
    assert not caplog.records


# Collisions


def test_terms_that_differ_in_accents_or_width_only_are_the_same_token():
    with pytest.raises(ValueError, match="'café' and 'cafe' are the same token"):
        plan(wordpiece_tokenizer(), "café", "cafe")
    tokenizer = byte_bpe_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(ValueError, match="'ＩｇＧ' and 'IgG' are the same token"):
        plan(tokenizer, "ＩｇＧ", "IgG")


def test_the_longest_of_overlapping_terms_matches():
    for make in (wordpiece_tokenizer, byte_bpe_tokenizer, qwen, gemma):
        found = plan(make(), "t cell", "car t cell", "cell")
        short, long, word = (set(token.ids) for token in found.tokens)
        ids = set(found.after("a car t cell dies", add_special_tokens=False)["input_ids"])
        assert ids & long
        assert not ids & (short | word)
        assert short & set(found.after("a t cell dies", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("make", [byte_bpe_tokenizer, gemma, llama])
def test_parts_of_characters_are_not_averaged(make: Callable[[], PreTrainedTokenizerBase]):
    found = plan(make(), "β-catenin", "猫")
    first, second = found.tokens
    known = [index for index in first.pieces if "\ufffd" not in found.before.decode([index])]
    assert 0 < len(known) < len(first.pieces)
    assert first.averaged == tuple(known)
    if make is not byte_bpe_tokenizer:  # its space is a piece of its own
        assert set(found.before.convert_ids_to_tokens(list(second.averaged))) <= {"▁"}
