"""Every architecture of transformers that reads text, as a tiny model with random weights and a fitting tokenizer.

The model types come from transformers' own registry, so those of later versions are included without a change here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    ByT5Tokenizer,
    CanineTokenizer,
    PerceiverTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

import tiny

# Registries of models that read or write text, those with a language model's head first: of each model type, the first
# class is tested. Encoder-decoders are also decoders of their own.
ENCODER_DECODERS = ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES")
DECODERS = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
REGISTRIES = (
    *ENCODER_DECODERS,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    DECODERS,
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES",
    "MODEL_FOR_RETRIEVAL_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING_NAMES",
)
# Without any of the registries above, but with a vocabulary.
OTHERS = ("dpr", "clap", "clvp", "xclip", "groupvit", "rag", "visual_bert", "flava", "vision-text-dual-encoder")

# Registered with the class of another model type, which cannot load the checkpoints that it saves.
NOT_LOADED = ("shieldgemma2",)

LAYERS, WIDTH, HEADS, INNER, EXPERTS = 2, 32, 4, 64, 4
# (size, names of the settings that get it)
_NAMED_SIZES = (
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth "
        "layers num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers speech_encoder_layers "
        "t2u_encoder_layers t2u_decoder_layers decoder_num_layers num_layers_per_stack",
    ),
    (
        WIDTH,
        "hidden_size d_model n_embd dim embed_dim emb_dim hidden_dim projection_dim out_hidden_size "
        "projector_hidden_size text_hidden_size decoder_hidden_size encoder_hidden_size word_embed_proj_dim "
        "attention_hidden_size project_dim backbone_hidden_size hidden_size_global embedding_size "
        "cross_hidden_size projection_size pooler_hidden_size output_hidden_size patch_embed_hidden_size "
        "output_dim embedding_dim llm_hidden_size proj_hidden_size input_embedding_size output_embedding_size",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "attention_heads encoder_num_attention_heads decoder_num_attention_heads num_kv_heads "
        "speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads "
        "cross_num_attention_heads swa_num_attention_heads index_n_heads linear_num_heads linear_num_key_heads "
        "linear_num_value_heads",
    ),
    (2, "num_key_value_heads swa_num_key_value_heads encoder_num_key_value_heads decoder_num_key_value_heads"),
    (
        WIDTH // HEADS,
        "head_dim d_kv kv_channels dim_head d_head v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim "
        "global_head_dim cross_head_dim index_head_dim linear_head_dim attention_head_dim linear_key_head_dim "
        "linear_value_head_dim",
    ),
    (
        INNER,
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff moe_intermediate_size dff n_inner "
        "shared_expert_intermediate_size ffn_hidden_size d_inner mlp_dim shared_intermediate_size dim_ff "
        "speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim expert_ffn_hidden_size "
        "shared_experts_intermediate_size alignment_intermediate_size intermediate_size_mlp "
        "dense_intermediate_size moe_shared_expert_intermediate_size",
    ),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k top_k_experts"),
    (16, "q_lora_rank kv_lora_rank o_lora_rank"),
    (1, "n_group topk_group num_expert_group first_k_dense_replace"),
    (
        2 * tiny.MAX_LENGTH,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions "
        "max_encoder_position_embeddings max_decoder_position_embeddings model_max_length",
    ),
    (8, "num_codebooks num_mel_bins"),
)
_SIZES = {name: size for size, names in _NAMED_SIZES for name in names.split()} | {
    "type_vocab_size": 2,
    "qk_head_dim": 2 * WIDTH // HEADS,
    "sliding_window": 64,
    "index_topk": 64,
    "image_size": 32,
    "patch_size": 8,
    "hidden_size_per_layer_input": 8,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "n_groups": 1,
    "mamba_num_heads": HEADS,
    "mamba_head_dim": 2 * WIDTH // HEADS,
    "mamba_n_heads": HEADS,
    "mamba_d_head": 2 * WIDTH // HEADS,
    "mamba_d_ssm": 2 * WIDTH,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "rotary_dim": WIDTH // HEADS,
    "attention_window": 16,
    "encoder_hash_byte_group_vocab": 64,
    "coordinate_size": 6,
    "shape_size": 4,
    # of the towers for images and sound
    "base_channels": 32,
    "num_blocks": 1,
    "audio_hidden_size": WIDTH,
    "num_filters": 4,
    "upsample_groups": WIDTH,
    "num_res_blocks": 1,
    "decoder_dim": 2 * WIDTH,
    "downsample_hidden_size": WIDTH,
    "num_embeddings": 64,
    "output_channels": WIDTH,
    "mid_channels": 2 * WIDTH,
    "post_conv_in_channels": WIDTH,
    "post_conv_mid_channels": WIDTH,
    "post_conv_out_channels": WIDTH,
    "pitch_predictor_channels": WIDTH,
    "energy_predictor_channels": WIDTH,
    "duration_predictor_channels": WIDTH,
    "speech_decoder_postnet_units": WIDTH,
    "upsample_initial_channel": 2 * WIDTH,
}
# The same for each stage of a tower.
_LISTS = {"depths": 1, "conv_dim": WIDTH}
# Some models do not compute these if they are `None`.
_REQUIRED = ("head_dim", "num_experts_per_tok", "num_key_value_heads")
_MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}
_LAYER_KINDS = ("layer_types", "layers_block_type")
_WEIGHTS = ("initializer_range", "init_std")  # as in `tiny.py`: large enough that states differ
_SPREAD = 0.2

# Model types that have no default configuration, because their parts may be of any other type.
PARTS: dict[str, dict[str, str]] = {
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "bert"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-text-dual-encoder": {"vision_config": "clip_vision_model", "text_config": "bert"},
}
# Those whose default configuration is not valid.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
}
_CROSS_ATTENTION = {"decoder": {"is_decoder": True, "add_cross_attention": True}}

_EXPERTS = {"num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": INNER}
_SLIDING = {
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 2 * WIDTH // HEADS,
    "swa_qk_nope_head_dim": WIDTH // HEADS,
    "swa_v_head_dim": WIDTH // HEADS,
}
_TWICE_AS_WIDE = {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * WIDTH // HEADS}
_INDEXER = {
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": WIDTH // HEADS,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}

# What generic sizes cannot express, by model type.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "align": {"vision_config": {"depth_coefficient": 0.1, "width_coefficient": 0.1, "hidden_dim": WIDTH}},
    "apertus1p5": {
        "audio_config": {"codebook_dim": WIDTH, "codebook_size": 16},
        "vision_config": {"codebook_size": 16},
        "image_token_offset": 24,
        "audio_token_offset": 40,
    },
    "bailing_hybrid": {"layer_group_size": 2},
    "clap": {"audio_config": {"patch_embeds_hidden_size": WIDTH}},
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "clvp": {"text_config": {"num_attention_heads": 1}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": dict(_MROPE)}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": dict(_MROPE)}},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"canvas_length": 16, "text_config": _EXPERTS},
    "dots1": {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
        "vision_config": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "text_config": _SLIDING,
    },
    "dots3_note_text": _SLIDING,
    "encoder-decoder": _CROSS_ATTENTION,
    "evolla": {"protein_encoder_config": {"vocab_size": 64}},
    "florence2": {"vision_config": {"embed_dim": [32] * 4, "num_heads": [4] * 4, "num_groups": [4] * 4}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": WIDTH // 4}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": WIDTH}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0],
    },
    "hrm_text": {"num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "luke": {"entity_vocab_size": 64},
    "mamba2": {"head_dim": 2 * WIDTH // HEADS},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "muse_spark": {
        "text_config": {"moe_hidden_size": WIDTH},
        "audio_config": {"patch_sizes": [2] * 2, "hidden_sizes": [WIDTH] * 2, "depths": [1] * 2},
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "neomme": {"head_dim": 16},
    "pegasus_x": {"block_size": 16, "num_global_tokens": 4},
    "perceiver": {"d_latents": WIDTH, "num_latents": 8, "num_self_attends_per_block": 1},
    "pocket_tts": {"flow_head_config": {"condition_dim": WIDTH}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 20},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 20},
    "qwen2_5_omni": {"thinker_config": {"vision_start_token_id": 20}},
    "qwen3_omni_moe": {
        "thinker_config": {"vision_start_token_id": 20},
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": INNER}},
    },
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attention_head_size": WIDTH // HEADS,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": [WIDTH // 2, WIDTH // 2],
        "axial_pos_shape": [16, 16],
    },
    "speech-encoder-decoder": _CROSS_ATTENTION,
    "vision-encoder-decoder": _CROSS_ATTENTION,
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, **_TWICE_AS_WIDE},
    "zamba2": _TWICE_AS_WIDE,
    "zaya": {"num_experts_per_tok": 1},
}

# Kinds of tokenizers, by the name of the class that transformers registers for a model type.
_WORDPIECE = r"(?!Albert|Camem|Squeeze)\w*(Bert|Electra|Funnel|MPNet|Lxmert|ProphetNet|RoFormer|Splinter|DPR|Realm)\w*"
_UNIGRAM = (
    r"(T5|MBart|XLMRoberta|XLNet|Albert|Camembert|Pegasus|BigBird|Reformer|Nllb|XGLM|DebertaV2|FNet|RemBert|Barthez"
    r"|Seamless|SpeechT5|Marian|M2M|Udop|Siglip|Switch)\w*"
)
_GEMMA = r"(Gemma|Llama|CodeLlama)\w*"
# Tokens of these are bytes or characters.
BYTES = {"blt": ByT5Tokenizer, "canine": CanineTokenizer, "perceiver": PerceiverTokenizer}
# Enough unused special tokens for the placeholders of images, audio and video.
PLACEHOLDERS = 40


class NoTinyModel(Exception):
    """The generic sizes do not make a valid model of this type; it needs an entry in `EXCEPTIONS`."""


@dataclass(frozen=True)
class Architecture:
    """A model class of a model type, or a part of it.

    Attributes:
        family: The model type.
        class_name: The class.
        part: Name of the part that is tested; "" for the whole model.
    """

    family: str
    class_name: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.family}-{self.class_name}"

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A fresh tokenizer of the kind that the model type uses."""
        return copy.deepcopy(self.shared_tokenizer())

    def shared_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same tokenizer itself, for those who leave it as it is."""
        return _tokenizer(self.family)

    def model(self) -> Any:
        """A tiny model in eval mode, the same on each call.

        Raises:
            NoTinyModel: If it cannot be created.
        """
        return copy.deepcopy(_model(self))

    def shared_model(self) -> Any:
        """The same model itself, for those who leave it as it is."""
        return _model(self)


def architectures() -> Iterator[Architecture]:
    """One or two classes of each model type that reads text."""
    both = {family for registry in ENCODER_DECODERS for family in getattr(modeling_auto, registry)}
    seen: dict[str, set[str]] = {}
    for registry in REGISTRIES:
        for family, classes in getattr(modeling_auto, registry).items():
            if family in NOT_LOADED:
                continue
            name = classes if isinstance(classes, str) else classes[0]
            known = seen.setdefault(family, set())
            if not known or (registry == DECODERS and family in both and name not in known):
                known.add(name)
                yield Architecture(family, name)
    for family in OTHERS:
        if family not in seen and family in modeling_auto.MODEL_MAPPING_NAMES:
            yield Architecture(family, modeling_auto.MODEL_MAPPING_NAMES[family])


@lru_cache(maxsize=1)  # the checks of an architecture follow one another
def _model(case: Architecture) -> Any:
    model_class = getattr(transformers, case.class_name)
    try:
        config = _config(case, case.shared_tokenizer())
        text_config = config.get_text_config(decoder=True)
        if not isinstance(config, model_class.config_class) and isinstance(text_config, model_class.config_class):
            config = text_config  # a decoder alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class(config).eval()
            _fill(model)
        return model.get_submodule(case.part)
    except Exception as error:
        raise NoTinyModel(f"{case}: {error}") from error


def forget_model() -> None:
    """Create the model again when it is needed next."""
    _model.cache_clear()


def _config(case: Architecture, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[case.family]
    parts = {name: {"model_type": kind} for name, kind in PARTS.get(case.family, {}).items()}
    parts |= _DEFAULTS.get(case.family, {})
    return config_class(**_small(config_class(**parts), tokenizer, EXCEPTIONS.get(case.family, {})))


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
    """Give random values to matrices of zeros, with which layers do nothing, and to those that are not initialized."""
    for weight in model.parameters():
        if weight.ndim > 1 and weight.is_floating_point() and not (weight.any() and weight.isfinite().all()):
            weight.normal_(std=_SPREAD)


def _small(
    default: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, exceptions: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings with the sizes of `_SIZES`, wherever a default configuration has an entry of this name."""
    values: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            part = _small(value, tokenizer, exceptions.get(name, {}))
            values[name] = {"model_type": value.model_type, **part}
        elif value is None and name in ("pad_token_id", "mask_token_id"):
            values[name] = getattr(tokenizer, name, None)
        elif name == "rope_parameters" and _has_mrope(default):
            values[name] = dict(_MROPE)
        elif name in _LISTS and isinstance(value, (list, tuple)):
            values[name] = [_LISTS[name]] * len(value)
        elif name in _WEIGHTS:
            values[name] = _SPREAD
        elif name == "num_key_value_heads" and value == _setting(default, "num_attention_heads"):
            values[name] = HEADS  # no grouped queries
        elif (type(value) is int or (value is None and name in _REQUIRED)) and name in _SIZES:
            values[name] = _SIZES[name]
        elif name == "vocab_size" or ("vocab_size" in name and type(value) is int and value > 100):
            values[name] = min(len(tokenizer), 5000)  # each character is a token of Canine's
        elif re.search(r"_(token_(id|index)|id)$", name) and type(value) is int:
            values[name] = _token_id(name, tokenizer)
    values |= _layers(default, values)
    parts = {name for name in exceptions if isinstance(getattr(default, name, None), PreTrainedConfig)}
    return values | {name: value for name, value in exceptions.items() if name not in parts}


def _setting(config: PreTrainedConfig, name: str) -> Any:
    """A setting by the name that it has in most configs; that of all layers if they differ."""
    return vars(config).get(type(config).attribute_map.get(name, name))


def _has_mrope(config: PreTrainedConfig) -> bool:
    """Whether the dimensions of a head are divided between time, height and width."""
    keys = getattr(config, "ignore_keys_at_rope_validation", set())
    return "mrope_section" in keys and "mrope_interleaved" not in keys


def _layers(default: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of each kind, if a model has several kinds of layers."""
    for name in _LAYER_KINDS:
        kinds = list(dict.fromkeys(vars(default).get(name) or ()))
        if len(kinds) > 1 and "num_hidden_layers" in values:
            return {name: kinds, "num_hidden_layers": len(kinds)}
    return {}


def _token_id(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's own id for `pad_token_id` and the like; a placeholder of its own for any other name."""
    own = getattr(tokenizer, name, None)
    if isinstance(own, int):
        return own
    if name == "decoder_start_token_id":
        return next(index for index in (tokenizer.bos_token_id, tokenizer.pad_token_id, 0) if index is not None)
    names = _placeholder_names()
    position = names.setdefault(name, len(names)) % PLACEHOLDERS
    index = tokenizer.convert_tokens_to_ids(f"<placeholder_{position}>")
    return index if isinstance(index, int) else 0


@cache
def _placeholder_names() -> dict[str, int]:
    return {}


def _tokenizer(family: str) -> PreTrainedTokenizerBase:
    if family in BYTES:
        return _made(BYTES[family])
    name = TOKENIZER_MAPPING_NAMES.get(family) or ""
    kinds: list[tuple[str, Callable[[], PreTrainedTokenizerBase]]] = [
        (_GEMMA, tiny.gemma_tokenizer),
        (_UNIGRAM, tiny.unigram_tokenizer),
        (_WORDPIECE, tiny.wordpiece_tokenizer),
    ]
    make = next((make for pattern, make in kinds if re.fullmatch(pattern, name)), tiny.byte_bpe_tokenizer)
    if not name and family in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        make = tiny.wordpiece_tokenizer
    return _made(make)


@cache
def _made(make: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    tokenizer = make()
    if make not in BYTES.values():
        tokenizer.add_tokens([f"<placeholder_{number}>" for number in range(PLACEHOLDERS)], special_tokens=True)
    return tokenizer
