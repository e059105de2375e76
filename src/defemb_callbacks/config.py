"""Every setting of a rebuild, validated on construction."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.constructor_config import PAPER_SETTINGS, ConstructorConfig, check_choices

FeatureName = Literal["mean", "first", "mask", "bag"]

# The settings on which the reconstructed vectors depend; all others only decide what is written where, and when.
BUILD_FIELDS = ("method", "table", "features", "definitions_per_token", "max_length", "precision")

# The settings on which the written rows depend besides.
APPLY_FIELDS = (
    "strategy",
    "blend",
    "blend_floor",
    "rescale",
    "alpha",
    "only_training_tokens",
    "frequency",
    "group_edges",
)


@dataclass
class DefinitionEMBConfig:
    """Settings of the rebuild and of the monitoring.

    `HfArgumentParser` reads this class beside `TrainingArguments`, so no field may have the name of one of theirs.

    Raises:
        ValueError: a value outside its range; the message names the field, the value and what is allowed.

    Example:
        >>> DefinitionEMBConfig(blend=0.3).blend
        0.3
        >>> DefinitionEMBConfig(blend=3)
        Traceback (most recent call last):
            ...
        ValueError: blend=3 is not between 0 and 1.
    """

    method: Literal["ridge", "learned"] = field(
        default="ridge",
        metadata={
            "help": "How definitions become vectors: 'ridge' solves a cross-fitted linear map in closed form; "
            "'learned' trains a constructor (the paper)."
        },
    )
    constructor: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "With 'learned': settings of the constructor, as JSON or as a file of JSON."},
    )
    table: Literal["input", "output", "decoder"] = field(
        default="input",
        metadata={
            "help": "The table to rebuild: 'input' (and an output table tied to it), 'output' where it is not tied, or "
            "'decoder' where the decoder of an encoder-decoder reads a table of its own."
        },
    )
    features: list[str] = field(
        default_factory=lambda: ["mean", "bag"],
        metadata={
            "help": "What the map reads of an encoded definition, one or more of: 'mean' of the last hidden states, "
            "their 'first', the state at the 'mask', and the 'bag', the mean of the definition's token embeddings."
        },
    )
    definitions_per_token: int = field(
        default=8, metadata={"help": "Read at most so many definitions of a word from each dictionary, best first."}
    )
    max_length: int = field(default=64, metadata={"help": "Cut an encoded definition after so many tokens."})
    batch_size: int = field(default=128, metadata={"help": "Definitions encoded at once; does not change the result."})
    precision: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata={
            "help": "Arithmetic of the encoder; 'auto' takes bfloat16 where it is fast and (with 'ridge') agrees with "
            "float32."
        },
    )
    strategy: Literal["blend", "replace"] = field(
        default="blend",
        metadata={"help": "'blend' turns the old row towards the new one and keeps its length; 'replace' (the paper)."},
    )
    blend: float = field(
        default=0.4, metadata={"help": "Weight of the new direction in the row of the least frequent token."}
    )
    blend_floor: float = field(
        default=0.25,
        metadata={"help": "The most frequent token's share of that weight; between the two it grows with the rank."},
    )
    rescale: bool = field(
        default=True,
        metadata={
            "help": "With 'replace': undo the shrinkage of regression, giving rows their group's typical length."
        },
    )
    alpha: float = field(
        default=1.0, metadata={"help": "Rebuild this share of the tokens that have definitions, least frequent first."}
    )
    only_training_tokens: bool = field(
        default=False, metadata={"help": "Rebuild only tokens that occur in the training data."}
    )
    frequency: str = field(
        default="vocabulary",
        metadata={
            "help": "Order of tokens by frequency: the 'vocabulary' order, counts from the 'training_data', or a "
            "file of counts (.json {token: count}, or one 'token<TAB>count' a line)."
        },
    )
    group_edges: list[float] = field(
        default_factory=lambda: [0.3, 0.8],
        metadata={"help": "Where the frequent tokens end and where the rare ones begin, as shares of the vocabulary."},
    )
    new_token_group: Literal["frequent", "medium", "rare"] = field(
        default="rare",
        metadata={
            "help": "How frequent new tokens are expected to be: their rows get the typical length of this group."
        },
    )
    monitor_steps: int | None = field(
        default=None,
        metadata={
            "help": "Measure the embeddings every so many steps; by default at the start, at the end, and between in "
            "at most 20 rows of the log, as long as that takes less than 0.5 % of the time. 0 switches the metrics off."
        },
    )
    monitor_sample: int | None = field(
        default=None,
        metadata={"help": "Measure at most so many tokens of each frequency group, always the same; by default all."},
    )
    ratings: str | None = field(
        default=None,
        metadata={
            "help": "File of human word similarity ratings (word, word, score) to correlate the embeddings with."
        },
    )
    plots: bool = field(default=True, metadata={"help": "Save pictures in output_dir/defemb at the end of training."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where built embeddings are kept; default $DEFEMB_CACHE or the HF home."}
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.constructor is not None:
            self.constructor = ConstructorConfig.read(self.constructor).to_dict()
            if self.method != "learned":
                raise ValueError(f"constructor= is of method='learned', but method={self.method!r}.")
        if isinstance(self.features, str):  # type: ignore[unreachable]
            raise ValueError(f"features={self.features!r} must be a list, such as [{self.features!r}].")
        self.features, self.group_edges = list(self.features), list(self.group_edges)  # of a tuple, too
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f"features={self.features!r} must name at least one feature, and none twice.")
        unknown = [name for name in self.features if name not in get_args(FeatureName)]
        if unknown:
            raise ValueError(f"features contains {unknown[0]!r}; choose from {', '.join(get_args(FeatureName))}.")
        for name in ("blend", "blend_floor", "alpha"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} is not between 0 and 1.")
        for name, least in (("definitions_per_token", 1), ("max_length", 4), ("batch_size", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}={value!r} is less than {least}.")
        if self.monitor_steps is not None and self.monitor_steps < 0:
            raise ValueError(f"monitor_steps={self.monitor_steps!r} is negative; 0 switches the metrics off.")
        if self.monitor_sample is not None and self.monitor_sample < 2:
            raise ValueError(f"monitor_sample={self.monitor_sample!r} is less than 2; None measures every token.")
        if self.ratings is not None and not Path(self.ratings).is_file():
            raise ValueError(f"ratings={self.ratings!r} is not a file.")
        if self.frequency not in ("vocabulary", "training_data") and not Path(self.frequency).is_file():
            raise ValueError(f"frequency={self.frequency!r} is neither 'vocabulary', 'training_data', nor a file.")
        edges = self.group_edges
        if len(edges) != 2 or not 0 < edges[0] < edges[1] < 1:
            raise ValueError(f"group_edges={self.group_edges!r} must be two growing shares between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """All settings, as plain JSON values."""
        return asdict(self)

    @property
    def constructor_config(self) -> ConstructorConfig:
        """The settings of the learned constructor."""
        return ConstructorConfig.read(self.constructor)

    @property
    def build_fingerprint(self) -> str:
        """Hex string of the settings that change the reconstructed vectors."""
        parts = [f"{name}={getattr(self, name)!r}" for name in BUILD_FIELDS]
        if self.method == "learned":
            constructor = {**self.constructor_config.to_dict(), "save_to": None}  # where it goes changes nothing
            parts.append(json.dumps(constructor, sort_keys=True))
        return fingerprint(*parts)

    @classmethod
    def paper(cls, name: str, **overrides: Any) -> DefinitionEMBConfig:
        """The paper's settings for one of its models: a learned constructor, and full replacement by its vectors.

        Where the paper says nothing, the defaults stand: definitions are written as `definition_prompt` does, and 2 %
        of the words are held out to watch the constructor.

        Args:
            name: "roberta-base", "bart-large", "t5-large" or "t5gemma-l-ul2".
            **overrides: other settings; `only_training_tokens=True` is the paper's task-specific replacement. Those in
                `constructor` replace single settings of the paper's, also within its `training`.

        Raises:
            ValueError: any other name.

        Example:
            >>> config = DefinitionEMBConfig.paper("bart-large")
            >>> config.strategy, config.constructor_config.training["max_steps"]
            ('replace', 250000)
        """
        if name not in PAPER_SETTINGS:
            raise ValueError(f"The paper's models are {', '.join(PAPER_SETTINGS)}, not {name!r}.")
        max_length, constructor = PAPER_SETTINGS[name]
        changes = ConstructorConfig.read_settings(overrides.pop("constructor", None))
        training = {**constructor["training"], **changes.get("training", {})}
        constructor = {**constructor, **changes, "training": training}
        settings: dict[str, Any] = {
            "method": "learned",
            "constructor": constructor,
            "definitions_per_token": 1,
            "max_length": max_length,
            "strategy": "replace",
            "rescale": False,
        }
        return cls(**settings | overrides)

    @classmethod
    def resolve(cls, config: DefinitionEMBConfig | None, overrides: dict[str, Any]) -> DefinitionEMBConfig:
        """A config with some fields replaced, as the callbacks take them.

        Raises:
            TypeError: an override that is no field; the message lists the fields.

        Example:
            >>> DefinitionEMBConfig.resolve(None, {"alpha": 0.5}).alpha
            0.5
        """
        known = [f.name for f in fields(cls)]
        unknown = [name for name in overrides if name not in known]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no setting; known are {', '.join(known)}.")
        return cls(**{**(config.to_dict() if config else {}), **overrides})
