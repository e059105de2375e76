"""What the page of one run, or of one comparison of models, is made of."""

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
    """All that the pictures and the page of one run, or of one comparison of models, show.

    Attributes:
        title: heading of the page.
        snapshots: by name, in order: of one table at several times, or of several models.
        vocabulary: what the rows of the tables stand for.
        history: rows of `state.log_history` with `step` and `defemb/<metric>/<group>` keys.
        report: what was rebuilt, if anything was.
        rebuilt: (r,) int64 ids of the rebuilt tokens.
        glosses: definitions of watched tokens, by id.
        settings: of the run, by name, besides those that the report tells.
        vocabularies: of the snapshots that have another vocabulary than the first, by the snapshot's name.
        facts: what else is known of each snapshot's model, {snapshot's name: {label: text}}.

    Raises:
        ValueError: no snapshot.
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
            raise ValueError("A record needs at least one snapshot.")

    @property
    def rebuilt_by_snapshot(self) -> dict[str, Tensor]:
        """`rebuilt` for each snapshot in whose vocabulary it counts; empty where no token was rebuilt."""
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
        """Those of the report, then those of the record itself."""
        return {**(self.report.info.get("settings", {}) if self.report else {}), **self.settings}
