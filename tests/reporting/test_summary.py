"""A report as plain JSON and as a readable table."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from defemb_callbacks import RebuildReport
from defemb_callbacks.reporting.summary import REPORTED_METRICS, GroupSummary

GROUPS = ("all", "frequent", "medium", "rare")


def figures(factor: float) -> dict[str, float]:
    values = {"isotropy": 0.25, "average_cosine": 0.125, "effective_rank": 210.0, "norm": 1.5, "relation_auc": 0.7}
    # The dictionary relates no frequent words.
    skipped = {"defemb/relation_auc/frequent"}
    keys = {f"defemb/{metric}/{group}": value * factor for metric, value in values.items() for group in GROUPS}
    return {key: value for key, value in keys.items() if key not in skipped}


REPORT = RebuildReport(
    groups={
        "all": GroupSummary(12345, 9000, 6000, 0.25),
        "frequent": GroupSummary(3704, 3000, 1000, 0.1),
        "medium": GroupSummary(6172, 4000, 3500, 0.25),
        "rare": GroupSummary(2469, 2000, 1500, 0.4),
    },
    skipped={
        "word piece": tuple(f"##piece{i}" for i in range(1500)),
        "number": ("1", "2", "1990"),
        "row without a token": ("", ""),
        "symbol": ("'", '"', "\n"),
    },
    before=figures(1.0),
    after=figures(1.1),
    info={"definitions": "wordnet", "r_squared": 0.1574, "settings": {"blend": 0.4, "group_edges": [0.3, 0.8]}},
)


def tables(report: RebuildReport) -> list[list[str]]:
    """The blocks of lines between blank ones."""
    return [block.splitlines() for block in str(report).split("\n\n")]


def test_to_dict_is_json_and_complete():
    read = json.loads(json.dumps(REPORT.to_dict()))
    assert read == json.loads(REPORT.to_json())
    assert read["groups"]["rare"] == {"tokens": 2469, "defined": 2000, "rebuilt": 1500, "weight": 0.4}
    assert len(read["skipped"]["word piece"]) == 1500
    assert read["before"] == REPORT.before
    assert read["after"] == REPORT.after
    assert read["info"] == REPORT.info


def test_json_keeps_the_marks_of_tokens_readable():
    assert "Ġcafé" in replace(REPORT, skipped={"word piece": ("Ġcafé",)}).to_json()


def test_rebuilt_is_the_number_of_all_groups():
    assert REPORT.rebuilt == 6000


def test_the_head_names_numbers_dictionary_and_fit():
    assert tables(REPORT)[0] == [
        "Rebuilt 6,000 of 12,345 token embeddings from definitions (wordnet).",
        "Held-out R² of rows predicted from definitions: 0.157.",
    ]
    assert tables(replace(REPORT, info={}))[0] == ["Rebuilt 6,000 of 12,345 token embeddings from definitions."]


def test_the_table_has_a_row_for_each_group_and_a_column_for_each_metric():
    heading, *rows = tables(REPORT)[1]
    assert all(metric.column in heading for metric in REPORTED_METRICS)
    assert [row.split()[0] for row in rows] == list(GROUPS)
    assert "0.250 → 0.275" in rows[0]
    assert "210 → 231" in rows[0]
    assert rows[3].split()[:5] == ["rare", "2,469", "2,000", "1,500", "0.40"]


def test_the_columns_of_the_table_are_aligned():
    heading, *rows = tables(REPORT)[1]
    for title in ("tokens", "defined", "rebuilt", "new weight", "isotropy", "avg cosine", "eff. rank", "norm"):
        end = heading.index(title) + len(title)
        for row in rows:
            assert row[end - 1] != " ", (title, row)
            assert row[end : end + 2].strip() == "", (title, row)


def test_a_metric_that_a_group_lacks_leaves_its_cell_empty():
    heading, _, frequent, medium, _ = tables(REPORT)[1]
    assert len(frequent) < heading.index("relation AUC")
    assert medium.endswith("0.700 → 0.770")


def test_a_metric_that_no_group_has_gets_no_column():
    report = replace(REPORT, after={key: value for key, value in REPORT.after.items() if "norm" not in key})
    assert "norm" not in str(report)
    assert "isotropy" in str(report)
    assert "isotropy" not in str(replace(REPORT, before={}, after={}))


def test_every_skipped_reason_is_shown_with_its_number_the_most_frequent_first():
    heading, *rows = tables(REPORT)[2]
    assert heading == "Kept unchanged: 1,508"
    assert [row.split("  ")[1].strip() for row in rows] == ["word piece", "number", "symbol", "row without a token"]
    numbers = [row.split("  ", 2)[2].split()[0] for row in rows]
    assert numbers == ["1,500", "3", "3", "2"]
    assert len({row.index(number) + len(number) for row, number in zip(rows, numbers, strict=True)}) == 1


def test_a_few_tokens_are_shown_as_examples():
    rows = {row.split("  ")[1].strip(): row for row in tables(REPORT)[2][1:]}
    assert rows["word piece"].endswith("##piece748, ##piece749, ##piece750, ##piece751, ##piece752, …")
    assert rows["number"].endswith("1, 2, 1990")
    # Line breaks are escaped; rows without a token show nothing.
    assert rows["symbol"].endswith(r"\n")
    assert rows["row without a token"].endswith("2")


def test_nothing_skipped_is_not_mentioned():
    assert "Kept" not in str(replace(REPORT, skipped={}))


def test_a_report_is_immutable():
    with pytest.raises(FrozenInstanceError):
        REPORT.groups = {}  # type: ignore[misc]
