"""Reserved tokens are found, and renamed into new tokens without a change of any other id."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel, PythonBackend

from defemb_callbacks import DefinitionEMBConfig, define_new_tokens
from defemb_callbacks.new_tokens.reserved import RESERVED, rename_tokens, reserved_tokens
from defemb_callbacks.new_tokens.token_plan import plan_tokens
from defemb_callbacks.weights.rows import read_table
from tiny import (
    WORDS,
    byte_bpe_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from tokenizer_kinds import gemma, llama, qwen, special_term, term


def with_reserved(make: Callable[[], Any], name: str, *, special: bool = True) -> Callable[[], Any]:
    """The tokenizer with eight reserved tokens behind its vocabulary, as many decoders have them."""

    def made() -> Any:
        tokenizer = make()
        names = [AddedToken(name.format(number), special=special, normalized=False) for number in range(8)]
        if special:
            tokenizer.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
        else:
            tokenizer.add_tokens(names)
        return tokenizer

    return made


UNUSED = [f"<unused{number}>" for number in range(8)]

# Entries of the vocabulary (BERT), of both (Gemma), and added tokens (Llama 3, Qwen)
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "[unused2]": wordpiece_tokenizer,
    "<unused3>": with_reserved(partial(gemma, *UNUSED), "<unused{}>", special=False),
    "<|reserved_special_token_3|>": with_reserved(byte_bpe_tokenizer, "<|reserved_special_token_{}|>"),
    "<|extra_3|>": with_reserved(qwen, "<|extra_{}|>"),
    "<|placeholder3|>": with_reserved(llama, "<|placeholder{}|>"),
    "<SPECIAL_3>": with_reserved(unigram_tokenizer, "<SPECIAL_{}>"),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def decoded(tokenizer: Any, texts: list[str]) -> list[str]:
    return tokenizer.batch_decode(tokenizer(texts, add_special_tokens=False)["input_ids"])


def mixed_texts(names: list[str]) -> list[str]:
    draw = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(draw.choice([*names, *draw.sample(words, 3)]) for _ in range(9)) for _ in range(200)]


def test_terms_get_the_ids_of_reserved_tokens(tokenizer, tmp_path: Path):
    free, size, vocabulary = reserved_tokens(tokenizer), len(tokenizer), tokenizer.get_vocab()
    unigram = "Unigram" in str(type(tokenizer.backend_tokenizer.model))
    terms = [special_term("<|svg|>"), special_term("[END SVG]"), *([] if unigram else [term("tokamak")])]
    plan = plan_tokens(tokenizer, terms, reuse_reserved=True)
    assert not plan.refused
    ids = [index for token in plan.tokens for index in token.ids]
    assert sorted(ids) == sorted(vocabulary[name] for name in free[: len(ids)])
    assert list(plan.renamed) == list(free[: len(ids)])
    plan.extend(tokenizer)
    assert len(tokenizer) == len(plan.after) == size
    kept = {token: index for token, index in vocabulary.items() if index not in ids}
    assert kept.items() <= tokenizer.get_vocab().items()
    assert {tokenizer.convert_ids_to_tokens(index) for index in ids} >= {"<|svg|>", "[END SVG]"}

    texts = mixed_texts(["<|svg|>", "[END SVG]", *([] if unigram else ["tokamak"])])
    expected = tokenizer(texts)["input_ids"]
    assert decoded(tokenizer, texts) == texts
    assert set(ids) <= {index for found in expected for index in found} | {plan.tokens[-1].bare}
    # The reserved names are ordinary text now.
    assert not set(ids) & set(tokenizer(" ".join(plan.renamed))["input_ids"])

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == size
    assert loaded(texts)["input_ids"] == expected
    assert decoded(loaded, texts) == texts
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [found.ids for found in alone.encode_batch(texts)] == expected
    plain = [found.ids for found in alone.encode_batch(texts, add_special_tokens=False)]
    assert alone.decode_batch(plain, skip_special_tokens=False) == texts
    for its in (tokenizer, loaded):
        shown = its.decode(its("the <|svg|> tokamak")["input_ids"], skip_special_tokens=True)
        assert "svg" not in shown
        assert "tokamak" in shown or unigram


def test_other_text_is_tokenized_as_before(tokenizer):
    texts = [text for text in mixed_texts(["house", "cats"]) if "tokamak" not in text]
    before = tokenizer(texts)["input_ids"]
    plan_tokens(tokenizer, [special_term("<|svg|>"), term("zorblax")], reuse_reserved=True).extend(tokenizer)
    assert tokenizer(texts)["input_ids"] == before


def test_tables_do_not_grow_and_only_the_new_rows_change():
    tokenizer = TOKENIZERS["<|reserved_special_token_3|>"]()
    model = tiny_model(GPT2LMHeadModel, tokenizer)
    before, size = read_table(model), len(tokenizer)
    terms = {"<|svg|>": {"definition": "starts a drawing", "special": True}, "tokamak": "a machine for hot gas"}
    config = DefinitionEMBConfig(reuse_reserved=True)
    report = define_new_tokens(model, tokenizer, terms, tiny_glossary(), config)
    ids = [index for found in report.terms for index in found.tokens.values()]
    after = read_table(model)
    assert len(after) == len(tokenizer) == size
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == sorted(ids)
    assert list(report.info["renamed_tokens"].values()) == ["<|svg|>", " tokamak", "tokamak"]
    assert "3 of these tokens are renamed reserved tokens: <|reserved_special_token_0|>" in str(report)


def test_further_tokens_are_added_when_no_reserved_one_is_left():
    tokenizer = wordpiece_tokenizer()
    size = len(tokenizer)
    names = ["lynx", "tokamak", "ocelot", "cello", "zorblax", "quark"]
    plan = plan_tokens(tokenizer, [term(name) for name in names], reuse_reserved=True)
    assert len(plan.after) == size + 2
    assert [token.word for token in plan.tokens] == [1, 2, 3, 4, size, size + 1]


def test_a_failure_restores_the_rows_of_reserved_tokens(monkeypatch):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    before, vocabulary = read_table(model), tokenizer.get_vocab()
    monkeypatch.setattr("defemb_callbacks.new_tokens.define.new_tokens_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        define_new_tokens(
            model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary(), DefinitionEMBConfig(reuse_reserved=True)
        )
    assert torch.equal(read_table(model), before)
    assert tokenizer.get_vocab() == vocabulary


def test_tokens_in_use_are_not_renamed():
    tokenizer = TOKENIZERS["<|reserved_special_token_3|>"]()
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    tokenizer.chat_template = "{{ '<|reserved_special_token_1|>' + messages[0].content }}"
    assert reserved_tokens(tokenizer)[0] == "<|reserved_special_token_2|>"


OTHERS = ("[unused99]", "<|extra_204|>", "<|reserved_special_token_250|>", "madeupword0002", "[control_8]")
OTHERS += ("<SPECIAL_20>", ">>UNUSED_101<<", "<reserved_7>", "<｜place▁holder▁no▁12｜>")


@pytest.mark.parametrize("name", [*TOKENIZERS, *OTHERS])
def test_names_of_reserved_tokens(name):
    assert RESERVED.fullmatch(name)


@pytest.mark.parametrize("name", ["<extra_id_0>", "<0x0A>", "[MASK]", "unused", "<unused>", "<|im_start|>", "[12]"])
def test_other_tokens_are_not_reserved(name):
    assert not RESERVED.fullmatch(name)


def test_renaming_keeps_padding_and_truncation():
    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    rename_tokens(tokenizer, {"[unused1]": AddedToken("<|svg|>", special=True, normalized=False)})
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
    assert tokenizer.convert_tokens_to_ids("<|svg|>") == 2


def test_a_tokenizer_without_reserved_tokens_raises():
    with pytest.raises(ValueError, match=r"no free reserved token.*Set reuse_reserved=False"):
        plan_tokens(byte_bpe_tokenizer(), [term("lynx")], reuse_reserved=True)


class Slow(PythonBackend):
    """Splits at spaces."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012 - as in transformers

    def __init__(self) -> None:
        self.ids = {"[UNK]": 0, "cat": 1, "<unused1>": 2}
        super().__init__(unk_token="[UNK]")

    vocab_size = property(lambda self: len(self.ids))

    def get_vocab(self) -> dict[str, int]:
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return {index: token for token, index in self.ids.items()}.get(index, "[UNK]")


def test_slow_tokenizers():
    tokenizer = Slow()
    with pytest.raises(ValueError, match=r"slow tokenizer Slow cannot be renamed\. Load the fast tokenizer"):
        plan_tokens(tokenizer, [term("lynx")], reuse_reserved=True)
    plan_tokens(tokenizer, [special_term("<|svg|>"), term("lynx")]).extend(tokenizer)
    ids = tokenizer("cat <|svg|> lynx", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["cat", "<|svg|>", "lynx"]
    assert "svg" not in tokenizer.decode(ids, skip_special_tokens=True)
