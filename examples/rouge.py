"""ROUGE as an `evaluate.Metric`, without downloads from the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SENTENCE_END = re.compile(r"([.!?][\"'”’)\]]*)\s+(?![a-z])")


class Rouge(evaluate.Metric):
    """F-measures of ROUGE-1, -2, -L and -Lsum from 0 to 1, equal to `evaluate.load("rouge")`.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; computed with the package rouge-score.

    Args:
        predictions, references: (n,) texts; for Lsum with one sentence per line, see `one_sentence_per_line`.
        rouge_types: The variants to compute.
        use_stemmer: Compare Porter stems of words.
        use_aggregator: Return one number for all texts: the median of the means of 1,000 bootstrap samples, drawn with
            numpy's global generator. `False` returns the score of each text, in order.

    Returns:
        `{"rouge1": float, …}`, or `{"rouge1": [float, …], …}` without the aggregator.

    Example:
        >>> scores = Rouge(keep_in_memory=True).compute(
        ...     predictions=["hello goodbye", "ankh morpork"],
        ...     references=["goodbye", "general kenobi"],
        ...     rouge_types=["rouge1"],
        ...     use_aggregator=False,
        ... )
        >>> [round(score, 4) for score in scores["rouge1"]]
        [0.6667, 0.0]
    """

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description="ROUGE-1, -2, -L and -Lsum of summaries, as F-measures.",
            citation="Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004",
            inputs_description=self.__doc__ or "",
            features=Features({"predictions": text, "references": text}),
            reference_urls=["https://aclanthology.org/W04-1013"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        rouge_types: Sequence[str] = ROUGE_TYPES,
        use_aggregator: bool = True,
        use_stemmer: bool = False,
    ) -> dict[str, Any]:
        scorer = RougeScorer(rouge_types, use_stemmer=use_stemmer)
        scores = [scorer.score(*texts) for texts in zip(references, predictions, strict=True)]
        if not use_aggregator:
            return {name: [float(score[name].fmeasure) for score in scores] for name in rouge_types}
        aggregator = BootstrapAggregator()
        for score in scores:
            aggregator.add_scores(score)
        return {name: float(interval.mid.fmeasure) for name, interval in aggregator.aggregate().items()}


def one_sentence_per_line(text: str) -> str:
    """Split a text into sentences for ROUGE-Lsum with a regular expression, which needs no download.

    A sentence ends at a line break, or at `.`, `!` or `?` with closing quotes and brackets before white space, unless a
    lower-case letter follows. So "e.g. this" is not an end, but "Mr. Smith" is.

    Example:
        >>> one_sentence_per_line('He said "No." Mr. Smith, i.e. the mayor, left.')
        'He said "No."\\nMr.\\nSmith, i.e. the mayor, left.'
    """
    return SENTENCE_END.sub(r"\1\n", text.strip())
