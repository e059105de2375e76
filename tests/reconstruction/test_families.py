"""Every architecture: build, apply, save, load and one step of training, on a tiny model of each family."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertForMaskedLM,
    DebertaV2ForMaskedLM,
    ElectraForMaskedLM,
    GemmaForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
    T5GemmaForConditionalGeneration,
    XLNetLMHeadModel,
)

from defemb_callbacks import Definition, DefinitionEMBConfig, DefinitionEmbeddings, build_definition_embeddings
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction.constructor.data import DefinitionCollator, ReadingStyle, definition_rows
from defemb_callbacks.reconstruction.constructor.model import freeze_unused, open_constructor
from defemb_callbacks.reconstruction.prompts import family_of, mask_text
from defemb_callbacks.weights.rows import output_weight, read_table
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)


@dataclass(frozen=True)
class Kind:
    """A family: constructors of model and tokenizer, reading style, mask, and whether the output table is tied."""

    model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    family: str
    mask: str
    tied: bool = True


def plain(model_class: type[PreTrainedModel]) -> Callable[[PreTrainedTokenizerBase], PreTrainedModel]:
    return lambda tokenizer: tiny_model(model_class, tokenizer)


wordpiece, byte_bpe, unigram, gemma = map(
    cache, (wordpiece_tokenizer, byte_bpe_tokenizer, unigram_tokenizer, gemma_tokenizer)
)


@cache
def maskless() -> PreTrainedTokenizerBase:
    return wordpiece_tokenizer(mask=False)


KINDS = {
    "bert": Kind(lambda t: tiny_bert(t, BertForMaskedLM, num_hidden_layers=1), wordpiece, "encoder", "[MASK]"),
    "roberta": Kind(lambda t: tiny_roberta(t, RobertaForMaskedLM, num_hidden_layers=1), byte_bpe, "encoder", "<mask>"),
    "deberta-v2": Kind(plain(DebertaV2ForMaskedLM), wordpiece, "encoder", "[MASK]"),
    "electra": Kind(plain(ElectraForMaskedLM), wordpiece, "encoder", "[MASK]"),
    "maskless": Kind(lambda t: tiny_bert(t, BertForMaskedLM, num_hidden_layers=1), maskless, "encoder", ""),
    "bart": Kind(plain(BartForConditionalGeneration), byte_bpe, "encoder-decoder", "<mask>"),
    "t5": Kind(plain(T5ForConditionalGeneration), unigram, "encoder-decoder", "<extra_id_0>"),
    # Its output table is tied to the decoder's table, which is not the encoder's.
    "t5gemma": Kind(plain(T5GemmaForConditionalGeneration), gemma, "encoder-decoder", "<mask>", tied=False),
    "gpt2": Kind(plain(GPT2LMHeadModel), byte_bpe, "decoder", "<mask>"),
    "llama": Kind(plain(LlamaForCausalLM), byte_bpe, "decoder", "<mask>", tied=False),
    "gemma": Kind(plain(GemmaForCausalLM), gemma, "decoder", "<mask>"),
    "qwen2": Kind(plain(Qwen2ForCausalLM), byte_bpe, "decoder", "<mask>"),
    # Registered as a causal language model, but it reads in both directions.
    "xlnet": Kind(plain(XLNetLMHeadModel), maskless, "encoder", ""),
}
CONSTRUCTOR: dict[str, Any] = {
    "tokens_per_batch": 256,
    "training": {"max_steps": 3, "disable_tqdm": True, "learning_rate": 1e-3, "warmup_steps": 0},
}
METHODS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "learned": {"method": "learned", "constructor": CONSTRUCTOR},
    "adapters": {"method": "learned", "constructor": {**CONSTRUCTOR, "lora_r": 2}},
}
WRITING = {"strategy": "replace", "rescale": False, "precision": "float32", "definitions_per_token": 1}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def settings(method: str, folder: Path, **overrides: Any) -> DefinitionEMBConfig:
    return DefinitionEMBConfig(**METHODS[method] | WRITING | overrides, cache_dir=str(folder / "cache"))


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def traits_of(model: PreTrainedModel) -> list[Any]:
    """The structure of a model without its values."""
    return [
        type(model),
        model.config.to_dict(),
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, id(weight), weight.requires_grad, weight.grad) for name, weight in model.named_parameters()],
    ]


def step(model: PreTrainedModel, ids: Tensor) -> None:
    """One training step of the model's own head on these ids."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.eval()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_family_and_mask(kind):
    tokenizer = kind.tokenizer()
    model = kind.model(tokenizer)
    assert family_of(model) == kind.family
    assert mask_text(tokenizer) == kind.mask
    assert (output_weight(model) is None) == kind.tied


@pytest.mark.parametrize("method", METHODS)
def test_build_apply_save_load_train(kind, method, tmp_path):
    tokenizer = kind.tokenizer()
    model = kind.model(tokenizer).train()
    state, traits, random = state_of(model), traits_of(model), torch.get_rng_state()
    old, output = read_table(model), output_weight(model)
    output = None if output is None else output.detach().clone()

    config = settings(method, tmp_path)
    built = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    # The model is bitwise unchanged, and no hook or wrapper is left.
    assert equal(state_of(model), state)
    assert traits_of(model) == traits
    assert torch.equal(torch.get_rng_state(), random)
    assert len(built.ids) >= len(tiny_glossary())
    assert built.rows.shape == (len(built.ids), old.shape[1])
    assert built.info["method"] == config.method
    assert built.info.get("steps") == (None if method == "ridge" else 3)
    assert len({tuple(row) for row in built.rows.tolist()}) > 0.9 * len(tiny_glossary())

    built.save_pretrained(tmp_path / "rows")
    DefinitionEmbeddings.from_pretrained(tmp_path / "rows").apply(model, config)
    expected = old.clone()
    expected[built.ids] = built.rows
    assert torch.equal(read_table(model), expected)
    if kind.tied:
        assert torch.equal(model.get_output_embeddings().weight, expected)
    else:
        assert torch.equal(output_weight(model), output)

    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert equal(state_of(loaded), state_of(model))
    assert torch.equal(read_table(loaded), expected)
    if kind.tied:
        assert output_weight(loaded) is None

    shown, hidden = built.ids[:4], built.ids[4:]
    step(loaded, torch.stack([shown, shown.flip(0)]))
    moved = (read_table(loaded) != expected).any(dim=1)
    assert moved[shown].all()
    # A tied table is also trained as the output table, where every token affects the loss.
    assert moved[hidden].all() if kind.tied else not moved[hidden].any()
    assert torch.isfinite(read_table(loaded)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "table"), [("t5gemma", "decoder"), ("llama", "output"), ("t5gemma", "output")])
def test_an_untied_table_is_rebuilt_alone(name, table, method, tmp_path):
    kind = KINDS[name]
    tokenizer = kind.tokenizer()
    model = kind.model(tokenizer)
    state, first, old = state_of(model), read_table(model), read_table(model, table)
    config = settings(method, tmp_path, table=table)
    built = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    assert equal(state_of(model), state)
    built.apply(model, config)
    expected = old.clone()
    expected[built.ids] = built.rows
    assert torch.equal(read_table(model, table), expected)
    assert torch.equal(read_table(model), first)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(read_table(loaded, table), expected)


# XLNet has weights for segments in each layer, and definitions have no segments.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "xlnet"])
def test_all_layers_but_tables_and_task_heads_are_trained(name):
    kind = KINDS[name]
    tokenizer = kind.tokenizer()
    model = kind.model(tokenizer)
    style = ReadingStyle.of(model, tokenizer)
    definitions = [[Definition("cat", tiny_glossary()["cat"])]]
    rows = definition_rows(style, tokenizer, ["cat"], [[9, 10]], definitions, max_length=32)
    batch = DefinitionCollator(style.pad, len(tokenizer))([rows[1]])

    def trained(**settings: Any) -> set[str]:
        with open_constructor(model, ConstructorConfig(**settings)) as constructor:
            freeze_unused(constructor, batch)
            return {name for name, weight in constructor.named_parameters() if weight.requires_grad}

    tables = {name for name, weight in model.named_parameters() if weight.shape[0] == len(tokenizer)}
    read = {name for name in tables if not re.search("lm_head|predictions", name)}
    assert len(read) == (2 if name == "t5gemma" else 1)
    frozen = trained()
    layers = {name for name, _ in model.named_parameters() if re.search(r"\.(layers?|block|h)\.\d+\.", name)}
    assert len(layers) >= 9
    assert {*layers, "definition_head.weight"} <= frozen
    heads = {name for name, _ in model.named_parameters() if re.search("lm_head|predictions|cls", name)}
    assert not (heads | tables) & frozen
    assert trained(train_embeddings=True) == frozen | read
