"""Reference models of preference optimization, which are compared with the trained model."""

from __future__ import annotations

import logging

from transformers import Trainer

from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.rows import TableName

logger = logging.getLogger(__name__)


def warn_about_reference_model(trainer: Trainer | None, table: TableName) -> None:
    """Log a warning if preference optimization compares a rebuilt model with one that was not rebuilt.

    Args:
        trainer: Any Trainer; those of trl may have a `ref_model`.
        table: The table that was rebuilt.
    """
    reference = getattr(trainer, "ref_model", None)
    if reference is not None and read_record(reference, table) is None:
        logger.warning(
            "The reference model of this %s keeps the old token embeddings, so training starts at a distance from it. "
            "To start from equal models, rebuild the checkpoint first (`defemb build` and `defemb apply`).",
            type(trainer).__name__,
        )
