"""Settings of a build for the model at hand."""

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    FunnelBaseModel,
    FunnelConfig,
    LlamaForCausalLM,
    ReformerConfig,
    ReformerModel,
    T5Model,
)

from architectures import Architecture
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction import model_settings
from defemb_callbacks.reconstruction.model_settings import resolve_settings
from tiny import gemma_tokenizer, tiny_bert, tiny_model, unigram_tokenizer, wordpiece_tokenizer


def test_learned_needs_a_state_per_token():
    sizes = {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
    model = FunnelBaseModel(FunnelConfig(vocab_size=100, **sizes)).eval()
    with pytest.raises(ValueError, match=r"FunnelBaseModel does not have one state per token\. Use `method='ridge'`"):
        resolve_settings(DefinitionEMBConfig(method="learned"), model)


def test_learned_cannot_train_reformer():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8, "feed_forward_size": 64}
    positions = {"axial_pos_embds": False, "max_position_embeddings": 128}
    model = ReformerModel(ReformerConfig(vocab_size=100, attn_layers=["local"], **sizes, **positions)).eval()
    with pytest.raises(ValueError, match=r"cannot train ReformerModel: .* Use `method='ridge'`"):
        resolve_settings(DefinitionEMBConfig(method="learned"), model)


def test_learned_needs_states_that_depend_on_the_definition():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 0}
    model = BertModel(BertConfig(vocab_size=100, **sizes)).eval()
    with pytest.raises(ValueError, match=r"states of BertModel do not depend on other tokens\. Use `method='ridge'`"):
        resolve_settings(DefinitionEMBConfig(method="learned"), model)
    assert resolve_settings(DefinitionEMBConfig(), model).features == ["layers", "bag"]


@pytest.mark.skipif(not hasattr(transformers, "Molmo2ForConditionalGeneration"), reason="no Molmo 2 in transformers")
def test_learned_cannot_train_a_model_that_needs_more_than_text_in_training():
    case = Architecture("molmo2", "Molmo2ForConditionalGeneration")
    model = case.model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"cannot be trained on text alone .*`mm_token_type_ids` is required.*ridge"):
        resolve_settings(DefinitionEMBConfig(method="learned"), model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("make", "features", "definitions"),
    [
        (lambda: tiny_bert(wordpiece_tokenizer()), ["layers", "bag"], 8),
        (lambda: tiny_model(T5Model, unigram_tokenizer()), ["layers", "bag"], 8),
        (lambda: tiny_model(LlamaForCausalLM, gemma_tokenizer()), ["last", "middle", "bag"], 2),
        (lambda: tiny_bert(wordpiece_tokenizer(), is_decoder=True), ["last", "middle", "bag"], 2),
    ],
)
def test_defaults_depend_on_the_model(make, features, definitions):
    model = make()
    resolved = resolve_settings(DefinitionEMBConfig(blend=0.3), model)
    assert (resolved.features, resolved.definitions_per_token, resolved.blend) == (features, definitions, 0.3)
    given = DefinitionEMBConfig(features=["first"], definitions_per_token=3)
    assert resolve_settings(given, model) == given


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (lambda: tiny_bert(wordpiece_tokenizer()), {128: ["layers", "bag"], 127: ["mean", "bag"]}),
        (
            lambda: tiny_model(LlamaForCausalLM, gemma_tokenizer()),
            {96: ["last", "middle", "bag"], 95: ["last", "bag"]},
        ),
    ],
)
def test_wide_models_are_read_at_the_last_layer(make, widths, monkeypatch):
    model = make()  # of width 32
    for width, names in widths.items():
        monkeypatch.setattr(model_settings, "MAX_WIDTH", width)
        assert resolve_settings(DefinitionEMBConfig(), model).features == names
