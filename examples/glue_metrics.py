"""The metrics of GLUE as a metric of the library `evaluate`; nothing comes from the hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# What each task is scored by. Of all others a classification is by accuracy, a regression ("stsb") by correlations.
MORE_THAN_ACCURACY = {"cola": ("matthews_correlation",), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1")}
METRICS = {
    "accuracy": lambda predictions, references: accuracy_score(references, predictions),
    "f1": lambda predictions, references: f1_score(references, predictions),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: pearsonr(predictions, references).statistic,
    "spearmanr": lambda predictions, references: spearmanr(predictions, references).statistic,
}


class GlueMetric(evaluate.Metric):
    """The metrics of a GLUE task, as `evaluate.load("glue", task)` gives them; of any other task, accuracy.

    A correlation of fewer than two pairs, or with a constant, is NaN.

    Args:
        config_name: "sst2", "mnli", …; "stsb" for any regression; `None` for any classification.

    Returns:
        Of `compute`: `{"accuracy": float}`, for "mrpc" and "qqp" with `"f1"`, for "cola"
        `{"matthews_correlation": float}`, for "stsb" `{"pearson": float, "spearmanr": float}`.

    Source: Wang et al., "GLUE", arXiv 1804.07461.

    Example:
        >>> GlueMetric("mrpc").compute(predictions=[1, 1, 0, 1], references=[1, 0, 0, 1])
        {'accuracy': 0.75, 'f1': 0.8}
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of this task."""
        if self.config_name == "stsb":
            return ("pearson", "spearmanr")
        return MORE_THAN_ACCURACY.get(self.config_name, ("accuracy",))

    def of_each(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[float]]:
        """The metrics that are a mean over examples, as (n,) values of each example: accuracy, where it is one."""
        right = [float(said == true) for said, true in zip(predictions, references, strict=True)]
        return {"accuracy": right} if "accuracy" in self.names else {}

    def _info(self) -> evaluate.MetricInfo:
        value = Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=f"The metrics of GLUE's {self.config_name}.",
            citation="",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        correlation = self.config_name == "stsb"
        if correlation and min(len(set(predictions)), len(set(references))) < 2:
            return dict.fromkeys(self.names, math.nan)
        return {name: float(METRICS[name](predictions, references)) for name in self.names}
