"""Inspection of one model or several: text, files, and which tokens count as rebuilt."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings, load_definitions, measure_embeddings
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.reporting.inspection import (
    Inspection,
    as_text,
    inspect_embeddings,
    rebuilt_tokens,
    record_of,
    save_inspections,
    short_names,
)
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import write_record
from defemb_callbacks.weights.rows import embedding_weight, read_table
from tiny import byte_bpe_tokenizer, tiny_bert, tiny_glossary, tiny_roberta, wordpiece_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return wordpiece_tokenizer()


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_definitions(tiny_glossary())


def rebuilt_model(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    model = tiny_bert(tokenizer)
    build_definition_embeddings(model, tokenizer, tiny_glossary()).apply(model, DefinitionEMBConfig(**settings))
    return model


@pytest.fixture(scope="module")
def plain(tokenizer, lexicon) -> Inspection:
    return inspect_embeddings("org/plain", tiny_bert(tokenizer), tokenizer, lexicon)


@pytest.fixture(scope="module")
def rebuilt(tokenizer, lexicon) -> Inspection:
    return inspect_embeddings("runs/<rebuilt>", rebuilt_model(tokenizer), tokenizer, lexicon)


@pytest.fixture(scope="module")
def cased(lexicon) -> Inspection:
    """Another tokenizer, another width, an untied output table."""
    tokenizer = byte_bpe_tokenizer()
    return inspect_embeddings("org/cased", tiny_roberta(tokenizer, hidden_size=16), tokenizer, lexicon)


@pytest.fixture(scope="module")
def untied(tokenizer, lexicon) -> Inspection:
    model = tiny_bert(tokenizer, BertForMaskedLM, tie_word_embeddings=False)
    return inspect_embeddings("untied", model, tokenizer, lexicon)


def test_an_inspection_contains_the_results_of_the_functions(plain, tokenizer, lexicon) -> None:
    model = tiny_bert(tokenizer)
    assert torch.equal(plain.table, read_table(model))
    assert plain.metrics == measure_embeddings(model, tokenizer, lexicon)
    assert plain.kinds["word"] == 374
    assert plain.defined_words == len(plain.glosses) == 66
    words = {plain.vocabulary.words[index]: gloss for index, gloss in plain.glosses.items()}
    assert words == tiny_glossary()
    assert plain.applied is None


def test_the_first_definition_in_the_text_of_one_model(plain, rebuilt) -> None:
    text = as_text([plain])
    assert text.startswith("org/plain: 476 tokens\n")
    assert f"{plain.metrics['defemb/isotropy/rare']:.4g}" in text
    assert "Rebuilt: 66 rows (blend)." in as_text([rebuilt])


def test_several_models_are_shown_side_by_side(plain, rebuilt, untied) -> None:
    lines = as_text([plain, rebuilt, untied]).splitlines()
    assert lines[0].split() == ["plain", "<rebuilt>", "untied"]
    cells = {line[:24].strip(): line[24:].split() for line in lines[1:6]}
    assert cells["tokens"] == ["476"] * 3
    assert cells["rebuilt from definitions"] == ["no", "66", "rows", "(blend)", "no"]
    start = next(number for number, line in enumerate(lines) if line.startswith("Isotropy I(E) (↑ higher is better)"))
    for line, group in zip(lines[start + 1 :], ("all", "frequent", "medium", "rare"), strict=False):
        name, first, second, verdict, third, other_verdict = line.split()
        assert name == group
        values = [model.metrics[f"defemb/isotropy/{group}"] for model in (plain, rebuilt, untied)]
        assert [first, second, third] == [f"{value:.3f}" for value in values]
        for said, number in ((verdict, 1), (other_verdict, 2)):
            same = f"{values[number]:.3f}" == first
            assert said == ("same" if same else "better" if values[number] > values[0] else "worse")
    widths = {len(line) for line in lines if line.startswith(("tokens", "words"))}
    assert len(widths) == 1
    # Only one of them has an untied output table: its values are in its column, without a verdict.
    output = lines.index("Norm of the output embeddings (neither direction is better)")
    assert lines[output + 1].split() == ["all", f"{untied.metrics['defemb/output_norm/all']:.2f}"]
    assert "66 tokens have different embeddings than in plain." in lines


def test_rebuilt_tokens_are_those_that_were_written(plain, rebuilt, tokenizer) -> None:
    ready = build_definition_embeddings(tiny_bert(tokenizer), tokenizer, tiny_glossary())
    assert torch.equal(rebuilt_tokens([plain, rebuilt]), ready.ids)
    assert torch.equal(rebuilt_tokens([rebuilt, plain]), ready.ids)


def test_rebuilt_tokens_are_found_through_rounding_and_not_in_it(plain, tokenizer, lexicon) -> None:
    model = rebuilt_model(tokenizer).to(torch.bfloat16)
    rounded = inspect_embeddings("rounded", model, tokenizer, lexicon)
    assert len(rebuilt_tokens([plain, rounded])) == 66


def test_what_cannot_be_compared_has_no_rebuilt_tokens(plain, rebuilt, cased, untied, tokenizer, lexicon) -> None:
    assert rebuilt_tokens([plain]) is None
    assert rebuilt_tokens([plain, untied]) is None  # neither was rebuilt
    assert rebuilt_tokens([rebuilt, rebuilt]) is None  # both by the same rebuild
    assert rebuilt_tokens([rebuilt, cased]) is None  # another tokenizer
    shifted = replace(rebuilt.vocabulary, tokens=rebuilt.vocabulary.tokens[::-1])
    assert rebuilt_tokens([plain, replace(rebuilt, vocabulary=shifted)]) is None  # another order
    wide = tiny_bert(tokenizer, hidden_size=64)
    write_record(wide, {"rebuilt": 1, "strategy": "blend"})
    assert rebuilt_tokens([plain, inspect_embeddings("wide", wide, tokenizer, lexicon)]) is None
    assert rebuilt_tokens([plain, cased, rebuilt]) is not None


def test_a_comparison_watches_rebuilt_rare_words(plain, rebuilt) -> None:
    record = record_of([plain, rebuilt])
    assert record.title == "Token embeddings of plain and <rebuilt>"
    assert list(record.snapshots) == ["plain", "<rebuilt>"]
    ids = set(record.rebuilt.tolist())
    for taken in record.snapshots.values():
        assert taken.neighbours
        assert set(taken.neighbours) <= ids
        for near in taken.neighbours.values():
            assert all(plain.vocabulary.words[other] for other, _ in near)
    assert record.glosses == {index: plain.glosses[index] for index in record.snapshots["plain"].neighbours}
    assert record.snapshots["<rebuilt>"].metrics == rebuilt.metrics
    assert record.settings["group_edges"] == [0.3, 0.8]
    assert "ratings" not in record.settings


def test_models_with_other_tokenizers_are_compared_on_the_same_words(plain, cased) -> None:
    record = record_of([plain, cased])
    asked = [
        [inspection.vocabulary.words[index] for index in taken.neighbours]
        for inspection, taken in zip((plain, cased), record.snapshots.values(), strict=True)
    ]
    assert asked[0] == asked[1] != []
    assert record.rebuilt is None
    assert record.rebuilt_by_snapshot == {}


def test_only_words_in_all_vocabularies_are_watched(plain) -> None:
    words = plain.vocabulary.words
    unknown = {words[index] for index in plain.groups["rare"].tolist()} - {None}
    renamed = tuple(f"{word}x" if word in unknown else word for word in words)
    other = replace(plain, vocabulary=replace(plain.vocabulary, words=renamed))
    first, second = record_of([plain, other]).snapshots.values()
    assert first.neighbours.keys() == second.neighbours.keys()
    assert first.neighbours
    assert not unknown & {words[index] for index in first.neighbours}


def test_the_table_of_a_model_is_measured_with_its_settings(tokenizer, lexicon, tmp_path) -> None:
    ratings = tmp_path / "ratings.tsv"
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2][:40]
    ratings.write_text("".join(f"{a}\t{b}\t{n % 7}\n" for n, (a, b) in enumerate(itertools.pairwise(words))))
    config = DefinitionEMBConfig(ratings=str(ratings), group_edges=[0.5, 0.9])
    model = tiny_bert(tokenizer)
    found = inspect_embeddings("rated", model, tokenizer, lexicon, config)
    assert found.metrics == measure_embeddings(model, tokenizer, lexicon, config)
    assert "defemb/rating_correlation/all" in found.metrics
    record = record_of([found])
    assert record.settings["ratings"] == str(ratings)
    assert len(found.groups["frequent"]) == int(0.5 * len(found.groups["all"]))


def test_a_page_and_pictures_are_written(tmp_path: Path, plain, rebuilt, cased) -> None:
    written = save_inspections(tmp_path / "one", [plain])
    assert sorted(path.name for path in written) == ["index.html", "projection.png", "singular_values.png"]
    page = (tmp_path / "one" / "index.html").read_text(encoding="utf-8")
    assert "token embeddings of <strong>plain</strong>." in " ".join(page.split())
    save_inspections(tmp_path / "three", [plain, rebuilt, cased])
    page = (tmp_path / "three" / "index.html").read_text(encoding="utf-8")
    assert "<strong>66</strong> tokens differ" in page
    assert "66 rows (blend)" in page
    assert ">&lt;rebuilt&gt;<" in page


def test_vectors_are_written_for_each_model(tmp_path: Path, plain, rebuilt, cased) -> None:
    written = save_inspections(tmp_path, [plain, rebuilt, cased], projector=True)
    folders = {path.parent.name for path in written if path.name == "tensors.tsv"}
    assert folders == {"plain", "<rebuilt>", "cased"}
    rows = (tmp_path / "projector" / "<rebuilt>" / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert sum(row.endswith("\tyes") for row in rows) == 66
    assert (tmp_path / "projector" / "cased" / "metadata.tsv").read_text().startswith("token\tword\tgroup\n")


def test_without_matplotlib_the_error_names_what_to_install(tmp_path: Path, plain, monkeypatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "defemb-callbacks\[plots\]"'):
        save_inspections(tmp_path / "new", [plain])
    assert not (tmp_path / "new").exists()


def test_names_are_short_and_different(tmp_path: Path, monkeypatch) -> None:
    assert short_names(["org/bert"]) == ["bert"]
    assert short_names(["a/bert", "b/bert", "roberta"]) == ["a/bert", "b/bert", "roberta"]
    assert short_names(["x/bert", "x/bert", "x/bert"]) == ["bert", "bert (2)", "bert (3)"]
    assert short_names(["bert", "org/bert"]) == ["bert", "org/bert"]
    assert short_names(["runs/1/model/", "runs/2/model"]) == ["1/model", "2/model"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_names(["."]) == ["here"]


def test_the_model_is_not_changed(tokenizer, lexicon) -> None:
    model = tiny_bert(tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record_of([inspect_embeddings("model", model, tokenizer, lexicon)])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert embedding_weight(model).requires_grad


@pytest.mark.slow
@pytest.mark.usefixtures("several_threads", "wordnet_dir")
def test_real_weights_before_and_after(minilm_dir: Path, tmp_path: Path) -> None:
    """The rebuilt rows are found one for one, their neighbours have changed, and the page stays small."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    model = AutoModel.from_pretrained(minilm_dir)
    vocabulary, wordnet = read_vocabulary(tokenizer), load_definitions("wordnet")
    defined = [word for word in vocabulary.words if word and wordnet.lookup(word)][::20]  # enough, and fast to build
    glossary = load_definitions({word: wordnet.lookup(word)[0].gloss for word in defined})
    before = inspect_embeddings("pretrained", model, tokenizer, glossary)
    other = AutoModel.from_pretrained(minilm_dir)
    ready = build_definition_embeddings(model, tokenizer, glossary, DefinitionEMBConfig(cache_dir=str(tmp_path)))
    ready.apply(other)
    after = inspect_embeddings("rebuilt", other, tokenizer, glossary)
    assert torch.equal(rebuilt_tokens([before, after]), ready.ids)
    [page, *_] = save_inspections(tmp_path / "page", [before, after])
    assert page.stat().st_size < 1_500_000
    first, second = (taken.neighbours for taken in record_of([before, after]).snapshots.values())
    assert len(first) == 10
    assert first.keys() == second.keys()
    assert all(first[index] != second[index] for index in first)
