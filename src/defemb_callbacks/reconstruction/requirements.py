"""What the settings of a build need of the model that reads the definitions."""

from __future__ import annotations

from transformers import PreTrainedModel, ReformerModel

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction.backbone import reading_of


def check_method(config: DefinitionEMBConfig, model: PreTrainedModel) -> None:
    """Raise if the method or the features need states that a model does not have, before any work.

    Args:
        config: Settings.
        model: The model that reads the definitions.

    Raises:
        ValueError: If the model cannot read text by itself but should be trained or read, or if it does not have the
            states that the learned constructor is trained on.
    """
    reading, name = reading_of(model), type(model).__name__
    if config.method == "learned" and not reading.reads:
        raise ValueError(
            f"`method='learned'` trains a copy of the model to read definitions, but {name} cannot read text by "
            f"itself ({reading.problem}). Use `method='ridge'`, with `reader` if another encoder should read."
        )
    if config.method == "learned" and any(isinstance(module, ReformerModel) for module in model.modules()):
        raise ValueError(
            f"`method='learned'` cannot train {name}: its backward pass needs texts of its full training length. "
            "Use `method='ridge'`."
        )
    if config.method == "learned" and not reading.per_token:
        raise ValueError(
            f"`method='learned'` reads the state of one token, but {name} does not have one state per token. "
            "Use `method='ridge'`."
        )
    unread = [] if reading.reads else [feature for feature in config.features or [] if feature != "bag"]
    if unread:
        raise ValueError(
            f"{name} cannot read text by itself ({reading.problem}), so it has no feature {unread[0]!r}. Use "
            "`features=['bag']`, or let another encoder read with `reader`."
        )
