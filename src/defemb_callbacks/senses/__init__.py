"""Multi-sense embeddings: sense dictionaries, models that use them, and sense distillation."""

from defemb_callbacks.senses.build import build_sense_dictionary
from defemb_callbacks.senses.config import SenseConfig
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.distillation import SenseDistillationArguments, SenseDistillationTrainer
from defemb_callbacks.senses.model import with_senses, without_senses
from defemb_callbacks.senses.student import SenseStudent, first_layers

__all__ = [
    "SenseConfig",
    "SenseDictionary",
    "SenseDistillationArguments",
    "SenseDistillationTrainer",
    "SenseStudent",
    "build_sense_dictionary",
    "first_layers",
    "with_senses",
    "without_senses",
]
