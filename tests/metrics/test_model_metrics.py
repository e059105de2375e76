"""EmbeddingMonitor and measure_embeddings: the metrics of a model's table, by its own frequency groups."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks import Definition, DefinitionEMBConfig, Lexicon, measure_embeddings
from defemb_callbacks.definitions import Relation
from defemb_callbacks.metrics import drift, isotropy, mean_norm, relation_auc
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.metrics.semantics import pairs_by_group
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight, read_table
from tiny import WORDS, tiny_bert, tiny_glossary, wordpiece_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return read_vocabulary(tokenizer)


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer)


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    """All words, each related to the next, so that every group has more than ten pairs."""
    words = [word for word in WORDS if "'" not in word]
    relations = [Relation(left, right, "hypernym") for left, right in pairwise(words)]
    definitions = [Definition(word, f"gloss {number}") for number, word in enumerate(words)]
    return Lexicon.from_definitions(definitions, name="related", relations=relations)


def test_groups_in_vocabulary_order(model, tokenizer, vocabulary) -> None:
    table, groups = read_table(model), frequency_groups(frequency_rank(vocabulary))
    figures = measure_embeddings(model, tokenizer)
    for name, ids in groups.items():
        assert figures[f"defemb/isotropy/{name}"] == pytest.approx(isotropy(table[ids]))
        assert figures[f"defemb/norm/{name}"] == pytest.approx(mean_norm(table[ids]))
    assert {key.split("/")[1] for key in figures} == {
        "isotropy",
        "average_cosine",
        "effective_rank",
        "isoscore",
        "norm",
    }


def test_a_dictionary_with_relations_gives_relation_auc(model, tokenizer, vocabulary, lexicon) -> None:
    figures = measure_embeddings(model, tokenizer, lexicon)
    groups = frequency_groups(frequency_rank(vocabulary))
    del groups["all"]
    for name, pairs in pairs_by_group(related_tokens(vocabulary, lexicon), groups).items():
        assert len(pairs) >= 10
        assert figures[f"defemb/relation_auc/{name}"] == pytest.approx(relation_auc(read_table(model), pairs))


def test_a_dictionary_without_relations_gives_none(model, tokenizer) -> None:
    assert measure_embeddings(model, tokenizer, tiny_glossary()) == measure_embeddings(model, tokenizer)


def test_group_edges_and_a_file_of_counts(model, tokenizer, vocabulary, tmp_path: Path) -> None:
    counts = torch.arange(len(vocabulary))  # the reversed order of the vocabulary
    file = tmp_path / "counts.tsv"
    file.write_text("".join(f"{token}\t{n}\n" for token, n in zip(vocabulary.tokens, counts.tolist(), strict=True)))
    config = DefinitionEMBConfig(frequency=str(file), group_edges=[0.1, 0.5])
    groups = frequency_groups(frequency_rank(vocabulary, counts), [0.1, 0.5])
    figures = measure_embeddings(model, tokenizer, config=config)
    assert figures["defemb/isotropy/rare"] == pytest.approx(isotropy(read_table(model)[groups["rare"]]))
    assert figures != measure_embeddings(model, tokenizer)


def test_drift_is_relative_to_the_rows_at_construction(model, vocabulary) -> None:
    monitor = EmbeddingMonitor(model, vocabulary, DefinitionEMBConfig())
    before = read_table(model)
    still = monitor.measure(model)
    with torch.no_grad():
        embedding_weight(model)[monitor.groups["rare"]] += 0.5
    moved = monitor.measure(model)
    assert still["defemb/drift/all"] == pytest.approx(0, abs=1e-12)
    assert still["defemb/neighbour_overlap/all"] == 1
    rare = monitor.groups["rare"]
    assert moved["defemb/drift/rare"] == pytest.approx(drift(read_table(model)[rare], before[rare]))
    assert moved["defemb/drift/rare"] > 0.05
    assert moved["defemb/drift/frequent"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("given", [True, False])
def test_counts_of_the_training_data(model, vocabulary, given) -> None:
    counts: Tensor | None = torch.arange(len(vocabulary)) if given else None
    config = DefinitionEMBConfig(frequency="training_data")
    if not given:
        with pytest.raises(ValueError, match="needs the token counts of the training data"):
            EmbeddingMonitor(model, vocabulary, config, counts=counts)
        return
    monitor = EmbeddingMonitor(model, vocabulary, config, counts=counts)
    assert int(monitor.groups["frequent"].min()) > int(monitor.groups["rare"].max())


def test_the_model_is_unchanged(model, vocabulary) -> None:
    before = read_table(model)
    EmbeddingMonitor(model, vocabulary, DefinitionEMBConfig()).measure(model)
    assert torch.equal(read_table(model), before)
    assert embedding_weight(model).grad is None
