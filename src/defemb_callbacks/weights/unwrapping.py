"""The transformers model inside wrappers, whichever of them a script, sentence-transformers or accelerate has added."""

from __future__ import annotations

from typing import Any

from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel

from defemb_callbacks.weights.adapters import base_layer
from defemb_callbacks.weights.sharding import whole_shape


def bare_model(model: nn.Module) -> nn.Module:
    """Unwrap a model from DDP, DataParallel, torch.compile or SetFit, without changing the wrappers."""
    if isinstance(model, PreTrainedModel):  # not a wrapper; accelerate would search all its parts
        return model
    model = getattr(model, "model_body", model)
    # From a compiled wrapper, accelerate's function would permanently remove the DDP inside it.
    compiled: Any = model if is_compiled_module(model) else None
    return extract_model_from_parallel(compiled._orig_mod if compiled is not None else model)


def transformers_model(model: nn.Module) -> Any:
    """The transformers or PEFT model inside such wrappers, a `SentenceTransformer` or any other module.

    Raises:
        TypeError: If the model is wrapped by FSDP1, which flattens all weights into one parameter, or if it contains
            several models with token embeddings.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> encoder = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
        >>> transformers_model(nn.Sequential(encoder, nn.Linear(4, 2))) is encoder
        True
    """
    bare = bare_model(model)
    # FSDP1 needs a process group; without one, there is no need to walk through all modules.
    if is_initialized() and any(isinstance(part, FullyShardedDataParallel) for part in (model, *bare.modules())):
        raise TypeError(
            "The model is wrapped by FSDP1, which flattens the embedding table into one parameter with other weights. "
            'Use FSDP2: fsdp_config={"version": 2} in TrainingArguments, or fsdp_version: 2 in accelerate\'s config.'
        )
    inner = getattr(bare, "transformers_model", None)
    if inner is not None or hasattr(bare, "get_input_embeddings"):
        return bare if inner is None else inner
    found = {name: child for name, child in _outermost_models(bare).items() if _reads_text(child)}
    if len({id(child) for child in found.values()}) > 1:
        listed = ", ".join(f"{name} ({type(child).__name__})" for name, child in found.items())
        raise TypeError(
            f"{type(bare).__name__} contains several models with token embeddings: {listed}. Which one is meant? "
            f"Define a property `transformers_model` of {type(bare).__name__} that returns it."
        )
    return next(iter(found.values()), bare)


def _outermost_models(module: nn.Module, prefix: str = "") -> dict[str, Any]:
    """The transformers and PEFT models inside a module, by name, without the models inside these."""
    found: dict[str, Any] = {}
    for name, child in module.named_children():
        if hasattr(child, "get_input_embeddings"):
            found[prefix + name] = child
        else:
            found |= _outermost_models(child, f"{prefix}{name}.")
    return found


def input_layer(model: Any) -> Any:
    """The layer of the input embeddings; `None` for models without token inputs, for which transformers raises errors.

    Args:
        model: A model without wrappers.
    """
    try:
        return model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    except (NotImplementedError, AttributeError):
        return None


def _reads_text(model: Any) -> bool:
    weight = getattr(base_layer(input_layer(model)), "weight", None)
    return isinstance(weight, Tensor) and len(whole_shape(weight)) == 2
