"""Where states are replaced: wherever the output of the model depends on them, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartForCausalLM,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    DPRConfig,
    DPRQuestionEncoder,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import tiny
from architectures import Architecture
from defemb_callbacks.senses import build_sense_dictionary, with_senses, without_senses
from defemb_callbacks.senses.placement import places

TEXTS = tiny.random_texts(80)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.2}


def bart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny.tiny_model(BartForCausalLM, tokenizer)


def dpr(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return DPRQuestionEncoder(DPRConfig(vocab_size=len(tokenizer), **SIZES)).eval()


def clip(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=8, **SIZES, **ends)
    ).eval()


def output_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids)[0].clone()


# A head that calls the decoder instead of the model, and poolers that are not called "pooler".
@pytest.mark.parametrize("make", [bart, dpr, clip])
def test_heads_and_poolers_inside_read_senses(make, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make(tokenizer)
    dictionary = build_sense_dictionary(model, tokenizer, TEXTS, senses=3)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    before = output_of(model, ids)
    if make is clip and not isinstance(model.text_model, PreTrainedModel):  # transformers 5.0
        with pytest.raises(ValueError, match="does not depend on the hidden states"):
            with_senses(model, dictionary)
        assert torch.equal(output_of(model, ids), before)
        return
    with_senses(model, dictionary)
    assert (output_of(model, ids) - before).abs().max() > 1e-3
    without_senses(model)
    assert torch.equal(output_of(model, ids), before)


def test_a_head_that_does_not_read_the_states_raises(tokenizer: PreTrainedTokenizerBase, monkeypatch) -> None:
    model = tiny.tiny_model(BartForCausalLM, tokenizer)
    dictionary = build_sense_dictionary(model, tokenizer, TEXTS, senses=3)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    before, modules = output_of(model, ids), [type(module) for module in model.modules()]
    monkeypatch.setattr("defemb_callbacks.senses.model.places", lambda *_: places(model, ids)[:1])  # the wrapper
    with pytest.raises(ValueError, match=r"does not depend on the hidden states.*Pass the part whose states its head"):
        with_senses(model, dictionary)
    assert [type(module) for module in model.modules()] == modules
    assert torch.equal(output_of(model, ids), before)


def test_a_model_that_needs_more_than_text_raises(teacher, tokenizer, dictionary, monkeypatch) -> None:
    def forward(self, input_ids, pixel_values, **_):
        raise AssertionError("not reached")

    monkeypatch.setattr(type(teacher), "forward", forward)
    with pytest.raises(ValueError, match=r"cannot be run on text alone.*Pass the part of it that reads text"):
        with_senses(teacher, dictionary)
    assert not any(isinstance(module, nn.Module) and hasattr(module, "senses") for module in teacher.modules())


@pytest.mark.parametrize(
    ("family", "name", "match"),
    [
        (
            "moonshine",
            "MoonshineForConditionalGeneration",
            r"cannot read text by itself \(.*Pass a model that reads text",
        ),
        ("funnel", "FunnelBaseModel", r"does not return one hidden state per token.*Pass a model that does"),
    ],
)
def test_models_without_a_state_per_token_are_refused(family: str, name: str, match: str) -> None:
    case = Architecture(family, name)
    tokenizer = case.tokenizer()
    with pytest.raises(ValueError, match=match):
        build_sense_dictionary(case.model(), tokenizer, TEXTS, senses=3)
