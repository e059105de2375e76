"""Which tokens are words, and the reasons why others are not, labeled by hand for tiny and real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from defemb_callbacks.vocabulary.tokens import (
    LETTER,
    NUMBER,
    OUTSIDE_TEXT,
    PADDING,
    PIECE,
    SPECIAL,
    SYMBOL,
    UNUSED,
    Vocabulary,
    read_vocabulary,
)
from tiny import WORDS, byte_bpe_tokenizer, unigram_tokenizer, wordpiece_tokenizer

TINY = {"wordpiece": wordpiece_tokenizer, "byte_bpe": byte_bpe_tokenizer, "unigram": unigram_tokenizer}
REASONS = {SPECIAL, UNUSED, PADDING, PIECE, NUMBER, SYMBOL, LETTER}

# Token -> its word, or the reason why it is not a word. No word equals a reason.
TINY_TOKENS = {
    "wordpiece": {
        "[PAD]": SPECIAL,
        "[CLS]": SPECIAL,
        "[MASK]": SPECIAL,
        "[unused0]": UNUSED,
        "[unused3]": UNUSED,
        "the": "the",
        "house": "house",
        "london": "london",
        "##s": PIECE,
        "##ing": PIECE,
        "##tion": PIECE,
        "##1": NUMBER,
        "1990": NUMBER,
        "7": NUMBER,
        "a": LETTER,
        "z": LETTER,
        ".": SYMBOL,
        "(": SYMBOL,
    },
    "byte_bpe": {
        "<s>": SPECIAL,
        "<mask>": SPECIAL,
        "Ġthe": "the",
        "Ġhouse": "house",
        "ĠLondon": "London",
        "ĠThe": "The",
        "The": PIECE,
        "a": PIECE,
        "Ġa": LETTER,
        "Ġ1990": NUMBER,
        "1": NUMBER,
        ".": SYMBOL,
        "Ġ": SYMBOL,
        "Ċ": SYMBOL,  # the newline byte
        "Ã": SYMBOL,  # an incomplete character
    },
    "unigram": {
        "<pad>": SPECIAL,
        "</s>": SPECIAL,
        "<unk>": SPECIAL,
        "<extra_id_0>": SPECIAL,
        "▁the": "the",
        "▁house": "house",
        "▁house's": "house's",
        "▁London": "London",
        "s": PIECE,
        "ing": PIECE,
        "▁a": LETTER,
        "▁1990": NUMBER,
        "7": NUMBER,
        "▁": SYMBOL,
        ",": SYMBOL,
    },
}
REAL_TOKENS = {
    "roberta-base": {
        "<s>": SPECIAL,
        "<mask>": SPECIAL,
        "Ġthe": "the",
        "Ġpromo": "promo",
        "ĠCafÃ©": "Café",
        "ĠJosÃ©": "José",
        "the": PIECE,
        "'s": PIECE,
        "EngineDebug": PIECE,
        "itÃ©": PIECE,
        "ĠI": LETTER,
        "ĠÃ©": LETTER,
        "ĠÃ¾": LETTER,
        "Ġ1": NUMBER,
        "76561": NUMBER,
        "âĢ": SYMBOL,  # an incomplete quotation mark
        'Ġ"': SYMBOL,
        "Ġ______": SYMBOL,
        "Â¯": SYMBOL,
    },
    "t5-small": {
        "<pad>": SPECIAL,
        "<extra_id_99>": SPECIAL,
        "▁the": "the",
        "▁spice": "spice",
        "▁Internațional": "Internațional",
        "▁zweite": "zweite",
        "amitié": PIECE,
        "X": PIECE,
        "▁I": LETTER,
        "▁в": LETTER,
        "▁2": NUMBER,
        "-24": NUMBER,
        "▁$69.": NUMBER,
        "▁": SYMBOL,
        "»": SYMBOL,
        "##": SYMBOL,
    },
    "minilm": {
        "[PAD]": SPECIAL,
        "[MASK]": SPECIAL,
        "[unused0]": UNUSED,
        "[unused993]": UNUSED,
        "the": "the",
        "salamanca": "salamanca",
        "thyroid": "thyroid",
        "##ing": PIECE,
        "##titled": PIECE,
        "##ﬂ": PIECE,
        "a": LETTER,
        "龍": LETTER,
        "1700": NUMBER,
        "##32": NUMBER,
        "##八": NUMBER,
        "#": SYMBOL,
        "...": SYMBOL,
        "##°": SYMBOL,
    },
}


def word_or_reason(vocabulary: Vocabulary, token: str) -> str | None:
    index = vocabulary.tokens.index(token)
    return vocabulary.words[index] or vocabulary.reasons[index]


def real_tokenizer(name: str, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if name == "minilm":
        return AutoTokenizer.from_pretrained(request.getfixturevalue("minilm_dir"))
    return AutoTokenizer.from_pretrained(Path(request.getfixturevalue("data_dir")) / "tokenizers" / name)


def word_level(tokens: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with these tokens; the first one is the unknown token."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=tokens[0])


def byte_level(entries: dict[str, int]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab=entries, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("family", TINY)
def test_words_are_distinguished_from_other_tokens(family):
    vocabulary = read_vocabulary(TINY[family]())
    assert {token: word_or_reason(vocabulary, token) for token in TINY_TOKENS[family]} == TINY_TOKENS[family]


@pytest.mark.parametrize("name", REAL_TOKENS)
def test_words_are_distinguished_in_real_vocabularies(name, request):
    vocabulary = read_vocabulary(real_tokenizer(name, request))
    assert {token: word_or_reason(vocabulary, token) for token in REAL_TOKENS[name]} == REAL_TOKENS[name]


@pytest.mark.parametrize(("name", "share"), [("roberta-base", 0.64), ("t5-small", 0.67), ("minilm", 0.71)])
def test_every_real_token_is_a_word_or_has_one_reason(name, share, request):
    tokenizer = real_tokenizer(name, request)
    vocabulary = read_vocabulary(tokenizer)
    assert len(vocabulary) == len(vocabulary.words) == len(vocabulary.reasons) == len(tokenizer)
    pairs = zip(vocabulary.words, vocabulary.reasons, strict=True)
    assert all((word is None) != (reason is None) for word, reason in pairs)
    assert set(vocabulary.reasons) <= REASONS | {None}
    words = [word for word in vocabulary.words if word is not None]
    assert all(word == word.strip() and len(word) > 1 for word in words)
    assert len(words) / len(vocabulary) == pytest.approx(share, abs=0.01)
    special = {i for i, reason in enumerate(vocabulary.reasons) if reason == SPECIAL}
    assert set(tokenizer.all_special_ids) <= special


@pytest.mark.parametrize("name", REAL_TOKENS)
def test_a_real_word_is_what_the_tokenizer_decodes(name, request):
    tokenizer = real_tokenizer(name, request)
    vocabulary = read_vocabulary(tokenizer)
    for index in range(0, len(vocabulary), 97):
        if (word := vocabulary.words[index]) is not None:
            assert tokenizer.decode([index]).strip() == word


@pytest.mark.parametrize("family", TINY)
def test_all_words_of_the_tiny_vocabularies_are_found(family):
    found = set(read_vocabulary(TINY[family]()).words)
    expected = {word for word in WORDS if len(word) > 1 and "'" not in word}
    assert len(expected) > 300
    assert expected <= found


@pytest.mark.parametrize(("family", "uncased"), [("wordpiece", True), ("byte_bpe", False), ("unigram", False)])
def test_case_is_inferred_from_the_words(family, uncased):
    assert read_vocabulary(TINY[family]()).uncased is uncased


@pytest.mark.parametrize(("name", "uncased"), [("roberta-base", False), ("t5-small", False), ("minilm", True)])
def test_case_is_inferred_from_real_words(name, uncased, request):
    assert read_vocabulary(real_tokenizer(name, request)).uncased is uncased


def test_a_token_that_a_user_adds_does_not_make_a_tokenizer_cased():
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens(["COVID"])
    assert read_vocabulary(tokenizer).uncased


def test_an_upper_case_piece_or_special_token_does_not_make_a_tokenizer_cased():
    assert read_vocabulary(word_level(["[UNK]", "cat", "##S", "A"])).uncased


@pytest.mark.parametrize("family", TINY)
def test_added_tokens_are_literal_words(family):
    tokenizer = TINY[family]()
    tokenizer.add_tokens(["pembrolizumab", " new term ", "B12", "§§"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<entity>"]})
    vocabulary = read_vocabulary(tokenizer)
    assert word_or_reason(vocabulary, "pembrolizumab") == "pembrolizumab"
    assert word_or_reason(vocabulary, " new term ") == "new term"
    assert word_or_reason(vocabulary, "B12") == NUMBER
    assert word_or_reason(vocabulary, "§§") == SYMBOL
    assert word_or_reason(vocabulary, "<entity>") == SPECIAL


def test_accents_and_other_scripts_are_decoded_from_bytes():
    words = ["café", "naïve", "Ω-meson", "слово", "日本"]
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokens = [alphabet.pre_tokenize_str(word)[0][0] for word in words if word != "Ω-meson"]
    vocabulary = read_vocabulary(byte_level({token: i for i, token in enumerate(tokens)}))
    assert vocabulary.words == ("café", "naïve", "слово", "日本")
    assert tokens[0] == "ĠcafÃ©"


def test_only_the_most_common_mark_counts():
    """T5's vocabulary has a token "##", and RoBERTa's may contain "▁"."""
    vocabulary = read_vocabulary(word_level(["<unk>", "▁cat", "▁dog", "##", "Ġ"]))
    assert vocabulary.words == (None, "cat", "dog", None, None)


def test_without_any_mark_every_token_starts_a_word():
    vocabulary = read_vocabulary(word_level(["[UNK]", "cat", "dogs", "x"]))
    assert vocabulary.words == (None, "cat", "dogs", None)


def test_bytes_of_a_vocabulary_with_byte_fallback_are_symbols():
    vocabulary = read_vocabulary(word_level(["<unk>", "<0x0A>", "<0xC3>", "<0x41>", "▁cat", "▁0x0A"]))
    assert vocabulary.reasons == (SPECIAL, SYMBOL, SYMBOL, SYMBOL, None, NUMBER)


@pytest.mark.parametrize("token", ["[unused7]", "[unused_7]", "<unused7>", "<unused 12>", "madeupword0001"])
def test_unused_entries_are_recognized_in_every_spelling(token):
    assert read_vocabulary(word_level(["[UNK]", token, "cat"])).reasons == (SPECIAL, UNUSED, None)


def test_rows_beyond_the_last_token_are_padding():
    vocabulary = read_vocabulary(word_level(["[UNK]", "cat"]), size=4)
    assert vocabulary.tokens == ("[UNK]", "cat", "", "")
    assert vocabulary.reasons == (SPECIAL, None, PADDING, PADDING)
    assert len(vocabulary) == 4


def test_a_missing_id_is_padding():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 3}, unk_token="[UNK]"))
    vocabulary = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert vocabulary.reasons == (SPECIAL, PADDING, PADDING, None)


def test_special_unused_and_padding_tokens_are_outside_text():
    assert frozenset({SPECIAL, UNUSED, PADDING}) == OUTSIDE_TEXT


def test_the_fingerprint_changes_with_tokens_order_and_size():
    kinds: list[Callable[[], Vocabulary]] = [
        lambda: read_vocabulary(word_level(["[UNK]", "cat", "dog"])),
        lambda: read_vocabulary(word_level(["[UNK]", "dog", "cat"])),
        lambda: read_vocabulary(word_level(["[UNK]", "cat", "dogs"])),
        lambda: read_vocabulary(word_level(["[UNK]", "cat", "dog"]), size=4),
    ]
    prints = [kind().fingerprint for kind in kinds]
    assert len(set(prints)) == len(prints)
    assert prints == [kind().fingerprint for kind in kinds]


def test_refuses_ids_beyond_the_table():
    with pytest.raises(ValueError, match=r"ids up to 2, but the .* only 2 rows.*resize_token_embeddings"):
        read_vocabulary(word_level(["[UNK]", "cat", "dog"]), size=2)


def test_refuses_an_object_that_is_not_a_tokenizer():
    with pytest.raises(TypeError, match=r"must be a tokenizer with get_vocab\(\), got dict"):
        read_vocabulary({"cat": 1})  # type: ignore[arg-type]


def test_vocabularies_with_line_breaks_have_different_fingerprints() -> None:
    one, other = (
        Vocabulary(("a\nb", "c"), (None, None), (None, None), True),
        Vocabulary(("a", "b\nc"), (None, None), (None, None), True),
    )
    assert one.fingerprint != other.fingerprint
