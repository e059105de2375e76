"""PEFT: rows are written where the adapter trains them, saved, reloaded and merged; otherwise a warning is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, LlamaForCausalLM, Trainer

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings
from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.weights.adapters import base_layer
from defemb_callbacks.weights.rows import embedding_weight, read_table, write_rows
from runs import defined_ids, glossary_callback
from tiny import (
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_model,
    training_args,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

peft = pytest.importorskip("peft")

TOKENIZER = wordpiece_tokenizer()
IDS = defined_ids(TOKENIZER)
EMBEDDINGS = "word_embeddings"
# What each adapter trains of the embeddings, and the number of rows that the saved adapter will lack.
ADAPTERS: dict[str, tuple[dict[str, Any], int]] = {
    "lora": ({}, 66),
    "modules_to_save": ({"modules_to_save": [EMBEDDINGS, "classifier"]}, 0),
    "tokens": ({"trainable_token_indices": {EMBEDDINGS: [300, *IDS.tolist(), 5]}}, 0),
    "some_tokens": ({"trainable_token_indices": {EMBEDDINGS: IDS[:10].tolist()}}, 56),
    "lora_on_embeddings": ({"target_modules": ["query", EMBEDDINGS]}, 66),
}


def base() -> BertForSequenceClassification:
    return tiny_bert(TOKENIZER, BertForSequenceClassification)


def adapted(name: str) -> Any:
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query"]} | ADAPTERS[name][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(base(), peft.LoraConfig(**settings))


@pytest.fixture(scope="module")
def rebuilt() -> Tensor:
    """The rebuilt table of the model without adapters."""
    model = base()
    build_definition_embeddings(model, TOKENIZER, tiny_glossary()).apply(model)
    return read_table(model)


def run(model: Any, folder: Path, **settings: Any) -> Trainer:
    args = training_args(folder, **settings)
    data = tiny_dataset(TOKENIZER)
    return Trainer(model, args, train_dataset=data, processing_class=TOKENIZER, callbacks=[glossary_callback()])


def reads(model: Any) -> Tensor:
    """The output of the embedding layer for each token."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.arange(len(TOKENIZER)))


@pytest.mark.parametrize("name", ADAPTERS)
def test_written_trained_saved_reloaded_and_merged(name, rebuilt, tmp_path, caplog) -> None:
    model, untouched = adapted(name), read_table(base())
    trainer = run(model, tmp_path)
    torch.testing.assert_close(reads(model), rebuilt)  # what a forward pass reads
    torch.testing.assert_close(read_table(model), rebuilt)
    missing = ADAPTERS[name][1]
    assert (f"its saved adapter will lack {missing} of 66 rebuilt token embeddings" in caplog.text) is bool(missing)
    assert (f"modules_to_save=['{EMBEDDINGS}']" in caplog.text) is bool(missing)

    trainer.train()
    trained = reads(model)
    lost = (untouched - rebuilt)[IDS].norm()
    assert (trained - rebuilt)[IDS].norm() < lost / 2
    # The adapter trains only the written rows.
    moved = (trained != rebuilt).any(dim=1)
    if name == "lora":
        assert not moved.any()
    elif name != "some_tokens":
        assert moved[TOKENIZER.convert_tokens_to_ids("dog")]
    torch.testing.assert_close(read_table(model), trained)

    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = reads(peft.PeftModel.from_pretrained(base(), tmp_path / "adapter"))
    gone = ((reloaded - trained)[IDS].norm(dim=1) > 1e-4).sum()
    assert int(gone) == missing
    merged = model.merge_and_unload()
    torch.testing.assert_close(read_table(merged), trained, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    whole = BertForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(read_table(whole), read_table(merged))
    assert whole.config.definition_emb["rebuilt"] == 66


@pytest.mark.parametrize("name", ["lora", "lora_on_embeddings"])
def test_following_the_warning_saves_the_rows(name, rebuilt, tmp_path) -> None:
    model = adapted(name)
    write_rows(model, IDS, rebuilt[IDS])
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    reloaded = peft.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(reads(reloaded)[IDS], rebuilt[IDS])


def test_no_warning_for_embeddings_that_peft_saves_by_itself(tmp_path, caplog) -> None:
    tokenizer = unigram_tokenizer()
    llama = tiny_model(LlamaForCausalLM, tokenizer)
    embeddings = build_definition_embeddings(llama, tokenizer, tiny_glossary())
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "q_proj"])
    model = peft.get_peft_model(tiny_model(LlamaForCausalLM, tokenizer), config)
    embeddings.apply(model)
    assert "PEFT" not in caplog.text
    model.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(tiny_model(LlamaForCausalLM, tokenizer), tmp_path)
    assert torch.equal(read_table(reloaded), read_table(model))


@pytest.mark.parametrize("name", ADAPTERS)
def test_definitions_are_read_by_the_pretrained_model(name) -> None:
    """Randomly initialized adapters change neither rows nor cache key, and `requires_grad` is restored."""
    model, plain = adapted(name), base()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert fingerprint_weights(model.get_base_model()) == fingerprint_weights(plain)
    rows = build_definition_embeddings(model, TOKENIZER, tiny_glossary()).rows
    assert torch.equal(rows, build_definition_embeddings(plain, TOKENIZER, tiny_glossary()).rows)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("name", ["lora_on_embeddings", "some_tokens"])
def test_rows_are_written_through_a_trained_adapter(name) -> None:
    model = adapted(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 10)
    before, ids = reads(model), torch.cat([IDS[5:15], torch.tensor([5])])
    assert (before - embedding_weight(model)).abs().max() > 0.01  # the adapter changes what is read
    rows = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(5))
    write_rows(model, ids, rows)
    expected = before.index_copy(0, ids, rows)
    torch.testing.assert_close(reads(model), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read_table(model), expected, rtol=1e-5, atol=1e-5)


def test_written_rows_survive_merging_and_unmerging() -> None:
    model = adapted("tokens")
    rows = torch.ones(len(IDS), 32)
    write_rows(model, IDS, rows)
    for change in (model.merge_adapter, model.unmerge_adapter):
        change()
        assert torch.equal(reads(model)[IDS], rows)


def test_tied_tables_are_written_with_their_adapter() -> None:
    from transformers import BertForMaskedLM

    config = peft.LoraConfig(target_modules=["query"], trainable_token_indices={EMBEDDINGS: IDS.tolist()})
    model = peft.get_peft_model(tiny_bert(TOKENIZER, BertForMaskedLM), config)
    write_rows(model, IDS, torch.ones(len(IDS), 32))
    assert torch.equal(reads(model)[IDS], torch.ones(len(IDS), 32))
    assert torch.equal(read_table(model.merge_and_unload())[IDS], torch.ones(len(IDS), 32))


@pytest.mark.parametrize("ensure", [False, True])
@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "lm_head"]], ids=["input", "both"])
def test_a_copy_of_a_tied_table_is_a_warning_unless_it_is_tied_again(modules, ensure, caplog) -> None:
    tokenizer = unigram_tokenizer()
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=modules, ensure_weight_tying=ensure)
    model = peft.get_peft_model(tiny_model(LlamaForCausalLM, tokenizer, tie_word_embeddings=True), config)
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary())
    embeddings.apply(model, DefinitionEMBConfig(blend=0.3))
    assert torch.equal(base_layer(model.get_output_embeddings()).weight, read_table(model)) is ensure
    assert ("Set ensure_weight_tying=True" in caplog.text) is not ensure


def test_where_peft_cannot_tie_the_copy_the_warning_names_another_adapter(caplog) -> None:
    from transformers import BertForMaskedLM

    config = peft.LoraConfig(target_modules=["query"], modules_to_save=[EMBEDDINGS])
    model = peft.get_peft_model(tiny_bert(TOKENIZER, BertForMaskedLM, tie_word_embeddings=True), config)
    build_definition_embeddings(model, TOKENIZER, tiny_glossary()).apply(model, DefinitionEMBConfig(blend=0.3))
    assert "Use trainable_token_indices instead in the adapter's config" in caplog.text


def test_a_resumed_run_continues_with_the_rows_that_its_adapter_lacks(rebuilt, tmp_path) -> None:
    """The same rows are built again, into the base model."""
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = run(adapted("lora"), tmp_path / "whole", **saving)
    whole.train()
    resumed = run(adapted("lora"), tmp_path / "whole", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for model in (whole.model, resumed.model):
        torch.testing.assert_close(read_table(model), rebuilt)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (lambda: peft.LoraConfig(target_modules=[EMBEDDINGS], use_dora=True), "Embedding"),
        (lambda: peft.OFTConfig(target_modules=[EMBEDDINGS]), "OFT"),
    ],
)
def test_other_adapters_on_the_embeddings_are_refused_and_nothing_is_written(config, kind) -> None:
    try:
        model = peft.get_peft_model(base(), config())
    except (ValueError, NotImplementedError, TypeError):
        pytest.skip(f"this PEFT has no {kind} for embeddings")
    before = embedding_weight(model).detach().clone()
    with pytest.raises(TypeError, match=r"an adapter of type .*, through which rows cannot be written\. Remove"):
        write_rows(model, IDS, torch.ones(len(IDS), 32))
    assert torch.equal(embedding_weight(model), before)


def test_adapters_added_by_the_transformers_integration(rebuilt, caplog) -> None:
    model = base()
    try:
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights=False))
    except ValueError as error:
        pytest.skip(str(error))  # transformers requires a newer PEFT than the one installed
    embeddings = build_definition_embeddings(model, TOKENIZER, tiny_glossary())
    embeddings.apply(model)
    assert torch.equal(read_table(model), rebuilt)
    assert "its saved adapter will lack 66 of 66 rebuilt token embeddings" in caplog.text
