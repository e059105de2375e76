"""Compute the rows that are written: blended or replaced, as far as a language model tolerates it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.embeddings.blending import AUTO_BLEND, DirectionalBlend, protect_outputs, written_rows
from defemb_callbacks.embeddings.language_model import (
    INPUT_CANDIDATES,
    OUTPUT_CANDIDATES,
    LanguageModelProbe,
    choose_harmless,
    is_measurable,
    is_whole,
    serves_as_output,
)
from defemb_callbacks.reconstruction.prompts import family_of
from defemb_callbacks.vocabulary.frequency import GROUPS, rarity
from defemb_callbacks.weights.precision import float64_device
from defemb_callbacks.weights.unwrapping import transformers_model

if TYPE_CHECKING:
    from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings

logger = logging.getLogger(__name__)

# Share of the default weights for decoders whose predictions cannot be measured. In SmolLM2's input table alone, it
# raises the loss by less than 0.01 nats per token.
UNMEASURED_DECODER_SHARE = 0.3


def rows_to_write(
    embeddings: DefinitionEmbeddings,
    model: nn.Module,
    config: DefinitionEMBConfig,
    table: Tensor,
    rank: Tensor,
    groups: Mapping[str, Tensor],
    ids: Tensor,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Compute the rows of the chosen tokens.

    Args:
        embeddings: The new rows.
        model: The model; it is left unchanged.
        config: Strategy and weights.
        table: (vocabulary, d), the rows of the model, of any floating-point type.
        rank: (vocabulary,) frequency rank by token.
        groups: Ids by name of the frequency group.
        ids: (m,) int64, the chosen tokens, in the order of `embeddings.ids`.

    Returns:
        Rows, (m, d); weights of the new rows, (m,) float64; and their effect on a language model as plain JSON, empty
        if it was not measured.
    """
    kept: Tensor | slice = torch.isin(embeddings.ids, ids)
    if len(ids) == len(embeddings.ids):
        kept = slice(None)  # no copy
    old, new = table[embeddings.ids.to(table.device)].to("cpu", torch.float32), embeddings.rows
    # Fitted and blended for all tokens with definitions, so that a row does not depend on the choice of other tokens.
    centre = mean_row(table, groups["all"])
    # Replaced rows need no directions, which are costly to find in wide tables.
    blend = DirectionalBlend.uniform(centre) if config.strategy == "replace" else DirectionalBlend.fit(old, new, centre)
    rare, group = rarity(rank)[embeddings.ids], group_numbers(groups, len(rank))[embeddings.ids]

    def candidate(share: float, strength: float | None) -> tuple[Tensor, Tensor]:
        weight = None if config.blend_weight is not None else share * AUTO_BLEND
        rows, weights = written_rows(config, blend, old, new, rare, group, weight)
        rows = rows[kept]
        if strength is not None and probe is not None:
            rows = protect_outputs(old[kept], rows, probe.second_moment, strength)
        return rows, weights[kept]

    probe = _probe(embeddings, model, config)
    if probe is None:
        automatic = config.strategy == "blend" and config.blend_weight is None
        if automatic and serves_as_output(model, config.table):
            return *candidate(0.0, None), {"share": 0.0}
        causal = family_of(transformers_model(model)) == "decoder"
        return *candidate(UNMEASURED_DECODER_SHARE if causal else 1.0, None), {}
    if config.strategy == "replace" or config.blend_weight is not None:
        rows, weights = candidate(1.0, None)
        measured = probe.measure(ids, old[kept], rows)
        if not measured.harmless:
            logger.warning(
                "These rows change the loss of this language model from %.3f to %.3f nats per token (measured on %d "
                "tokens of definitions). The defaults, `strategy='blend'` and `blend='auto'`, limit this change.",
                measured.loss_before,
                measured.loss_after,
                measured.tokens,
            )
        return rows, weights, {"share": 1.0, "strength": None, **measured.to_dict()}
    candidates = OUTPUT_CANDIDATES if serves_as_output(model, config.table) else INPUT_CANDIDATES
    choice = choose_harmless(probe, candidates, lambda *setting: (ids, old[kept], candidate(*setting)[0]))
    rows, weights = candidate(choice.share, choice.strength)
    return rows, weights, {"share": choice.share, "strength": choice.strength, **choice.measurement.to_dict()}


def _probe(
    embeddings: DefinitionEmbeddings, model: nn.Module, config: DefinitionEMBConfig
) -> LanguageModelProbe | None:
    """Probe of the language model; `None` if the model is not one, or if the settings need no measurement."""
    if not embeddings.texts or not is_measurable(model, config.table):
        return None
    automatic = config.strategy == "blend" and config.blend_weight is None
    if not automatic and not serves_as_output(model, config.table):
        return None
    if config.strategy == "blend" and config.blend_weight == 0:
        return None
    if not is_whole(model):
        logger.warning(
            "The language model is sharded, so its predictions cannot be measured. Rebuild the checkpoint before "
            "training, with `defemb apply`."
        )
        return None
    try:
        return LanguageModelProbe(model, embeddings.texts, config.table, embeddings.info.get("mask_token_id"))
    except Exception as error:  # noqa: BLE001 - some models need more than text, and their errors differ
        logger.warning("The predictions of %s cannot be measured: %s", type(transformers_model(model)).__name__, error)
        return None


def mean_row(table: Tensor, ids: Tensor) -> Tensor:
    """Mean of the rows of a table, (d,) float64 on the CPU, without a float64 copy of the table.

    Args:
        table: (vocabulary, d).
        ids: (n,) int64 tokens.
    """
    parts, device = ids.to(table.device).split(1 << 14), float64_device(table.device)
    return torch.stack([table[part].to(device, torch.float64).sum(dim=0) for part in parts]).sum(dim=0).cpu() / len(ids)


def group_numbers(groups: Mapping[str, Tensor], size: int) -> Tensor:
    """The frequency group of each token as an index into `GROUPS`, (size,) int64; 0 for tokens outside all groups.

    Args:
        groups: Ids by name of the group, as `frequency_groups` returns them.
        size: Number of tokens of the vocabulary.

    Example:
        >>> groups = {"frequent": torch.tensor([0]), "medium": torch.tensor([2]), "rare": torch.tensor([1])}
        >>> group_numbers(groups, 4).tolist()
        [0, 2, 1, 0]
    """
    numbers = torch.zeros(size, dtype=torch.int64)
    for number, name in enumerate(GROUPS):
        numbers[groups[name]] = number
    return numbers
