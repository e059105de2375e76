"""The learned constructor: training, isolation, resuming, adapters, the cache and several processes."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertForSequenceClassification, BertModel, RwkvConfig, RwkvModel, Trainer, TrainerCallback

from defemb_callbacks import (
    Definition,
    DefinitionEMBCallback,
    DefinitionEMBConfig,
    DefinitionEmbeddings,
    build_definition_embeddings,
    load_definitions,
)
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.embeddings.fingerprints import learning_conditions
from defemb_callbacks.reconstruction import LearnedRows, learned_rows, read_definitions, with_definition_head
from defemb_callbacks.reconstruction.constructor import training
from defemb_callbacks.reconstruction.constructor.learned_rows import held_out_words
from defemb_callbacks.reconstruction.constructor.training import isolated_training, last_checkpoint
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table
from launching import exit_together, launch, torchrun
from runs import forward_calls, losses
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUICK = {"disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0, "bf16": False}


def settings(max_steps: int = 4, **overrides: Any) -> ConstructorConfig:
    training = {**QUICK, "max_steps": max_steps, **overrides.pop("training", {})}
    return ConstructorConfig(
        **{"tokens_per_batch": 256, "held_out": 0.2, "patience": None} | overrides, training=training
    )


def learn(folder: Path, config: ConstructorConfig, model: Any = None, **options: Any) -> LearnedRows:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer) if model is None else model
    vocabulary = read_vocabulary(tokenizer)
    found = definitions_of_tokens(vocabulary, load_definitions(tiny_glossary()), 8)
    defined = [(vocabulary.words[index] or "", definitions) for index, definitions in found.items()]
    return learned_rows(
        *(model, tokenizer, torch.tensor(list(found)), defined, folder),
        **{"precision": "float32", "settings": config} | options,
    )


class Labels(TrainerCallback):
    """How often each token was a target."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        for batch in train_dataloader:
            self.seen += batch["labels"].tolist()


class KilledAt(TrainerCallback):
    """Simulates a crash at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def defined_tokens() -> list[int]:
    vocabulary = read_vocabulary(wordpiece_tokenizer())
    return list(definitions_of_tokens(vocabulary, load_definitions(tiny_glossary()), 8))


def test_the_constructor_fits_its_training_data(tmp_path):
    # Enough steps to memorize the few words: the rows then equal those of the table.
    training = {"logging_steps": 10, "save_strategy": "no", "learning_rate": 5e-3, "lr_scheduler_type": "linear"}
    config = settings(400, held_out=0.0, training=training)
    model = tiny_bert(wordpiece_tokenizer(), **NO_DROPOUT)
    learned = learn(tmp_path, config, model)
    curve = [loss for _, loss in learned.info["loss"]]
    assert curve[-1] < 0.2 * curve[0]
    old = read_table(model)[defined_tokens()]
    centred = torch.cosine_similarity(learned.rows - old.mean(dim=0), old - old.mean(dim=0))
    assert centred.mean() > 0.9
    assert learned.info["held_out_cosine"] is None


@pytest.mark.parametrize("outer", [False, True])
def test_training_in_bfloat16_learns_as_in_float32(tmp_path, outer):
    """Autocast copies the weights once per outermost context, so training in a context would never see its updates."""
    config = {"held_out": 0.0, "training": {"logging_steps": 10, "save_strategy": "no", "learning_rate": 5e-3}}
    model = tiny_bert(wordpiece_tokenizer(), **NO_DROPOUT)
    expected = learn(tmp_path / "float32", settings(60, **config), model).info["loss"]
    config["training"]["bf16"] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        learned = learn(tmp_path / "bfloat16", settings(60, **config), model).info["loss"]
        assert torch.is_autocast_enabled("cpu") == outer
    assert expected[-1][1] < 0.7 * expected[0][1]
    torch.testing.assert_close(learned, expected, rtol=0.1, atol=0)


def test_held_out_words_are_never_targets(tmp_path):
    labels = Labels()
    learned = learn(tmp_path, settings(1), callbacks=[labels])
    tokens = defined_tokens()
    held_out = {token for token, held in zip(tokens, held_out_words(len(tokens), 0.2).tolist(), strict=True) if held}
    assert learned.info["held_out"] == len(held_out) == round(0.2 * len(tokens))
    assert sorted(labels.seen) == sorted(set(tokens) - held_out)


def test_filter_ratio_excludes_the_least_frequent(tmp_path):
    labels = Labels()
    learn(tmp_path, settings(1, held_out=0.0, filter_ratio=0.25), callbacks=[labels])
    tokens = defined_tokens()
    assert sorted(labels.seen) == tokens[: round(0.75 * len(tokens))]


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5, 0.99])
def test_held_out_words_are_evenly_spaced(count, share):
    held = held_out_words(count, share)
    assert int(held.sum()) == int(count * share)
    positions = held.nonzero().flatten()
    if len(positions) > 1:
        gaps = positions.diff()
        assert int(gaps.max() - gaps.min()) <= 1


@pytest.mark.parametrize("lora_r", [None, 2])
def test_model_random_state_and_accelerate_are_unchanged(tmp_path, lora_r):
    if lora_r:
        pytest.importorskip("peft")
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification).train()
    model.bert.encoder.layer[0].eval()
    next(model.classifier.parameters()).requires_grad_(False)
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    outer = Trainer(model, training_args(tmp_path / "outer"), train_dataset=tiny_dataset(tokenizer))
    state = dict(outer.accelerator.state.__dict__)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    drawn = torch.rand(1), random.random(), np.random.random()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    learn(tmp_path, settings(2, lora_r=lora_r, training={"bf16": True}), model)
    assert (torch.rand(1), random.random(), np.random.random()) == drawn
    assert outer.accelerator.state.__dict__ == state
    assert outer.accelerator.mixed_precision == "no"
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("model_class", [BertModel, BertForSequenceClassification])
def test_autocast_ends_with_the_constructors_training(tmp_path, model_class):
    """A model without a head is its own backbone; a recursive call would leave autocast on."""
    learn(tmp_path, settings(2, training={"bf16": True}), tiny_bert(wordpiece_tokenizer(), model_class))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("fails", [True, False])
def test_a_constructor_that_fails_in_bfloat16_is_trained_in_float32(tmp_path, monkeypatch, caplog, fails):
    """As FNet does: its Fourier transform has no bfloat16."""
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: True)
    model, seen = tiny_bert(wordpiece_tokenizer()), set()

    def no_bfloat16(module: Any, inputs: Any, output: Any) -> None:
        seen.add(output.dtype)
        if fails and output.dtype == torch.bfloat16:
            raise RuntimeError("Unsupported dtype BFloat16")

    model.encoder.layer[0].attention.self.query.register_forward_hook(no_bfloat16)
    quick = {name: value for name, value in QUICK.items() if name != "bf16"}
    config = ConstructorConfig(tokens_per_batch=256, patience=None, training={**quick, "max_steps": 2})
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        rows = learn(tmp_path, config, model, precision="auto").rows
    assert torch.isfinite(rows).all()
    assert seen == {torch.bfloat16, torch.float32}
    assert ("cannot be trained in bfloat16 (Unsupported dtype BFloat16); float32 is used" in caplog.text) == fails
    if fails:
        with pytest.raises(RuntimeError, match="Unsupported dtype BFloat16"):
            learn(tmp_path / "explicit", config, model, precision="bfloat16")


def test_rwkv_is_trained_from_its_own_weights(tmp_path):
    """It divides weights by powers of two in eval mode."""
    tokenizer = wordpiece_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "rescale_every": 1}
    model = RwkvModel(RwkvConfig(vocab_size=len(tokenizer), **sizes)).eval()
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = settings(3, save_to=str(tmp_path / "kept"), training={"eval_steps": 1, "save_steps": 1})
    rows = learn(tmp_path / "run", config, model).rows
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert model.config.rescale_every == 1
    # What was saved predicts what was returned.
    defined = [(word, [Definition(word, gloss)]) for word, gloss in tiny_glossary().items()]
    words, found = [word for word, _ in defined], [definitions for _, definitions in defined]
    again = read_definitions(model, tokenizer, tmp_path / "kept", words, found)
    vocabulary = read_vocabulary(tokenizer)
    ids = list(definitions_of_tokens(vocabulary, load_definitions(tiny_glossary()), 8))
    position = [ids.index(vocabulary.tokens.index(word)) for word in words]
    torch.testing.assert_close(again, rows[position], rtol=1e-4, atol=1e-5)


def test_an_error_in_training_does_not_leave_autocast_enabled():
    """accelerate enters autocast in each step, and leaves it only if the step succeeds."""

    @isolated_training()
    def fails() -> None:
        torch.autocast("cpu", torch.bfloat16).__enter__()
        raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        fails()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_training_inside_autocast_starts_outside_of_it():
    weight = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        before = torch.nn.functional.linear(torch.ones(1, 1), weight)
        with isolated_training():
            assert torch.nn.functional.linear(torch.ones(1, 1), weight).dtype == torch.float32
            for value in (2.0, 3.0):
                with torch.no_grad():
                    weight.fill_(value)
                with torch.autocast("cpu", torch.bfloat16):
                    assert torch.nn.functional.linear(torch.ones(1, 1), weight) == value
        assert torch.nn.functional.linear(torch.ones(1, 1), weight).dtype == before.dtype == torch.bfloat16
        assert torch.autocast_increment_nesting() == 2
        assert torch.autocast_decrement_nesting() == 1


def test_the_constructor_is_not_sharded_by_the_launch(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with isolated_training():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def saves_activations(model: torch.nn.Module) -> bool:
    # Which modules have this attribute depends on the version of transformers.
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_gradient_checkpointing_is_restored(tmp_path):
    pytest.importorskip("peft")
    model = tiny_bert(wordpiece_tokenizer())
    during: list[bool] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            during.append(saves_activations(model))

    learn(tmp_path, settings(1, lora_r=2, training={"gradient_checkpointing": True}), model, callbacks=[Look()])
    assert during == [True]
    assert not saves_activations(model)


def test_model_is_restored_when_training_fails(tmp_path):
    pytest.importorskip("peft")
    model = tiny_bert(wordpiece_tokenizer())
    modules = dict(model.named_modules())
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, settings(4, lora_r=2), model, callbacks=[KilledAt(2)])
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("lora_r", [None, 2])
def test_interrupted_training_resumes_from_its_checkpoint(tmp_path, lora_r):
    if lora_r:
        pytest.importorskip("peft")
    config = settings(8, lora_r=lora_r, training={"eval_steps": 2, "save_steps": 2})
    whole = learn(tmp_path / "whole", config)

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.taken: list[int] = []

        def on_step_begin(self, args, state, control, **kwargs):
            self.taken.append(state.global_step)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed", config, callbacks=[KilledAt(5)])
    steps = Steps()
    resumed = learn(tmp_path / "killed", config, callbacks=[steps])
    assert steps.taken == [4, 5, 6, 7]
    torch.testing.assert_close(resumed.rows, whole.rows, rtol=0, atol=1e-6)
    assert [step for step, _ in resumed.info["loss"]] == list(range(1, 9))


def test_early_stopping_restores_the_best_checkpoint(tmp_path):
    # A rate that destroys the constructor: held-out loss is lowest at the first evaluation.
    training = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "eval_steps": 2, "save_steps": 2}
    config, model = settings(60, patience=2, training=training), tiny_bert(wordpiece_tokenizer(), **NO_DROPOUT)
    learned = learn(tmp_path / "bad", config, model)
    curve = dict(learned.info["eval_loss"])
    best = min(curve, key=lambda step: curve[step])
    assert learned.info["steps"] == best + 4 < 60
    until_best = settings(best, training={**training, "eval_strategy": "no"})
    torch.testing.assert_close(learned.rows, learn(tmp_path / "best", until_best, model).rows, rtol=0, atol=1e-6)


def test_the_head_starts_at_the_closed_form_solution(tmp_path):
    first = {}
    for head in ("ridge", "random"):
        learned = learn(tmp_path / head, settings(1, head=head, training={"learning_rate": 0.0}))
        first[head] = learned.info["loss"][0][1]
    assert first["ridge"] < 0.7 * first["random"]


def test_the_input_table_is_trained_only_if_requested_and_is_never_the_target(tmp_path):
    model = tiny_bert(wordpiece_tokenizer())
    old = read_table(model)

    class Tables(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            self.own, self.targets = read_table(model), model.definition_targets

    frozen, trained = Tables(), Tables()
    learn(tmp_path / "frozen", settings(2), model, callbacks=[frozen])
    learn(tmp_path / "trained", settings(2, train_embeddings=True), model, callbacks=[trained])
    assert torch.equal(frozen.own, old)
    assert not torch.equal(trained.own, old)
    assert torch.equal(trained.targets, old)


def test_words_of_several_tokens_are_targets(tmp_path):
    tokenizer, labels = wordpiece_tokenizer(), Labels()
    glossary = {**tiny_glossary(), "catness": "what makes an animal a cat"}
    lexicon = load_definitions(glossary)
    pieces = tokenizer("catness", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    more = [(word, lexicon.lookup(word)) for word in glossary]
    learn(tmp_path, settings(1, held_out=0.0, words="dictionary"), more=lambda: more, callbacks=[labels])
    assert sorted(labels.seen) == sorted([*defined_tokens(), *pieces])


def test_held_out_tokens_are_not_targets_within_longer_words(tmp_path):
    tokenizer, labels = wordpiece_tokenizer(), Labels()
    tokens = defined_tokens()
    held_out = [token for token, held in zip(tokens, held_out_words(len(tokens), 0.2).tolist(), strict=True) if held]
    word = tokenizer.convert_ids_to_tokens(held_out[0]) + "ness"
    assert held_out[0] in tokenizer(word, add_special_tokens=False)["input_ids"]
    more = [(word, [Definition(word, "a quality")]), ("catness", [Definition("catness", "a quality")])]
    learn(tmp_path, settings(1, words="dictionary"), more=lambda: more, callbacks=[labels])
    assert not set(held_out) & set(labels.seen)
    assert set(tokenizer("catness", add_special_tokens=False)["input_ids"]) <= {*labels.seen, *held_out}


def test_incomplete_checkpoints_are_ignored(tmp_path):
    for step, names in ((4, ("trainer_state.json", "model.safetensors")), (12, ("model.safetensors",))):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path / "no") is None


def test_a_model_that_accelerate_has_prepared_is_read_by_the_head(tmp_path):
    """With bfloat16, accelerate replaces the model's `forward`; the constructor must not call it."""
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    trainer = Trainer(
        model, training_args(tmp_path / "outer", bf16=True, max_steps=1), train_dataset=tiny_dataset(tokenizer)
    )
    trainer.train()
    assert "forward" in model.__dict__
    learned = learn(tmp_path / "prepared", settings(2), model)
    fresh = tiny_bert(tokenizer, BertForSequenceClassification)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(learned.rows, learn(tmp_path / "fresh", settings(2), fresh).rows)


def test_the_adapter_is_small_and_gives_the_same_rows(tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    saved = tmp_path / "adapter"
    learned = learn(tmp_path / "run", settings(5, lora_r=2, save_to=str(saved)), model)
    tensors = load_file(saved / "adapter_model.safetensors")
    assert all("lora_" in name or "definition_head" in name for name in tensors)
    loaded = peft.PeftModel.from_pretrained(with_definition_head(model), saved).eval()
    definition = load_definitions(tiny_glossary()).lookup("cat")[0].gloss
    from defemb_callbacks.reconstruction.prompts import definition_prompt, mask_text

    prompt = definition_prompt(load_definitions(tiny_glossary()).lookup("cat")[0], "cat", mask_text(tokenizer))
    batch = tokenizer(prompt, return_tensors="pt")
    targets = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    targets[0, 1] = True
    row = loaded.get_base_model().reconstruct({**batch, "target_mask": targets})
    position = defined_tokens().index(tokenizer.convert_tokens_to_ids("cat"))
    assert definition in prompt
    torch.testing.assert_close(row[0].detach(), learned.rows[position], rtol=0, atol=1e-5)


def test_invalid_settings_raise(tmp_path):
    with pytest.raises(ValueError, match=r"None of \d+ words is left to train on \(held_out=0.0, filter_ratio=0.999"):
        learn(tmp_path, settings(held_out=0.0, filter_ratio=0.999))
    with pytest.raises(ValueError, match=r"`patience=3` restores the best checkpoint .* got 'no' and 'steps'"):
        learn(tmp_path, settings(patience=3, training={"save_strategy": "no"}))
    with pytest.raises(ValueError, match=r"do not fit TrainingArguments: .*'lerning_rate'"):
        learn(tmp_path, settings(training={"lerning_rate": 1}))


def test_missing_peft_raises_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "defemb-callbacks\[peft\]"'):
        learn(tmp_path, settings(lora_r=2))


def config_of(cache: Path, **overrides: Any) -> DefinitionEMBConfig:
    constructor = settings(3).to_dict()
    return DefinitionEMBConfig(method="learned", cache_dir=str(cache), constructor=constructor, **overrides)


def test_the_build_is_cached(tmp_path):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    first = build_definition_embeddings(model, tokenizer, tiny_glossary(), config_of(tmp_path))
    assert first.info["method"] == "learned"
    assert first.info["steps"] == 3
    assert not list(tmp_path.rglob("checkpoint-*"))
    with forward_calls() as calls:
        again = build_definition_embeddings(model, tokenizer, tiny_glossary(), config_of(tmp_path))
    assert not calls
    assert torch.equal(again.rows, first.rows)
    assert again.info == json.loads(json.dumps(first.info))


def test_save_to_is_written_even_if_the_rows_are_cached(tmp_path):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    first = build_definition_embeddings(model, tokenizer, tiny_glossary(), config_of(tmp_path / "cache"))
    constructor = {**settings(3).to_dict(), "save_to": str(tmp_path / "constructor")}
    config = DefinitionEMBConfig(method="learned", cache_dir=str(tmp_path / "cache"), constructor=constructor)
    again = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    assert (tmp_path / "constructor" / "model.safetensors").is_file()
    torch.testing.assert_close(again.rows, first.rows)


@pytest.mark.parametrize("change", ["dropout", "processes"])
def test_the_cache_key_depends_on_the_training_conditions(tmp_path, monkeypatch, change):
    tokenizer = wordpiece_tokenizer()
    model, other = tiny_bert(tokenizer), tiny_bert(tokenizer, **(NO_DROPOUT if change == "dropout" else {}))
    config = config_of(tmp_path)
    keys = [learning_conditions(each, config, n) for each, n in ((model, 1), (other, 1 + (change == "processes")))]
    assert keys[0] != keys[1]
    model.config._name_or_path = "elsewhere"
    assert learning_conditions(model, config, 1) == keys[0]


def test_task_heads_share_one_constructor(tmp_path):
    tokenizer = wordpiece_tokenizer()
    heads = [
        {},
        {"id2label": {0: "no", 1: "yes", 2: "maybe"}},
        {"problem_type": "regression", "classifier_dropout": 0.5},
    ]
    models = [tiny_bert(tokenizer), *(tiny_bert(tokenizer, BertForSequenceClassification, **head) for head in heads)]
    keys = {json.dumps(learning_conditions(model, config_of(tmp_path), 1)) for model in models}
    assert len(keys) == 1


def test_the_outer_trainer_is_unaffected(tmp_path):
    """The outer run with a learned build has the same losses as one with the same rows given."""
    tokenizer = wordpiece_tokenizer()

    def run(name: str, **options: Any) -> tuple[list[tuple[int, float]], Tensor]:
        model = tiny_bert(tokenizer, BertForSequenceClassification)
        callback = DefinitionEMBCallback(tiny_glossary(), plots=False, monitor_steps=0, **options)
        trainer = Trainer(
            model,
            training_args(tmp_path / name, max_steps=4, logging_steps=1),
            train_dataset=tiny_dataset(tokenizer),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.train()
        return losses(trainer), read_table(model)

    model = tiny_bert(tokenizer, BertForSequenceClassification)
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary(), config_of(tmp_path / "one"))
    given, table = run("given", embeddings=ready)
    built, same = run("built", config=config_of(tmp_path / "two"))
    assert built == given
    assert torch.equal(same, table)


def worker(folder: Path, tokens: int) -> None:
    # Dropout would draw other numbers in two processes.
    model = tiny_bert(wordpiece_tokenizer(), **NO_DROPOUT)
    learned = learn(folder, settings(6, tokens_per_batch=tokens, training={"seed": 1}), model)
    rank = int(os.environ.get("RANK", 0))
    (folder / f"info-{rank}.json").write_text(json.dumps(learned.info))
    torch.save(learned.rows, folder / f"rows-{rank}.pt")
    if torch.distributed.is_initialized():
        exit_together(folder)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    for name, processes, tokens in (("two", 2, "128"), ("one", 1, "256")):
        (tmp_path / name).mkdir()
        launch(__file__, str(tmp_path / name), tokens, processes=processes)
    info = [json.loads((tmp_path / name).read_text()) for name in ("one/info-0.json", "two/info-0.json")]
    rows = [
        torch.load(tmp_path / name, weights_only=True) for name in ("one/rows-0.pt", "two/rows-0.pt", "two/rows-1.pt")
    ]
    assert torch.equal(rows[1], rows[2])
    # The remaining differences: the order of sums and, in evaluations, the Trainer's mean of batch means.
    for curve, tolerance in (("loss", 1e-4), ("eval_loss", 1e-2)):
        one, two = (dict(each[curve]) for each in info)
        assert two == pytest.approx(one, rel=tolerance)
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_command_line_on_two_processes(tmp_path):
    tokenizer = wordpiece_tokenizer()
    tiny_bert(tokenizer, **NO_DROPOUT).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "glossary.json").write_text(json.dumps(tiny_glossary()))
    for name, processes, tokens in (("two", 2, 128), ("one", 1, 256)):
        constructor = {**settings(3).to_dict(), "tokens_per_batch": tokens}
        command = ["-m", "defemb_callbacks", "build", str(tmp_path / "model")]
        command += ["--definitions", str(tmp_path / "glossary.json"), "--output", str(tmp_path / name)]
        command += ["--method", "learned", "--constructor", json.dumps(constructor), "--precision", "float32"]
        command += ["--cache-dir", str(tmp_path / f"cache-{name}")]
        said = torchrun(*command, processes=processes, attempts=2)
        assert said.count("66 of 476 tokens rebuilt from 66 definitions") == 1
    one, two = (DefinitionEmbeddings.from_pretrained(tmp_path / name).rows for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]))


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_training_prints_nothing(tmp_path, capsys, disable_tqdm):
    """The standard output belongs to the outer run."""
    learn(tmp_path, settings(2, training={"disable_tqdm": disable_tqdm}), tiny_bert(wordpiece_tokenizer()))
    assert capsys.readouterr().out == ""
