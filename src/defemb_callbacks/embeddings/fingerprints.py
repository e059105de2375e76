"""What the rows of a build depend on, as hex strings for the key of the cache."""

from __future__ import annotations

import json

import torch
import xxhash
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction.constructor.training import trains_in_bfloat16
from defemb_callbacks.weights.adapters import base_weights
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight
from defemb_callbacks.weights.sharding import awaits_main_process, reshard, whole, whole_shape

# Of a model's config, what says nothing of how the backbone reads: origin, and the head of a task.
NO_PART = (
    *("_name_or_path", "architectures", "definition_emb", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("classifier_dropout", "seq_classif_dropout", "qa_dropout", "summary_first_dropout"),
)


def learning_conditions(model: PreTrainedModel, config: DefinitionEMBConfig, processes: int) -> list[str]:
    """What a learned constructor depends on besides weights and settings, for the key of its rows.

    That is dropout and whatever else the model's config says of the backbone, how many processes share a batch, and the
    arithmetic.
    """
    settings = {name: value for name, value in model.config.to_dict().items() if name not in NO_PART}
    bfloat16 = trains_in_bfloat16(config.precision, model.device)
    return [json.dumps(settings, sort_keys=True, default=str), str(processes), str(bfloat16)]


def fingerprint_weights(model: PreTrainedModel, table: TableName = INPUT) -> str:
    """Hex string of all weights that definitions pass through, the backbone without its pooler, and of a table.

    Heads and poolers are left out, as they do not change the states and are often drawn at random anew. Empty where the
    weights are awaited from the main process.
    """
    backbone = getattr(model, model.base_model_prefix, model)
    digest = xxhash.xxh3_128()
    # FSDP2 puts a class of its own in front.
    digest.update(repr(next(kind for kind in type(backbone).__mro__ if not issubclass(kind, FSDPModule))).encode())
    reshard(model)
    targets = [] if table == INPUT else [(table, embedding_weight(model, table))]
    for name, tensor in [*base_weights(backbone), *targets]:
        if "pooler" in name:
            continue
        if tensor.is_meta:
            if awaits_main_process(tensor):
                return ""
            raise ValueError(
                f"The weight {name} is offloaded. Build the embeddings from the model in memory first, with "
                "`defemb build MODEL --output DIR`, and pass embeddings=DIR."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(whole_shape(tensor))}".encode())
        digest.update(whole(tensor).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex string of how a tokenizer cuts text, without padding and truncation, which any call may have set."""
    if not tokenizer.is_fast:
        return fingerprint(type(tokenizer).__name__, json.dumps(tokenizer.init_kwargs, default=str, sort_keys=True))
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline |= {"truncation": None, "padding": None}
    settings = [tokenizer.mask_token, sorted(tokenizer.all_special_ids), tokenizer.model_max_length]
    return fingerprint(json.dumps([pipeline, settings], sort_keys=True))
