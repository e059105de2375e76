"""Settings of the learned constructor, with the paper's as presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from defemb_callbacks.settings_checks import check_choices

HeadStart = Literal["ridge", "random"]
Words = Literal["tokens", "dictionary"]
Masking = Literal["autoregressive", "random"]

# Fields of `TrainingArguments` for the constructor; `training` overrides them.
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
    """Settings of `method="learned"`: the model that is trained to map definitions to embeddings.

    Attributes:
        head: Initialization of the linear head: the closed-form solution on the frozen model ("ridge"), or N(0, 1/d)
            ("random", the paper).
        masking: "autoregressive", with one masked sub-token per row, or, for encoders, "random" (the paper's RoBERTa).
        words: Train on the words that are single tokens ("tokens"), or also on the dictionary's words of several
            tokens ("dictionary").
        train_embeddings: Whether to train the constructor's own input table. The targets are the pretrained rows in
            either case.
        filter_ratio: Share of the words, the least frequent ones, that are not used as targets (the paper: 0).
        held_out: Share of the words that are not trained on and measure the loss on unseen words; 0 for none.
        patience: Number of evaluations without a lower loss on held-out words after which training stops and the best
            checkpoint is restored; `None` trains to the end.
        tokens_per_batch: Tokens per batch and process, padding included.
        lora_r: Rank of low-rank adapters (requires peft) to train instead of a second copy of the model.
        save_to: Folder for the trained constructor; with `lora_r` only the adapter is saved.
        training: Fields of `TrainingArguments`, such as `{"learning_rate": 1e-3, "optim": "adafactor"}`.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what is allowed.

    Example:
        >>> ConstructorConfig(held_out=0.2).held_out
        0.2
        >>> ConstructorConfig(held_out=1)
        Traceback (most recent call last):
            ...
        ValueError: `held_out` must be at least 0 and less than 1, got 1.
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
                raise ValueError(f"`{name}` must be at least 0 and less than 1, got {getattr(self, name)!r}.")
        if self.tokens_per_batch is None:
            raise ValueError("`tokens_per_batch` must be a number, got None.")
        for name, least in (("patience", 1), ("tokens_per_batch", 1), ("lora_r", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
        if self.patience is not None and not self.held_out and self.patience != type(self).patience:
            raise ValueError(
                f"`patience={self.patience}` requires words to evaluate on, got `held_out=0`. Set `held_out` above 0."
            )
        if self.lora_r is not None and self.train_embeddings:
            raise ValueError(
                f"`train_embeddings=True` cannot be combined with `lora_r={self.lora_r}`, whose constructor shares "
                "its table with the model. Set only one of them."
            )
        if not isinstance(self.training, dict):
            raise ValueError(f"`training` must be a dict of fields of TrainingArguments, got {self.training!r}.")

    @property
    def training_settings(self) -> dict[str, Any]:
        """The defaults, overridden by `training`."""
        return TRAINING_DEFAULTS | self.training

    @classmethod
    def read(cls, value: ConstructorConfig | dict[str, Any] | str | None) -> ConstructorConfig:
        """Read settings from a dict, a JSON object as text, the path of a JSON file, or `None` for the defaults.

        Args:
            value: The settings.

        Raises:
            ValueError: If the value is none of these or has an unknown field.

        Example:
            >>> ConstructorConfig.read('{"lora_r": 8}').lora_r
            8
        """
        return value if isinstance(value, cls) else cls(**cls.read_settings(value))

    @classmethod
    def read_settings(cls, value: ConstructorConfig | dict[str, Any] | str | None) -> dict[str, Any]:
        """Return the settings that a value for `read` names; for a config, those that differ from the defaults.

        Args:
            value: Any value that `read` accepts.

        Raises:
            ValueError: If `read` would raise one.
        """
        if isinstance(value, cls):
            plain = cls().to_dict()
            return {name: setting for name, setting in value.to_dict().items() if setting != plain[name]}
        if isinstance(value, str):
            text = value if value.lstrip().startswith("{") else _read_text(value)
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"`constructor` must be valid JSON, got {value!r}: {error}.") from error
        settings = {} if value is None else value
        if not isinstance(settings, dict):
            raise ValueError(f"`constructor` must be a dict of settings, such as {{'lora_r': 8}}, got {value!r}.")
        known = [one.name for one in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a setting of the constructor. Pass one of {', '.join(known)}.")
        return settings

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return asdict(self)


def _read_text(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"`constructor` must be a JSON object or the path of a JSON file, got {path!r}.")
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

# Zhang, Li, Okumura, arXiv 2408.01308: maximum length of the input, and settings of the constructor.
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
