"""The record of a run, or of a comparison of models, that the page and the pictures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import Vocabulary


@dataclass(frozen=True)
class RunRecord:
    """Everything that the pictures and the page of a run, or of a comparison of models, show.

    Attributes:
        title: Heading of the page.
        snapshots: Snapshots by name, in order: one table at several times, or several models.
        vocabulary: The tokens of the rows.
        history: Rows of `state.log_history` with `step` and `defemb/<metric>/<group>` keys.
        report: Report of a rebuild, if there was one.
        rebuilt: Ids of the rebuilt tokens, (r,) int64.
        glosses: Definitions of watched tokens, by token id.
        settings: Settings of the run by name, in addition to those of the report.
        vocabularies: Vocabularies of snapshots that differ from that of the first one, by name of the snapshot.
        facts: Further facts about the model of each snapshot, `{name of the snapshot: {label: text}}`.

    Raises:
        ValueError: If there is no snapshot.
    """

    title: str
    snapshots: Mapping[str, TableSnapshot]
    vocabulary: Vocabulary
    history: Sequence[Mapping[str, Any]] = ()
    report: RebuildReport | None = None
    rebuilt: Tensor | None = None
    glosses: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.snapshots:
            raise ValueError(
                "`snapshots` must contain at least one snapshot, got none. Pass one of `TableSnapshot.take`."
            )

    @property
    def rebuilt_by_snapshot(self) -> dict[str, Tensor]:
        """The rebuilt tokens of each snapshot to whose vocabulary they belong; empty if no token was rebuilt."""
        if self.rebuilt is None or not len(self.rebuilt):
            return {}
        same = self.vocabulary.fingerprint
        return {
            name: self.rebuilt
            for name in self.snapshots
            if self.vocabularies.get(name, self.vocabulary).fingerprint == same
        }

    @property
    def all_settings(self) -> dict[str, Any]:
        """The settings of the report, updated by those of the record."""
        return {**(self.report.info.get("settings", {}) if self.report else {}), **self.settings}
