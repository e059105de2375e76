"""Rebuild a model's token embeddings from dictionary definitions, inside any Hugging Face Trainer run."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from defemb_callbacks.callbacks import (
        CalibrationCallback,
        DefinitionEMBCallback,
        EmbeddingMonitorCallback,
        SenseMonitorCallback,
        TrainNewTokensCallback,
    )
    from defemb_callbacks.config import DefinitionEMBConfig
    from defemb_callbacks.constructor_config import ConstructorConfig
    from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
    from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
    from defemb_callbacks.embeddings.build import build_definition_embeddings
    from defemb_callbacks.metrics.model_metrics import measure_embeddings
    from defemb_callbacks.new_tokens import define_new_tokens
    from defemb_callbacks.reconstruction import DefinitionEMBMixin, with_definition_head
    from defemb_callbacks.reporting.model_card import update_model_card
    from defemb_callbacks.reporting.summary import RebuildReport

__all__ = [
    "CalibrationCallback",
    "ConstructorConfig",
    "Definition",
    "DefinitionEMBCallback",
    "DefinitionEMBConfig",
    "DefinitionEMBMixin",
    "DefinitionEmbeddings",
    "EmbeddingMonitorCallback",
    "Lexicon",
    "RebuildReport",
    "SenseMonitorCallback",
    "TrainNewTokensCallback",
    "build_definition_embeddings",
    "define_new_tokens",
    "load_definitions",
    "measure_embeddings",
    "update_model_card",
    "with_definition_head",
]

# Names are imported when they are first used (PEP 562), as in transformers: the import alone costs nothing.
_MODULES = {
    "CalibrationCallback": "callbacks.calibration",
    "ConstructorConfig": "constructor_config",
    "Definition": "definitions",
    "DefinitionEMBCallback": "callbacks.rebuild",
    "DefinitionEMBConfig": "config",
    "DefinitionEMBMixin": "reconstruction",
    "DefinitionEmbeddings": "embeddings.artifact",
    "EmbeddingMonitorCallback": "callbacks.monitor",
    "Lexicon": "definitions",
    "RebuildReport": "reporting.summary",
    "SenseMonitorCallback": "callbacks.senses",
    "TrainNewTokensCallback": "callbacks.train_new_tokens",
    "build_definition_embeddings": "embeddings.build",
    "define_new_tokens": "new_tokens",
    "load_definitions": "definitions",
    "measure_embeddings": "metrics.model_metrics",
    "update_model_card": "reporting.model_card",
    "with_definition_head": "reconstruction",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # later uses do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
