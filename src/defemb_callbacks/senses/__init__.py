"""Senses of tokens: a dictionary of them, models that give them, and students that learn to choose them."""

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
    "first_layers",
    "with_senses",
    "without_senses",
]
