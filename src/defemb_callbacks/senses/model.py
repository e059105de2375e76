"""Models whose last hidden states are replaced with sense vectors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.reconstruction.backbone import backbone_of
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import bare_model, embedding_weight

# Entry of a student's config: fingerprint of the dictionary that it was distilled with.
CONFIG_ENTRY = "sense_dictionary"


class SenseLayer(nn.Module):
    """Replaces the hidden states of a backbone; `with_senses` adds it.

    Attributes:
        dictionary: The senses.
        input_ids: Token ids of the current forward pass.
        recorded: A list that collects token ids and original states of each forward pass, or `None`.
        hook: The hook on the submodule whose output is replaced; `None` if it is the backbone's own output.
    """

    def __init__(self, dictionary: SenseDictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.input_ids: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        self.hook: RemovableHandle | None = None

    def replace_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Replace the states in a module's output, which is a tuple or a `ModelOutput`."""
        if self.input_ids is None:
            raise ValueError(
                "`backbone.forward` was bypassed, as nn.DataParallel does. Start one process per device with torchrun "
                "or accelerate launch."
            )
        states = output[0]
        ids, self.input_ids = self.input_ids.to(states.device), None
        if self.recorded is not None:
            self.recorded.append((ids, states))
        # The layers of a model may be distributed over several devices.
        if self.dictionary.vectors.device != states.device:
            self.dictionary.to(states.device)
        senses = self.dictionary.lookup(states, ids)
        if isinstance(output, tuple):
            return (senses, *output[1:])
        output.last_hidden_state = senses
        return output


def require_no_senses(model: PreTrainedModel) -> None:
    """Check that the states of a model are its own.

    Raises:
        ValueError: If `with_senses` was applied to the model.
    """
    if isinstance(getattr(backbone_of(model), "senses", None), SenseLayer):
        raise ValueError("The hidden states of this model are already senses. Call without_senses(model) first.")


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


def state_width(model: PreTrainedModel) -> int:
    """Width d of the hidden states of a model's backbone."""
    width: int = backbone_of(model).config.get_text_config().hidden_size
    return width


def _class_with_senses(original: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a backbone's class whose `senses` replace its states.

    A subclass rather than a forward hook: sentence-transformers calls `forward` directly, which runs no hooks, and a
    copy of a model must use its own senses.
    """

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer: SenseLayer = self.senses
        layer.input_ids = args[0] if args else kwargs.get("input_ids")
        if layer.input_ids is None:
            raise ValueError("A model with senses requires `input_ids`, got None. Do not pass `inputs_embeds` instead.")
        output = original.forward(self, *args, **kwargs)
        return output if layer.hook is not None else layer.replace_output(self, args, output)

    # The class name is written to checkpoints.
    return type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})


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
            already, or if accelerate has prepared it for mixed precision.

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
    backbone.senses = SenseLayer(dictionary.to(model.device))
    if getattr(backbone, "pooler", None) is not None:  # the pooler is inside the backbone, as in BERT and RoBERTa
        backbone.senses.hook = backbone.encoder.register_forward_hook(backbone.senses.replace_output)
    backbone.__class__ = _class_with_senses(type(backbone))
    return model


def without_senses(model: PreTrainedModel) -> PreTrainedModel:
    """Revert `with_senses`.

    Raises:
        ValueError: If the model has no senses.
    """
    layer = sense_layer(model)
    backbone: Any = backbone_of(model)
    if layer.hook is not None:
        layer.hook.remove()
    backbone.__class__ = type(backbone).__base__
    del backbone.senses
    return model


def sense_layer(model: nn.Module) -> SenseLayer:
    """The layer that `with_senses` added to a model, which may be wrapped by DDP or torch.compile.

    Raises:
        ValueError: If the model has no senses.
    """
    layer = getattr(backbone_of(bare_model(model)), "senses", None)  # type: ignore[arg-type]
    if not isinstance(layer, SenseLayer):
        raise ValueError("This model has no senses. Call with_senses(model, dictionary) first.")
    return layer


@contextlib.contextmanager
def recorded_states(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record token ids and original hidden states of each forward pass of a model with senses.

    Raises:
        ValueError: If the model has no senses.
    """
    layer = sense_layer(model)
    layer.recorded = []
    try:
        yield layer.recorded
    finally:
        layer.recorded = None
