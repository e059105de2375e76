"""Which part of a model reads text, and whether it reads ahead, on models of every kind."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CTRLConfig,
    CTRLLMHeadModel,
    CTRLModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FSMTConfig,
    FSMTForConditionalGeneration,
    FunnelBaseModel,
    FunnelConfig,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    Pix2StructTextConfig,
    Pix2StructTextModel,
    PreTrainedModel,
    ReformerConfig,
    ReformerModel,
    RwkvConfig,
    RwkvForCausalLM,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViltConfig,
    ViltModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLNetLMHeadModel,
)

from defemb_callbacks.reconstruction import with_definition_head
from defemb_callbacks.reconstruction.backbone import (
    backbone_of,
    causal_logits,
    evaluating,
    last_states,
    layer_states,
    reading_of,
    width_of_states,
)
from defemb_callbacks.reconstruction.prompts import family_of
from tiny import byte_bpe_tokenizer, tiny_bert, tiny_model, unigram_tokenizer, wordpiece_tokenizer

WORDPIECE = wordpiece_tokenizer()
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 100, **SIZES, "initializer_range": 0.2}
SIDES = {
    f"{side}_{name}": number
    for side in ("encoder", "decoder")
    for name, number in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def bert2bert() -> PreTrainedModel:
    parts = tiny_bert(WORDPIECE).config, tiny_bert(WORDPIECE, is_decoder=True, add_cross_attention=True).config
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*parts))


def captioner() -> PreTrainedModel:
    decoder = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    return VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**SIZES, image_size=32), decoder)
    )


def llava() -> PreTrainedModel:
    vision = {"model_type": "clip_vision_model", **SIZES, "image_size": 32}
    text = {"model_type": "llama", **TEXT}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=5))


def whisper() -> PreTrainedModel:
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=100, d_model=32, **SIDES, **SPECIAL, init_std=0.2, num_mel_bins=8)
    )


def opt() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(vocab_size=100, **sizes, word_embed_proj_dim=16, init_std=0.2))


def vilt() -> PreTrainedModel:
    return ViltModel(ViltConfig(**TEXT, image_size=32, patch_size=8))


def rwkv() -> PreTrainedModel:
    return RwkvForCausalLM(RwkvConfig(vocab_size=100, hidden_size=32, num_hidden_layers=8, rescale_every=2))


def funnel() -> PreTrainedModel:
    return FunnelBaseModel(FunnelConfig(vocab_size=100, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64))


def reformer() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8, "feed_forward_size": 64}
    positions = {"axial_pos_embds": False, "max_position_embeddings": 128}
    return ReformerModel(ReformerConfig(vocab_size=100, attn_layers=["local", "lsh"], **sizes, **positions))


# Constructor, part that reads, family, width of the states.
READERS: dict[str, tuple[Callable[[], PreTrainedModel], str, str, int]] = {
    "bert": (lambda: tiny_bert(WORDPIECE, BertForMaskedLM), "bert", "encoder", 32),
    "bert as decoder": (lambda: tiny_bert(WORDPIECE, is_decoder=True), "", "decoder", 32),
    "gpt2": (lambda: tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer()), "transformer", "decoder", 32),
    "t5": (lambda: tiny_model(T5ForConditionalGeneration, unigram_tokenizer()), "encoder", "encoder-decoder", 32),
    "t5 encoder": (lambda: tiny_model(T5EncoderModel, unigram_tokenizer()), "", "encoder", 32),
    # Registered as a causal language model, but it reads in both directions.
    "xlnet": (lambda: tiny_model(XLNetLMHeadModel, WORDPIECE), "transformer", "encoder", 32),
    # Registered as neither, but they read left to right.
    "clip text": (lambda: CLIPTextModel(CLIPTextConfig(**TEXT)), "", "decoder", 32),
    "llava": (llava, "model", "decoder", 32),
    "bart decoder": (lambda: tiny_model(BartForCausalLM, byte_bpe_tokenizer()), "model", "decoder", 32),
    # Their encoders read sound or images.
    "whisper": (whisper, "model.decoder", "decoder", 32),
    "vision encoder-decoder": (captioner, "decoder.bert", "decoder", 32),
    # A decoder with a head of its own.
    "bert2bert": (bert2bert, "encoder", "encoder-decoder", 32),
    # Its states are as wide as its embeddings, which is less than `hidden_size`.
    "opt": (opt, "model", "decoder", 16),
    "reformer": (reformer, "", "encoder", 64),
    "funnel": (funnel, "", "encoder", 32),
    "rwkv": (rwkv, "rwkv", "decoder", 32),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, str, str, int]:
    make, *expected = READERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval(), *expected


def test_the_part_that_reads_and_its_family_are_observed(reader):
    model, part, family, width = reader
    assert not reading_of(model).problem
    assert (reading_of(model).part, family_of(model), reading_of(model).width) == (part, family, width)
    assert backbone_of(model) is model.get_submodule(part)
    ids = torch.tensor([[11, 12, 13, 14, 15, 16]])
    with torch.no_grad():
        states = last_states(model, ids)
        layers = layer_states(model, ids)
    assert states.shape[2] == width
    assert reading_of(model).per_token == (states.shape[1] == 6)
    assert torch.isfinite(states).all()
    assert layers[-1].shape == states.shape


def test_observation_leaves_no_trace(reader):
    model = copy.deepcopy(reader[0]).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    reading_of(model)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_is_tried_once_and_not_kept_alive():
    model = tiny_bert(WORDPIECE)
    calls: list[None] = []
    model.register_forward_hook(lambda *_: calls.append(None))
    family_of(model)
    assert calls
    tried = len(calls)
    assert family_of(model) == "encoder"
    assert backbone_of(with_definition_head(model)) is not model
    assert len(calls) == tried
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_model_that_needs_boxes_or_images_says_so():
    reading = reading_of(vilt())
    assert "pixel_values" in reading.problem
    assert reading.width == 0


def test_states_that_do_not_depend_on_the_text_are_not_read():
    class Deaf(BertModel):
        def forward(self, input_ids: Any = None, **inputs: Any) -> Any:
            return super().forward(input_ids=torch.zeros_like(input_ids), **inputs)

    assert reading_of(Deaf(BertConfig(**TEXT))).problem == "its states do not depend on the text"


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 20])
def test_small_vocabularies_are_enough(size):
    sizes = {"vocab_size": size, "pad_token_id": 0, **SIZES, "initializer_range": 0.2}
    assert family_of(BertModel(BertConfig(**sizes))) == "encoder"
    assert family_of(BertModel(BertConfig(**sizes, is_decoder=True))) == "decoder"


def test_layers_that_mix_nothing_are_read_as_registered():
    """Without attention, it cannot be observed whether a model reads ahead."""
    for is_decoder, family in ((False, "encoder"), (True, "decoder")):
        model = BertModel(BertConfig(**TEXT | {"num_hidden_layers": 0}, is_decoder=is_decoder))
        assert family_of(model) == family
        assert not reading_of(model).mixes


def test_a_model_on_the_meta_device_is_read_as_registered():
    with torch.device("meta"):
        model, decoder = tiny_bert(WORDPIECE), tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer())
    assert (family_of(model), family_of(decoder)) == ("encoder", "decoder")
    assert width_of_states(decoder) == 32
    assert backbone_of(decoder) is decoder.transformer


def test_out_of_memory_is_not_taken_for_a_model_that_cannot_read(monkeypatch):
    model = tiny_bert(WORDPIECE)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.encoder.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        family_of(model)


def test_the_decoder_of_an_encoder_decoder_is_read_without_its_head():
    model = bert2bert().eval()
    source, target = torch.tensor([[11, 12, 13]]), torch.tensor([[14, 15]])
    with torch.no_grad():
        states = last_states(model, source, decoder_input_ids=target)
        encoded = model.encoder(source).last_hidden_state
        expected = model.decoder.bert(target, encoder_hidden_states=encoded).last_hidden_state
    assert torch.equal(states, expected)
    assert width_of_states(model) == 32


def test_a_decoder_that_is_not_a_model_is_read_with_the_whole_model():
    sizes = {"d_model": 32, **SIDES, "init_std": 0.2, "tie_word_embeddings": False}
    config = FSMTConfig(src_vocab_size=100, tgt_vocab_size=100, **sizes, **SPECIAL)
    model = FSMTForConditionalGeneration(config).eval()
    source, target = torch.tensor([[11, 12, 13], [14, 15, 0]]), torch.tensor([[1, 15], [1, 16]])
    mask = (source > 0).long()
    with torch.no_grad():
        states = last_states(model, source, mask, decoder_input_ids=target)
        output = model.model(source, attention_mask=mask, decoder_input_ids=target, use_cache=False)
    assert family_of(model) == "encoder-decoder"
    logits = model.model.decoder.output_projection(states)
    assert logits.shape == (2, 2, 100)
    assert torch.equal(logits, output.last_hidden_state)
    assert width_of_states(model) == 32


def test_a_head_without_last_hidden_state_is_read_at_its_last_layer():
    sizes = {"hidden_size": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = Pix2StructTextModel(Pix2StructTextConfig(vocab_size=100, **sizes, initializer_range=0.2)).eval()
    ids = torch.tensor([[11, 12, 13]])
    with torch.no_grad():
        states = last_states(model, ids)
        output = model(input_ids=ids, output_hidden_states=True)
    assert family_of(model) == "decoder"
    assert "last_hidden_state" not in output
    assert torch.equal(states, output.hidden_states[-1])


def test_logits_of_a_model_that_needs_sound_are_those_of_its_decoder():
    ids = torch.tensor([[11, 12, 13]])
    model, plain = whisper().eval(), tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer())
    with torch.no_grad():
        expected = model.proj_out(model.model.decoder(input_ids=ids).last_hidden_state)
        assert torch.equal(causal_logits(model, ids), expected)
        assert torch.equal(causal_logits(plain, ids), plain(input_ids=ids).logits)


def test_rwkv_keeps_its_weights_when_it_is_read():
    model = rwkv().train()
    ids, expected = torch.tensor([[11, 12, 13]]), model(torch.tensor([[11, 12, 13]])).logits

    def read() -> None:
        state = {name: weight.clone() for name, weight in model.state_dict().items()}
        flags = (model.rwkv.layers_are_rescaled, model.config.rescale_every)
        with evaluating(model), torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected)
        assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
        assert (model.rwkv.layers_are_rescaled, model.config.rescale_every) == flags

    read()
    weight = model.rwkv.blocks[7].attention.output.weight
    before = weight.clone()
    with evaluating(model), torch.no_grad():
        model(ids)
        assert torch.equal(weight, before)
    model.eval()
    model(ids)  # outside, it divides them
    assert torch.equal(weight, before / 8)
    read()
    torch.testing.assert_close(model.train()(ids).logits, expected)
    assert torch.equal(weight, before)


@pytest.mark.skipif("inputs_embeds.dtype" not in inspect.getsource(CTRLModel.forward), reason="not converted here")
def test_reading_in_bfloat16_leaves_the_buffers_as_they_were():
    """CTRL converts its positions to the dtype of the embeddings in each forward pass, and keeps them."""
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=99, n_embd=16, dff=16, n_layer=1, n_head=2, n_positions=64)).eval()
    ids, positions = torch.tensor([[11, 12, 13]]), model.transformer.pos_encoding.clone()
    with torch.no_grad():
        expected = model(ids).logits
        lower = {name: weight.to(torch.bfloat16) for name, weight in model.transformer.named_parameters()}
        assert last_states(model, ids, weights=lower).dtype == torch.bfloat16
        assert torch.equal(model.transformer.pos_encoding, positions)
        assert torch.equal(model(ids).logits, expected)
