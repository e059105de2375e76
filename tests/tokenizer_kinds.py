"""Tokenizers of further kinds, and terms, for the tests of new tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from defemb_callbacks.definitions import Definition
from defemb_callbacks.new_tokens.term_options import TermOptions
from defemb_callbacks.new_tokens.terms import Term
from tiny import WORDS, byte_bpe_tokenizer


def term(text: str) -> Term:
    return Term(text, (Definition(text, "something"),))


def special_term(text: str) -> Term:
    return Term(text, (Definition(text, "something"),), TermOptions(special=True))


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


def llama(*more: str, **settings: bool) -> PreTrainedTokenizerBase:
    return sentencepiece_bpe(partial(LlamaTokenizer, **settings), ("<unk>", "<s>", "</s>", *more))


def gemma(*more: str) -> PreTrainedTokenizerBase:
    return sentencepiece_bpe(GemmaTokenizer, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *more))
