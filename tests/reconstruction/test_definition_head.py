"""with_definition_head and DefinitionEMBMixin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ElectraModel,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
    T5GemmaForConditionalGeneration,
    T5Model,
)

from defemb_callbacks import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.reconstruction.backbone import backbone_of, last_states
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

TOKENIZER = wordpiece_tokenizer()
MASK = TOKENIZER.mask_token_id


def batch(*texts: str) -> dict[str, Tensor]:
    encoded = TOKENIZER(list(texts), padding=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


BATCH = batch("the [MASK] is a large animal", "[MASK] and [MASK] run")
LABELS = torch.tensor(TOKENIZER.convert_tokens_to_ids(["horse", "dog", "cat"]))


@pytest.fixture(params=[BertModel, BertForMaskedLM, BertForSequenceClassification])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_bert(TOKENIZER, request.param)


def wrap(model: PreTrainedModel) -> PreTrainedModel:
    return with_definition_head(model, mask_token_id=MASK)


def table(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight


def expected_rows(model: PreTrainedModel, head: Tensor) -> Tensor:
    """L(h) at each mask, one text at a time and without padding."""
    backbone = getattr(model, "bert", model)
    rows = []
    for ids, mask in zip(BATCH["input_ids"], BATCH["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        states = backbone(input_ids=ids[None]).last_hidden_state[0]
        rows += [head @ states[position] for position in range(len(ids)) if ids[position] == MASK]
    return torch.stack(rows)


def test_the_class_is_named_after_the_models(model):
    wrapped = wrap(model)
    assert type(wrapped).__name__ == f"DefinitionEMB{type(model).__name__}"
    assert type(wrapped).__mro__[1:3] == (DefinitionEMBMixin, type(model))


def test_the_weights_are_shared_not_copied(model):
    wrapped = dict(wrap(model).named_parameters())
    shared = dict(model.named_parameters())
    assert {name: weight.data_ptr() for name, weight in shared.items()} == {
        name: wrapped[name].data_ptr() for name in shared
    }
    assert wrapped.keys() - shared.keys() == {"definition_head.weight"}


def test_training_the_wrapped_model_trains_the_original(model):
    before = table(model).detach().clone()
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    wrapped(**BATCH, labels=LABELS).loss.backward()
    optimizer.step()
    assert (table(model) != before).any()
    assert table(model) is table(wrapped)


def test_the_original_is_unchanged(model):
    kind, names, outputs = type(model), list(model.state_dict()), model(**BATCH)
    wrap(model)
    assert type(model) is kind
    assert list(model.state_dict()) == names
    assert not hasattr(model, "definition_head")
    assert not isinstance(model, DefinitionEMBMixin)
    torch.testing.assert_close(model(**BATCH)[0], outputs[0], rtol=0, atol=0)


def test_a_model_with_a_head_raises(model):
    with pytest.raises(TypeError, match="already has a definition head"):
        with_definition_head(wrap(model))


def test_saving_the_wrapped_model_leaves_the_originals_config(model, tmp_path):
    before = model.config.to_dict()
    wrap(model).save_pretrained(tmp_path)
    assert model.config.to_dict() == before


def test_forward_without_labels_is_the_models_own(model):
    torch.testing.assert_close(wrap(model)(**BATCH).to_tuple(), model(**BATCH).to_tuple(), rtol=0, atol=0)


def test_the_models_own_arguments_reach_its_forward():
    model = tiny_bert(TOKENIZER, BertForSequenceClassification)
    types = {"token_type_ids": torch.ones_like(BATCH["input_ids"])}
    own, with_types = model(**BATCH, **types), wrap(model)(**BATCH, **types)
    assert torch.equal(own.logits, with_types.logits)
    assert not torch.equal(own.logits, wrap(model)(**BATCH).logits)
    assert isinstance(wrap(model)(**BATCH, return_dict=False), tuple)


def test_reconstructs_each_mask_in_reading_order(model):
    wrapped = wrap(model)
    rows = wrapped.reconstruct(BATCH)
    assert rows.shape == (3, 32)
    torch.testing.assert_close(rows, expected_rows(model, wrapped.definition_head.weight), rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_squared_error_times_100_over_d(model):
    wrapped = wrap(model)
    output = wrapped(**BATCH, labels=LABELS)
    difference = expected_rows(model, wrapped.definition_head.weight) - table(model)[LABELS]
    expected = (difference**2).sum() / (3 * 32) * 100 / 32
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(output.logits, wrapped.reconstruct(BATCH))


def test_gradients_reach_the_head_and_the_encoder_but_no_target(model):
    wrapped = wrap(model)
    wrapped(**BATCH, labels=LABELS).loss.backward()
    assert wrapped.definition_head.weight.grad.abs().sum() > 0
    gradient = table(model).grad.abs().sum(dim=1)
    assert gradient[TOKENIZER.convert_tokens_to_ids(["large", "animal", "run"])].min() > 0
    # The target words are not in the input.
    assert gradient[LABELS].tolist() == [0, 0, 0]


def test_the_head_learns_to_reconstruct():
    wrapped = wrap(tiny_bert(TOKENIZER))
    optimizer = torch.optim.Adam([wrapped.definition_head.weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = wrapped(**BATCH, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


def test_the_initial_head_keeps_the_length_of_states():
    model = tiny_bert(TOKENIZER, hidden_size=256, num_hidden_layers=1)
    head = wrap(model).definition_head
    assert head.bias is None
    assert float(head.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    assert float(head.weight.detach().mean()) == pytest.approx(0, abs=1e-3)


def test_the_head_has_the_dtype_of_the_table():
    wrapped = wrap(tiny_bert(TOKENIZER).to(torch.bfloat16))
    assert wrapped.definition_head.weight.dtype == torch.bfloat16
    assert wrapped.reconstruct(BATCH).dtype == torch.bfloat16


def test_target_mask_selects_the_positions(model):
    wrapped = wrap(model)
    positions = torch.zeros_like(BATCH["input_ids"], dtype=torch.bool)
    positions[1, 3] = True  # the second mask of the second text
    torch.testing.assert_close(wrapped.reconstruct({**BATCH, "target_mask": positions}), wrapped.reconstruct(BATCH)[2:])
    one = wrapped(**BATCH, labels=LABELS[2:], target_mask=positions).loss
    difference = wrapped.reconstruct(BATCH)[2] - table(model)[LABELS[2]]
    assert one.item() == pytest.approx(difference.square().mean().item() * 100 / 32, rel=1e-5)


def test_target_mask_needs_no_mask_token(model):
    wrapped = with_definition_head(model)
    first = torch.zeros_like(BATCH["input_ids"], dtype=torch.bool)
    first[:, 0] = True
    assert wrapped.reconstruct({**BATCH, "target_mask": first}).shape == (2, 32)


def test_roberta_and_its_mask():
    tokenizer = byte_bpe_tokenizer()
    model = tiny_roberta(tokenizer, RobertaForMaskedLM)
    wrapped = with_definition_head(model, mask_token_id=tokenizer.mask_token_id)
    ids = torch.tensor([tokenizer.encode("the <mask> is a bird")])
    position = ids[0].tolist().index(tokenizer.mask_token_id)
    expected = wrapped.definition_head(model.roberta(ids).last_hidden_state[0, position])
    torch.testing.assert_close(wrapped.reconstruct({"input_ids": ids})[0], expected)


def test_last_states_are_the_backbones(model):
    backbone = getattr(model, "bert", model)
    expected = backbone(**BATCH).last_hidden_state
    assert torch.equal(last_states(model, **BATCH), expected)
    assert torch.equal(last_states(wrap(model), **BATCH), expected)


@pytest.mark.parametrize("model_class", [T5ForConditionalGeneration, T5Model])
def test_an_encoder_decoder_reads_its_encoder_unless_decoder_input_is_given(model_class):
    model = tiny_model(model_class, unigram_tokenizer())
    ids, read = torch.tensor([[5, 6, 1]]), torch.tensor([[0, 7, 8, 9]])
    assert backbone_of(model) is model.encoder
    assert torch.equal(last_states(model, ids), model.encoder(input_ids=ids).last_hidden_state)
    output = T5Model.forward(model, ids, decoder_input_ids=read)  # its body is the same with any head
    assert torch.equal(last_states(model, ids, decoder_input_ids=read), output.last_hidden_state)


def test_the_decoder_ignores_padding_of_the_encoder():
    model = tiny_model(BartForConditionalGeneration, byte_bpe_tokenizer())
    ids, read = torch.tensor([[0, 9, 2, 1, 1]]), torch.tensor([[2, 0, 7]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    padded = last_states(model, ids, mask, decoder_input_ids=read)
    torch.testing.assert_close(padded, last_states(model, ids[:, :3], decoder_input_ids=read), rtol=0, atol=1e-5)
    assert (padded - last_states(model, ids, decoder_input_ids=read)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model_class", "make", "read"),
    [
        (GPT2LMHeadModel, byte_bpe_tokenizer, False),
        (BartForConditionalGeneration, byte_bpe_tokenizer, True),
        (T5ForConditionalGeneration, unigram_tokenizer, True),
        (T5GemmaForConditionalGeneration, gemma_tokenizer, True),
    ],
)
def test_decoders_and_encoder_decoders(model_class, make, read):
    model = tiny_model(model_class, make())
    wrapped = with_definition_head(model)
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 10, 11]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if read else {})}
    targets = torch.tensor([[False, False, True, True], [False, True, False, False]])
    assert wrapped.reconstruct({**inputs, "target_mask": targets}).shape == (3, 32)
    output = wrapped(**inputs, target_mask=targets, labels=torch.tensor([9, 10, 11]))
    states = model(**inputs, output_hidden_states=True)
    last = (states.decoder_hidden_states if read else states.hidden_states)[-1]
    torch.testing.assert_close(output.logits, wrapped.definition_head(last[targets]))
    torch.testing.assert_close(wrapped(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


def test_the_head_has_the_decoders_width():
    tokenizer = gemma_tokenizer()
    part = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    part |= {"vocab_size": len(tokenizer), "intermediate_size": 16}
    encoder, decoder = {**part, "hidden_size": 16}, {**part, "hidden_size": 24, "cross_attention_hidden_size": 16}
    wrapped = with_definition_head(
        tiny_model(T5GemmaForConditionalGeneration, tokenizer, encoder=encoder, decoder=decoder)
    )
    assert wrapped.definition_head.weight.shape == (16, 24)
    read = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 5]])}
    targets = torch.tensor([[False, True]])
    assert wrapped(**read, target_mask=targets, labels=torch.tensor([9])).logits.shape == (1, 16)


def test_a_table_narrower_than_the_states_is_reconstructed_in_its_own_width():
    wrapped = wrap(tiny_model(ElectraModel, TOKENIZER))
    output = wrapped(**BATCH, labels=LABELS)
    assert output.logits.shape == (3, 16)
    expected = (output.logits - table(wrapped)[LABELS]).square().mean() * 100 / 16
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_is_averaged_over_num_items_in_batch(model):
    wrapped = wrap(model)
    alone = wrapped(**BATCH, labels=LABELS).loss
    for count in (12, torch.tensor(12)):
        torch.testing.assert_close(wrapped(**BATCH, labels=LABELS, num_items_in_batch=count).loss, alone * 3 / 12)


def test_definition_targets_replace_the_table(model):
    wrapped = wrap(model)
    rows = torch.randn_like(table(model))
    wrapped.register_buffer("definition_targets", rows, persistent=False)
    output = wrapped(**BATCH, labels=LABELS)
    expected = (output.logits - rows[LABELS]).square().mean() * 100 / 32
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_another_number_of_labels_raises(model):
    with pytest.raises(ValueError, match=r"`labels` has shape \(2,\), but the batch contains 3 masked words"):
        wrap(model)(**BATCH, labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"`labels` has shape \(2, 7\), but the batch contains 3 masked words"):
        wrap(model)(**BATCH, labels=torch.zeros(2, 7, dtype=torch.int64))


def test_a_batch_without_a_mask_raises(model):
    with pytest.raises(ValueError, match=f"contains no masked word .mask token {MASK}"):
        wrap(model).reconstruct(batch("the dog"))


def test_a_missing_target_mask_raises(model):
    with pytest.raises(ValueError, match=r"No target position was given. Pass `target_mask`"):
        with_definition_head(model).reconstruct(BATCH)
