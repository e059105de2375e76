"""What a rebuild did, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

# Heading, metric and format of the columns before → after.
COLUMNS = (
    ("isotropy", "isotropy", "{:.3f}"),
    ("avg cosine", "average_cosine", "{:.3f}"),
    ("eff. rank", "effective_rank", "{:.0f}"),
    ("norm", "norm", "{:.2f}"),
    ("relation AUC", "relation_auc", "{:.3f}"),
)


@dataclass(frozen=True)
class GroupSummary:
    """Tokens of a frequency group: all, those with a definition, those rebuilt, and the mean weight of the new rows."""

    tokens: int
    defined: int
    rebuilt: int
    weight: float


@dataclass(frozen=True)
class TermSummary:
    """A term that `define_new_tokens` was given, and what became of it.

    Attributes:
        term: as given.
        tokens: its tokens and their ids, the one at the start of a word first.
        is_new: whether the tokens were added, and not only rebuilt.
        definitions: how many its row was made of.
        pieces: what the tokenizer cut it into before.
        weight: share of the definitions in the new row; the rest is the sub-tokens' (of a token that was there: its old
            row's).
    """

    term: str
    tokens: dict[str, int]
    is_new: bool
    definitions: int
    pieces: tuple[str, ...]
    weight: float

    @property
    def made_of(self) -> str:
        """In words: what is in the row, in which shares.

        Example:
            >>> TermSummary("lynx", {"lynx": 9}, True, 2, ("ly", "##nx"), 0.9).made_of
            '90% 2 definitions, 10% sub-tokens'
        """
        number = f"{self.definitions} definition{'' if self.definitions == 1 else 's'}"
        shares = [(self.weight, number), (1 - self.weight, "sub-tokens" if self.is_new else "old row")]
        return ", ".join(f"{share:.0%} {what}" for share, what in shares if share)


@dataclass(frozen=True)
class RebuildReport:
    """What was rebuilt, what was not and why, and the metrics of the table before and after.

    `print(report)` shows a table; `report.to_dict()` is plain JSON.

    Attributes:
        groups: summary of "all", "frequent", "medium" and "rare".
        skipped: the tokens that kept their rows, by reason.
        before, after: metrics, `defemb/<metric>/<group>`.
        info: how the embeddings were built and applied.
        terms: of `define_new_tokens`: what became of each term; `skipped` names terms then.

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
        Kept as they were: 1
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
        """Plain JSON, the skipped tokens included."""
        return asdict(self)

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def __str__(self) -> str:
        total = self.groups["all"]
        source = f" ({self.info['definitions']})" if "definitions" in self.info else ""
        lines = [f"Rebuilt {total.rebuilt:,} of {total.tokens:,} token embeddings from definitions{source}."]
        if self.terms or "new_tokens" in self.info:
            lines = self._term_lines()
        if "r_squared" in self.info:
            lines.append(f"Share of the old rows' variation that definitions explain: {self.info['r_squared']:.3f}.")
        lines += ["", *_aligned(self.group_table())]
        if self.skipped:
            kept = "Not defined" if self.terms else "Kept as they were"
            lines += ["", f"{kept}: {sum(map(len, self.skipped.values())):,}"]
            by_number = sorted(self.skipped.items(), key=lambda item: -len(item[1]))
            rows = [[f"  {reason}", f"{len(tokens):,}", _examples(tokens)] for reason, tokens in by_number]
            lines += _aligned(rows, left=(0, len(rows[0]) - 1))
        return "\n".join(lines)

    def _term_lines(self, shown: int = 10) -> list[str]:
        new = [term for term in self.terms if term.is_new]
        number = sum(len(term.tokens) for term in new)
        lines = [f"Added {number:,} tokens for {len(new):,} terms; {len(self.terms) - len(new):,} were tokens already."]
        table = [["term", "token", "row made of", "was"]]
        for term in self.terms[:shown]:
            tokens = ", ".join(map(str, term.tokens.values()))
            table.append([term.term, tokens, term.made_of, " ".join(term.pieces)])
        more = [f"… and {len(self.terms) - shown:,} more"] if len(self.terms) > shown else []
        return [*lines, "", *_aligned(table, left=range(4)), *more, ""]

    def group_table(self) -> list[list[str]]:
        """Heading and rows of the table by frequency group, as text; a metric is shown as before → after."""
        shown = [
            column for column in COLUMNS if any(f"defemb/{column[1]}/{group}" in self.after for group in self.groups)
        ]
        table = [["group", "tokens", "defined", "rebuilt", "new weight", *(heading for heading, *_ in shown)]]
        for name, group in self.groups.items():
            cells = [name, f"{group.tokens:,}", f"{group.defined:,}", f"{group.rebuilt:,}", f"{group.weight:.2f}"]
            for _, metric, form in shown:
                key = f"defemb/{metric}/{name}"
                known = key in self.before and key in self.after
                cells.append(f"{form.format(self.before[key])} → {form.format(self.after[key])}" if known else "")
            table.append(cells)
        return table


def _examples(tokens: tuple[str, ...], number: int = 5) -> str:
    # From the middle of the vocabulary: the first tokens are seldom typical.
    start = max(0, len(tokens) // 2 - number // 2)
    shown = ", ".join(repr(token)[1:-1] for token in tokens[start : start + number] if token)
    return f"{shown}, …" if shown and len(tokens) > number else shown


def _aligned(rows: list[list[str]], left: Collection[int] = (0,)) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
