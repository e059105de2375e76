"""Settings for building a sense dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Rule = Literal["fixed", "markov", "silhouette"]
Similarity = Literal["dot", "cosine", "euclidean"]


@dataclass(frozen=True)
class SenseConfig:
    """Settings of `build_sense_dictionary`; the defaults are the paper's for DeBERTa (arXiv 2504.06036).

    Raises:
        ValueError: If a value is out of range, or if there are more senses than samples.

    Example:
        >>> SenseConfig(senses=5).samples
        1000
        >>> SenseConfig(senses=50, samples=20)
        Traceback (most recent call last):
            ...
        ValueError: `samples` must be at least `senses`=50, got 20. Increase `samples` or decrease `senses`.
    """

    senses: int = field(
        default=20,
        metadata={
            "help": "Number of senses per token; the maximum with rule='silhouette', ignored with rule='markov'."
        },
    )
    rule: Rule = field(
        default="fixed",
        metadata={
            "help": "How the number of senses is chosen: 'fixed' uses `senses`; 'markov' derives it from Markov "
            "clustering (the paper's rule for Llama); 'silhouette' takes the number with the best silhouette score."
        },
    )
    samples: int = field(default=1000, metadata={"help": "Maximum number of hidden states clustered per token."})
    min_samples: int = field(default=10, metadata={"help": "Tokens with fewer samples are not clustered."})
    keep_rare: bool = field(
        default=True,
        metadata={"help": "Whether a token that is not clustered keeps its states as senses; otherwise it has none."},
    )
    similarity: Similarity = field(
        default="dot",
        metadata={
            "help": "How a sense is selected for a state: 'dot', the largest dot product (the paper's choice), "
            "'cosine', or 'euclidean', the nearest sense, which is the criterion of k-means."
        },
    )
    layer: int = field(
        default=-1,
        metadata={"help": "Index of the hidden states: -1 for the last layer, 0 for the input of the first layer."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum text length in tokens; by default the tokenizer's limit."}
    )
    batch_size: int = field(default=32, metadata={"help": "Number of texts per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling and of the cluster initialization."})

    def __post_init__(self) -> None:
        for name in ("senses", "samples", "min_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, choices in (("rule", get_args(Rule)), ("similarity", get_args(Similarity))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.rule != "markov" and self.senses > self.samples:
            raise ValueError(
                f"`samples` must be at least `senses`={self.senses}, got {self.samples}. "
                "Increase `samples` or decrease `senses`."
            )

    @classmethod
    def resolve(cls, config: SenseConfig | None, overrides: dict[str, Any]) -> SenseConfig:
        """Return `config`, or the default config, with some fields replaced."""
        return replace(config or cls(), **overrides)

    @classmethod
    def paper(cls, name: str, **overrides: Any) -> SenseConfig:
        """Return the paper's settings for a model.

        Args:
            name: `"deberta-v3"` (large; 20 senses per token) or `"llama-3-8b"` (number of senses by Markov clustering).
            **overrides: Fields to replace.

        Raises:
            ValueError: If `name` is unknown.

        Example:
            >>> SenseConfig.paper("llama-3-8b").rule
            'markov'
        """
        presets: dict[str, dict[str, Any]] = {"deberta-v3": {}, "llama-3-8b": {"rule": "markov"}}
        if name not in presets:
            raise ValueError(f"`name` must be one of {', '.join(presets)}, got {name!r}.")
        return cls(**presets[name] | overrides)
