"""New tokens in a Trainer run and on the command line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, Trainer

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig, define_new_tokens
from defemb_callbacks.callbacks.new_tokens import NewTokens
from defemb_callbacks.cli import main
from defemb_callbacks.weights.config_record import read_new_tokens_record, read_record
from defemb_callbacks.weights.rows import read_table
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

TERMS = {"lynx": "a wild cat with long ears", "tokamak": "a machine for hot gas"}
SENTENCES = ["the lynx was in the house", "a tokamak is on the road", "the lynx", "he saw the old tokamak"] * 4


@pytest.fixture
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny_bert(tokenizer, BertForSequenceClassification)


def tokenized(tokenizer: Any) -> Dataset:
    return Dataset.from_dict({**tokenizer(SENTENCES, padding=True), "labels": [0, 1] * 8})


def test_terms_are_added_before_tokenization_and_rows_before_training(tokenizer, model, tmp_path):
    callback = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS, tokenizer=tokenizer, monitor_steps=1)
    size = len(read_table(model))
    assert tokenizer.tokenize("the lynx") == ["the", "lynx"]  # immediately
    trainer = Trainer(
        model,
        training_args(tmp_path),
        train_dataset=tokenized(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    start = read_table(model)
    assert len(start) == len(tokenizer) == size + 2
    assert callback.new_tokens_report.terms[0].tokens == {"lynx": size}
    assert callback.report.rebuilt > 50  # the existing words
    assert callback.report.groups["all"].tokens == callback.new_tokens_report.groups["all"].tokens
    trainer.train()
    end = read_table(trainer.model)
    assert (end[size:] != start[size:]).any(dim=1).all()  # the new rows are trained
    assert any("defemb/isotropy/rare" in row for row in trainer.state.log_history)
    assert json.loads((tmp_path / "defemb" / "new_tokens.json").read_text())["terms"][1]["term"] == "tokamak"

    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(read_table(loaded), end)
    assert again.tokenize("the lynx") == ["the", "lynx"]
    # The saved config records the new tokens and the rebuild.
    second = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)
    Trainer(loaded, training_args(tmp_path / "second"), processing_class=again, callbacks=[second])
    assert second.new_tokens_report is None
    assert second.report is None
    assert torch.equal(read_table(loaded), end)


def test_rows_equal_those_of_define_new_tokens(tokenizer, model, tmp_path):
    callback = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS, alpha=0.0)
    Trainer(model, training_args(tmp_path), processing_class=tokenizer, callbacks=[callback])
    other, its = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification), wordpiece_tokenizer()
    define_new_tokens(other, its, TERMS, tiny_glossary())
    assert torch.equal(read_table(model), read_table(other))
    assert read_new_tokens_record(model) == read_new_tokens_record(other)


def test_existing_words_are_rebuilt_from_the_same_build(tokenizer, model, tmp_path):
    """As without new tokens, except for the mean of the table, which includes them."""
    DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)
    other = tiny_bert(tokenizer, BertForSequenceClassification)
    Trainer(
        other,
        training_args(tmp_path / "a"),
        processing_class=wordpiece_tokenizer(),
        callbacks=[DefinitionEMBCallback(tiny_glossary())],
    )
    Trainer(
        model,
        training_args(tmp_path / "b"),
        processing_class=tokenizer,
        callbacks=[DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)],
    )
    torch.testing.assert_close(read_table(model)[:-2], read_table(other), atol=1e-2, rtol=5e-2)


def test_with_counts_of_the_training_data(tokenizer, model, tmp_path):
    callback = DefinitionEMBCallback(
        tiny_glossary(), new_tokens=TERMS, tokenizer=tokenizer, frequency="training_data", only_training_tokens=True
    )
    trainer = Trainer(
        model,
        training_args(tmp_path),
        train_dataset=tokenized(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    assert callback.report is None
    assert read_record(model) is None
    trainer.train()
    assert callback.report.groups["all"].rebuilt == sum(word in tiny_glossary() for word in ("house", "road"))


def test_a_warning_if_the_data_have_no_new_tokens(tokenizer, model, tmp_path, caplog):
    trainer = Trainer(
        model,
        training_args(tmp_path, max_steps=1),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)],
    )
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        trainer.train()
    assert "None of the 2 new tokens occurs in the training data (64 rows" in caplog.text
    assert "pass tokenizer= to the callback" in caplog.text


def test_a_model_made_in_training_is_an_error(tokenizer, tmp_path):
    trainer = Trainer(
        model_init=lambda: tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification),
        args=training_args(tmp_path),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)],
    )
    with pytest.raises(ValueError, match=r"no rows for the new tokens.*define_new_tokens\(.* in model_init"):
        trainer.train()


def test_a_resumed_run_gets_the_rows_of_its_checkpoint(tmp_path):
    def trainer(steps: int) -> Trainer:
        tokenizer = wordpiece_tokenizer()
        callback = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS, tokenizer=tokenizer)
        return Trainer(
            tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification),
            training_args(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2, lr_scheduler_type="constant"),
            train_dataset=tokenized(tokenizer),
            processing_class=tokenizer,
            callbacks=[callback],
        )

    whole = trainer(4)
    whole.train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(read_table(resumed.model), read_table(whole.model))


def test_the_users_definition_of_a_known_word_is_used(tokenizer, tmp_path):
    rows = []
    for number, gloss in enumerate(("a game of cards for four", "a part of the nose")):
        model = tiny_bert(tokenizer, BertForSequenceClassification)
        callback = DefinitionEMBCallback(tiny_glossary(), new_tokens={"bridge": gloss}, strategy="replace")
        folder = training_args(tmp_path / str(number))
        Trainer(model, folder, processing_class=wordpiece_tokenizer(), callbacks=[callback])
        assert callback.report.rebuilt > 50
        rows.append(read_table(model)[tokenizer.convert_tokens_to_ids("bridge")])
    assert torch.cosine_similarity(*rows, dim=0) < 0.9


def test_only_terms_that_the_model_lacks_are_written(tokenizer, model, tmp_path):
    define_new_tokens(model, tokenizer, {"lynx": TERMS["lynx"]}, tiny_glossary())
    define_new_tokens(model, tokenizer, {"ocelot": "a small wild cat"}, tiny_glossary())
    lynx, ocelot = read_table(model)[-2:]
    callback = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS, alpha=0.0)
    Trainer(model, training_args(tmp_path), processing_class=tokenizer, callbacks=[callback])
    assert [term.term for term in callback.new_tokens_report.terms] == ["tokamak"]
    assert torch.equal(read_table(model)[-3:-1], torch.stack([lynx, ocelot]))
    # A second Trainer has nothing to do, and the report is kept.
    report = callback.new_tokens_report
    Trainer(model, training_args(tmp_path), processing_class=tokenizer, callbacks=[callback])
    assert callback.new_tokens_report is report


def test_a_model_made_in_training_is_an_error_even_with_padding_rows(tokenizer, tmp_path):
    def model_init() -> Any:
        return tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification, vocab_size=512)

    trainer = Trainer(
        model_init=model_init,
        args=training_args(tmp_path),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS)],
    )
    with pytest.raises(ValueError, match="no rows for the new tokens"):
        trainer.train()


def test_rows_are_trained_on_the_training_data(tokenizer, model, tmp_path):
    texts = Dataset.from_dict({"text": SENTENCES})["text"]
    callback = DefinitionEMBCallback(tiny_glossary(), new_tokens=TERMS, new_token_texts=texts, tokenizer=tokenizer)
    plain = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
    NewTokens(TERMS, tiny_glossary(), callback.config, SENTENCES[:4]).extend(wordpiece_tokenizer())
    Trainer(
        model,
        training_args(tmp_path),
        train_dataset=tokenized(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    assert [term.texts for term in callback.new_tokens_report.terms] == [2, 2]  # different ones
    expected = define_new_tokens(plain, wordpiece_tokenizer(), TERMS, tiny_glossary(), texts=SENTENCES)
    assert expected.terms == callback.new_tokens_report.terms
    report = json.loads((tmp_path / "defemb" / "new_tokens.json").read_text())
    assert report["info"]["token_distillation"]["readings"] == 4 + 6


def test_multiple_choice_rows_are_checked(tokenizer, model, caplog):
    new_tokens = NewTokens(TERMS, tiny_glossary(), DefinitionEMBConfig())
    new_tokens.extend(tokenizer)
    new_tokens.write(model)
    new_tokens.check(model, [{"input_ids": tokenizer(["the cat", "the lynx"])["input_ids"]}])
    assert not caplog.records
    new_tokens.check(model, [{"input_ids": tokenizer(["the cat", "the dog"])["input_ids"]}])
    assert "None of the" in caplog.text


def test_invalid_terms_are_an_error_when_the_callback_is_created(tokenizer):
    with pytest.raises(ValueError, match="special token"):
        DefinitionEMBCallback(tiny_glossary(), new_tokens={"[MASK]": "a hole"}, tokenizer=tokenizer)


def test_the_command_line(tokenizer, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "glossary.json").write_text(json.dumps(tiny_glossary()))
    (tmp_path / "terms.tsv").write_text("word\tdefinition\n" + "".join(f"{a}\t{b}\n" for a, b in TERMS.items()))
    arguments = ["define", tmp_path / "model", tmp_path / "terms.tsv", "--output", tmp_path / "out"]
    arguments += ["--definitions", tmp_path / "glossary.json", "--report", tmp_path / "report.json"]
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert shown.startswith("Added 2 tokens for 2 terms")
    assert shown.rstrip().endswith(f"Saved in {tmp_path / 'out'}.")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    define_new_tokens(model, tokenizer, TERMS, tiny_glossary())
    assert torch.equal(read_table(loaded), read_table(model))
    assert again("a lynx")["input_ids"] == tokenizer("a lynx")["input_ids"]
    assert json.loads((tmp_path / "report.json").read_text())["terms"][0]["term"] == "lynx"
    card: str = (Path(tmp_path) / "out" / "README.md").read_text()
    assert "lynx" in card
    with pytest.raises(SystemExit) as end:
        main(["define", str(tmp_path / "model"), str(tmp_path / "terms.tsv"), "--output", str(tmp_path / "model")])
    assert end.value.code == 1
    assert "is the folder of MODEL" in capsys.readouterr().err


def run_define(capsys: Any, *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["define", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out + shown.err


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_the_command_line_reads_options(tokenizer, model, tmp_path, capsys, suffix):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "glossary.json").write_text(json.dumps(tiny_glossary()))
    rows = [
        {"word": "<|svg|>", "definition": "starts a drawing", "special": True},
        {"word": "ocelot", "like": {"lion": 2, "cat": 1}},
    ]
    contents = {
        "json": json.dumps({row["word"]: {key: row[key] for key in row if key != "word"} for row in rows}),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "csv": "word,definition,special,like\n<|svg|>,starts a drawing,yes,\nocelot,,,lion=2; cat\n",
    }
    (tmp_path / f"terms.{suffix}").write_text(contents[suffix])
    arguments = [tmp_path / "model", tmp_path / f"terms.{suffix}", "--output", tmp_path / "out", "--reuse-reserved"]
    code, shown = run_define(capsys, *arguments, "--definitions", tmp_path / "glossary.json")
    assert code == 0
    assert "2 of these tokens are renamed reserved tokens: [unused0], [unused1]." in shown
    assert "100% like lion, cat" in shown
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(again) == len(tokenizer)
    assert again("the<|svg|>ocelot", add_special_tokens=False)["input_ids"][1:] == [1, 2]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert len(read_table(loaded)) == len(tokenizer)


def test_the_command_line_proposes_words_of_a_corpus(tokenizer, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "glossary.json").write_text(json.dumps({**tiny_glossary(), "lynx": "a wild cat"}))
    (tmp_path / "texts.txt").write_text("the lynx was in the house\na lynx\n" * 3)
    corpus = [tmp_path / "model", "--corpus", tmp_path / "texts.txt"]
    words = [*corpus, "--definitions", tmp_path / "glossary.json", "--proposals", tmp_path / "terms.csv"]
    code, shown = run_define(capsys, *words)
    assert code == 0
    assert shown.startswith("1 word would save 18 of 42 tokens (42.9%)")
    assert "Next: defemb define" in shown
    assert not (tmp_path / "out").exists()
    arguments = [tmp_path / "model", tmp_path / "terms.csv", "--output", tmp_path / "out"]
    code, _ = run_define(capsys, *arguments, "--definitions", tmp_path / "glossary.json")
    assert code == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("a lynx") == ["a", "lynx"]


def test_the_command_line_finds_texts(tokenizer, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    glossary = {**tiny_glossary(), "lynx": "a wild cat"}
    (tmp_path / "glossary.json").write_text(json.dumps(glossary))
    lines = ["the Lynx was in the house", "a lynx is on the road", "he saw the old lynx there"]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    (tmp_path / "terms.csv").write_text("word,definition\nlynx,a wild cat\n")
    definitions = ["--definitions", tmp_path / "glossary.json"]
    options = ["--corpus", tmp_path / "texts.txt", "--proposals", tmp_path / "terms.jsonl", "--min-count", 2]
    assert run_define(capsys, tmp_path / "model", *options, *definitions)[0] == 0
    assert json.loads((tmp_path / "terms.jsonl").read_text()) == {
        "word": "lynx",
        "definition": "a wild cat",
        "count": 3,
        "tokens": 4,
        "saved": 9,
        "texts": lines,
    }
    tables = []
    for name, more in (("terms.jsonl", []), ("terms.csv", ["--texts", tmp_path / "texts.txt"]), ("terms.csv", [])):
        output = tmp_path / f"out{len(tables)}"
        arguments = [tmp_path / "model", tmp_path / name, "--output", output, *more, *definitions]
        code, shown = run_define(capsys, *arguments)
        assert code == 0
        assert ("distilled on 3 texts" in shown) == (len(tables) < 2)
        tables.append(read_table(AutoModelForSequenceClassification.from_pretrained(output)))
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[1], tables[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "Pass a glossary of terms and --output DIR; or --corpus FILE"),
        (["model", "terms.csv"], "Pass a glossary of terms and --output DIR"),
        (["model", "terms.csv", "--corpus", "texts.txt"], "Leave out TERMS and --output"),
        (["model", "--corpus", "texts.txt", "--texts", "texts.txt"], "--texts requires terms. Leave it out"),
        (["model", "terms.csv", "--output", "out", "--proposals", "p.csv"], "--proposals requires a corpus"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(capsys, arguments, message):
    code, shown = run_define(capsys, *arguments)
    assert code == 1
    assert message in shown
