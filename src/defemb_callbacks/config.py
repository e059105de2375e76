"""Settings of the rebuild and of the monitoring, validated on construction."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.constructor_config import PAPER_SETTINGS, ConstructorConfig
from defemb_callbacks.settings_checks import (
    check_choices,
    check_minimum,
    check_shares,
    distinct_choices,
    name_of_model,
    number_or_auto,
)

FeatureName = Literal["mean", "first", "mask", "bag", "layers", "middle", "last"]

# Settings that the reconstructed rows depend on; all others only decide what is written where, and when.
BUILD_FIELDS = ("method", "table", "features", "definitions_per_token", "max_length", "precision")

# Further settings that the written rows depend on.
APPLY_FIELDS = (
    *("strategy", "blend", "blend_floor", "rescale", "alpha"),
    *("only_training_tokens", "frequency", "group_edges"),
)


@dataclass
class DefinitionEMBConfig:
    """Settings of the rebuild and of the monitoring.

    `HfArgumentParser` parses this class together with `TrainingArguments`, so the field names of both are distinct.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what is allowed.

    Example:
        >>> DefinitionEMBConfig(blend=0.3).blend
        0.3
        >>> DefinitionEMBConfig(blend=3)
        Traceback (most recent call last):
            ...
        ValueError: `blend` must be between 0 and 1, got 3.
    """

    method: Literal["ridge", "learned"] = field(
        default="ridge",
        metadata={
            "help": "How definitions become embeddings: 'ridge' solves a cross-fitted linear map in closed form; "
            "'learned' trains a constructor, as in the paper."
        },
    )
    constructor: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Settings of the constructor for 'learned', as JSON or the path of a JSON file."},
    )
    table: Literal["input", "output", "decoder"] = field(
        default="input",
        metadata={
            "help": "The table to rebuild: 'input' (and an output table tied to it), 'output' if it is not tied, or "
            "'decoder' for an encoder-decoder whose decoder has its own input table."
        },
    )
    features: list[str] | None = field(
        default=None,
        metadata={
            "help": "Features of an encoded definition, one or more of: the 'mean' of the last hidden states, the "
            "'first' state, the 'last' state, the state at the 'mask', the mean of the 'middle' layer, the means of "
            "three 'layers', and the 'bag', the mean of the definition's token embeddings. By default the 'bag' with "
            "'layers' or 'mean' for encoders, with 'last', 'middle' or 'layers' for decoders: the combination that "
            "predicts left-out rows best."
        },
    )
    reader: Any | str | None = field(
        default=None,
        metadata={
            "help": "An encoder that reads the definitions instead of the model itself: its name on the Hub or its "
            "folder, e.g. 'sentence-transformers/all-MiniLM-L6-v2'; in Python also a SentenceTransformer, or a pair of "
            "model and tokenizer. `features` are then its features, and the 'bag' of the model's own embeddings is "
            "added. For models that are costly to read with, or that cannot read text by themselves."
        },
    )
    definitions_per_token: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of definitions of a word from each dictionary, best first. By default 8 for "
            "encoders and 2 for decoders."
        },
    )
    max_length: int = field(
        default=64, metadata={"help": "Maximum number of tokens of an encoded definition; longer ones are truncated."}
    )
    batch_size: int = field(
        default=128, metadata={"help": "Definitions encoded per batch; does not change the result."}
    )
    precision: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata={
            "help": "Precision of the encoder; 'auto' uses bfloat16 where it is fast and, with 'ridge', agrees with "
            "float32."
        },
    )
    strategy: Literal["blend", "replace"] = field(
        default="blend",
        metadata={
            "help": "'blend' turns the old row towards the new one and keeps its length; 'replace' overwrites it, as "
            "in the paper."
        },
    )
    blend: str = field(
        default="auto",
        metadata={
            "help": "Weight of the new row for the least frequent token, 0 to 1. 'auto' is 0.7, less where a language "
            "model's own predictions would suffer."
        },
    )
    blend_floor: float = field(
        default=0.5,
        metadata={
            "help": "Weight for the most frequent token, as a share of `blend`; in between it grows linearly with the "
            "frequency rank."
        },
    )
    rescale: bool = field(
        default=True,
        metadata={
            "help": "With 'replace', undo the shrinkage of regression by giving rows the median length of their group."
        },
    )
    alpha: float = field(
        default=1.0, metadata={"help": "Share of the tokens with a definition to rebuild, least frequent first."}
    )
    only_training_tokens: bool = field(
        default=False, metadata={"help": "Rebuild only tokens that occur in the training data."}
    )
    frequency: str = field(
        default="vocabulary",
        metadata={
            "help": "Source of token frequencies: the 'vocabulary' order, counts from the 'training_data', or a "
            "file of counts (.json {token: count}, or one 'token<TAB>count' per line)."
        },
    )
    group_edges: list[float] = field(
        default_factory=lambda: [0.3, 0.8],
        metadata={"help": "Boundaries of the frequent, medium and rare groups, as shares of the vocabulary."},
    )
    new_token_group: Literal["frequent", "medium", "rare"] = field(
        default="rare",
        metadata={"help": "Expected frequency of new tokens: their rows get the median length of this group."},
    )
    distil: bool = field(
        default=False,
        metadata={
            "help": "Train rows of new tokens of a causal language model, on their definitions, until it reads them as "
            "their sub-tokens. Terms with texts are always trained."
        },
    )
    texts_per_term: int = field(
        default=25, metadata={"help": "Maximum number of texts that the row of a new token is trained on."}
    )
    reuse_reserved: bool = field(
        default=False,
        metadata={
            "help": "Rename reserved tokens of the tokenizer, such as <unused12>, into new tokens, so that the table "
            "does not grow."
        },
    )
    monitor_steps: int | None = field(
        default=None,
        metadata={
            "help": "Measure the embeddings every `monitor_steps` steps; by default at the start, at the end, and in "
            "at most 20 log rows in between while that takes less than 0.5 % of the time, or one second. 0 disables "
            "the metrics."
        },
    )
    monitor_sample: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens measured per frequency group, always the same ones; by default all."
        },
    )
    ratings: str | None = field(
        default=None,
        metadata={
            "help": "File of human word similarity ratings (word, word, score) to correlate the embeddings with."
        },
    )
    plots: bool = field(default=True, metadata={"help": "Save figures in output_dir/defemb at the end of training."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that caches built embeddings; default $DEFEMB_CACHE or the Hugging Face home."},
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.constructor is not None:
            self.constructor = ConstructorConfig.read(self.constructor).to_dict()
            if self.method != "learned":
                raise ValueError(
                    f"`constructor` requires `method='learned'`, got `method={self.method!r}`. Set both, or neither."
                )
        if self.reader is not None and self.method == "learned":
            raise ValueError(
                f"`reader` requires `method='ridge'`, got `method='learned'` and `reader={name_of_model(self.reader)!r}"
                "`. Leave out one of them."
            )
        self.group_edges = list(self.group_edges)  # may be a tuple
        if self.features is not None:
            self.features = distinct_choices("features", self.features, get_args(FeatureName))
        self.blend = number_or_auto("blend", self.blend)  # type: ignore[assignment]
        check_shares(self, "blend", "blend_floor", "alpha")
        check_minimum(self, "definitions_per_token", 1)
        check_minimum(self, "max_length", 4)
        check_minimum(self, "batch_size", 1)
        check_minimum(self, "texts_per_term", 1)
        check_minimum(self, "monitor_steps", 0, "0 disables the metrics.")
        check_minimum(self, "monitor_sample", 2, "None measures every token.")
        if self.ratings is not None and not Path(self.ratings).is_file():
            raise ValueError(f"`ratings` must be the path of a file, got {self.ratings!r}.")
        if self.frequency not in ("vocabulary", "training_data") and not Path(self.frequency).is_file():
            raise ValueError(
                f"`frequency` must be 'vocabulary', 'training_data' or the path of a file, got {self.frequency!r}."
            )
        edges = self.group_edges
        if len(edges) != 2 or not 0 < edges[0] < edges[1] < 1:
            raise ValueError(f"`group_edges` must be two increasing shares between 0 and 1, got {self.group_edges!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON values; a reader that is a model is represented by its name."""
        return {**asdict(replace(self, reader=None)), "reader": name_of_model(self.reader)}

    @property
    def blend_weight(self) -> float | None:
        """`blend` as a number, or `None` if it is `"auto"`."""
        return None if self.blend == "auto" else float(self.blend)

    @property
    def constructor_config(self) -> ConstructorConfig:
        """The settings of the learned constructor."""
        return ConstructorConfig.read(self.constructor)

    @property
    def build_fingerprint(self) -> str:
        """Hex string of the settings that the reconstructed rows depend on."""
        parts = [f"{name}={getattr(self, name)!r}" for name in BUILD_FIELDS]
        if self.method == "learned":
            # The location does not change the rows.
            constructor = self.constructor_config.to_dict() | {"save_to": None}
            parts.append(json.dumps(constructor, sort_keys=True))
        return fingerprint(*parts)

    @classmethod
    def paper(cls, name: str, **overrides: Any) -> DefinitionEMBConfig:
        """Return the paper's settings for one of its models: a learned constructor and full replacement of rows.

        Defaults fill in what the paper does not specify: `definition_prompt` formats the definitions, and 2 % of the
        words are held out for evaluation.

        Args:
            name: `"roberta-base"`, `"bart-large"`, `"t5-large"` or `"t5gemma-l-ul2"`.
            **overrides: Other settings; `only_training_tokens=True` is the paper's task-specific replacement. The
                entries of `constructor`, and of its `training`, are merged with the paper's.

        Raises:
            ValueError: If the paper has no such model.

        Example:
            >>> config = DefinitionEMBConfig.paper("bart-large")
            >>> config.strategy, config.constructor_config.training["max_steps"]
            ('replace', 250000)
        """
        if name not in PAPER_SETTINGS:
            raise ValueError(f"`name` must be one of {', '.join(PAPER_SETTINGS)}, got {name!r}.")
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
        """Return a config with some fields replaced, as the callbacks accept them.

        Args:
            config: The config to start from; the defaults if `None`.
            overrides: Values of single fields.

        Raises:
            TypeError: If an override is not a field; the message lists the fields.

        Example:
            >>> DefinitionEMBConfig.resolve(None, {"alpha": 0.5}).alpha
            0.5
        """
        known = [f.name for f in fields(cls)]
        unknown = [name for name in overrides if name not in known]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is not a setting. Pass one of {', '.join(known)}.")
        return replace(config or cls(), **overrides)
