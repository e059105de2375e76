"""Snapshots of the input table during a run, from which its pictures and HTML page are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.metrics.snapshot import TableSnapshot, watched_tokens
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.vocabulary.lookup import first_glosses
from defemb_callbacks.vocabulary.tokens import Vocabulary

# In the order in which they are shown
BEFORE_REBUILD, TRAIN_START, TRAIN_END = "before the rebuild", "at train start", "at train end"


class RunSnapshots:
    """Snapshots of one run: before the rebuild, and at the start and the end of training. For the main process only.

    Attributes:
        rebuilt_ids: (r,) int64 ids of the rebuilt tokens; `None` without a rebuild.
    """

    def __init__(self) -> None:
        self.rebuilt_ids: Tensor | None = None
        self._snapshots: dict[str, TableSnapshot] = {}
        self._watched: Tensor

    def take_before_rebuild(
        self,
        table: Tensor,
        vocabulary: Vocabulary,
        ids: Tensor,
        config: DefinitionEMBConfig,
        counts: Tensor | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Take a snapshot of a table that is about to be rebuilt.

        Args:
            table: (n, d) rows before the rebuild.
            vocabulary: Vocabulary of the table.
            ids: (r,) int64 ids of the tokens to rebuild.
            config: Settings of the frequency groups.
            counts: (n,) int64 token counts for `frequency="training_data"`.
            metrics: Metrics of the table.
        """
        groups = frequency_groups(configured_rank(vocabulary, config, counts), config.group_edges)
        watched = watched_tokens(ids, groups, vocabulary)
        self._snapshots[BEFORE_REBUILD] = TableSnapshot.take(
            table, groups, metrics=metrics, watched=watched, among=vocabulary.word_ids
        )

    def take_start(self, model: Any, monitor: EmbeddingMonitor, vocabulary: Vocabulary) -> dict[str, float]:
        """Measure the table and take a snapshot at the start of training.

        Returns:
            The metrics.
        """
        candidates = monitor.groups["all"] if self.rebuilt_ids is None else self.rebuilt_ids
        self._watched = watched_tokens(candidates, monitor.groups, vocabulary)
        self._snapshots[TRAIN_START] = monitor.snapshot(model, watched=self._watched)
        return self._snapshots[TRAIN_START].metrics

    def take_end(self, model: Any, monitor: EmbeddingMonitor, metrics: dict[str, float] | None) -> None:
        """Take a snapshot at the end of training. The table is measured if `metrics` is `None`.

        Raises:
            ValueError: If the table contains NaN or infinite values.
        """
        self._snapshots[TRAIN_END] = monitor.snapshot(model, metrics, watched=self._watched)

    def record(
        self,
        model: Any,
        vocabulary: Vocabulary,
        lexicon: Lexicon | None,
        log_history: list[dict[str, Any]],
        start_step: int,
        report: RebuildReport | None,
    ) -> RunRecord:
        """Return everything that the pictures and the page show.

        Args:
            model: The trained model.
            vocabulary: Its vocabulary.
            lexicon: Source of the definitions that are shown next to words.
            log_history: `state.log_history`.
            start_step: Step of the snapshot at the start of training.
            report: Report of the rebuild, if there was one.
        """
        moments = [name for name in (BEFORE_REBUILD, TRAIN_START, TRAIN_END) if name in self._snapshots]
        start = {"step": start_step, **self._snapshots[TRAIN_START].metrics}
        # The history of a run from its start contains the row of the start.
        rows = [row for row in log_history if row["step"] or start_step]
        rows = [row for row in rows if any(key.startswith("defemb/") for key in row)]
        return RunRecord(
            title=f"Token embeddings of {_name(model)}",
            snapshots={name: self._snapshots[name] for name in moments},
            vocabulary=vocabulary,
            history=sorted([start, *rows], key=lambda row: row["step"]),
            report=report,
            rebuilt=self.rebuilt_ids,
            glosses=first_glosses(vocabulary, lexicon, self._watched),
        )


def _name(model: Any) -> str:
    """The model's name on the page. Many folders are called "model" or "final", so theirs has the folder above it."""
    path = Path(getattr(model, "name_or_path", ""))
    if not path.name:
        return type(model).__name__
    return f"{path.parent.name}/{path.name}".lstrip("/") if path.is_dir() else path.name
