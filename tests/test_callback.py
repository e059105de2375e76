"""The callbacks inside real Trainer runs: when rows are written, that nothing else changes, and what is logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
)

from defemb_callbacks import (
    Definition,
    DefinitionEMBCallback,
    DefinitionEmbeddings,
    EmbeddingMonitorCallback,
    Lexicon,
    build_definition_embeddings,
)
from defemb_callbacks.definitions import Relation
from defemb_callbacks.frequency import frequency_groups, frequency_rank
from defemb_callbacks.rows import read_table
from defemb_callbacks.vocabulary import read_vocabulary
from tiny import WORDS, byte_bpe_tokenizer, tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

PICTURES = {"metrics.png", "singular_values.png", "projection.png"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer, BertForSequenceClassification)


@pytest.fixture
def trainer(tokenizer: Any, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a Trainer of a fresh model: `trainer(callback, save_steps=4)`."""

    def make(*callbacks: Any, model: PreTrainedModel | None = None, processing_class: Any = tokenizer, **args: Any):
        if model is None and "model_init" not in args:
            model = tiny_bert(tokenizer, BertForSequenceClassification)
        init = {"model_init": args.pop("model_init")} if "model_init" in args else {}
        folder = args.pop("output_dir", tmp_path / "run")
        return Trainer(
            model,
            training_args(folder, **args),
            train_dataset=tiny_dataset(tokenizer),
            eval_dataset=tiny_dataset(tokenizer, 8),
            processing_class=processing_class,
            callbacks=list(callbacks),
            **init,
        )

    return make


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that rows were written into, one entry for each time."""
    models: list[Any] = []
    apply = DefinitionEmbeddings.apply

    def counted(self: DefinitionEmbeddings, model: Any, *args: Any, **kwargs: Any) -> Any:
        report = apply(self, model, *args, **kwargs)
        models.append(model)
        return report

    monkeypatch.setattr(DefinitionEmbeddings, "apply", counted)
    return models


def glossary_callback(**settings: Any) -> DefinitionEMBCallback:
    return DefinitionEMBCallback(tiny_glossary(), **{"plots": False, "monitor_steps": 0} | settings)


def defined_ids(tokenizer: Any) -> Tensor:
    return torch.tensor(sorted(tokenizer.convert_tokens_to_ids(word) for word in tiny_glossary()))


def changed_rows(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).any(dim=1).nonzero().flatten()


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def losses(trainer: Trainer) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]


def measured_steps(trainer: Trainer) -> list[int]:
    return [row["step"] for row in trainer.state.log_history if "defemb/isotropy/all" in row]


# What is written, and when


def test_a_list_with_the_callback_is_all_it_takes(trainer, model, tokenizer) -> None:
    before = read_table(model)
    callback = DefinitionEMBCallback(tiny_glossary())
    trainer(callback, model=model)
    after = read_table(model)
    assert torch.equal(changed_rows(before, after), defined_ids(tokenizer))
    assert callback.report is not None
    assert callback.report.rebuilt == len(tiny_glossary())


def test_the_rows_are_those_of_build_and_apply(trainer, model, tokenizer) -> None:
    twin = tiny_bert(tokenizer, BertForSequenceClassification)
    build_definition_embeddings(twin, tokenizer, tiny_glossary()).apply(twin)
    trainer(glossary_callback(), model=model)
    assert_same_weights(model, twin)


def test_without_a_tokenizer_the_error_says_what_to_pass(trainer, model) -> None:
    before = read_table(model)
    with pytest.raises(ValueError, match=r"DefinitionEMBCallback needs the tokenizer.*processing_class=tokenizer"):
        trainer(glossary_callback(), model=model, processing_class=None)
    assert torch.equal(read_table(model), before)
    with pytest.raises(ValueError, match=r"EmbeddingMonitorCallback\(tokenizer=tokenizer\)"):
        trainer(EmbeddingMonitorCallback(None), model=model, processing_class=None)


def test_tokenizer_as_an_argument(trainer, model, tokenizer) -> None:
    before = read_table(model)
    trainer(glossary_callback(tokenizer=tokenizer), model=model, processing_class=None)
    assert torch.equal(changed_rows(before, read_table(model)), defined_ids(tokenizer))


def test_the_tokenizer_of_a_processor(trainer, model, tokenizer) -> None:
    class Processor(ProcessorMixin):
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    before = read_table(model)
    trainer(glossary_callback(), model=model, processing_class=Processor())
    assert torch.equal(changed_rows(before, read_table(model)), defined_ids(tokenizer))


def test_the_class_itself_takes_wordnet(trainer, model, tokenizer, monkeypatch) -> None:
    lexicon = Lexicon.from_definitions([Definition(*pair) for pair in tiny_glossary().items()], name="wordnet")
    monkeypatch.setattr("defemb_callbacks.definitions.loading.load_wordnet", lambda: lexicon)
    before = read_table(model)
    trainer(DefinitionEMBCallback, model=model)
    assert set(defined_ids(tokenizer).tolist()) <= set(changed_rows(before, read_table(model)).tolist())


@pytest.mark.parametrize("given", ["object", "folder"])
def test_ready_embeddings_are_written_and_nothing_is_built(trainer, model, tokenizer, tmp_path, monkeypatch, given):
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary())
    twin = tiny_bert(tokenizer, BertForSequenceClassification)
    ready.apply(twin)
    ready.save_pretrained(tmp_path / "embeddings")
    monkeypatch.setattr("defemb_callbacks.callback.build_definition_embeddings", None)
    embeddings = ready if given == "object" else tmp_path / "embeddings"
    run = trainer(DefinitionEMBCallback(embeddings=embeddings, plots=False), model=model)
    assert_same_weights(model, twin)
    run.train()
    assert measured_steps(run)


def test_ready_embeddings_of_another_tokenizer_are_refused(trainer, model, tokenizer) -> None:
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary())
    other = wordpiece_tokenizer()
    tokens = sorted(other.get_vocab(), key=other.get_vocab().get)
    tokens[200], tokens[201] = tokens[201], tokens[200]
    other = type(other)(
        tokenizer_object=_wordpiece_backend(tokens), unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )
    before = read_table(model)
    with pytest.raises(ValueError, match=r"another tokenizer.*token 200 is"):
        trainer(DefinitionEMBCallback(embeddings=ready), model=model, processing_class=other)
    assert torch.equal(read_table(model), before)


def _wordpiece_backend(tokens: list[str]) -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))


@pytest.mark.parametrize(
    ("model_class", "auto_class"),
    [(BertForSequenceClassification, AutoModelForSequenceClassification), (BertForMaskedLM, AutoModelForMaskedLM)],
)
def test_the_saved_model_loads_without_this_package(trainer, tokenizer, tmp_path, model_class, auto_class) -> None:
    model = tiny_bert(tokenizer, model_class)
    run = trainer(glossary_callback(), model=model)
    run.save_model(tmp_path / "saved")
    loaded = auto_class.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, model)
    ids = defined_ids(tokenizer)
    assert not torch.equal(read_table(loaded)[ids], read_table(tiny_bert(tokenizer, model_class))[ids])
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_a_tied_output_table_follows(trainer, tokenizer, tmp_path) -> None:
    model = tiny_bert(tokenizer, BertForMaskedLM, tie_word_embeddings=True)
    trainer(glossary_callback(), model=model).save_model(tmp_path / "saved")
    for tied in (model, AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")):
        assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
        assert torch.equal(read_table(tied), read_table(model))


def test_only_tokens_of_the_training_data(trainer, model, tokenizer) -> None:
    before = read_table(model)
    after: list[Tensor] = []

    class Look(TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            after.append(read_table(model))

    trainer(glossary_callback(only_training_tokens=True), Look, model=model).train()
    in_data = set(torch.tensor(tiny_dataset(tokenizer)["input_ids"]).flatten().tolist())
    expected = sorted(in_data & set(defined_ids(tokenizer).tolist()))
    assert 0 < len(expected) < len(tiny_glossary())
    assert changed_rows(before, after[0]).tolist() == expected


def test_frequency_by_the_training_data(trainer, model, tokenizer) -> None:
    callback = glossary_callback(frequency="training_data", monitor_steps=None)
    trainer(callback, model=model).train()
    counts = torch.bincount(
        torch.tensor(tiny_dataset(tokenizer)["input_ids"]).flatten(), minlength=len(read_table(model))
    )
    frequent = callback.monitor.groups["frequent"]
    assert callback.report is not None
    assert int(counts[frequent].min()) >= int(counts[callback.monitor.groups["rare"]].max())
    assert tokenizer.convert_tokens_to_ids("dog") in frequent


def test_a_stream_cannot_be_counted(tokenizer, model, tmp_path) -> None:
    run = Trainer(
        model,
        training_args(tmp_path, max_steps=2),
        train_dataset=tiny_dataset(tokenizer).to_iterable_dataset(),
        processing_class=tokenizer,
        callbacks=[glossary_callback(only_training_tokens=True)],
    )
    with pytest.raises(ValueError, match="The training data is a stream"):
        run.train()


# Once, and reproducibly


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == 4
        return control


@pytest.mark.parametrize("settings", [{}, {"frequency": "training_data"}, {"only_training_tokens": True}])
def test_a_resumed_run_equals_an_uninterrupted_one(trainer, tmp_path, settings) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    settings = {"monitor_steps": None, **settings}
    whole = trainer(glossary_callback(**settings), **saving, output_dir=tmp_path / "whole")
    whole.train()
    trainer(glossary_callback(**settings), _Stop, **saving, output_dir=tmp_path / "half").train()
    resumed = trainer(glossary_callback(**settings), **saving, output_dir=tmp_path / "half")
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert len(losses(whole)) == 8
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.model.config.definition_emb == whole.model.config.definition_emb


def test_a_checkpoint_that_was_not_rebuilt_is_resumed_as_it_is(trainer, tmp_path, caplog) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(**saving, output_dir=tmp_path / "whole")
    whole.train()
    trainer(_Stop, **saving, output_dir=tmp_path / "half").train()
    callback = glossary_callback()
    resumed = trainer(callback, **saving, output_dir=tmp_path / "half")
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.model.config.definition_emb is None
    assert callback.report is None
    assert "resumed from a checkpoint with its own embeddings" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"force": True}, {"frequency": "training_data", "force": True}])
def test_a_second_train_does_not_rebuild(trainer, applications, settings) -> None:
    run = trainer(glossary_callback(**settings))
    run.train()
    run.train()
    assert len(applications) == 1


def test_a_smaller_batch_after_running_out_of_memory_does_not_rebuild(trainer, tokenizer, applications) -> None:
    sizes: list[int] = []

    class Large(BertForSequenceClassification):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **kwargs: Any) -> Any:
            if self.training:
                sizes.append(len(input_ids))
                if len(input_ids) == 8:
                    raise RuntimeError("CUDA out of memory.")
            return super().forward(input_ids, attention_mask, labels=labels, **kwargs)

    model = tiny_bert(tokenizer, Large)
    trainer(glossary_callback(), model=model, auto_find_batch_size=True).train()
    assert sizes[0] == 8
    assert sizes[-1] < 8
    assert applications == [model]


@pytest.mark.parametrize("settings", [{}, {"only_training_tokens": True}])
def test_a_rebuilt_checkpoint_is_recognised(trainer, tmp_path, applications, settings) -> None:
    first = trainer(glossary_callback(**settings))
    first.train()
    first.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    before = read_table(loaded)
    callback = glossary_callback(**settings)
    trainer(callback, model=loaded, max_steps=1, learning_rate=0.0, weight_decay=0.0).train()
    assert torch.equal(read_table(loaded), before)
    assert callback.report is None
    assert len(applications) == 1

    again = glossary_callback(force=True, **settings)
    trainer(again, model=loaded, max_steps=1, learning_rate=0.0).train()
    assert len(applications) == 2
    assert not torch.equal(read_table(loaded), before)


def test_model_init_is_rebuilt_once_for_each_model(trainer, tokenizer, applications) -> None:
    made: list[PreTrainedModel] = []

    def model_init() -> PreTrainedModel:
        made.append(tiny_bert(tokenizer, BertForSequenceClassification))
        return made[-1]

    run = trainer(glossary_callback(), model_init=model_init, learning_rate=0.0)
    run.train()
    run.train()
    assert applications == made
    assert len(made) == 3  # one at the Trainer's construction, one for each train()
    for model in made[1:]:
        assert torch.equal(read_table(model), read_table(made[0]))


def test_model_init_that_gives_other_weights(trainer, tokenizer) -> None:
    """The rows of each model come from that model."""
    made: list[PreTrainedModel] = []

    def model_init() -> PreTrainedModel:
        model = tiny_bert(tokenizer, BertForSequenceClassification)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1 + len(made))
        made.append(model)
        return model

    trainer(glossary_callback(), model_init=model_init, learning_rate=0.0).train()
    twin = tiny_bert(tokenizer, BertForSequenceClassification)
    with torch.no_grad():
        twin.get_input_embeddings().weight.mul_(2)
    build_definition_embeddings(twin, tokenizer, tiny_glossary()).apply(twin)
    assert torch.equal(read_table(made[1]), read_table(twin))


def test_the_rows_do_not_depend_on_seeds(trainer, tokenizer, tmp_path, monkeypatch) -> None:
    tables = []
    for seed in (1, 2):
        monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / f"cache-{seed}"))
        model = tiny_bert(tokenizer, BertForSequenceClassification)
        torch.manual_seed(seed)
        trainer(glossary_callback(), model=model, seed=seed)
        tables.append(read_table(model))
    assert torch.equal(*tables)


def test_blend_zero_trains_like_no_callback(trainer, applications) -> None:
    """So neither the build nor the measuring takes a random number or changes anything else."""
    plain = trainer()
    plain.train()
    state = torch.random.get_rng_state()
    with_callback = trainer(glossary_callback(blend=0.0, monitor_steps=None, plots=True))
    with_callback.train()
    assert len(applications) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert losses(with_callback) == losses(plain)
    assert_same_weights(with_callback.model, plain.model)


# What is logged


def related_lexicon() -> Lexicon:
    """All words, each related to the next, so that every group has more than ten pairs."""
    words = [word for word in WORDS if "'" not in word]
    definitions = [
        Definition(word, f"{words[7 * i % len(words)]} of {words[(i + 5) % len(words)]} {i}")
        for i, word in enumerate(words)
    ]
    relations = [Relation(left, right, "hypernym") for left, right in pairwise(words)]
    return Lexicon.from_definitions(definitions, name="related", relations=relations)


METRICS = ("isotropy", "average_cosine", "effective_rank", "norm", "relation_auc", "drift", "neighbour_overlap")
KEYS = {f"defemb/{metric}/{group}" for metric in METRICS for group in ("all", "frequent", "medium", "rare")}


@pytest.fixture(params=["plain", "attached"])
def logged_run(request: pytest.FixtureRequest, trainer, tmp_path) -> Trainer:
    callback = DefinitionEMBCallback(related_lexicon(), plots=False)
    run = trainer(
        callback, report_to=["tensorboard"], eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=8
    )
    if request.param == "attached":
        assert callback.attach(run) is callback
    run.train()
    return run


def test_metrics_stand_in_the_rows_of_the_loss(logged_run, trainer) -> None:
    plain = trainer(eval_strategy="steps", eval_steps=4)
    plain.train()
    history = logged_run.state.log_history
    assert [row["step"] for row in history] == [row["step"] for row in plain.state.log_history]
    for row in history:
        found = {key for key in row if key.startswith("defemb/")}
        assert found == (KEYS if "loss" in row else set())
        assert all(type(row[key]) is float for key in found)
    saved = json.loads(Path(logged_run.args.output_dir, "checkpoint-8", "trainer_state.json").read_text())
    assert [row for row in saved["log_history"] if "loss" in row] == [row for row in history if "loss" in row]


def test_metrics_are_in_tensorboard_at_the_step_of_the_loss_once(logged_run, request) -> None:
    folder = Path(logged_run.args.output_dir)
    files = list(folder.rglob("events.out.tfevents.*"))
    assert len({file.parent for file in files}) == 1
    attached = request.node.callspec.params["logged_run"] == "attached"
    assert len(files) == (1 if attached else 2)
    scalars: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    rows = [row for row in logged_run.state.log_history if "loss" in row]
    for key in ("loss", *sorted(KEYS)):
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
        assert scalars[f"train/{key}"] == expected


def test_a_removed_tensorboard_callback_gets_no_folder(trainer, tmp_path, monkeypatch) -> None:
    from transformers.integrations import TensorBoardCallback

    monkeypatch.chdir(tmp_path)
    run = trainer(glossary_callback(monitor_steps=None), report_to=["tensorboard"])
    run.remove_callback(TensorBoardCallback)
    run.train()
    assert measured_steps(run)
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_progress_row_has_the_headlines_and_is_no_wall_of_figures(trainer) -> None:
    seen: list[dict[str, Any]] = []

    class Look(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer(glossary_callback(monitor_steps=None), Look).train()
    rows = [{key for key in logs if key.startswith("defemb/")} for logs in seen if "loss" in logs]
    assert rows
    assert all({"defemb/isotropy/all", "defemb/isotropy/rare"} <= row for row in rows)
    assert all(len(row) <= 4 for row in rows)


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_monitor_steps_are_kept_whatever_the_logging_steps(trainer, logging_steps) -> None:
    run = trainer(glossary_callback(monitor_steps=2), logging_steps=logging_steps)
    run.train()
    assert measured_steps(run) == [2, 4, 6, 8]
    assert all("loss" in row for row in run.state.log_history if "defemb/norm/all" in row)


def test_the_end_of_a_run_is_measured_in_its_last_row(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=3))
    run.train()
    assert measured_steps(run) == [3, 6, 8]
    assert "train_runtime" in run.state.log_history[-1]


def test_by_default_at_most_20_times_and_at_the_end(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=None), num_train_epochs=8, per_device_train_batch_size=8)
    run.train()
    assert run.state.max_steps == 64
    assert measured_steps(run) == [*range(4, 64, 4), 64]
    assert len(losses(run)) == 64


def test_by_default_an_early_stop_is_measured_too(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=None), _Stop, logging_steps=3)
    run.train()
    assert measured_steps(run) == [3, 4]


def test_monitor_steps_zero_measures_nothing(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=0))
    run.train()
    assert not any(key.startswith("defemb/") for row in run.state.log_history for key in row)


def test_drift_is_that_since_train_start(trainer) -> None:
    still = trainer(glossary_callback(monitor_steps=None), learning_rate=0.0, weight_decay=0.0)
    still.train()
    moved = trainer(glossary_callback(monitor_steps=None), learning_rate=0.1)
    moved.train()
    assert still.state.log_history[-2]["defemb/drift/all"] == pytest.approx(0, abs=1e-12)
    assert moved.state.log_history[-2]["defemb/drift/all"] > 1e-4


def test_the_monitor_alone_changes_nothing(trainer) -> None:
    plain = trainer()
    plain.train()
    watched = trainer(EmbeddingMonitorCallback(related_lexicon()))
    watched.train()
    assert_same_weights(plain.model, watched.model)
    assert watched.state.log_history[0].keys() >= KEYS
    assert not hasattr(watched.model.config, "definition_emb")


def test_the_monitor_without_a_dictionary_has_no_relation_auc(trainer) -> None:
    run = trainer(EmbeddingMonitorCallback(None, plots=False))
    run.train()
    assert measured_steps(run)
    assert not any("relation_auc" in key for row in run.state.log_history for key in row)


def test_attach_adds_a_callback_that_the_trainer_does_not_have(trainer) -> None:
    run = trainer()
    callback = EmbeddingMonitorCallback(None, tokenizer=run.processing_class).attach(run)
    callback.attach(run)
    assert run.callback_handler.callbacks[0] is callback
    assert run.callback_handler.callbacks.count(callback) == 1


# Files


def test_report_and_pictures_are_saved(trainer, tmp_path) -> None:
    callback = DefinitionEMBCallback(tiny_glossary())
    run = trainer(callback)
    report = tmp_path / "run" / "defemb" / "report.json"
    assert json.loads(report.read_text(encoding="utf-8")) == json.loads(callback.report.to_json())
    run.train()
    written = {path.name for path in report.parent.iterdir()}
    assert written == {"report.json", *PICTURES}
    assert all((report.parent / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)


@pytest.mark.parametrize("rebuilds", [True, False])
def test_pictures_are_of_the_tables_before_the_rebuild_and_around_training(trainer, tokenizer, monkeypatch, rebuilds):
    taken: dict[str, Any] = {}
    monkeypatch.setattr(
        "defemb_callbacks.monitoring.callback.save_run_plots",
        lambda folder, history, tables, before: taken.update(tables),
    )
    run = trainer(DefinitionEMBCallback(tiny_glossary()) if rebuilds else EmbeddingMonitorCallback(None))
    start = read_table(run.model)
    run.train()
    assert list(taken) == ["before the rebuild"] * rebuilds + ["at train start", "at train end"]
    tables = {"at train start": start, "at train end": read_table(run.model)}
    if rebuilds:
        tables["before the rebuild"] = read_table(tiny_bert(tokenizer, BertForSequenceClassification))
    in_text = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]
    for name, table in tables.items():
        torch.testing.assert_close(taken[name].spectrum, torch.linalg.svdvals(table[in_text].double()))


def test_plots_false_saves_no_picture(trainer, tmp_path) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary(), plots=False)).train()
    assert [path.name for path in (tmp_path / "run" / "defemb").iterdir()] == ["report.json"]


def test_other_processes_than_the_main_one_save_nothing(trainer, model, tokenizer, tmp_path) -> None:
    callback = DefinitionEMBCallback(tiny_glossary())
    args = training_args(tmp_path / "other")
    state, control = SimpleNamespace(is_world_process_zero=False, global_step=0, log_history=[]), None
    callback.on_init_end(args, state, control, processing_class=tokenizer, model=model)
    callback.on_train_begin(args, state, control, processing_class=tokenizer, model=model)
    callback.on_train_end(args, state, control, model=model)
    assert callback.report is not None
    assert not (tmp_path / "other").exists()


def test_missing_matplotlib_only_warns(trainer, tmp_path, monkeypatch, caplog) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError then
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        run = trainer(DefinitionEMBCallback(tiny_glossary()))
        run.train()
    assert run.state.global_step == 8
    assert 'pip install "defemb-callbacks[plots]"' in caplog.text
    assert [path.name for path in (tmp_path / "run" / "defemb").iterdir()] == ["report.json"]


def test_an_unknown_setting_is_refused_before_anything() -> None:
    with pytest.raises(TypeError, match="'blendd' is no setting; known are"):
        DefinitionEMBCallback(blendd=0.3)


def test_a_callback_added_later_rebuilds_at_train_begin(trainer, model, tokenizer) -> None:
    before = read_table(model)
    run, callback = trainer(model=model, learning_rate=0.0), glossary_callback()
    callback.attach(run)
    run.train()
    assert torch.equal(changed_rows(before, read_table(model)), defined_ids(tokenizer))
    assert callback.report is not None


def test_embeddings_that_became_nan_stop_the_monitor_and_not_the_run(trainer, caplog) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.get_input_embeddings().weight[20] = float("nan")

    run = trainer(glossary_callback(monitor_steps=1, plots=True), Break)
    run.train()
    assert measured_steps(run) == [1, 2, 3]
    assert run.state.global_step == 8
    assert "cannot be measured at step 4" in caplog.text


def test_a_second_trainer_brings_its_own_tokenizer(trainer) -> None:
    callback, other = glossary_callback(), byte_bpe_tokenizer()
    trainer(callback)
    model = tiny_bert(other, BertForSequenceClassification)
    before = read_table(model)
    trainer(callback, model=model, processing_class=other)
    ids = torch.tensor(sorted(other.convert_tokens_to_ids(f"Ġ{word}") for word in tiny_glossary()))
    assert torch.isin(ids, changed_rows(before, read_table(model))).all()
