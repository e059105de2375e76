"""Models whose last hidden states are replaced with sense vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.reconstruction.backbone import backbone_of, reading_of
from defemb_callbacks.reconstruction.reading import FORWARD_ERRORS
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import SenseLayer, reader_with_senses, replace_states, require_no_senses, sense_layer
from defemb_callbacks.senses.placement import all_changed, places, task_outputs
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight

# Entry of a student's config: fingerprint of the dictionary that it was distilled with.
CONFIG_ENTRY = "sense_dictionary"


def check_model(dictionary: SenseDictionary, model: PreTrainedModel, *, force: bool = False) -> None:
    """Check that a dictionary was built from the states of a model.

    The model itself is accepted, with any head, and so is a student that was distilled with this dictionary.

    Args:
        dictionary: The dictionary.
        model: The model.
        force: Accept any model with the same vocabulary size and width.

    Raises:
        ValueError: If the model has another vocabulary size, width or weights.
    """
    size, width = len(embedding_weight(model)), state_width(model)
    if size != len(dictionary.vocabulary):
        raise ValueError(
            f"The dictionary has {len(dictionary.vocabulary)} tokens, but the model has {size}. "
            "Build a dictionary for this model."
        )
    if width != dictionary.width:
        raise ValueError(
            f"The senses have width {dictionary.width}, but the model's hidden states have width {width}. "
            "Build a dictionary for this model."
        )
    known = force or getattr(model.config, CONFIG_ENTRY, None) == dictionary.fingerprint
    if not known and fingerprint_weights(model) != dictionary.info.get("weights"):
        source = dictionary.info.get("model") or "an unnamed model"
        raise ValueError(
            f"The dictionary was built from other weights ({source}). Build a dictionary for this model, "
            "or pass force=True."
        )


def check_tokenizer(dictionary: SenseDictionary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer has the tokens of a dictionary.

    Raises:
        ValueError: If it has other tokens.
    """
    expected = dictionary.vocabulary
    found = read_vocabulary(tokenizer, max(len(expected), max(tokenizer.get_vocab().values()) + 1))
    if found.fingerprint != expected.fingerprint:
        pairs = enumerate(zip(expected.tokens, found.tokens, strict=False))
        difference = next(
            (f"token {index} was {old!r} and is {new!r}" for index, (old, new) in pairs if old != new),
            f"it had {len(expected)} entries and has {len(found)}",
        )
        raise ValueError(
            f"The dictionary was built with another tokenizer: {difference}. Build a dictionary for this tokenizer."
        )


def require_states(model: PreTrainedModel) -> None:
    """Check that a model has a hidden state of its own for each token of a text.

    Raises:
        ValueError: If the model cannot read text alone, returns fewer states than tokens, or `with_senses` was applied.
    """
    require_no_senses(model)
    reading, kind = reading_of(model), type(model).__name__
    if not reading.reads:
        raise ValueError(
            f"{kind} cannot read text by itself ({reading.problem}), so its tokens have no hidden states to cluster. "
            "Pass a model that reads text alone."
        )
    if not reading.per_token:
        raise ValueError(
            f"{kind} does not return one hidden state per token, so they cannot be senses of tokens. Pass a model that "
            "does."
        )


def state_width(model: PreTrainedModel) -> int:
    """Width d of the hidden states of a model's backbone."""
    return reading_of(model).width


def with_senses(model: PreTrainedModel, dictionary: SenseDictionary, *, force: bool = False) -> PreTrainedModel:
    """Replace the last hidden states of a model with the best sense of their token.

    Poolers, heads and everything else that reads the last hidden states then read senses. States of tokens without
    senses are unchanged. The last entry of `hidden_states` may still be the original states. The model is changed in
    place, and `without_senses` reverts the change. Its checkpoints do not contain the dictionary, and DDP does not
    broadcast it. `nn.DataParallel` is not supported.

    For an encoder-decoder model, the states of the encoder are replaced. For a `SentenceTransformer`, pass its encoder:
    `with_senses(model.transformers_model, dictionary)`.

    Source: arXiv 2504.06036.

    Args:
        model: The model that the dictionary was built from, with any head, or a student of it.
        dictionary: Senses of the last layer. They are moved to the model's device.
        force: Accept a model with other weights, e.g. in another dtype.

    Returns:
        The model.

    Raises:
        ValueError: If the dictionary belongs to another model, tokenizer, width or layer, if the model has senses
            already, if accelerate has prepared it for mixed precision, or if its output does not depend on the replaced
            states, which is tested on a short text.

    Example:
        >>> model = with_senses(model, dictionary)  # doctest: +SKIP
        >>> model(**inputs).logits.shape  # doctest: +SKIP
        torch.Size([8, 2])
    """
    backbone: Any = backbone_of(model)
    require_no_senses(model)
    layer = dictionary.info.get("config", {}).get("layer", -1)
    if layer != -1:
        raise ValueError(f"The dictionary was built with layer={layer}. Build one with layer=-1, the last layer.")
    if "forward" in backbone.__dict__:
        raise ValueError(
            "This model has been prepared for mixed precision by accelerate. Call with_senses before that, or on "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False)."
        )
    check_model(dictionary, model, force=force)
    dictionary.to(model.device)
    input_ids = _probe_text(dictionary, model)
    try:
        before = task_outputs(model, input_ids)
        candidates = places(model, input_ids)
    except torch.OutOfMemoryError:
        raise
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"{type(model).__name__} cannot be run on text alone ({error}), so senses would not reach its output. Pass "
            "the part of it that reads text, e.g. `model.text_model` or `model.get_decoder()`, and build the "
            "dictionary from this part."
        ) from error
    for place in candidates:
        replace_states(place, SenseLayer(dictionary))
        reached = False
        try:
            reached = _reaches_output(model, input_ids, before)
        finally:
            if not reached:
                without_senses(model)
        if reached:
            return model
    raise ValueError(
        f"The output of {type(model).__name__} does not depend on the hidden states that senses replace, those of its "
        f"{type(backbone).__name__}. Pass the part whose states its head reads, e.g. `model.get_decoder()`, and build "
        "the dictionary from this part."
    )


def _probe_text(dictionary: SenseDictionary, model: PreTrainedModel) -> Tensor:
    """A text of up to 8 tokens with senses, which ends like a text: (1, length) int64."""
    ends = getattr(getattr(backbone_of(model), "config", model.config), "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    ends = [index for index in ends if index < len(dictionary.vocabulary)]
    ids = [index for index in dictionary.offsets.diff().nonzero().flatten().tolist() if index not in ends]
    # Frequent tokens come first in most vocabularies, but so do special tokens.
    middle = ids[len(ids) // 2 :][:8] or [0]
    return torch.tensor([[*middle, *ends[:1]]], device=model.device)


def _reaches_output(model: PreTrainedModel, input_ids: Tensor, before: list[Tensor]) -> bool:
    """Whether the output of a model with senses depends on the replaced states."""
    layer = sense_layer(model)
    layer.probing = True
    try:
        return all_changed(before, task_outputs(model, input_ids))
    finally:
        layer.probing = False


def without_senses(model: PreTrainedModel) -> PreTrainedModel:
    """Revert `with_senses`.

    Raises:
        ValueError: If the model has no senses.
    """
    layer = sense_layer(model)
    reader = reader_with_senses(model)
    if layer.hook is not None:
        layer.hook.remove()
    reader.__class__ = type(reader).__base__
    del reader.senses
    return model
