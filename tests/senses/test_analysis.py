"""Metrics and names of senses, and the command `defemb senses`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import tiny
from defemb_callbacks import load_definitions
from defemb_callbacks.cli import main
from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.senses import (
    SenseDictionary,
    build_sense_dictionary,
)
from defemb_callbacks.senses.analysis import measure_senses, name_senses, sense_table, tokens_of_words
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary

TEXTS = tiny.random_texts(160)


def test_metrics_match_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 3, 3, 5, 6])
    vectors = torch.randn(6, 4, generator=generator)
    vocabulary = Vocabulary(tuple("abcd"), tuple("abcd"), (None,) * 4, uncased=True)
    dictionary = SenseDictionary(offsets, vectors, torch.ones(6, dtype=torch.int64), vocabulary)
    ids = torch.randint(0, 4, (200,), generator=generator)
    states = torch.randn(200, 4, generator=generator) + 1
    groups = {"all": torch.arange(4), "rare": torch.tensor([2])}
    found = measure_senses(dictionary, states, ids, groups)
    lost, spread, evenness = {}, {}, {}
    for token in range(4):
        own, senses = states[ids == token], vectors[offsets[token] : offsets[token + 1]]
        best = (own @ senses.T).argmax(dim=1) if len(senses) else None
        lost[token] = 0.0 if best is None else float((own - senses[best]).square().sum())
        spread[token] = float((own - own.mean(dim=0)).square().sum())
        if len(senses) > 1:
            shares = torch.bincount(best, minlength=len(senses)) / len(own)
            evenness[token] = float(torch.distributions.Categorical(shares).entropy() / torch.tensor(len(senses)).log())
    counts = torch.bincount(ids)
    assert found["defemb/senses/all"] == 2.0
    assert found["defemb/senses/rare"] == 2.0
    assert found["defemb/sense_error/all"] == pytest.approx(sum(lost.values()) / sum(spread.values()), rel=1e-4)
    assert found["defemb/sense_error/rare"] == pytest.approx(lost[2] / spread[2], rel=1e-4)
    weighted = (evenness[0] * counts[0] + evenness[2] * counts[2]) / (counts[0] + counts[2])
    assert found["defemb/sense_entropy/all"] == pytest.approx(float(weighted), rel=1e-4)


def test_senses_are_named_by_the_nearest_definition(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    lexicon = load_definitions(
        {"house": ["a building in which a family lives", "the sun and the moon", "to go slowly"]}
    )
    token = tokenizer.convert_tokens_to_ids("house")
    glosses = [definition.gloss for definition in lexicon.lookup("house")]
    # The senses are the states of "house" after each gloss, plus noise.
    vectors = []
    for gloss in reversed(glosses):
        ids = tokenizer(f"{gloss}: house", return_tensors="pt")["input_ids"]
        vectors.append(last_states(teacher, ids)[0, ids[0].tolist().index(token)].detach())
    size = len(tokenizer)
    offsets = torch.zeros(size + 1, dtype=torch.int64)
    offsets[token + 1 :] = 3
    info = build_sense_dictionary(teacher, tokenizer, TEXTS[:2]).info
    noise = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    vocabulary = read_vocabulary(tokenizer)
    counts = torch.tensor([1, 6, 3])
    dictionary = SenseDictionary(offsets, torch.stack(vectors) + noise, counts, vocabulary, info=info)
    named = name_senses(dictionary, teacher, tokenizer, lexicon, [token])[token]
    assert [sense.sense for sense in named] == [1, 2, 0]
    assert [sense.share for sense in named] == pytest.approx([0.6, 0.3, 0.1])
    assert [sense.definition.gloss for sense in named] == [glosses[1], glosses[0], glosses[2]]
    assert min(sense.cosine for sense in named) > 0.7
    lines = sense_table(dictionary, {token: named}).splitlines()
    assert lines[0] == "house: 3 senses"
    assert lines[1].split()[:2] == ["1", "60%"]
    assert lines[1].endswith(glosses[1])
    empty = name_senses(dictionary, teacher, tokenizer, load_definitions({"dog": "an animal"}), [token])
    assert [sense.definition for sense in empty[token]] == [None] * 3


def test_words_that_are_not_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = read_vocabulary(tokenizer)
    assert tokens_of_words(vocabulary, ["house", "##s"]) == tokenizer.convert_tokens_to_ids(["house", "##s"])
    with pytest.raises(ValueError, match="'pembrolizumab' is not a token of this model"):
        tokens_of_words(vocabulary, ["pembrolizumab"])


def test_command(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "glossary.tsv").write_text("word\tdefinition\nthey\tthose people\nthey\tall the others\n")

    def run(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as end:
            main(["senses", str(tmp_path / "model"), str(tmp_path / "texts.txt"), *arguments])
        return end.value.code, capsys.readouterr()

    out = str(tmp_path / "out")
    words = ("--word", "they", "--definitions", str(tmp_path / "glossary.tsv"))
    code, printed = run(*words, "--output", out, "--senses", "3", "--storage", "float16", "--similarity", "euclidean")
    assert code == 0, printed.err
    assert "they: 3 senses" in printed.out
    assert "those people" in printed.out or "all the others" in printed.out
    saved = SenseDictionary.from_pretrained(out)
    assert saved.similarity == "euclidean"
    assert saved.storage == "float16"
    expected = build_sense_dictionary(teacher, tokenizer, TEXTS, senses=3).compressed("float16")
    torch.testing.assert_close(saved.vectors, expected.vectors, atol=1e-2, rtol=1e-2)
    code, printed = run()
    assert code == 1
    assert "Nothing to do. Pass --word WORD" in printed.err
    code, printed = run("--word", "pembrolizumab")
    assert code == 1
    assert "is not a token of this model" in printed.err
