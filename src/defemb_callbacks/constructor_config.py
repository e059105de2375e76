"""Settings of the learned constructor, and those of the paper."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

HeadStart = Literal["ridge", "random"]
Words = Literal["tokens", "dictionary"]
Masking = Literal["autoregressive", "random"]

# What the Trainer of the constructor uses where `training` does not say otherwise.
TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 2,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
    "adam_beta2": 0.98,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 1,
    "report_to": "none",
}


@dataclass(frozen=True)
class ConstructorConfig:
    """Settings of `method="learned"`: the model that is trained to turn definitions into embeddings.

    Attributes:
        head: the linear map starts from the closed-form solution on the frozen model ("ridge"), or from N(0, 1/d)
            ("random", the paper).
        masking: "autoregressive", one masked sub-token a row, or, for encoders, "random" (the paper's RoBERTa).
        words: learn from the words that are tokens, or from those of the dictionary that consist of several, too.
        train_embeddings: train the constructor's own input table; the rows to reconstruct are the pretrained ones
            nevertheless.
        filter_ratio: leave out this share of the words, the least frequent ones, as targets (the paper: 0).
        held_out: share of the words that are no targets but tell how good the vectors of unseen words are; 0 for none.
        patience: stop after so many evaluations without a lower loss on held-out words, and go back to the best one;
            `None` trains to the end.
        tokens_per_batch: on one process, padding included.
        lora_r: train low-rank adapters of this rank (needs peft) instead of a second copy of the model.
        save_to: folder for the trained constructor; with `lora_r` its adapter alone.
        training: fields of `TrainingArguments`, such as `{"learning_rate": 1e-3, "optim": "adafactor"}`.

    Raises:
        ValueError: a value outside its range; the message names the field, the value and what is allowed.

    Example:
        >>> ConstructorConfig(held_out=0.2).held_out
        0.2
        >>> ConstructorConfig(held_out=1)
        Traceback (most recent call last):
            ...
        ValueError: held_out=1 is not from 0 to below 1.
    """

    head: HeadStart = "ridge"
    masking: Masking = "autoregressive"
    words: Words = "tokens"
    train_embeddings: bool = False
    filter_ratio: float = 0.0
    held_out: float = 0.02
    patience: int | None = 3
    tokens_per_batch: int = 1024
    lora_r: int | None = None
    save_to: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("filter_ratio", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not from 0 to below 1.")
        if self.tokens_per_batch is None:
            raise ValueError("tokens_per_batch=None is no number.")
        for name, least in (("patience", 1), ("tokens_per_batch", 1), ("lora_r", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value!r} is less than {least}.")
        if self.patience is not None and not self.held_out and self.patience != type(self).patience:
            raise ValueError(f"patience={self.patience} needs words to evaluate on: held_out must be above 0.")
        if self.lora_r is not None and self.train_embeddings:
            raise ValueError(
                f"train_embeddings=True trains the constructor's own table, which with lora_r={self.lora_r} it shares "
                "with the model; leave one of the two out."
            )
        if not isinstance(self.training, dict):
            raise ValueError(f"training={self.training!r} must be a dict of fields of TrainingArguments.")

    @property
    def training_settings(self) -> dict[str, Any]:
        """`training`, and the defaults where it says nothing."""
        return TRAINING_DEFAULTS | self.training

    @classmethod
    def read(cls, value: ConstructorConfig | dict[str, Any] | str | None) -> ConstructorConfig:
        """From a dict, a JSON object as text, a path to one, or `None` for the defaults.

        Raises:
            ValueError: neither of these, or an unknown field.

        Example:
            >>> ConstructorConfig.read('{"lora_r": 8}').lora_r
            8
        """
        return value if isinstance(value, cls) else cls(**cls.read_settings(value))

    @classmethod
    def read_settings(cls, value: ConstructorConfig | dict[str, Any] | str | None) -> dict[str, Any]:
        """What `read` takes as the settings that it names, or that differ from the defaults; raises the same."""
        if isinstance(value, cls):
            plain = cls().to_dict()
            return {name: setting for name, setting in value.to_dict().items() if setting != plain[name]}
        if isinstance(value, str):
            text = value if value.lstrip().startswith("{") else _text_of(value)
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"constructor={value!r} is no valid JSON: {error}.") from error
        settings = {} if value is None else value
        if not isinstance(settings, dict):
            raise ValueError(f"constructor={value!r} must be a dict of settings, such as {{'lora_r': 8}}.")
        known = [one.name for one in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(f"The constructor has no setting {unknown[0]!r}; known are {', '.join(known)}.")
        return settings

    def to_dict(self) -> dict[str, Any]:
        """All settings, as plain JSON values."""
        return asdict(self)


def check_choices(settings: Any) -> None:
    """Refuse a field of a dataclass that is not one of its `Literal` type: `ValueError` with what is allowed."""
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint)
        if get_origin(hint) is Literal and getattr(settings, name) not in choices:
            raise ValueError(f"{name}={getattr(settings, name)!r} is unknown; choose from {', '.join(choices)}.")


def _text_of(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"constructor={path!r} is neither a JSON object nor a file with one.")
    return Path(path).read_text(encoding="utf-8")


_INVERSE_SQRT = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "inverse_sqrt",
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "weight_decay": 0.01,
    "max_grad_norm": 0.1,
}
_ADAFACTOR = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "optim": "adafactor", "max_steps": 125_000}
_EVALUATION = {"eval_steps": 2000, "save_steps": 2000}
_PAPER = {"head": "random", "filter_ratio": 0.0, "patience": None}

# Zhang, Li, Okumura, arXiv 2408.01308: longest input, and settings of the constructor.
PAPER_SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "roberta-base": (
        512,
        {
            **_PAPER,
            "masking": "random",
            "train_embeddings": True,
            "tokens_per_batch": 4096,
            "training": {**_INVERSE_SQRT, **_EVALUATION, "warmup_steps": 24_000, "max_steps": 400_000},
        },
    ),
    "bart-large": (
        1024,
        {
            **_PAPER,
            "tokens_per_batch": 4096,
            "training": {**_INVERSE_SQRT, **_EVALUATION, "warmup_steps": 20_000, "max_steps": 250_000},
        },
    ),
    "t5-large": (512, {**_PAPER, "tokens_per_batch": 8192, "training": {**_ADAFACTOR, **_EVALUATION}}),
    "t5gemma-l-ul2": (512, {**_PAPER, "tokens_per_batch": 8192, "training": {**_ADAFACTOR, **_EVALUATION}}),
}
for _, _settings in PAPER_SETTINGS.values():
    _settings["training"].setdefault("warmup_steps", 0)
