"""Fingerprints of weights, tokenizer and training conditions: the parts of a build's cache key."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction.constructor.training import trains_in_bfloat16
from defemb_callbacks.weights.adapters import base_weights
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight
from defemb_callbacks.weights.sharding import awaits_main_process, reshard, whole, whole_shape

# Entries of a model's config that do not affect the backbone: its origin, and those of task heads.
IGNORED = (
    *("_name_or_path", "architectures", "definition_emb", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("classifier_dropout", "seq_classif_dropout", "qa_dropout", "summary_first_dropout"),
)


# Entries that do not affect the hidden states of a model in evaluation mode.
TRAINING_ONLY = (
    *("dtype", "torch_dtype", "use_cache", "tie_word_embeddings", "gradient_checkpointing"),
    *("output_attentions", "output_hidden_states", "return_dict", "initializer_range", "init_std"),
)


def reading_conditions(model: PreTrainedModel) -> str:
    """Return what the hidden states of a model depend on besides its weights, for the cache key of its rows.

    These are the backbone's entries in the model's config: models with the same weights may have another number of
    attention heads, another activation or another scaling of positions.

    Args:
        model: The model that reads the definitions.
    """
    settings = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in IGNORED and name not in TRAINING_ONLY and "drop" not in name
    }
    return json.dumps(settings, sort_keys=True, default=str)


def learning_conditions(model: PreTrainedModel, config: DefinitionEMBConfig, processes: int) -> list[str]:
    """Return what a learned constructor depends on besides weights and settings, for the cache key of its rows.

    These are the backbone's entries in the model's config, such as dropout, the number of processes that share a batch,
    and the precision.

    Args:
        model: The model that is copied.
        config: Settings of the build.
        processes: Number of processes that train together.
    """
    settings = {name: value for name, value in model.config.to_dict().items() if name not in IGNORED}
    bfloat16 = trains_in_bfloat16(config.precision, model.device)
    return [json.dumps(settings, sort_keys=True, default=str), str(processes), str(bfloat16)]


def fingerprint_weights(model: PreTrainedModel, table: TableName = INPUT) -> str:
    """Return a hex string of the weights that encode definitions, the backbone without its pooler, and of a table.

    Heads and poolers do not affect the hidden states and are often initialised at random, so they are left out.

    Args:
        model: The model.
        table: The table that the rows are fitted to.

    Returns:
        The hex string; empty if this process still waits for the weights from the main process.

    Raises:
        ValueError: If a weight is offloaded.
    """
    backbone = getattr(model, model.base_model_prefix, model)
    reshard(model)
    weights = [(name, weight) for name, weight in base_weights(backbone) if "pooler" not in name]
    return _digest(backbone, weights + _targets(model, table))


def fingerprint_tables(model: PreTrainedModel, table: TableName = INPUT) -> str:
    """Return a hex string of the tables that a build with a reader depends on, as `fingerprint_weights` does.

    Args:
        model: The model, which does not read the definitions itself.
        table: The table that the rows are fitted to.

    Raises:
        ValueError: If a table is offloaded.
    """
    reshard(model)
    return _digest(model, [(INPUT, embedding_weight(model)), *_targets(model, table)])


def _targets(model: PreTrainedModel, table: TableName) -> list[tuple[str, Tensor]]:
    return [] if table == INPUT else [(table, embedding_weight(model, table))]


def _digest(model: nn.Module, weights: Sequence[tuple[str, Tensor]]) -> str:
    digest = xxhash.xxh3_128()
    # FSDP2 adds its own class in front of the model's.
    digest.update(repr(next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))).encode())
    for name, tensor in weights:
        if tensor.is_meta:
            if awaits_main_process(tensor):
                return ""
            raise ValueError(
                f"The weight {name} is offloaded. Build the embeddings from the model in memory first, with "
                "`defemb build MODEL --output DIR`, and pass `embeddings=DIR`."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(whole_shape(tensor))}".encode())
        digest.update(whole(tensor).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hex string of a tokenizer's pipeline, without padding and truncation, which any call may have set.

    Args:
        tokenizer: The tokenizer.
    """
    if not tokenizer.is_fast:
        return fingerprint(type(tokenizer).__name__, json.dumps(tokenizer.init_kwargs, default=str, sort_keys=True))
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline |= {"truncation": None, "padding": None}
    settings = [tokenizer.mask_token, sorted(tokenizer.all_special_ids), tokenizer.model_max_length]
    return fingerprint(json.dumps([pipeline, settings], sort_keys=True))
