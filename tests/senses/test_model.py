"""Models with senses, metrics and names of senses, SenseMonitorCallback, and the command `defemb senses`."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartModel,
    BertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    ElectraForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForSequenceClassification,
    T5ForConditionalGeneration,
    Trainer,
)

import tiny
from defemb_callbacks import load_definitions
from defemb_callbacks.callbacks.senses import SenseMonitorCallback
from defemb_callbacks.cli import main
from defemb_callbacks.reconstruction.backbone import backbone_of, last_states
from defemb_callbacks.senses import (
    SenseConfig,
    SenseDictionary,
    build_sense_dictionary,
    with_senses,
    without_senses,
)
from defemb_callbacks.senses.analysis import measure_senses, name_senses, sense_table, tokens_of_words
from defemb_callbacks.senses.model import SenseLayer, recorded_states
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary

WORDS = [word for word in tiny.WORDS if "'" not in word][:40]
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=4 + seed % 9)) for seed in range(100)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="module")
def teacher(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny.tiny_bert(tokenizer, BertForSequenceClassification)


@pytest.fixture(scope="module")
def dictionary(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SenseDictionary:
    return build_sense_dictionary(teacher, tokenizer, TEXTS, senses=3)


def of_class(model_class: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if model_class is BertForSequenceClassification:
        return tiny.tiny_bert(tokenizer, model_class)
    if model_class is RobertaForSequenceClassification:
        return tiny.tiny_roberta(tokenizer, model_class)
    return tiny.tiny_model(model_class, tokenizer)


@pytest.mark.parametrize(
    "model_class",
    [
        BertForSequenceClassification,
        RobertaForSequenceClassification,
        ElectraForSequenceClassification,
        DebertaV2ForSequenceClassification,
        GPT2ForSequenceClassification,
        LlamaForCausalLM,
        BartModel,
        T5ForConditionalGeneration,
    ],
)
def test_last_hidden_states_are_senses(model_class: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_class(model_class, tokenizer)
    dictionary = build_sense_dictionary(model, tokenizer, TEXTS, senses=3)
    batch = tokenizer(TEXTS[:4], return_tensors="pt", padding=True, return_token_type_ids=False)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with torch.no_grad():
        states, output = last_states(model, batch["input_ids"], batch["attention_mask"]), model(**batch)[0]
        with_senses(model, dictionary)
        senses, replaced = last_states(model, batch["input_ids"], batch["attention_mask"]), model(**batch)[0]
    assert torch.equal(senses, dictionary.lookup(states, batch["input_ids"]))
    assert not torch.equal(senses, states)
    assert (replaced - output).abs().max() > 1e-3
    with torch.no_grad():
        as_tuple = backbone_of(model)(batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=False)
        again = model(**without_senses(model) and batch)[0]
    assert torch.equal(as_tuple[0], senses)
    assert torch.equal(again, output)


def test_pooler_reads_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    model = with_senses(copy.deepcopy(teacher), dictionary)
    with torch.no_grad():
        output = model.bert(ids)
        expected = model.bert.pooler(output.last_hidden_state)
        torch.testing.assert_close(output.pooler_output, expected)
        torch.testing.assert_close(model(ids).logits, model.classifier(expected))


def test_checkpoints_do_not_contain_the_dictionary(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary, tmp_path: Path
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    assert model.state_dict().keys() == teacher.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, teacher(ids).logits)
        assert torch.equal(with_senses(loaded, dictionary)(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_compiled_model_has_the_same_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad(), recorded_states(compiled := torch.compile(model, backend="eager")) as recorded:
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    assert len(recorded) == 2


def test_dictionary_has_no_buffers(teacher: PreTrainedModel, dictionary: SenseDictionary) -> None:
    names = {name for name, _ in teacher.named_buffers()}
    assert {name for name, _ in with_senses(copy.deepcopy(teacher), dictionary).named_buffers()} == names
    moved = copy.deepcopy(dictionary).to("meta")
    assert {getattr(moved, name).device.type for name in ("offsets", "vectors", "counts", "lengths")} == {"meta"}
    assert dictionary.vectors.device.type == "cpu"


def test_dictionary_follows_the_device_of_the_states(
    dictionary: SenseDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last layer of a model on several devices may be on another device than its embeddings.
    devices: list[torch.device] = []

    def lookup(self: SenseDictionary, states: Tensor, ids: Tensor) -> Tensor:
        devices.extend([self.vectors.device, ids.device])
        return states

    monkeypatch.setattr(SenseDictionary, "lookup", lookup)
    layer = SenseLayer(copy.deepcopy(dictionary))
    layer.input_ids = torch.tensor([[9, 8, 7]])
    layer.replace_output(layer, (), (torch.zeros(1, 3, 32, device="meta"),))
    assert devices == [torch.device("meta")] * 2


def test_copies_of_a_model_are_independent(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    twin = copy.deepcopy(model)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits
        without_senses(model)
        assert torch.equal(twin(ids).logits, expected)
        assert torch.equal(without_senses(twin)(ids).logits, teacher(ids).logits)


def test_generation_with_a_cache(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_model(LlamaForCausalLM, tokenizer)
    with_senses(model, build_sense_dictionary(model, tokenizer, TEXTS, senses=3))
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    settings |= {"eos_token_id": None}
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


def test_sentence_embeddings_are_means_of_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")
    teacher.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = transformers.SentenceTransformer(str(tmp_path), device="cpu")
    with_senses(model.transformers_model, dictionary)
    for text, vector in zip(TEXTS[:3], model.encode(TEXTS[:3], convert_to_tensor=True), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            senses = dictionary.lookup(last_states(teacher, ids), ids)
        torch.testing.assert_close(vector, senses[0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_original_states_are_recorded(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad(), recorded_states(model) as recorded:
        model(ids)
    with torch.no_grad():
        model(ids)  # not recorded
    ((read, states),) = recorded
    assert torch.equal(read, ids)
    torch.testing.assert_close(states, last_states(teacher, ids).detach())


def test_models_that_are_rejected(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = copy.deepcopy(teacher)
    with pytest.raises(ValueError, match=r"This model has no senses\. Call with_senses\(model, dictionary\) first"):
        without_senses(model)
    with_senses(model, dictionary)
    with pytest.raises(ValueError, match="are already senses"):
        with_senses(model, dictionary)
    with pytest.raises(ValueError, match="are already senses"):
        build_sense_dictionary(model, tokenizer, TEXTS[:5])
    with pytest.raises(ValueError, match=r"bypassed, as nn\.DataParallel does\. Start one process per device"):
        model.bert.encoder(torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="A model with senses requires `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    of_layer_1 = build_sense_dictionary(teacher, tokenizer, TEXTS[:5], layer=1)
    with pytest.raises(ValueError, match="The dictionary was built with layer=1"):
        with_senses(copy.deepcopy(teacher), of_layer_1)
    prepared = copy.deepcopy(teacher)
    prepared.bert.forward = prepared.bert.forward  # as accelerate does for mixed precision
    with pytest.raises(ValueError, match="has been prepared for mixed precision by accelerate"):
        with_senses(prepared, dictionary)
    with pytest.raises(ValueError, match="was built from other weights"):
        with_senses(tiny.tiny_bert(tokenizer, BertForSequenceClassification, initializer_range=0.1), dictionary)


# Metrics and SenseMonitorCallback


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


def test_sense_error_decreases_with_more_senses(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    errors = []
    for senses in (1, 3, 9):
        callback = SenseMonitorCallback(TEXTS, senses=senses)
        callback.on_train_begin(None, None, None, model=teacher, processing_class=tokenizer)  # type: ignore[arg-type]
        errors.append(callback._measure(teacher, callback._plan)["defemb/sense_error/all"])
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1.0, abs=0.15)  # clustered tokens exactly 1, those with raw vectors 0


def test_monitor_logs_at_evaluations_and_at_train_end(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny.tiny_bert(tokenizer, BertForSequenceClassification)
    callback = SenseMonitorCallback(TEXTS, SenseConfig(senses=3))
    trainer = Trainer(
        model,
        tiny.training_args(tmp_path, eval_strategy="steps", eval_steps=3, report_to=["tensorboard"]),
        train_dataset=tiny.tiny_dataset(tokenizer),
        eval_dataset=tiny.tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    rows = {row["step"]: row for row in trainer.state.log_history if "defemb/sense_error/all" in row}
    assert list(rows) == [3, 6, 8]
    assert rows[3]["defemb/sense_error/all"] != rows[8]["defemb/sense_error/all"]
    assert rows[8]["defemb/senses/all"] == 3.0
    assert callback.dictionary is not None
    assert callback.dictionary.most_senses == 3
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 2  # the Trainer's and ours
    without = Trainer(model, tiny.training_args(tmp_path), train_dataset=tiny.tiny_dataset(tokenizer))
    without.add_callback(SenseMonitorCallback(TEXTS))
    with pytest.raises(ValueError, match="SenseMonitorCallback needs a tokenizer"):
        without.train()
    given = with_senses(model, build_sense_dictionary(model, tokenizer, TEXTS, senses=3))
    with pytest.raises(ValueError, match="are already senses"):
        callback.on_train_begin(None, None, None, model=given, processing_class=tokenizer)  # type: ignore[arg-type]


def test_monitor_does_not_measure_before_training(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    callback = SenseMonitorCallback(TEXTS, senses=3)
    trainer = Trainer(
        tiny.tiny_bert(tokenizer, BertForSequenceClassification),
        tiny.training_args(tmp_path, max_steps=1),
        train_dataset=tiny.tiny_dataset(tokenizer, 8),
        eval_dataset=tiny.tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    assert "eval_loss" in trainer.evaluate()
    assert callback.dictionary is None
    trainer.train()
    assert callback.dictionary is not None


# Names


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
