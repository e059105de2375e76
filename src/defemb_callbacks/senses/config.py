"""How a sense dictionary is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Rule = Literal["fixed", "markov", "silhouette"]
Similarity = Literal["dot", "cosine", "euclidean"]


@dataclass(frozen=True)
class SenseConfig:
    """Settings of `SenseDictionary.build`; the defaults are the paper's for DeBERTa (arXiv 2504.06036).

    Raises:
        ValueError: a value outside its range, or more senses than samples.

    Example:
        >>> SenseConfig(senses=5).samples
        1000
        >>> SenseConfig(senses=50, samples=20)
        Traceback (most recent call last):
            ...
        ValueError: senses=50 needs at least as many samples of a token, got samples=20
    """

    senses: int = field(
        default=20,
        metadata={"help": "Senses of a token; with the rule 'silhouette' the most; 'markov' does not use it."},
    )
    rule: Rule = field(
        default="fixed",
        metadata={
            "help": "How many senses: 'fixed'; 'markov', by what Markov clustering proposes (the paper's for Llama); "
            "'silhouette', the number that separates best."
        },
    )
    samples: int = field(default=1000, metadata={"help": "States of a token that are clustered, at most."})
    min_samples: int = field(default=10, metadata={"help": "A token with fewer is not clustered."})
    keep_rare: bool = field(
        default=True,
        metadata={"help": "Whether the states of a token that is not clustered are its senses; else it has none."},
    )
    similarity: Similarity = field(
        default="dot",
        metadata={
            "help": "What chooses a sense: 'dot', the largest dot product with the state (the paper's), 'cosine', or "
            "'euclidean', the nearest sense, by which k-means has made them."
        },
    )
    layer: int = field(
        default=-1, metadata={"help": "Which hidden states: -1 the last, 0 what enters the first layer."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens; default the tokenizer's."})
    batch_size: int = field(default=32, metadata={"help": "Texts read at once."})
    seed: int = field(default=0, metadata={"help": "Of the samples and of the clusters' starts."})

    def __post_init__(self) -> None:
        for name in ("senses", "samples", "min_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, choices in (("rule", get_args(Rule)), ("similarity", get_args(Similarity))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.rule != "markov" and self.senses > self.samples:
            raise ValueError(
                f"senses={self.senses} needs at least as many samples of a token, got samples={self.samples}"
            )

    @classmethod
    def resolve(cls, config: SenseConfig | None, overrides: dict[str, Any]) -> SenseConfig:
        """A config, by default the default one, with single settings changed."""
        return replace(config or cls(), **overrides)

    @classmethod
    def paper(cls, name: str, **overrides: Any) -> SenseConfig:
        """The paper's settings: "deberta-v3" (large; 20 senses a token), or "llama-3-8b" (Markov clustering's number).

        Raises:
            ValueError: any other name.

        Example:
            >>> SenseConfig.paper("llama-3-8b").rule
            'markov'
        """
        presets: dict[str, dict[str, Any]] = {"deberta-v3": {}, "llama-3-8b": {"rule": "markov"}}
        if name not in presets:
            raise ValueError(f"the paper's models are {', '.join(presets)}, not {name!r}")
        return cls(**presets[name] | overrides)
