"""new_tokens_lm.py: the tokenizer matches the model, and the losses add up."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaTokenizer


@pytest.fixture
def benchmark_module(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setenv("DEFEMB_TEST_DATA", str(data_dir))
    import new_tokens_lm

    return new_tokens_lm


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir / "models" / "stories260k"


@pytest.fixture
def model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def tokenizer(benchmark_module: ModuleType, folder: Path) -> LlamaTokenizer:
    return benchmark_module.read_tokenizer(folder)


def test_generated_text_is_tokenized_as_it_was_generated(model, tokenizer):
    """The model has learned the tokens of its tokenizer; other merges would give other tokens for the same text."""
    torch.manual_seed(0)
    start = torch.ones(16, 1, dtype=torch.int64)
    drawn = model.generate(start, attention_mask=start, do_sample=True, top_k=0, max_new_tokens=60, pad_token_id=0)
    written = [ids for ids in drawn[:, 1:].tolist() if not {0, 1, 2} & set(ids)]
    cut = tokenizer(tokenizer.batch_decode(written), add_special_tokens=False)["input_ids"]
    # The last token may be part of a token that the text does not complete.
    same = sum(ids[:58] == again[:58] for ids, again in zip(written, cut, strict=True))
    assert same >= 0.8 * len(written) > 8
    with torch.no_grad():
        assert model(input_ids=drawn, labels=drawn).loss < 1.7


def test_losses_are_those_of_the_parts_of_a_sentence(benchmark_module, model, tokenizer):
    story = "Once upon a time, there was a dog in a park with a tree."
    texts = benchmark_module.Texts([story, "The end."], ["park", "tree"])
    before = len("Once upon a time, there was a dog in a")
    assert dict(texts.sizes) == {"before": before, "word": 10, "after": 8, "words": 2, "": 8}
    found = texts.losses(model, tokenizer)
    parts = before * found["before"] + 2 * found["word"] + 8 * found["after"]
    ids = torch.tensor([[1, *tokenizer(story, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert parts == pytest.approx(expected, rel=1e-5)
    assert found["sentence"] * len(story) == pytest.approx(expected, rel=1e-5)


def test_only_the_chosen_rows_are_trained(benchmark_module, model, tokenizer):
    old = model.get_input_embeddings().weight.detach().clone()
    texts = tokenizer(["Once upon a time, there was a dog."], add_special_tokens=False)["input_ids"]
    steps = benchmark_module.train_rows(model, torch.tensor([263, 300]), texts, rate=0.1, seed=0, steps=(0, 2))
    assert list(steps) == [0, 2]
    changed = (model.get_input_embeddings().weight != old).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [263, 300]
