"""EmbeddingMonitorCallback in real Trainer runs: what is logged, where, when, and what is saved."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
)

from defemb_callbacks import Definition, DefinitionEMBCallback, EmbeddingMonitorCallback, Lexicon
from defemb_callbacks.callbacks.schedule import MeasuringSchedule
from defemb_callbacks.definitions import Relation
from defemb_callbacks.metrics import isotropy, mean_norm
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight, read_table
from runs import StopAtStep4, assert_same_weights, glossary_callback, losses, measured_steps
from tiny import WORDS, tiny_bert, tiny_dataset, tiny_glossary, training_args

PICTURES = {"metrics.png", "singular_values.png", "projection.png"}
HEADLINES = {f"defemb/{metric}/{group}" for metric in ("isotropy", "relation_auc") for group in ("all", "rare")}


def related_lexicon() -> Lexicon:
    """Relates each word to the next, so that every group has more than ten pairs."""
    words = [word for word in WORDS if "'" not in word]
    definitions = [
        Definition(word, f"{words[7 * i % len(words)]} of {words[(i + 5) % len(words)]} {i}")
        for i, word in enumerate(words)
    ]
    relations = [Relation(left, right, "hypernym") for left, right in itertools.pairwise(words)]
    return Lexicon.from_definitions(definitions, name="related", relations=relations)


METRICS = (
    "isotropy",
    "average_cosine",
    "effective_rank",
    "isoscore",
    "norm",
    "relation_auc",
    "drift",
    "neighbour_overlap",
)
KEYS = {f"defemb/{metric}/{group}" for metric in METRICS for group in ("all", "frequent", "medium", "rare")}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Reads (step, value) pairs from all TensorBoard files of a run."""
    found = []
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            found += [(event.step, event.value) for event in events.Scalars(tag)]
    return sorted(found)


@pytest.fixture
def any_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the time budget: runs of milliseconds would have no time to measure."""
    monkeypatch.setattr("defemb_callbacks.callbacks.schedule.TIME_BUDGET", 1e9)


@pytest.fixture(params=["plain", "attached"])
def logged_run(request: pytest.FixtureRequest, trainer, tmp_path, any_cost) -> Trainer:
    callback = DefinitionEMBCallback(related_lexicon(), plots=False)
    run = trainer(
        callback, report_to=["tensorboard"], eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=8
    )
    if request.param == "attached":
        assert callback.attach(run) is callback
    run.train()
    return run


def test_metrics_are_in_the_rows_of_the_loss(logged_run, trainer) -> None:
    plain = trainer(eval_strategy="steps", eval_steps=4)
    plain.train()
    start, *history = logged_run.state.log_history
    assert start["step"] == start["epoch"] == 0
    assert start.keys() - {"step", "epoch"} == KEYS
    assert [row["step"] for row in history] == [row["step"] for row in plain.state.log_history]
    for row in history:
        found = {key for key in row if key.startswith("defemb/")}
        assert found == (KEYS if "loss" in row else set())
        assert all(type(row[key]) is float for key in found)
    saved = json.loads(Path(logged_run.args.output_dir, "checkpoint-8", "trainer_state.json").read_text())
    assert saved["log_history"][0] == start
    assert [row for row in saved["log_history"] if "loss" in row] == [row for row in history if "loss" in row]


def test_metrics_are_in_tensorboard_once_at_the_step_of_the_loss(logged_run) -> None:
    folder = Path(logged_run.args.output_dir)
    assert len({file.parent for file in folder.rglob("events.out.tfevents.*")}) == 1
    rows = [row for row in logged_run.state.log_history if "loss" in row]
    for key in ("loss", *sorted(KEYS)):
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
        assert [point for point in scalars(folder, f"train/{key}") if point[0] > 0] == expected


def test_no_folder_without_the_tensorboard_callback(trainer, tmp_path, monkeypatch) -> None:
    from transformers.integrations import TensorBoardCallback

    monkeypatch.chdir(tmp_path)
    run = trainer(glossary_callback(monitor_steps=None), report_to=["tensorboard"])
    run.remove_callback(TensorBoardCallback)
    run.train()
    assert measured_steps(run)
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_progress_bar_shows_only_the_headlines(trainer, any_cost) -> None:
    seen: list[dict[str, Any]] = []

    class Look(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer(glossary_callback(monitor_steps=None), Look).train()
    rows = [{key for key in logs if key.startswith("defemb/")} for logs in seen if "loss" in logs]
    assert rows
    assert all({"defemb/isotropy/all", "defemb/isotropy/rare"} <= row for row in rows)
    assert all(len(row) <= 4 for row in rows)


@pytest.mark.parametrize("attached", [False, True])
def test_start_metrics_go_to_trackers_and_history_at_step_0(trainer, tmp_path, attached) -> None:
    callback = EmbeddingMonitorCallback(None, monitor_steps=4, plots=False)
    run = trainer(callback, report_to=["tensorboard"])
    if attached:
        callback.attach(run)
    start = isotropy(
        read_table(run.model)[frequency_groups(frequency_rank(read_vocabulary(run.processing_class)))["all"]]
    )
    run.train()
    values = scalars(tmp_path / "run", "train/defemb/isotropy/all")
    assert [step for step, _ in values] == [0, 4, 8]
    assert values[0][1] == pytest.approx(start, rel=1e-6)
    assert [row["step"] for row in run.state.log_history] == [*range(9), 8]
    assert run.state.log_history[0]["defemb/isotropy/all"] == pytest.approx(start, rel=1e-6)


def test_a_resumed_run_does_not_send_start_metrics_again(trainer, tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "report_to": ["tensorboard"]}
    monitor = {"monitor_steps": 4, "plots": False}
    trainer(EmbeddingMonitorCallback(None, **monitor), StopAtStep4, **saving).train()
    run = trainer(EmbeddingMonitorCallback(None, **monitor), **saving)
    run.train(resume_from_checkpoint=True)
    assert [step for step, _ in scalars(tmp_path / "run", "train/defemb/isotropy/all")] == [0, 4, 8]
    assert measured_steps(run) == [4, 8]


# Evaluations


def test_evaluations_have_the_headlines_in_row_and_result(trainer) -> None:
    results: list[dict[str, float]] = []

    class Look(TrainerCallback):
        def on_evaluate(self, *args: Any, metrics: Any = None, **kwargs: Any) -> None:
            results.append(dict(metrics))

    callback = EmbeddingMonitorCallback(related_lexicon(), monitor_steps=4)
    run = trainer(callback, Look, eval_strategy="steps", eval_steps=2)
    run.train()
    rows = [row for row in run.state.log_history if "eval_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row, result in zip(rows, results, strict=True):
        ours = {key: value for key, value in row.items() if "defemb" in key}
        assert ours.keys() == {f"eval_{key}" for key in HEADLINES}
        assert ours.items() <= result.items()


def test_an_evaluation_reuses_the_metrics_of_its_step(trainer, monkeypatch) -> None:
    measured: list[Any] = []
    measure = EmbeddingMonitor.measure
    monkeypatch.setattr(EmbeddingMonitor, "measure", lambda self, model: measured.append(0) or measure(self, model))
    callback = EmbeddingMonitorCallback(None, monitor_steps=4, plots=False)
    run = trainer(callback, eval_strategy="steps", eval_steps=4)
    run.train()
    assert len(measured) == 3  # start, 4, 8
    rows = {
        name: row for row in run.state.log_history if row["step"] == 4 for name in ("loss", "eval_loss") if name in row
    }
    assert rows["eval_loss"]["eval_defemb/isotropy/all"] == rows["loss"]["defemb/isotropy/all"]


def test_only_the_first_of_several_data_sets_has_the_headlines(trainer) -> None:
    run = trainer(EmbeddingMonitorCallback(None, monitor_steps=4), eval_strategy="steps", eval_steps=4)
    run.eval_dataset = {"one": run.eval_dataset, "two": run.eval_dataset}
    run.train()
    rows = [row for row in run.state.log_history if any("_loss" in key and "eval" in key for key in row)]
    assert ["eval_defemb/isotropy/all" in row for row in rows] == [True, False, True, False]


def test_by_default_evaluations_have_no_embedding_metrics(trainer, any_cost) -> None:
    run = trainer(EmbeddingMonitorCallback(None), eval_strategy="steps", eval_steps=4)
    run.train()
    assert measured_steps(run)
    assert not any(key.startswith("eval_defemb") for row in run.state.log_history for key in row)


@pytest.mark.parametrize("settings", [{}, {"monitor_steps": 3}])
@pytest.mark.parametrize("data_sets", [1, 2])
def test_the_trainers_model_card_can_be_written(trainer, monkeypatch, tmp_path, settings, data_sets) -> None:
    """The columns of its table are those of the first evaluation; rows with more columns fail."""
    answers = itertools.cycle([False, True])
    monkeypatch.setattr(MeasuringSchedule, "is_affordable", lambda self: next(answers))
    run = trainer(EmbeddingMonitorCallback(None, plots=False, **settings), eval_strategy="steps", eval_steps=2)
    if data_sets == 2:
        run.eval_dataset = {"one": run.eval_dataset, "two": run.eval_dataset}
    run.train()
    run.create_model_card()
    assert (tmp_path / "run" / "README.md").is_file()


@pytest.mark.parametrize("name", ["defemb/drift/rare", "eval_defemb/drift/rare"])
def test_best_checkpoint_by_an_embedding_metric(trainer, name) -> None:
    saving = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": name, "greater_is_better": False}
    run = trainer(EmbeddingMonitorCallback(None, plots=False), learning_rate=0.1, **saving, **best)
    run.train()
    values = {row["step"]: row["eval_defemb/drift/rare"] for row in run.state.log_history if "eval_loss" in row}
    assert list(values) == [2, 4, 6, 8]
    assert run.state.best_metric == min(values.values())
    assert run.state.best_global_step == min(values, key=values.__getitem__) == 2


def test_early_stopping_by_an_embedding_metric(trainer) -> None:
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "defemb/drift/all", "greater_is_better": False}
    monitor = EmbeddingMonitorCallback(None, plots=False)
    run = trainer(monitor, EarlyStoppingCallback(2), learning_rate=0.1, **saving, **best)
    run.train()
    assert run.state.global_step == 3


def test_an_unknown_best_metric_is_an_error_before_the_first_step(trainer) -> None:
    run = trainer(EmbeddingMonitorCallback(None), metric_for_best_model="defemb/isotropi/all")
    with pytest.raises(ValueError, match=r"'defemb/isotropi/all' is not measured. Choose one of: defemb/average"):
        run.train()
    assert run.state.global_step == 0


def test_a_best_metric_requires_measuring(trainer) -> None:
    run = trainer(EmbeddingMonitorCallback(None, monitor_steps=0), metric_for_best_model="defemb/isotropy/all")
    with pytest.raises(ValueError, match=r"'defemb/isotropy/all' is not measured with monitor_steps=0"):
        run.train()


def test_evaluations_outside_training_have_no_embedding_metrics(trainer) -> None:
    run = trainer(EmbeddingMonitorCallback(None, plots=False))
    assert not any("defemb" in key for key in run.evaluate())
    run.train()
    assert not any("defemb" in key for key in run.evaluate())


# When


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_monitor_steps_are_independent_of_logging_steps(trainer, logging_steps) -> None:
    run = trainer(glossary_callback(monitor_steps=2), logging_steps=logging_steps)
    run.train()
    assert measured_steps(run) == [2, 4, 6, 8]
    assert all("loss" in row for row in run.state.log_history[1:] if "defemb/norm/all" in row)


def test_the_end_of_a_run_is_measured_in_its_last_row(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=3))
    run.train()
    assert measured_steps(run) == [3, 6, 8]
    assert "train_runtime" in run.state.log_history[-1]


def test_by_default_at_most_20_times_and_at_the_end(trainer, any_cost) -> None:
    run = trainer(glossary_callback(monitor_steps=None), num_train_epochs=8, per_device_train_batch_size=8)
    run.train()
    assert run.state.max_steps == 64
    assert measured_steps(run) == [*range(4, 64, 4), 64]
    assert len(losses(run)) == 64


def test_by_default_an_early_stop_is_measured_too(trainer, any_cost) -> None:
    run = trainer(glossary_callback(monitor_steps=None), StopAtStep4, logging_steps=3)
    run.train()
    assert measured_steps(run) == [3, 4]


def test_monitor_steps_zero_measures_nothing(trainer) -> None:
    run = trainer(glossary_callback(monitor_steps=0))
    run.train()
    assert not any(key.startswith("defemb/") for row in run.state.log_history for key in row)


def test_drift_is_relative_to_train_start(trainer, any_cost) -> None:
    still = trainer(glossary_callback(monitor_steps=None), learning_rate=0.0, weight_decay=0.0)
    still.train()
    moved = trainer(glossary_callback(monitor_steps=None), learning_rate=0.1)
    moved.train()
    assert still.state.log_history[-2]["defemb/drift/all"] == pytest.approx(0, abs=1e-12)
    assert moved.state.log_history[-2]["defemb/drift/all"] > 1e-4


def test_the_monitor_alone_changes_nothing(trainer) -> None:
    plain = trainer()
    plain.train()
    watched = trainer(EmbeddingMonitorCallback(related_lexicon(), monitor_steps=1))
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


def test_an_untied_output_table_is_measured_too(tokenizer, tmp_path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    for tied in (False, True):
        model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied))
        data = tiny_dataset(tokenizer).remove_columns("labels")
        data = data.map(lambda row: {"labels": row["input_ids"]})
        callback = EmbeddingMonitorCallback(None, monitor_steps=4, plots=False)
        run = Trainer(
            model,
            training_args(tmp_path / str(tied)),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        run.train()
        in_text = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]
        row = run.state.log_history[-2]
        assert row["defemb/isotropy/all"] == pytest.approx(isotropy(embedding_weight(model)[in_text]))
        assert ("defemb/output_isotropy/all" in row) != tied
        if not tied:
            assert row["defemb/output_isotropy/all"] == pytest.approx(isotropy(model.lm_head.weight[in_text]))
            assert row["defemb/output_drift/all"] > 0


def test_human_ratings(trainer, tmp_path) -> None:
    words = [word for word in WORDS if word.isalpha()]
    file = tmp_path / "ratings.txt"
    file.write_text("".join(f"{left}\t{right}\t{i % 7}\n" for i, (left, right) in enumerate(itertools.pairwise(words))))
    run = trainer(EmbeddingMonitorCallback(None, ratings=str(file), monitor_steps=8, plots=False))
    run.train()
    _, row = (row for row in run.state.log_history if "defemb/rating_correlation/all" in row)
    assert -1 <= row["defemb/rating_correlation/all"] <= 1
    with pytest.raises(ValueError, match=r"`ratings` must be the path of a file, got 'nowhere.txt'"):
        EmbeddingMonitorCallback(None, ratings="nowhere.txt")


def test_attach_does_not_carry_over_to_a_second_trainer(trainer) -> None:
    callback = EmbeddingMonitorCallback(None, monitor_steps=4, plots=False)
    callback.attach(trainer(callback))
    run = trainer(callback, report_to=["tensorboard"])
    run.train()
    folder = Path(run.args.output_dir)
    assert [step for step, _ in scalars(folder, "train/defemb/isotropy/all")] == [0, 4, 8]


def test_the_page_of_a_second_trainer_shows_only_its_own_model(trainer, tmp_path, monkeypatch) -> None:
    records: list[RunRecord] = []
    monkeypatch.setattr(
        "defemb_callbacks.callbacks.monitor.save_pictures", lambda folder, record: records.append(record)
    )
    callback = DefinitionEMBCallback(tiny_glossary())
    first = trainer(callback)
    first.train()
    trainer(callback, model=first.model).train()  # a second run of one model
    first.model.save_pretrained(tmp_path / "saved")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    trainer(callback, model=loaded).train()  # rebuilt in an earlier run
    assert ["before the rebuild" in record.snapshots for record in records] == [True, True, False]
    assert [record.rebuilt is None for record in records] == [False, False, True]
    assert [record.report is None for record in records] == [False, False, True]
    names = ["BertForSequenceClassification", "BertForSequenceClassification", f"{tmp_path.name}/saved"]
    assert [record.title for record in records] == [f"Token embeddings of {name}" for name in names]


def test_the_history_of_a_resumed_run_is_in_order(trainer, monkeypatch) -> None:
    records: list[RunRecord] = []
    monkeypatch.setattr(
        "defemb_callbacks.callbacks.monitor.save_pictures", lambda folder, record: records.append(record)
    )
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(EmbeddingMonitorCallback(None, monitor_steps=2), StopAtStep4, **saving).train()
    trainer(EmbeddingMonitorCallback(None, monitor_steps=2), **saving).train(resume_from_checkpoint=True)
    assert [row["step"] for row in records[0].history] == [0, 2, 4]
    assert [row["step"] for row in records[1].history] == [0, 2, 4, 4, 6, 8]


# Files


def test_report_and_pictures_are_saved(trainer, tmp_path) -> None:
    callback = DefinitionEMBCallback(tiny_glossary())
    run = trainer(callback)
    report = tmp_path / "run" / "defemb" / "report.json"
    assert json.loads(report.read_text(encoding="utf-8")) == json.loads(callback.report.to_json())
    run.train()
    written = {path.name for path in report.parent.iterdir()}
    assert written >= {"report.json", "index.html", *PICTURES}
    assert all((report.parent / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)


@pytest.mark.parametrize("rebuilds", [True, False])
def test_pictures_are_of_the_tables_before_the_rebuild_and_around_training(trainer, tokenizer, monkeypatch, rebuilds):
    records: list[RunRecord] = []
    monkeypatch.setattr(
        "defemb_callbacks.callbacks.monitor.save_pictures", lambda folder, record: records.append(record)
    )
    run = trainer(DefinitionEMBCallback(tiny_glossary()) if rebuilds else EmbeddingMonitorCallback(None))
    start = read_table(run.model)
    run.train()
    [record] = records
    taken = record.snapshots
    assert list(taken) == ["before the rebuild"] * rebuilds + ["at train start", "at train end"]
    tables = {"at train start": start, "at train end": read_table(run.model)}
    if rebuilds:
        tables["before the rebuild"] = read_table(tiny_bert(tokenizer, BertForSequenceClassification))
    in_text = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]
    for name, table in tables.items():
        torch.testing.assert_close(taken[name].spectrum, torch.linalg.svdvals(table[in_text].double()))
        for metric, of in (("isotropy", isotropy), ("norm", mean_norm)):
            assert taken[name].metrics[f"defemb/{metric}/all"] == pytest.approx(of(table[in_text]))
    assert record.history[0]["step"] == 0
    assert record.history[0]["defemb/norm/all"] == taken["at train start"].metrics["defemb/norm/all"]
    assert record.history[-1]["defemb/norm/all"] == taken["at train end"].metrics["defemb/norm/all"]


def test_pictures_show_the_best_checkpoint_if_it_was_loaded(trainer, tokenizer, monkeypatch) -> None:
    records: list[RunRecord] = []
    monkeypatch.setattr(
        "defemb_callbacks.callbacks.monitor.save_pictures", lambda folder, record: records.append(record)
    )
    saving = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "defemb/drift/all", "greater_is_better": False}
    run = trainer(EmbeddingMonitorCallback(None), learning_rate=0.1, **saving, **best)
    run.train()
    assert run.state.best_global_step == 2
    in_text = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]
    shown = records[0].snapshots["at train end"].metrics["defemb/isotropy/all"]
    assert shown == pytest.approx(isotropy(read_table(run.model)[in_text]))
    assert shown != pytest.approx(records[0].history[-1]["defemb/isotropy/all"])


def test_the_page_shows_words_with_their_definitions(trainer, tmp_path) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary())).train()
    page = (tmp_path / "run" / "defemb" / "index.html").read_text(encoding="utf-8")
    assert any(gloss in page for gloss in tiny_glossary().values())


def test_plots_false_saves_no_picture(trainer, tmp_path) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary(), plots=False)).train()
    assert [path.name for path in (tmp_path / "run" / "defemb").iterdir()] == ["report.json"]


def test_missing_matplotlib_only_warns(trainer, tmp_path, monkeypatch, caplog) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        run = trainer(DefinitionEMBCallback(tiny_glossary()))
        run.train()
    assert run.state.global_step == 8
    assert 'pip install "defemb-callbacks[plots]"' in caplog.text
    assert [path.name for path in (tmp_path / "run" / "defemb").iterdir()] == ["report.json"]


def test_nan_embeddings_stop_the_monitor_but_not_training(trainer, caplog) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.get_input_embeddings().weight[20] = float("nan")

    run = trainer(glossary_callback(monitor_steps=1, plots=True), Break)
    run.train()
    assert measured_steps(run) == [1, 2, 3]
    assert run.state.global_step == 8
    assert "Embedding metrics stop at step 4" in caplog.text
