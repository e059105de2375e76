"""run_summarization.py: small models with real vocabularies train, generate and are scored, on 1 or 2 processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_summarization
import torch
from arguments import parse
from data_files import load_splits
from datasets import Dataset, DatasetDict
from rouge import one_sentence_per_line
from rouge_score.rouge_scorer import RougeScorer
from run_summarization import DataArguments, ModelArguments
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from defemb_callbacks import DefinitionEMBConfig
from launching import accelerate_launch
from runs import changed_rows

RECIPES = Path(run_summarization.__file__).parent / "recipes"

# One of the 13 evaluation summaries has one of these rare words: beetle in XSum, marshmallow in CNN/DailyMail.
GLOSSARY = {
    "police": "those who see that the law is kept",
    "government": "those who rule a country",
    "beetle": "an insect with hard wing cases",
    "marshmallow": "a soft sweet of sugar and gelatin",
}
SETTINGS: dict[str, Any] = {
    "max_train_samples": 24,
    "max_eval_samples": 13,
    "max_source_length": 64,
    "max_target_length": 24,
    # No repeated word and at least a dozen tokens, so that a barely trained model generates something.
    "generation": {"min_length": 12, "no_repeat_ngram_size": 1},
    "do_train": True,
    "do_eval": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 0.05,
    "max_steps": 24,
    "plots": False,
    "monitor_steps": 0,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


@dataclass
class Case:
    """A model and its training data."""

    model: Path
    data: Path
    definitions: Path
    summary_column: str

    def options(self, output: Path, **settings: Any) -> list[str]:
        files = {f"{split}_file": self.data / f"{split}.jsonl" for split in ("train", "validation")}
        where = {"model_name_or_path": self.model, "definitions": self.definitions, "output_dir": output}
        given = {**SETTINGS, **files, **where, **settings}
        as_text = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in given.items()}
        return [f"--{name}={value}" for name, value in as_text.items()]

    @property
    def references(self) -> list[str]:
        lines = self.data.joinpath("validation.jsonl").read_text(encoding="utf-8").splitlines()[:13]
        return [json.loads(line)[self.summary_column] for line in lines]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.model)

    def table(self, folder: Path | None = None) -> Tensor:
        """(tokens, d) input embeddings, before or after."""
        weights = load_file((folder or self.model) / "model.safetensors")
        return weights["model.shared.weight" if "model.shared.weight" in weights else "shared.weight"]


@pytest.fixture(scope="module")
def cases(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("models")
    lines = ["word\tdefinition", *(f"{word}\t{gloss}" for word, gloss in GLOSSARY.items())]
    (folder / "glossary.tsv").write_text("\n".join(lines) + "\n")
    set_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=50265, **sizes, **layers, **NO_DROPOUT))
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0, decoder_start_token_id=0)
    )
    for name, model, tokenizer in (("bart", bart, "roberta-base"), ("t5", t5, "t5-small")):
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(data_dir / "tokenizers" / tokenizer).save_pretrained(folder / name)
    glossary = folder / "glossary.tsv"
    return {
        "bart": Case(folder / "bart", data_dir / "xsum", glossary, "summary"),
        "t5": Case(folder / "t5", data_dir / "cnn_dailymail", glossary, "highlights"),
    }


@pytest.fixture(scope="module")
def trained(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Case, Path]]:
    """Trains a model once; returns its case and output folder."""
    folder, done = tmp_path_factory.mktemp("trained"), {}

    def train(name: str) -> tuple[Case, Path]:
        if name not in done:
            run_summarization.main(cases[name].options(folder / name, save_strategy="steps", save_steps=12))
            done[name] = cases[name], folder / name
        return done[name]

    return train


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text())


def examples(folder: Path, name: str = "eval") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}_examples.jsonl").read_text(encoding="utf-8").splitlines()]


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_rouge_equals_rouge_score_of_the_generated_summaries(
    trained: Callable[[str], tuple[Case, Path]], name: str
) -> None:
    case, folder = trained(name)
    found, lines = results(folder), examples(folder)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    for reference, line in zip(case.references, lines, strict=True):
        texts = one_sentence_per_line(reference), one_sentence_per_line(line["prediction"])
        assert {kind: line[kind] for kind in scorer.rouge_types} == {
            kind: score.fmeasure for kind, score in scorer.score(*texts).items()
        }
    for kind in scorer.rouge_types:
        assert found[f"eval_{kind}"] == pytest.approx(np.mean([line[kind] for line in lines]))
    assert found["eval_rouge1"] > 0.01  # otherwise, all scores would be 0
    assert {"train_loss", "eval_loss"} <= set(found)


@pytest.mark.parametrize(("name", "where"), [("bart", "beetle"), ("t5", "marshmallow")])
def test_rouge_by_frequency(trained: Callable[[str], tuple[Case, Path]], name: str, where: str) -> None:
    case, folder = trained(name)
    found, lines = results(folder), examples(folder)
    assert [line["rare"] for line in lines] == [where in reference for reference in case.references]
    assert (found["eval_samples_rare"], found["eval_samples_other"]) == (1, 12)
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert found[f"eval_{kind}_rare"] == pytest.approx(sum(line[kind] for line in lines if line["rare"]))
        assert found[f"eval_{kind}_other"] == pytest.approx(np.mean([line[kind] for line in lines if not line["rare"]]))


@pytest.mark.parametrize(("definition_emb", "rebuilt"), [(True, set(GLOSSARY) - {"beetle"}), (False, set())])
def test_rows_are_rebuilt_except_in_the_baseline(
    cases: dict[str, Case], tmp_path: Path, definition_emb: bool, rebuilt: set[str]
) -> None:
    case = cases["t5"]  # no token of it is beetle
    frozen = {
        "learning_rate": 0,
        "max_steps": 1,
        "save_strategy": "steps",
        "definition_emb": definition_emb,
        "blend": 0.4,
    }
    found = run_summarization.main(case.options(tmp_path, **frozen))
    changed = changed_rows(case.table(), case.table(tmp_path))
    assert {token.lstrip("▁").lower() for token in case.tokenizer.convert_ids_to_tokens(changed.tolist())} == rebuilt
    assert found["eval_samples_rare"] == 1  # the same examples in both
    assert (tmp_path / "README.md").exists() == definition_emb


def test_a_resumed_run_equals_an_uninterrupted_one(trained: Callable[[str], tuple[Case, Path]], tmp_path: Path) -> None:
    case, folder = trained("t5")
    run_summarization.main(
        case.options(tmp_path, resume_from_checkpoint=folder / "checkpoint-12", save_strategy="steps")
    )
    torch.testing.assert_close(
        load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors"), rtol=0, atol=0
    )
    assert examples(tmp_path) == examples(folder)


def test_test_set_is_predicted(trained: Callable[[str], tuple[Case, Path]], tmp_path: Path) -> None:
    case, folder = trained("t5")
    only = {"do_train": False, "do_eval": False, "do_predict": True}
    test = {"test_file": case.data / "validation.jsonl", "model_name_or_path": folder}
    found = run_summarization.main(case.options(tmp_path, **only, **test))
    assert examples(tmp_path, "predict") == examples(folder)
    assert found["predict_rougeL"] == pytest.approx(results(folder)["eval_rougeL"])
    assert not (tmp_path / "eval_examples.jsonl").exists()


def test_accumulated_gradients_equal_those_of_the_whole_batch(cases: dict[str, Case], tmp_path: Path) -> None:
    for batch in (4, 2):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch, "do_eval": False}
        # Few steps: at this rate, rounding errors grow a thousandfold in twenty steps.
        run_summarization.main(cases["t5"].options(tmp_path / str(batch), max_steps=8, **sizes))
    # All summaries have the same length, so means of means are means.
    whole, accumulated = (results(tmp_path / str(batch))["train_loss"] for batch in (4, 2))
    assert accumulated == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(cases: dict[str, Case], tmp_path: Path) -> None:
    short = {"max_steps": 8, "logging_steps": 1}  # later, Adam amplifies rounding errors
    run_summarization.main(cases["t5"].options(tmp_path / "one", **short))
    halves = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    options = cases["t5"].options(tmp_path / "two", **short, **halves, log_level="info", log_level_replica="info")
    logged = accelerate_launch(run_summarization.__file__, *options, attempts=2)
    assert "Process 0 of 2." in logged
    assert "Process 1 of 2." in logged
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    losses = [[row["loss"] for row in history(tmp_path / run) if "loss" in row] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert one["eval_rouge1"] > 0.01
    # 13 examples in batches of 4: the last batch is padded with the first examples, which are still scored once.
    assert len(examples(tmp_path / "two")) == 13
    assert [line["rare"] for line in examples(tmp_path / "two")] == [
        line["rare"] for line in examples(tmp_path / "one")
    ]
    for name in [name for name in one if "rouge" in name]:
        assert two[name] == pytest.approx(one[name], abs=1e-3), name


def tokenized(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> Dataset:
    """Returns the training data."""

    class Stop(Exception):
        pass

    def trainer(*args: Any, train_dataset: Dataset, **settings: Any) -> None:
        raise Stop(train_dataset)

    monkeypatch.setattr(run_summarization, "Seq2SeqTrainer", trainer)
    with pytest.raises(Stop) as stopped:
        run_summarization.main(options)
    return stopped.value.args[0]


@pytest.mark.parametrize(
    ("name", "given", "start"),
    [
        ("t5", {}, "summarize: "),
        ("t5", {"source_prefix": ""}, ""),
        ("bart", {}, ""),
        ("bart", {"source_prefix": "In short: "}, "In short: "),
    ],
)
def test_prefix(
    cases: dict[str, Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    given: dict[str, str],
    start: str,
) -> None:
    pairs = {"document": ["A long story."], "summary": ["Short."]}
    monkeypatch.setattr(run_summarization, "load_splits", lambda *_: DatasetDict({"train": Dataset.from_dict(pairs)}))
    monkeypatch.setattr(run_summarization, "rare_rebuilt_tokens", lambda *_, **__: set())
    (row,) = tokenized(monkeypatch, cases[name].options(tmp_path, **given))
    tokenizer = cases[name].tokenizer
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == f"{start}A long story."
    assert tokenizer.decode(row["labels"], skip_special_tokens=True) == "Short."
    assert row["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("columns", "document", "summary"),
    [
        (["id", "document", "summary"], "document", "summary"),
        (["article", "highlights", "id"], "article", "highlights"),
        (["id", "summary", "dialogue"], "dialogue", "summary"),
        (["text", "summary", "title"], "text", "summary"),
        (["article", "abstract", "section_names"], "article", "abstract"),
    ],
)
def test_known_columns(columns: list[str], document: str, summary: str) -> None:
    found = DataArguments().pairs(Dataset.from_dict({name: [name] for name in columns}))
    assert found.to_dict() == {"document": [document], "summary": [summary]}


def test_named_columns() -> None:
    rows = Dataset.from_dict({"document": ["a number"], "body": ["a text"], "headline": ["a title"]})
    found = DataArguments(document_column="body", summary_column="headline").pairs(rows)
    assert found[0] == {"document": "a text", "summary": "a title"}
    with pytest.raises(ValueError, match=r"for the summary was found\. Pass --summary_column, one of document, body"):
        DataArguments().pairs(rows)
    with pytest.raises(ValueError, match=r"No column for the document was found\. Pass --document_column"):
        DataArguments(document_column="missing", summary_column="headline").pairs(rows)


def test_xsum_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(*which: Any, **how: Any) -> DatasetDict:
        asked.append((which, how))
        return DatasetDict({"train": Dataset.from_dict({"document": ["A b."], "summary": ["B."], "id": ["1"]})})

    monkeypatch.setattr("data_files.load_dataset", load_dataset)
    args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, do_train=True)
    load_splits(DataArguments(), args)
    load_splits(DataArguments("abisee/cnn_dailymail", "3.0.0"), args)
    assert asked == [
        (("EdinburghNLP/xsum", None), {"revision": "refs/convert/parquet"}),
        (("abisee/cnn_dailymail", "3.0.0"), {"revision": None}),
    ]
    assert DataArguments(train_file="mine.tsv").dataset_name is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generation": {"beams": 4}}, "has the unknown setting 'beams'"),
        ({"generation": {"num_beams": 1, "early_stopping": True}}, "early_stopping"),
    ],
)
def test_invalid_generation_settings(
    cases: dict[str, Case], tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_summarization.main(cases["t5"].options(tmp_path, **given))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*_large.yaml")), ids=lambda path: path.stem)
def test_recipes_have_the_papers_settings(recipe: Path) -> None:
    types = (ModelArguments, DataArguments, DefinitionEMBConfig, Seq2SeqTrainingArguments)
    options = [str(recipe), "--bf16=false", "--use_cpu", "--output_dir=out", "--alpha=0.5"]
    model, data, config, training = parse(types, options)
    paper = model.model_name_or_path.split("/")[1]
    assert config == DefinitionEMBConfig.paper(paper, alpha=0.5)
    assert data.max_source_length == config.max_length
    steps = {("bart-large", "cnn_dailymail"): 20_000, ("bart-large", "xsum"): 15_000}
    assert training.max_steps == steps.get((paper, data.dataset_name.split("/")[1]), 12_000)
    assert training.learning_rate == {"bart-large": 3e-5, "t5-large": 1e-3}[paper]
    assert not GenerationConfig().update(**json.loads(model.generation))
