"""GLUE metrics as an `evaluate.Metric`, without downloads from the Hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# Other tasks: accuracy for classification, correlations for regression ("stsb").
MORE_THAN_ACCURACY = {"cola": ("matthews_correlation",), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1")}
METRICS = {
    "accuracy": lambda predictions, references: accuracy_score(references, predictions),
    "f1": lambda predictions, references: f1_score(references, predictions),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: pearsonr(predictions, references).statistic,
    "spearmanr": lambda predictions, references: spearmanr(predictions, references).statistic,
}


class GlueMetric(evaluate.Metric):
    """Metrics of a GLUE task, equal to `evaluate.load("glue", task)`; accuracy for any other task.

    A correlation of fewer than two pairs, or with a constant, is NaN.

    Args:
        config_name: "sst2", "mnli", …; "stsb" for any regression; `None` for any classification.

    Returns:
        `compute` returns `{"accuracy": float}`; also `"f1"` for "mrpc" and "qqp"; `{"matthews_correlation": float}` for
        "cola"; `{"pearson": float, "spearmanr": float}` for "stsb".

    Source: Wang et al., "GLUE", arXiv 1804.07461.

    Example:
        >>> GlueMetric("mrpc").compute(predictions=[1, 1, 0, 1], references=[1, 0, 0, 1])
        {'accuracy': 0.75, 'f1': 0.8}
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics of this task."""
        if self.config_name == "stsb":
            return ("pearson", "spearmanr")
        return MORE_THAN_ACCURACY.get(self.config_name, ("accuracy",))

    def of_each(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[float]]:
        """Return (n,) values per example for metrics that are means over examples, that is, accuracy."""
        right = [float(said == true) for said, true in zip(predictions, references, strict=True)]
        return {"accuracy": right} if "accuracy" in self.names else {}

    def _info(self) -> evaluate.MetricInfo:
        value = Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=f"Metrics of the GLUE task {self.config_name}.",
            citation="",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        correlation = self.config_name == "stsb"
        if correlation and min(len(set(predictions)), len(set(references))) < 2:
            return dict.fromkeys(self.names, math.nan)
        return {name: float(METRICS[name](predictions, references)) for name in self.names}
