"""Different definitions must give different vectors."""

from __future__ import annotations

import pytest
import torch

from defemb_callbacks import Definition
from defemb_callbacks.reconstruction.distinct import check_distinct, distinct_rows
from defemb_callbacks.reconstruction.prompts import DefinitionTexts, definition_texts
from tiny import wordpiece_tokenizer

WORDS = ["dog", "cat", "horse", "bird", "wolf", "tree", "ship", "road", "house", "river"]


def texts(glosses: list[str]) -> DefinitionTexts:
    definitions = [[Definition(word, gloss)] for word, gloss in zip(WORDS, glosses, strict=True)]
    return definition_texts(WORDS, definitions, wordpiece_tokenizer(), 64)


DIFFERENT = texts([f"the {word} is old" for word in reversed(WORDS)])


@pytest.mark.parametrize("block", [1, 3, 4096])
@pytest.mark.parametrize("different", [1, 2, 7, 50])
def test_rows_that_differ_are_counted(different, block):
    rows = torch.randn(different, 8)
    repeated = rows.repeat(3, 1)[torch.randperm(3 * different)]
    noise = 1 + 1e-7 * torch.randn_like(repeated)
    assert distinct_rows(repeated * noise, block) == different
    assert distinct_rows(rows[:0], block) == 0


def test_a_small_difference_in_one_coordinate_counts():
    rows = torch.ones(4, 100)
    rows[2, 7] += 0.01
    assert distinct_rows(rows) == 2


def test_one_vector_for_different_definitions_is_an_error():
    vectors = torch.randn(10, 4)
    check_distinct(vectors, lambda: DIFFERENT, "Cure.")
    vectors[1] = vectors[0]
    check_distinct(vectors, lambda: DIFFERENT, "Cure.")
    vectors[2] = vectors[0]
    match = r"definitions of 10 tokens, 10 of which differ, have given only 8 different vectors.* Cure\."
    with pytest.raises(ValueError, match=match):
        check_distinct(vectors, lambda: DIFFERENT, "Cure.")


def test_one_vector_for_one_definition_is_not():
    same = texts(["a living thing"] * 10)
    assert len(same.input_ids) == 1
    check_distinct(torch.ones(10, 4), lambda: same, "Cure.")
    # Texts that are equal after truncation are equal definitions.
    cut = DefinitionTexts([[1, 2]] * 10, DIFFERENT.text, DIFFERENT.word, DIFFERENT.weight)
    check_distinct(torch.ones(10, 4), lambda: cut, "Cure.")


def test_definitions_are_only_compared_if_vectors_are_equal():
    def unread() -> DefinitionTexts:
        raise AssertionError("The definitions are not needed.")

    check_distinct(torch.randn(10, 4), unread, "Cure.")
