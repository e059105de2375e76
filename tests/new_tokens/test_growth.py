"""The tables of every kind of architecture grow, and the checkpoint can be loaded; or the model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from architecture_checks import new_tokens
from architectures import Architecture
from defemb_callbacks import define_new_tokens
from defemb_callbacks.new_tokens import growth
from tiny import tiny_bert, tiny_glossary, wordpiece_tokenizer

TERMS = {"lynx": "a wild cat"}


# Nested configs; another signature; classes that leave it to their parts; a bias that transformers does not resize, or
# ties; an initialization that changes old rows.
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("t5gemma2", "T5Gemma2ForConditionalGeneration"),
        ("mobilebert", "MobileBertForMaskedLM"),
        ("encoder-decoder", "EncoderDecoderModel"),
        ("vision-encoder-decoder", "VisionEncoderDecoderModel"),
        ("esm", "EsmForMaskedLM"),
        ("luke", "LukeForMaskedLM"),
        ("reformer", "ReformerForMaskedLM"),
        ("xlstm", "xLSTMModel"),
    ],
)
def test_a_grown_model_is_saved_and_loaded(family: str, name: str, tmp_path: Path) -> None:
    new_tokens(Architecture(family, name), tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "match"),
    [
        ("ibert", "IBertForMaskedLM", r"does not support resize_token_embeddings\(\).*build_definition_embeddings"),
        ("fsmt", "FSMTForConditionalGeneration", r"gives no access to its table.*build_definition_embeddings"),
        ("mllama", "MllamaForCausalLM", r"New tokens need a row in both.*reserves the last input rows"),
    ],
)
def test_architectures_that_cannot_grow_are_refused(family: str, name: str, match: str) -> None:
    case = Architecture(family, name)
    tokenizer = case.tokenizer()
    with pytest.raises(ValueError, match=match):
        define_new_tokens(case.model(), tokenizer, TERMS, tiny_glossary())


def grow(model: PreTrainedModel, size: int) -> None:
    with growth.resized(model, size, torch.zeros(0, dtype=torch.int64)):
        pass


def test_a_config_that_describes_other_tables_is_refused_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    before, config = model.get_input_embeddings().weight.detach().clone(), model.config.to_dict()
    original = growth._resize

    def forgets_the_config(model: PreTrainedModel, size: int) -> None:
        old = model.config.vocab_size
        original(model, size)
        model.config.vocab_size = old

    monkeypatch.setattr(growth, "_resize", forgets_the_config)
    with pytest.raises(ValueError, match=r"word_embeddings.weight has shape \(480, 32\), but its config describes"):
        grow(model, 480)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.config.to_dict() == config
