"""Checks of settings: values that are allowed, and errors that name the field."""

from __future__ import annotations

import pytest

from defemb_callbacks.settings_checks import distinct_choices, number_or_auto


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("mean", r"`features` must be a list, got 'mean'\. Pass \['mean'\]"),
        ([], "`features` must be a non-empty list without duplicates"),
        (["mean", "mean"], "`features` must be a non-empty list without duplicates"),
        (["mean", "all"], "`features` must contain only mean, bag, got 'all'"),
    ],
)
def test_lists_of_choices(values, message) -> None:
    assert distinct_choices("features", ("bag", "mean"), ["mean", "bag"]) == ["bag", "mean"]
    with pytest.raises(ValueError, match=message):
        distinct_choices("features", values, ["mean", "bag"])


def test_numbers_as_text() -> None:
    assert [number_or_auto("blend", value) for value in ("auto", 0.3, 1, "0.5")] == ["auto", 0.3, 1, 0.5]
    for value in ("much", None):
        with pytest.raises(ValueError, match="`blend` must be 'auto' or a number between 0 and 1, got"):
            number_or_auto("blend", value)
