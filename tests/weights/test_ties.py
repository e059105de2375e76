"""Tied, untied and shared tables, biases, padding rows and padded vocabularies: saved and reloaded equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    BartForConditionalGeneration,
    BertForMaskedLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings
from defemb_callbacks.weights.rows import output_weight, read_table
from runs import assert_same_weights, changed_rows, glossary_callback
from tiny import byte_bpe_tokenizer, tiny_bert, tiny_glossary, tiny_model, unigram_tokenizer, wordpiece_tokenizer


def rebuilt(model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """The ids of the rows that a rebuild changes."""
    before = read_table(model)
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary())
    embeddings.apply(model, DefinitionEMBConfig(blend=0.4))  # a random model has no predictions to protect
    return changed_rows(before, read_table(model))


def reloaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def test_bart_shares_one_table_four_times(tmp_path) -> None:
    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(BartForConditionalGeneration, tokenizer)
    bias = torch.randn(model.final_logits_bias.shape, generator=torch.Generator().manual_seed(0))
    model.final_logits_bias = bias  # a bias of the logits, not of the table: it is unchanged
    assert len(rebuilt(model, tokenizer)) > 60
    for one in (model, reloaded(model, tmp_path)):
        shared = one.model.shared.weight
        for other in (one.model.encoder.embed_tokens, one.model.decoder.embed_tokens, one.lm_head):
            assert other.weight is shared
        assert torch.equal(shared, model.model.shared.weight)
        assert torch.equal(one.final_logits_bias, bias)
    # Tied weights are stored once.
    stored = load_file(tmp_path / "model.safetensors")
    assert len([name for name, tensor in stored.items() if tensor.shape == shared.shape]) == 1


@pytest.mark.parametrize(
    ("model_class", "make_tokenizer", "tied"),
    [
        (GPT2LMHeadModel, byte_bpe_tokenizer, True),
        (GPT2LMHeadModel, byte_bpe_tokenizer, False),
        (LlamaForCausalLM, unigram_tokenizer, True),
        (LlamaForCausalLM, unigram_tokenizer, False),
        (T5ForConditionalGeneration, unigram_tokenizer, True),
    ],
)
def test_the_checkpoint_equals_the_model_whether_tied_or_not(model_class, make_tokenizer, tied, tmp_path) -> None:
    tokenizer = make_tokenizer()
    model = tiny_model(model_class, tokenizer, tie_word_embeddings=tied)
    output = None if output_weight(model) is None else output_weight(model).detach().clone()
    assert (output is None) is tied
    assert len(rebuilt(model, tokenizer)) > 60
    again = reloaded(model, tmp_path)
    assert_same_weights(again, model)
    if output is not None:
        assert torch.equal(output_weight(again), output)


def test_an_output_layer_with_a_bias(tmp_path) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForMaskedLM)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.copy_(torch.arange(len(tokenizer)))
    rebuilt(model, tokenizer)
    again = reloaded(model, tmp_path)
    assert_same_weights(again, model)
    assert torch.equal(again.cls.predictions.decoder.bias, torch.arange(len(tokenizer)).float())


def test_the_padding_row_stays_zero(tmp_path) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForMaskedLM)
    pad = tokenizer.pad_token_id
    assert model.get_input_embeddings().padding_idx == pad
    assert pad not in rebuilt(model, tokenizer).tolist()
    assert not read_table(reloaded(model, tmp_path))[pad].any()


@pytest.mark.parametrize("settings", [{"new_num_tokens": 500}, {"pad_to_multiple_of": 64}])
def test_a_resized_or_padded_table(settings, tmp_path) -> None:
    tokenizer = wordpiece_tokenizer()
    model, plain = tiny_bert(tokenizer, BertForMaskedLM), tiny_bert(tokenizer, BertForMaskedLM)
    model.resize_token_embeddings(**settings, mean_resizing=False)
    rows = len(read_table(model))
    assert rows in (500, 512)
    before = read_table(model)
    changed = rebuilt(model, tokenizer)
    assert torch.equal(changed, rebuilt(plain, tokenizer))
    assert torch.equal(read_table(model)[476:], before[476:])  # rows without a token
    again = reloaded(model, tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(read_table(again), read_table(model))
    assert torch.equal(read_table(AutoModel.from_pretrained(tmp_path)), read_table(model))


def test_a_seq2seq_trainer(tmp_path) -> None:
    """The evaluation generates text, and the rows are in the checkpoint."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq

    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(BartForConditionalGeneration, tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    before, callback = read_table(model), glossary_callback(monitor_steps=1)
    texts = [f" the {word} was in the house" for word in list(tiny_glossary())[:16]]
    data = Dataset.from_dict({**tokenizer(texts), "labels": tokenizer(texts)["input_ids"]})
    args = Seq2SeqTrainingArguments(
        *(str(tmp_path / "run"),),
        max_steps=2,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        predict_with_generate=True,
        generation_max_length=8,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Seq2SeqTrainer(
        model,
        args,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        callbacks=[callback],
    )
    written = read_table(model)
    assert callback.report.rebuilt == len(changed_rows(before, written)) > 60
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(tmp_path / "saved")
    table = read_table(BartForConditionalGeneration.from_pretrained(tmp_path / "saved"))
    assert 0 < (table - written).norm() < (written - before).norm() / 2
