"""Students: first layers of a teacher, or a smaller model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import tiny
from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.senses import (
    SenseStudent,
    first_layers,
)
from defemb_callbacks.senses.student import freeze_head, parameter_counts
from defemb_callbacks.senses.teacher_labels import teacher_states


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, LlamaForCausalLM])
def test_first_layers_match_the_teacher(model_class: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    teacher = tiny.tiny_model(model_class, tokenizer, num_hidden_layers=3)
    student = first_layers(teacher, 2)
    assert student.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 3
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, teacher.state_dict()[name])
    ids = torch.tensor([[9, 8, 7]])
    with torch.no_grad():
        states = student(ids, output_hidden_states=True).hidden_states
        expected = teacher(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[1], expected[1])
    with pytest.raises(ValueError, match="`layers` must be between 1 and 3, got 4"):
        first_layers(teacher, 4)
    counts = parameter_counts(teacher)
    assert counts["all"] - counts["layers"] == teacher.get_input_embeddings().weight.numel()


def test_first_layers_keep_dtypes(tokenizer: PreTrainedTokenizerBase) -> None:
    config = tiny.tiny_model(LlamaForCausalLM, tokenizer, num_hidden_layers=3).config
    # As in from_pretrained, buffers computed from the config stay in float32.
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    student = first_layers(teacher, 1)
    assert teacher.model.rotary_emb.inv_freq.dtype == torch.float32
    buffers = dict(teacher.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in student.named_buffers())
    assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}
    ids = torch.arange(9, 99)[None]
    with torch.no_grad():
        states = student.model(ids).last_hidden_state
        expected = teacher.model.norm(teacher.model(ids, output_hidden_states=True).hidden_states[1])
    assert torch.equal(states, expected)


@pytest.mark.parametrize(
    ("head", "backbone", "width"),
    [
        (LlamaForSequenceClassification, LlamaModel, "hidden_size"),
        (LlamaForCausalLM, LlamaModel, "hidden_size"),
        (GPT2ForSequenceClassification, GPT2Model, "n_embd"),
        (GPT2LMHeadModel, GPT2Model, "n_embd"),  # tied head
    ],
)
def test_smaller_student_of_a_decoder(
    head: Any, backbone: Any, width: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    teacher = tiny.tiny_model(head, tokenizer)
    smaller = tiny.tiny_model(backbone, tokenizer, **{width: 16})
    SenseStudent.of(teacher, smaller).save_pretrained(tmp_path)
    student = SenseStudent.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[9, 8, 7]])
    scorer = teacher.score if hasattr(teacher, "score") else teacher.lm_head
    with torch.no_grad():
        expected = scorer(student.projected.encoder.projection(smaller(ids).last_hidden_state))
        expected = expected[:, -1] if hasattr(teacher, "score") else expected
        torch.testing.assert_close(student(ids).logits, expected)


def test_smaller_student_uses_token_type_ids(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    student = SenseStudent.of(teacher, tiny.tiny_bert(tokenizer, hidden_size=16)).eval()
    ids, types = torch.tensor([[9, 8, 7]]), torch.tensor([[0, 1, 1]])
    assert "token_type_ids" in inspect.signature(student.forward).parameters  # or the Trainer drops the column
    with torch.no_grad():
        states = student.projected.encoder.backbone(ids, token_type_ids=types).last_hidden_state
        expected = student.projected.encoder.projection(states)
        assert torch.equal(student.projected(ids, token_type_ids=types).last_hidden_state, expected)
        assert not torch.equal(student(ids, token_type_ids=types).logits, student(ids).logits)
        # Decoders ignore them, as student or as teacher.
        other = SenseStudent.of(teacher, tiny.tiny_model(LlamaModel, tokenizer)).eval()
        assert torch.equal(other(ids, token_type_ids=types).logits, other(ids).logits)
        decoder = tiny.tiny_model(LlamaForCausalLM, tokenizer)
        read, states = teacher_states(decoder, {"input_ids": ids, "token_type_ids": types})
    assert torch.equal(states, last_states(decoder, read))


def test_only_the_backbone_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    untied = tiny.tiny_model(LlamaForCausalLM, tokenizer)
    untied.model.norm.weight.requires_grad_(False)  # frozen by the user
    freeze_head(untied)
    assert not untied.lm_head.weight.requires_grad
    assert untied.model.embed_tokens.weight.requires_grad
    assert not untied.model.norm.weight.requires_grad
