"""Shared by the generators of the tables: Markdown and the names of the frequency groups."""

from __future__ import annotations

GROUPS = ("all", "frequent", "medium", "rare")


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
