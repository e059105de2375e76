"""Another encoder that reads definitions instead of the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.reconstruction.backbone import reading_of
from defemb_callbacks.weights.distributed import main_process_first
from defemb_callbacks.weights.unwrapping import transformers_model


@dataclass(frozen=True)
class DefinitionReader:
    """An encoder that reads definitions for another model.

    Attributes:
        model: The encoder.
        tokenizer: Its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, source: Any, device: torch.device) -> DefinitionReader:
        """Open an encoder on a device.

        Args:
            source: Its name on the Hub or its folder, a `SentenceTransformer`, or a pair of model and tokenizer, which
                is not moved.
            device: Device to load it on.

        Raises:
            TypeError: If the source is neither of these.
            ValueError: If it cannot read text by itself.
            OSError: If it is not found.
        """
        if isinstance(source, DefinitionReader):
            return source
        if isinstance(source, str | Path):
            reader = main_process_first(lambda: cls._load(str(source), device))
        elif isinstance(source, tuple) and len(source) == 2:
            reader = cls(*source)
        elif hasattr(source, "transformers_model") and hasattr(source, "tokenizer"):
            reader = cls(transformers_model(source), source.tokenizer)
        else:
            raise TypeError(
                f"`reader` must be a name, a folder, a SentenceTransformer or a pair of model and tokenizer, got "
                f"{type(source).__name__}. Pass one of these."
            )
        if problem := reading_of(reader.model).problem:
            raise ValueError(
                f"The reader {type(reader.model).__name__} cannot read text by itself ({problem}). Pass a text "
                "encoder, e.g. `reader='sentence-transformers/all-MiniLM-L6-v2'`."
            )
        return reader

    @classmethod
    def chosen(cls, reader: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> DefinitionReader:
        """Return the reader in resolved settings, or the model itself.

        Args:
            reader: `reader` of the settings, from `resolve_settings`.
            model: The model.
            tokenizer: Its tokenizer.
        """
        return reader if isinstance(reader, DefinitionReader) else cls(model, tokenizer)

    @classmethod
    def _load(cls, name: str, device: torch.device) -> DefinitionReader:
        model = AutoModel.from_pretrained(name).eval()
        # While FSDP loads efficiently, only the main process has weights, and reads.
        if "meta" not in (model.device.type, device.type):
            model = model.to(device)
        return cls(model, AutoTokenizer.from_pretrained(name))
