"""Pooling of hidden states, and sentence embeddings of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

import tiny
from defemb_callbacks.sentence import encode_texts, masked_mean, pool, pooled_layers

TEXTS = ["the dog was in the house .", "a cat", "he saw the old bridge", "the", "a knife is on the table", "two dogs"]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny.tiny_bert(tokenizer, num_hidden_layers=4)


def states_and_mask() -> tuple[list[Tensor], Tensor]:
    states = [torch.randn(3, 5, 8) for _ in range(5)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    return states, mask


@pytest.mark.parametrize(
    ("pooling", "layers"),
    [("last", [4]), ("first_last", [1, 4]), ("last_two", [3, 4]), ("layer:0", [0]), ("layer:2", [2]), ("layer:4", [4])],
)
def test_pooling_is_the_mean_of_its_layers_over_the_mask(pooling: str, layers: list[int]) -> None:
    states, mask = states_and_mask()
    expected = [
        np.mean([states[layer][text].numpy()[mask[text].numpy() == 1].mean(axis=0) for layer in layers], axis=0)
        for text in range(3)
    ]
    np.testing.assert_allclose(pool(states, mask, pooling).numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_masked_tokens_are_ignored() -> None:
    states, mask = states_and_mask()
    disturbed = [layer.masked_fill(mask[..., None] == 0, 1e4) for layer in states]
    torch.testing.assert_close(pool(disturbed, mask, "first_last"), pool(states, mask, "first_last"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_summed_in_float32(dtype: torch.dtype) -> None:
    states = torch.full((1, 4096, 2), 100.0, dtype=dtype)  # the sum, 409,600, overflows float16
    mean = masked_mean(states, torch.ones(1, 4096))
    assert mean.dtype == torch.float32
    assert mean.tolist() == [[100.0, 100.0]]


def test_float64_states_stay_float64() -> None:
    assert masked_mean(torch.randn(1, 2, 3, dtype=torch.float64), torch.ones(1, 2)).dtype == torch.float64


def test_text_without_tokens_is_zero() -> None:
    assert masked_mean(torch.ones(1, 3, 2), torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("pooling", ["mean", "layer:-1", "layer:", "layer:1.5", "first-last", ""])
def test_unknown_pooling(pooling: str) -> None:
    with pytest.raises(
        ValueError, match=r"`pooling` must be one of last, first_last, last_two, static or layer:N, got "
    ):
        pooled_layers(pooling)


def test_layer_out_of_range() -> None:
    states, mask = states_and_mask()
    with pytest.raises(ValueError, match=r"pooling='layer:5' is out of range: the last layer of this model is layer:4"):
        pool(states, mask, "layer:5")


def test_static_pooling_requires_the_embedding_rows() -> None:
    states, mask = states_and_mask()
    with pytest.raises(ValueError, match=r"pooling='static' requires only the rows of the embedding table.*got 5"):
        pool(states, mask, "static")
    torch.testing.assert_close(pool(states[:1], mask, "static"), masked_mean(states[0], mask))


def test_shape_mismatch() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\) and \(2, 4\)"):
        masked_mean(torch.randn(2, 3, 4), torch.ones(2, 4))


@pytest.mark.parametrize("pooling", ["last", "first_last", "last_two", "static", "layer:0", "layer:3"])
def test_batched_texts_match_single_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: str
) -> None:
    together = encode_texts(model, tokenizer, TEXTS, pooling, batch_size=2)
    assert together.shape == (len(TEXTS), 32)
    assert (together.dtype, together.device.type, together.requires_grad) == (torch.float32, "cpu", False)
    for text, vector in zip(TEXTS, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            if pooling == "static":
                states = (model.get_input_embeddings()(inputs["input_ids"]),)
        torch.testing.assert_close(pool(states, inputs["attention_mask"], pooling)[0], vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poolings", [["static", "last", "layer:1"], ("static",), ["last", "last"]])
def test_several_poolings_are_read_in_one_pass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, poolings: list[str]
) -> None:
    expected = {pooling: encode_texts(model, tokenizer, TEXTS, pooling) for pooling in poolings}
    calls: list[int] = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        found = encode_texts(model, tokenizer, TEXTS, poolings, batch_size=len(TEXTS))
    assert list(found) == list(dict.fromkeys(poolings))
    for pooling, vectors in expected.items():
        torch.testing.assert_close(found[pooling], vectors)
    lengths = {len(tokenizer(text)["input_ids"]) for text in TEXTS}
    assert len(calls) == (0 if set(poolings) == {"static"} else len(lengths))


def test_texts_are_truncated_to_max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    long, short = "the dog was in the house .", "the dog"
    cut = encode_texts(model, tokenizer, [long, short], max_length=4)  # [CLS] the dog [SEP]
    torch.testing.assert_close(cut[0], cut[1])
    assert not torch.allclose(*encode_texts(model, tokenizer, [long, short]))


def test_dropout_is_off_and_modes_are_restored(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_bert(tokenizer, hidden_dropout_prob=0.5).train()
    model.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    first, second = encode_texts(model, tokenizer, TEXTS), encode_texts(model, tokenizer, TEXTS)
    torch.testing.assert_close(first, second)
    assert [module.training for module in model.modules()] == modes


def test_modes_are_restored_after_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_bert(tokenizer, vocab_size=50).train()  # the forward pass fails: the table is too small
    with pytest.raises(IndexError):
        encode_texts(model, tokenizer, TEXTS)
    assert model.training


def test_head_is_ignored(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_bert(tokenizer, BertForMaskedLM)
    torch.testing.assert_close(encode_texts(model, tokenizer, TEXTS), encode_texts(model.bert, tokenizer, TEXTS))


@pytest.mark.parametrize("pooling", ["first_last", "static"])
def test_encoder_decoder_uses_its_encoder(pooling: str) -> None:
    tokenizer = tiny.unigram_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    expected = encode_texts(model.get_encoder(), tokenizer, TEXTS, pooling)
    torch.testing.assert_close(encode_texts(model, tokenizer, TEXTS, pooling), expected)


def test_single_string_is_rejected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TypeError, match="Put it into a list"):
        encode_texts(model, tokenizer, "the dog")


def test_empty_list_is_rejected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="`texts` must not be empty"):
        encode_texts(model, tokenizer, [])


def test_text_without_tokens(model: PreTrainedModel) -> None:
    tokenizer = tiny.byte_bpe_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="Text 1, '', has no tokens"):
        encode_texts(model, tokenizer, ["a", ""])


def test_layer_is_checked_before_encoding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="the last layer of this model is layer:4"):
        encode_texts(model, tokenizer, TEXTS, "layer:5")
