"""In every kind of Trainer run, rows are written once, before the first step, and kept until the end."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers.trainer
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback

from defemb_callbacks import DefinitionEMBCallback, EmbeddingMonitorCallback, build_definition_embeddings
from defemb_callbacks.weights.rows import read_table
from runs import assert_same_weights, changed_rows, defined_ids, glossary_callback, losses, measured_steps
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args


class Tables(TrainerCallback):
    """Records the table at the start of training and after each step."""

    def __init__(self) -> None:
        self.begin: list[Tensor] = []
        self.steps: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.begin.append(read_table(model))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append(read_table(model))


@pytest.fixture
def tables() -> Tables:
    return Tables()


@pytest.fixture(scope="session")
def rebuilt(tokenizer) -> Tensor:
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    build_definition_embeddings(model, tokenizer, tiny_glossary()).apply(model)
    return read_table(model)


def assert_kept(tables: Tables, rebuilt: Tensor, tokenizer: Any) -> None:
    """Training starts from the rebuilt rows and continues from them."""
    untouched = read_table(tiny_bert(tokenizer, BertForSequenceClassification))
    ids = defined_ids(tokenizer)
    torch.testing.assert_close(tables.begin[-1], rebuilt)
    assert tables.steps
    lost = (untouched - rebuilt)[ids].norm()
    for table in tables.steps:
        assert 0 < (table - rebuilt)[ids].norm() < lost / 2


# How the callback is passed


def test_added_after_the_trainer_was_created(trainer, tables, rebuilt, tokenizer) -> None:
    run, callback = trainer(), glossary_callback()
    run.add_callback(callback)
    run.add_callback(tables)
    run.train()
    assert_kept(tables, rebuilt, tokenizer)
    assert callback.report is not None


def test_two_callbacks_rebuild_once(trainer, tables, rebuilt, tokenizer, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    first, second = glossary_callback(), DefinitionEMBCallback({"dog": "something else"}, plots=False)
    trainer(first, second, EmbeddingMonitorCallback(None, plots=False), tables).train()
    assert_kept(tables, rebuilt, tokenizer)
    assert first.report is not None
    assert second.report is None
    assert "were rebuilt before" in caplog.text


def test_one_callback_for_two_models(trainer, tokenizer, rebuilt) -> None:
    callback = glossary_callback()
    for _ in range(2):
        run = trainer(callback)
        torch.testing.assert_close(read_table(run.model), rebuilt)
        run.train()
        assert callback.report is not None


# What the Trainer does to the model


@pytest.mark.parametrize(
    "args",
    [
        {"gradient_checkpointing": True},
        {"neftune_noise_alpha": 5.0},
        {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4},
        {"bf16": True},
        {"gradient_accumulation_steps": 2},
        {"optim": "adafactor"},
    ],
    ids=lambda args: next(iter(args)),
)
def test_settings_of_the_training(trainer, tables, rebuilt, tokenizer, args) -> None:
    trainer(glossary_callback(monitor_steps=None), tables, **args).train()
    assert_kept(tables, rebuilt, tokenizer)


@pytest.mark.slow
def test_a_compiled_model_reads_the_rows(trainer, tables, rebuilt, tokenizer) -> None:
    """Also rows written after compiling, as with `model_init`."""
    compiling = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    model_init = {"model_init": lambda: tiny_bert(tokenizer, BertForSequenceClassification)}
    run = trainer(glossary_callback(), tables, max_steps=2, **compiling, **model_init)
    run.train()
    assert_kept(tables, rebuilt, tokenizer)
    plain = trainer(glossary_callback(), max_steps=2)
    plain.train()
    assert dict(losses(run)) == pytest.approx(dict(losses(plain)), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(tokenizer, tmp_path, dtype) -> None:
    model = tiny_bert(tokenizer, BertForSequenceClassification).to(dtype)
    before = read_table(model)
    callback = glossary_callback(monitor_steps=1)
    args = training_args(tmp_path, learning_rate=1e-2, max_steps=2, optim="sgd")
    run = Trainer(model, args, train_dataset=tiny_dataset(tokenizer), processing_class=tokenizer, callbacks=[callback])
    written = read_table(model)
    assert model.get_input_embeddings().weight.dtype == dtype
    assert torch.equal(changed_rows(before, written), defined_ids(tokenizer))
    run.train()
    assert (read_table(model) - written).norm() < (before - written).norm() / 2
    assert measured_steps(run) == [1, 2]


def test_a_model_that_is_dispatched_over_devices(trainer, tables, rebuilt, tokenizer) -> None:
    """A device map, here with one device; accelerate's hooks move inputs between devices."""
    from accelerate import dispatch_model

    model = tiny_bert(tokenizer, BertForSequenceClassification)
    parts = dict.fromkeys(("bert.embeddings", "bert.encoder", "bert.pooler", "dropout", "classifier"), "cpu")
    dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    assert hasattr(model.bert.embeddings, "_hf_hook")
    trainer(glossary_callback(), tables, model=model).train()
    assert_kept(tables, rebuilt, tokenizer)


def test_offloaded_layers_and_offloaded_embeddings_are_errors(tokenizer, tmp_path) -> None:
    from accelerate import cpu_offload

    model = tiny_bert(tokenizer, BertForSequenceClassification)
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary())
    cpu_offload(model.bert.encoder)
    with pytest.raises(ValueError, match=r"is offloaded.*`defemb build MODEL --output DIR`, and pass `embeddings=DIR`"):
        build_definition_embeddings(model, tokenizer, {"dog": "an animal", "cat": "another"})
    assert embeddings.apply(model).rebuilt == 66  # ready embeddings need only the table
    cpu_offload(model.bert.embeddings)
    with pytest.raises(ValueError, match=r"meta device and hold no data.*keep the embeddings on a device"):
        embeddings.apply(model, force=True)


# Length of training


def test_evaluation_only(trainer, rebuilt) -> None:
    run = trainer(glossary_callback())
    run.evaluate()
    torch.testing.assert_close(read_table(run.model), rebuilt)
    reference = trainer(embeddings_of(rebuilt))
    assert run.predict(tiny_dataset(run.processing_class, 8)).predictions == pytest.approx(
        reference.predict(tiny_dataset(run.processing_class, 8)).predictions
    )


def embeddings_of(table: Tensor) -> TrainerCallback:
    class Write(TrainerCallback):
        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            with torch.no_grad():
                model.get_input_embeddings().weight.copy_(table)

    return Write()


@pytest.mark.parametrize("args", [{"num_train_epochs": 0}, {"max_steps": 0, "num_train_epochs": 0}])
def test_no_training_step(trainer, rebuilt, args) -> None:
    run = trainer(glossary_callback(monitor_steps=None, plots=True), **args)
    run.train()
    assert run.state.global_step == 0
    torch.testing.assert_close(read_table(run.model), rebuilt)


def test_the_best_checkpoint_has_rebuilt_rows(trainer, tables, rebuilt, tokenizer, tmp_path) -> None:
    saving = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    run = trainer(glossary_callback(), tables, load_best_model_at_end=True, **saving)
    run.train()
    assert_kept(tables, rebuilt, tokenizer)
    assert run.state.best_model_checkpoint
    best = BertForSequenceClassification.from_pretrained(run.state.best_model_checkpoint)
    assert_same_weights(run.model, best)
    assert run.model.config.definition_emb["rebuilt"] == best.config.definition_emb["rebuilt"] == 66


def test_resumed_with_the_states_of_callbacks(trainer, tmp_path) -> None:
    """The callback exports no state: the given instance is kept, and the checkpoint is not rebuilt."""
    from transformers import EarlyStoppingCallback

    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    settings |= {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}
    whole = trainer(glossary_callback(), EarlyStoppingCallback(5), **settings)
    whole.train()
    callback = glossary_callback()
    resumed = trainer(callback, EarlyStoppingCallback(5), restore_callback_states_from_checkpoint=True, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert callback in resumed.callback_handler.callbacks
    assert losses(resumed)[4:] == losses(whole)[4:]
    assert_same_weights(resumed.model, whole.model)


def test_hyper_parameter_search_rebuilds_the_model_of_each_trial(trainer, tokenizer, rebuilt, tables) -> None:
    pytest.importorskip("optuna")

    def model_init(trial: Any = None) -> PreTrainedModel:
        return tiny_bert(tokenizer, BertForSequenceClassification)

    callback = glossary_callback()
    run = trainer(callback, tables, model_init=model_init, eval_strategy="epoch", max_steps=2)
    run.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        backend="optuna",
        n_trials=2,
    )
    assert len(tables.begin) == 2
    for table in tables.begin:
        torch.testing.assert_close(table, rebuilt)
    assert_kept(tables, rebuilt, tokenizer)


# GPUs


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"full_determinism": True}])
def test_training_on_a_gpu(trainer, tables, tokenizer, rebuilt, settings) -> None:
    run = trainer(glossary_callback(monitor_steps=2), tables, use_cpu=False, **settings)
    run.train()
    assert run.model.device.type == "cuda"
    torch.testing.assert_close(tables.begin[0].cpu(), rebuilt, rtol=1e-3, atol=1e-3)
    assert measured_steps(run) == [2, 4, 6, 8]


@pytest.mark.gpu
def test_steps_that_are_not_measured_do_not_wait_for_the_gpu(trainer, monkeypatch) -> None:
    calls: list[str] = []

    def without_waiting(name: str) -> None:
        event = getattr(EmbeddingMonitorCallback, name)

        def run(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            calls.append(name)
            if state.global_step > 0:  # before the first step, the metrics of the start are sent
                torch.cuda.set_sync_debug_mode("error")
            try:
                event(self, args, state, control, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(EmbeddingMonitorCallback, name, run)

    for name in ("on_step_begin", "on_step_end"):
        without_waiting(name)
    run = trainer(EmbeddingMonitorCallback(None, monitor_steps=8, plots=False), use_cpu=False, logging_steps=8)
    run.train()
    assert calls.count("on_step_end") == 8
    assert measured_steps(run) == [8]


# Saving


def test_pushed_to_the_hub_and_off_line(trainer, rebuilt, tokenizer, monkeypatch) -> None:
    pushed: list[Tensor] = []

    class Api:
        def upload_folder(self, folder_path: str, **kwargs: Any) -> None:
            pushed.append(read_table(BertForSequenceClassification.from_pretrained(folder_path)))

    run = trainer(glossary_callback(), hub_model_id="me/run")
    monkeypatch.setattr(run, "init_hf_repo", lambda **kwargs: None)
    with monkeypatch.context() as hub:
        if hasattr(transformers.trainer, "hf_api"):
            hub.setattr("transformers.trainer.hf_api", Api)
        else:  # transformers 5.0
            hub.setattr("transformers.trainer.upload_folder", Api().upload_folder)
        run.push_to_hub()
    torch.testing.assert_close(pushed[0], rebuilt)

    ready = build_definition_embeddings(run.model, tokenizer, tiny_glossary())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled, match="offline mode is enabled"):
        ready.push_to_hub("me/embeddings")
