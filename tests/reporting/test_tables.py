"""Tables of text and of Markdown: alignment, headings and missing cells."""

from __future__ import annotations

from defemb_callbacks.reporting.tables import markdown_table, text_table


def test_columns_are_aligned_and_lines_have_no_trailing_spaces() -> None:
    table = text_table([["all", "29,523", "a"], ["frequent", "5", ""]], ["group", "tokens", "note"], align="<><")
    assert table.splitlines() == ["group     tokens  note", "all       29,523  a", "frequent       5"]


def test_the_last_alignment_holds_for_further_columns() -> None:
    assert text_table([["a", "b", "c"], ["aa", "bb", "cc"]], align="<>").splitlines()[0] == "a    b   c"


def test_a_row_with_one_cell_does_not_widen_its_column() -> None:
    table = text_table([["a long heading of a section"], ["x", "1"], [""], ["yy", "22"]])
    assert table.splitlines() == ["a long heading of a section", "x    1", "", "yy  22"]


def test_a_table_without_rows_has_its_headers() -> None:
    assert text_table([], ["a", "b"]) == "a  b"
    assert text_table([]) == ""


def test_markdown_columns_have_their_alignment() -> None:
    lines = markdown_table([["x", "1", ""]], ["a", "b", "c"], align="<>").splitlines()
    assert lines == ["| a | b | c |", "| :-- | --: | --: |", "| x | 1 |  |"]
