"""Rouge equals rouge-score and the published evaluate module; texts are split into sentences for Lsum."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import rouge
from rouge import Rouge, one_sentence_per_line
from rouge_score.rouge_scorer import RougeScorer

WRITTEN = ["A cat was sitting on the mat.\nIt slept.", "Police arrest two men in Leeds.", "", "the the the"]
REFERENCES = ["It sleeps.\nThe cat sat on the mat.", "Two men were arrested by police.", "Nothing was said.", "the end"]

# Scores of the evaluate module "rouge" for these texts (evaluate 0.4.6, rouge-score 0.1.2).
PUBLISHED = {
    False: {
        "rouge1": [0.5882352941176471, 0.5, 0.0, 0.4],
        "rouge2": [0.26666666666666666, 0.20000000000000004, 0.0, 0.0],
        "rougeL": [0.47058823529411764, 0.3333333333333333, 0, 0.4],
        "rougeLsum": [0.5882352941176471, 0.3333333333333333, 0, 0.4],
    },
    True: {
        "rouge1": [0.5882352941176471, 0.6666666666666666, 0.0, 0.4],
        "rouge2": [0.26666666666666666, 0.20000000000000004, 0.0, 0.0],
        "rougeL": [0.47058823529411764, 0.3333333333333333, 0, 0.4],
        "rougeLsum": [0.5882352941176471, 0.3333333333333333, 0, 0.4],
    },
}
# The same with the stemmer and the aggregator, after numpy.random.seed(0).
AGGREGATED = {
    "rouge1": 0.4137254901960784,
    "rouge2": 0.11666666666666667,
    "rougeL": 0.3009803921568628,
    "rougeLsum": 0.33039215686274515,
}


@pytest.fixture(scope="module")
def metric() -> Rouge:
    return Rouge(keep_in_memory=True)


@pytest.mark.parametrize("stemmer", [False, True])
def test_scores_equal_the_published_module(metric: Rouge, stemmer: bool) -> None:
    found = metric.compute(predictions=WRITTEN, references=REFERENCES, use_stemmer=stemmer, use_aggregator=False)
    assert found == PUBLISHED[stemmer]


def test_the_aggregate_equals_the_published_module(metric: Rouge) -> None:
    np.random.seed(0)  # `compute` also uses numpy's generator in its cache
    assert metric._compute(WRITTEN, REFERENCES, use_stemmer=True) == AGGREGATED


def test_its_documented_example(metric: Rouge) -> None:
    texts = ["hello there", "general kenobi"]
    expected = {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "rougeLsum": 1.0}
    assert metric.compute(predictions=texts, references=texts) == expected


def test_real_summaries_score_equals_rouge_score(metric: Rouge, data_dir: Path) -> None:
    lines = (data_dir / "cnn_dailymail" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    rows = [json.loads(line) for line in lines]
    written = [one_sentence_per_line(row["article"][:300]) for row in rows]
    references = [one_sentence_per_line(row["highlights"]) for row in rows]
    found = metric.compute(predictions=written, references=references, use_stemmer=True, use_aggregator=False)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    by_hand = [scorer.score(reference, text) for reference, text in zip(references, written, strict=True)]
    assert found == {name: [score[name].fmeasure for score in by_hand] for name in scorer.rouge_types}
    assert np.mean(found["rougeLsum"]) > np.mean(found["rougeL"])  # they are equal without line breaks


def test_selected_types(metric: Rouge) -> None:
    found = metric.compute(
        predictions=WRITTEN, references=REFERENCES, rouge_types=["rougeL", "rouge3"], use_aggregator=False
    )
    assert list(found) == ["rougeL", "rouge3"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (" One.\nTwo\n", ["One.", "Two"]),
        ('He said "no." (Twice.) Then left.', ['He said "no."', "(Twice.)", "Then left."]),
        ("“Yes.” 25 came.", ["“Yes.”", "25 came."]),
        ("It rose by 2.5 per cent, i.e. slowly", ["It rose by 2.5 per cent, i.e. slowly"]),
        ("Mr. Smith", ["Mr.", "Smith"]),
        ("", [""]),
    ],
)
def test_sentences(text: str, lines: list[str]) -> None:
    assert one_sentence_per_line(text).split("\n") == lines


def test_docstrings() -> None:
    outcome = doctest.testmod(rouge)
    assert (outcome.failed, outcome.attempted) == (0, 3)
