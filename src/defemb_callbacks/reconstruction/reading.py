"""Which part of a model reads text, and whether it reads ahead: observed on a few tokens, not derived from its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from defemb_callbacks.weights.random_states import same_random_states
from defemb_callbacks.weights.unwrapping import input_layer

# What models raise if they are called with token ids alone, or in another dtype: some ask for images (ValueError,
# TypeError), others use an argument that is `None` (AttributeError, TypeError) or multiply tensors that do not fit.
FORWARD_ERRORS: tuple[type[Exception], ...] = (
    *(TypeError, ValueError, RuntimeError, AttributeError, LookupError, NameError, AssertionError, ImportError),
)

# Number of tokens of the text that a model is tried with.
TRIAL_LENGTH = 5

# A model reads ahead if a later token changes a state by at least this share of what an earlier token changes. Rounding
# in mixtures of experts, which depends on the other tokens, changes less.
AHEAD = 0.05


@dataclass(frozen=True)
class Reading:
    """How a model reads text.

    Attributes:
        part: Dotted name of the part that reads, "" for the model itself.
        problem: Why no part reads text without any other input; "" if this part does.
        width: Width of its states; 0 if it does not read.
        per_token: Whether it has one state per token.
        ahead: Whether a state depends on later tokens.
        mixes: Whether a state depends on other tokens at all.
    """

    part: str
    problem: str
    width: int
    per_token: bool
    ahead: bool
    mixes: bool = True

    @property
    def reads(self) -> bool:
        """Whether the part reads text without any other input."""
        return not self.problem


def observed_reading(model: PreTrainedModel) -> Reading:
    """Find the part of a model that reads text, and try how it does, in three forward passes on a few tokens.

    The parts are the encoder of an encoder-decoder, the model without its head, and then the parts that contain the
    input embeddings, from the outermost to the innermost one: the language model of a vision-language model, or the
    decoder of a speech recognizer. The first one that reads is taken.

    Args:
        model: Any model, in eval mode. Random states are not changed.
    """
    declared = declared_reading(model)
    ids, problem = _trial_ids(model), ""
    for name, part in _parts(model):
        try:
            found = _tried(part, ids)
        except torch.OutOfMemoryError:
            raise
        except FORWARD_ERRORS as error:
            found, reason = None, f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            reason = "its states do not depend on the text"
        if found is not None:
            width, per_token, ahead = found
            return Reading(name, "", width, per_token, declared.ahead if ahead is None else ahead, ahead is not None)
        problem = problem or reason
    return Reading(declared.part, problem or "no part takes token ids", 0, False, declared.ahead)


def declared_reading(model: PreTrainedModel) -> Reading:
    """How a model reads according to its config, for models that cannot be run because their weights are elsewhere.

    Args:
        model: Any model.
    """
    part = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    config = getattr(part, "config", model.config).get_text_config()
    kind = type(model.config.get_text_config())
    only_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    causal = not model.config.is_encoder_decoder and (only_causal or getattr(config, "is_decoder", False))
    return Reading(_name_of(model, part) or "", "", getattr(config, "hidden_size", 0), True, not causal)


def run(
    part: nn.Module,
    input_ids: Tensor,
    *,
    weights: Mapping[str, Tensor] | None = None,
    forward: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """Call a part of a model with token ids, without a cache, and return its output.

    Args:
        part: The part.
        input_ids: (batch, length) int64.
        weights: Weights to use instead of the part's own, by name.
        forward: Function to call instead of the part.
        **options: Further arguments; those that are `None` are left out.
    """
    inputs = {"input_ids": input_ids, "return_dict": True, **options}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if _has_cache(type(part)):
        inputs["use_cache"] = False
    if weights is not None:
        # With its buffers, which are restored afterwards: CTRL rounds its positions to the dtype of the embeddings.
        return functional_call(part, {**dict(part.named_buffers()), **weights}, (), inputs)
    return (forward or part)(**inputs)


def states_in(output: Any) -> Tensor | None:
    """The last hidden states of an output, or `None` if it has only logits.

    Args:
        output: From `run`. A head has no `last_hidden_state`, but returns `hidden_states` if they are requested.
    """
    last = getattr(output, "last_hidden_state", None)
    if last is None and getattr(output, "hidden_states", None):
        last = output.hidden_states[-1]
    return last


def states_of(part: nn.Module, input_ids: Tensor, **options: Any) -> Tensor:
    """Compute the last hidden states of a part of a model; see `run`.

    Args:
        part: The part.
        input_ids: (batch, length) int64.
        **options: Further arguments of `run`.

    Raises:
        TypeError: If the part returns no hidden states.
    """
    states = states_in(run(part, input_ids, **options))
    if states is None:
        states = states_in(run(part, input_ids, **options, output_hidden_states=True))
    if states is None:
        raise TypeError(f"{type(part).__name__} returns no hidden states. Pass a model that does.")
    return states


def _has_cache(kind: type[nn.Module]) -> bool:
    """Whether the forward pass of a class of models, or of one that it extends, has a `use_cache` argument."""
    forwards = [vars(cls)["forward"] for cls in kind.__mro__ if "forward" in vars(cls)]
    return any("use_cache" in inspect.signature(forward).parameters for forward in forwards)


def _parts(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Parts of a model that may read text, with their names: the most complete one first."""
    names = _path_to_table(model)
    seen: list[nn.Module] = []
    headed: list[tuple[str, nn.Module]] = []
    for end in range(len(names)):
        outer = model.get_submodule(".".join(names[:end]))
        if not isinstance(outer, PreTrainedModel):
            continue
        part = _without_head(outer)
        # An encoder-decoder without an encoder for text is skipped: as a whole, it reads its own output.
        skipped = part is outer and outer.config.is_encoder_decoder and outer.get_decoder() is not outer
        name = _name_of(model, part)
        if name is not None and not skipped and not any(part is other for other in seen):
            seen.append(part)
            if part is outer and outer.get_output_embeddings() is not None:
                headed.append((name, part))  # Llama4ForCausalLM does not say which of its parts has no head
            else:
                yield name, part
    yield from headed


def _without_head(model: PreTrainedModel) -> nn.Module:
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


def _name_of(model: nn.Module, part: nn.Module) -> str | None:
    return next((name for name, module in model.named_modules() if module is part), None)


def _path_to_table(model: PreTrainedModel) -> list[str]:
    """Names of the modules from the model to its input embeddings; only of the last one if there are none."""
    table = input_layer(model)
    return [""] if table is None else (_name_of(model, table) or "").split(".")


def _trial_ids(model: PreTrainedModel) -> Tensor:
    """Three texts that differ only in the first or the last token, (3, length), of tokens without a special meaning."""
    weight = getattr(input_layer(model), "weight", None)
    size = getattr(model.config.get_text_config(), "vocab_size", 0) or 1 if weight is None else len(weight)
    special = set(_special_ids(model.config.to_dict()))
    start = size // 2
    candidates = [*range(start, size), *range(start)]
    ids = [index for index in candidates if index not in special][: TRIAL_LENGTH + 1]
    if len(ids) < 2:
        ids = candidates[: TRIAL_LENGTH + 1]
    text = [ids[position % len(ids)] for position in range(TRIAL_LENGTH)]
    other = next((index for index in ids if index not in (text[0], text[-1])), text[0])
    later, earlier = [*text[:-1], other], [other, *text[1:]]
    return torch.tensor([text, later, earlier], device=model.device)


def _special_ids(config: Any) -> Iterator[int]:
    """Numbers of special tokens in a config and in the configs inside it."""
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        if str(name).endswith(("token_id", "token_index")):
            yield from (index for index in (value if isinstance(value, list) else [value]) if isinstance(index, int))
        else:
            yield from _special_ids(value)


def _tried(part: nn.Module, ids: Tensor) -> tuple[int, bool, bool | None] | None:
    """Width of the states, whether there is one per token, and whether they read ahead, if that can be told.

    `None` if the states do not depend on the text.
    """
    states: list[Tensor] = []
    for text in ids:
        # Models with random hashes, such as Reformer, draw the same ones each time.
        with same_random_states(ids.device):
            states.append(states_of(part, text[None]))
    base, later, earlier = (found[0].float() for found in states)
    if states[0].ndim != 3 or not base.shape == later.shape == earlier.shape:
        return None
    if torch.equal(base, earlier) and torch.equal(base, later) and not torch.equal(ids[0], ids[1]):
        return None
    per_token = len(base) == ids.shape[1]
    from_earlier = (base - earlier)[1:].abs().sum()
    from_later = (base - later)[:-1].abs().sum()
    mixes = bool(from_earlier + from_later > 0)
    ahead = bool(from_later >= AHEAD * from_earlier) if mixes else None
    return base.shape[1], per_token, ahead
