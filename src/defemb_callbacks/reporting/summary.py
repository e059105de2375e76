"""What a rebuild changed, as a value, as JSON and as a table of text."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from defemb_callbacks.metrics.catalog import CATALOG
from defemb_callbacks.reporting.tables import text_table

# Metrics with a column "before → after".
REPORTED_METRICS = tuple(metric for metric in CATALOG.values() if metric.column)


@dataclass(frozen=True)
class GroupSummary:
    """What was rebuilt in one frequency group.

    Attributes:
        tokens: Number of tokens.
        defined: Number of tokens with a definition.
        rebuilt: Number of tokens whose rows were written.
        weight: Mean weight of the new rows.
    """

    tokens: int
    defined: int
    rebuilt: int
    weight: float


@dataclass(frozen=True)
class TermSummary:
    """What `define_new_tokens` did with one term.

    Attributes:
        term: The term as given.
        tokens: Its tokens and their ids, the word-initial form first.
        is_new: Whether its tokens were added; otherwise they existed and were rebuilt.
        definitions: Number of definitions that its row was computed from.
        pieces: Tokens that the tokenizer split it into before.
        weight: Share of the definitions in the new row. The rest comes from the rows that it is like, and from the
            pieces or, for an existing token, from its old row.
        like: Words whose rows it is like, with their relative weights.
        like_weight: Share of these rows in the new row.
        given_pieces: Words or tokens that were given to be averaged instead of the sub-tokens.
        nearest: The words with the nearest rows after the change, nearest first.
        texts: Number of texts that its row was trained on (token distillation).
    """

    term: str
    tokens: dict[str, int]
    is_new: bool
    definitions: int
    pieces: tuple[str, ...]
    weight: float
    like: dict[str, float] = field(default_factory=dict)
    like_weight: float = 0.0
    given_pieces: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()
    texts: int = 0

    @property
    def composition(self) -> str:
        """What the new row consists of, in words.

        Example:
            >>> TermSummary("lynx", {"lynx": 9}, True, 2, ("ly", "##nx"), 0.9).composition
            '90% 2 definitions, 10% sub-tokens'
        """
        number = f"{self.definitions} definition{'' if self.definitions == 1 else 's'}"
        pieces = "given pieces" if self.given_pieces else "sub-tokens" if self.is_new else "old row"
        rest = 1 - self.weight - self.like_weight
        shares = [(self.weight, number), (self.like_weight, f"like {', '.join(self.like)}"), (rest, pieces)]
        parts = [f"{share:.0%} {what}" for share, what in shares if share > 1e-9]
        if self.texts:
            parts.append(f"distilled on {self.texts} text{'' if self.texts == 1 else 's'}")
        return ", ".join(parts)


@dataclass(frozen=True)
class RebuildReport:
    """Which rows were rebuilt, which were not and why, and the metrics of the table before and after.

    `print(report)` shows a table, `report.to_dict()` returns plain JSON.

    Attributes:
        groups: Summaries of the groups `"all"`, `"frequent"`, `"medium"` and `"rare"`.
        skipped: Tokens that kept their rows, by reason. From `define_new_tokens`: terms without a definition.
        before: Metrics before the rebuild, by key `defemb/<metric>/<group>`.
        after: Metrics after the rebuild, by the same keys.
        info: How the embeddings were built and applied.
        terms: What `define_new_tokens` did with each term.

    Example:
        >>> report = RebuildReport({"all": GroupSummary(3, 2, 2, 0.25)}, {"number": ("1990",)}, {}, {}, {})
        >>> report.rebuilt
        2
        >>> print(report)
        Rebuilt 2 of 3 token embeddings from definitions.
        <BLANKLINE>
        group  tokens  defined  rebuilt  new weight
        all         3        2        2        0.25
        <BLANKLINE>
        Kept unchanged: 1
          number  1  1990
    """

    groups: dict[str, GroupSummary]
    skipped: dict[str, tuple[str, ...]]
    before: dict[str, float]
    after: dict[str, float]
    info: dict[str, Any]
    terms: tuple[TermSummary, ...] = ()

    @property
    def rebuilt(self) -> int:
        """Number of rows written."""
        return self.groups["all"].rebuilt

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON, including all skipped tokens."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the report as a JSON string."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def __str__(self) -> str:
        lines = self._term_lines() if self.terms or "new_tokens" in self.info else [self.headline]
        if self.info.get("r_squared") is not None:
            lines.append(f"Held-out R² of rows predicted from definitions: {self.info['r_squared']:.3f}.")
        lines += self._language_model_lines() + self._distillation_lines() + self._other_text_lines()
        headers, rows = self.group_table()
        lines += ["", text_table(rows, headers)]
        if self.skipped:
            title = "Without a definition" if self.terms else "Kept unchanged"
            by_number = sorted(self.skipped.items(), key=lambda item: -len(item[1]))
            reasons = [[reason, f"{len(tokens):,}", _examples(tokens)] for reason, tokens in by_number]
            lines += ["", f"{title}: {sum(map(len, self.skipped.values())):,}"]
            lines.append(textwrap.indent(text_table(reasons, align="<><"), "  "))
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The first line of the report."""
        total = self.groups["all"]
        source = f" ({self.info['definitions']})" if "definitions" in self.info else ""
        return f"Rebuilt {total.rebuilt:,} of {total.tokens:,} token embeddings from definitions{source}."

    def _language_model_lines(self) -> list[str]:
        measured = self.info.get("language_model")
        if not measured:
            return []
        if "divergence" not in measured:
            return ["Nothing was written: the predictions of the language model could not be measured."]
        before, after = measured["loss_before"], measured["loss_after"]
        if not measured["share"]:
            return [f"Nothing was written: the loss of the language model would rise from {before:.4f} to {after:.4f}."]
        return [
            f"Loss of the language model on {measured['tokens']:,} tokens of definitions: {before:.4f} → {after:.4f} "
            f"(± {measured['standard_error']:.4f}); divergence from the pretrained predictions "
            f"{measured['divergence']:.4f} nats per token."
        ]

    def _distillation_lines(self) -> list[str]:
        measured = self.info.get("token_distillation")
        if not measured:
            return []
        return [
            f"Token distillation on {measured['readings']:,} texts and definitions: relative distance of the states to "
            f"those with the sub-tokens {measured['distance_before']:.3f} → {measured['distance_after']:.3f}."
        ]

    def _other_text_lines(self) -> list[str]:
        measured = self.info.get("other_text")
        if not measured:
            return []
        return [
            f"Loss of the language model on {measured['texts']} definitions without the terms: "
            f"{measured['loss_before']:.4f} → {measured['loss_after']:.4f} nats a token."
        ]

    def _term_lines(self, shown: int = 10) -> list[str]:
        new = [term for term in self.terms if term.is_new]
        added, existing = sum(len(term.tokens) for term in new), len(self.terms) - len(new)
        lines = [f"Added {added:,} tokens for {len(new):,} terms; {existing:,} terms already were tokens."]
        if renamed := self.info.get("renamed_tokens"):
            lines.append(f"{len(renamed):,} of these tokens are renamed reserved tokens: {_examples(tuple(renamed))}.")
        lines.append("")
        headers, rows = self.term_table(shown)
        lines.append(
            text_table(
                [[*row, " ".join(term.pieces)] for row, term in zip(rows, self.terms, strict=False)],
                [*headers, "tokens before"],
                align="<",
            )
        )
        if len(self.terms) > shown:
            lines.append(f"… and {len(self.terms) - shown:,} more")
        return [*lines, ""]

    def term_table(self, shown: int) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows of a table of the first `shown` terms."""
        rows = [
            [term.term, ", ".join(map(str, term.tokens.values())), term.composition, ", ".join(term.nearest)]
            for term in self.terms[:shown]
        ]
        return ["term", "token", "new row", "nearest words"], rows

    def group_table(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows of the table by frequency group; metrics are shown as before → after."""
        shown = [
            metric
            for metric in REPORTED_METRICS
            if any(f"defemb/{metric.name}/{group}" in self.after for group in self.groups)
        ]
        headers = ["group", "tokens", "defined", "rebuilt", "new weight", *(str(metric.column) for metric in shown)]
        rows = []
        for name, group in self.groups.items():
            row = [name, f"{group.tokens:,}", f"{group.defined:,}", f"{group.rebuilt:,}", f"{group.weight:.2f}"]
            for metric in shown:
                key = f"defemb/{metric.name}/{name}"
                values = [metrics[key] for metrics in (self.before, self.after) if key in metrics]
                row.append(" → ".join(map(metric.format_value, values)) if len(values) == 2 else "")
            rows.append(row)
        return headers, rows


def _examples(tokens: tuple[str, ...], number: int = 5) -> str:
    # From the middle of the vocabulary, because the first tokens are seldom typical.
    start = max(0, len(tokens) // 2 - number // 2)
    shown = ", ".join(repr(token)[1:-1] for token in tokens[start : start + number] if token)
    return f"{shown}, …" if shown and len(tokens) > number else shown
