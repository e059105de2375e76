"""DefinitionEMBCallback in real Trainer runs: when rows are written, and that nothing else changes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    ProcessorMixin,
    T5ForConditionalGeneration,
    T5ForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from defemb_callbacks import (
    Definition,
    DefinitionEMBCallback,
    DefinitionEmbeddings,
    EmbeddingMonitorCallback,
    Lexicon,
    build_definition_embeddings,
)
from defemb_callbacks.weights.rows import read_table
from runs import (
    StopAtStep4,
    assert_same_weights,
    changed_rows,
    defined_ids,
    forward_calls,
    glossary_callback,
    losses,
    measured_steps,
)
from tiny import (
    byte_bpe_tokenizer,
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_model,
    training_args,
    unigram_tokenizer,
    wordpiece_tokenizer,
)


@pytest.fixture
def applications(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that rows were written into, one entry per call."""
    models: list[Any] = []
    apply = DefinitionEmbeddings.apply

    def counted(self: DefinitionEmbeddings, model: Any, *args: Any, **kwargs: Any) -> Any:
        report = apply(self, model, *args, **kwargs)
        models.append(model)
        return report

    monkeypatch.setattr(DefinitionEmbeddings, "apply", counted)
    return models


# What is written and when


def test_passing_the_callback_rebuilds_the_defined_rows(trainer, model, tokenizer) -> None:
    before = read_table(model)
    callback = DefinitionEMBCallback(tiny_glossary())
    trainer(callback, model=model)
    after = read_table(model)
    assert torch.equal(changed_rows(before, after), defined_ids(tokenizer))
    assert callback.report is not None
    assert callback.report.rebuilt == len(tiny_glossary())


def test_the_rows_equal_those_of_build_and_apply(trainer, model, tokenizer) -> None:
    twin = tiny_bert(tokenizer, BertForSequenceClassification)
    build_definition_embeddings(twin, tokenizer, tiny_glossary()).apply(twin)
    trainer(glossary_callback(), model=model)
    assert_same_weights(model, twin)


def test_missing_tokenizer_is_an_error(trainer, model) -> None:
    before = read_table(model)
    run = trainer(glossary_callback(), model=model, processing_class=None)
    with pytest.raises(ValueError, match=r"DefinitionEMBCallback needs a tokenizer\. Pass processing_class=tokenizer"):
        run.train()
    assert run.state.global_step == 0
    assert torch.equal(read_table(model), before)
    with pytest.raises(ValueError, match="EmbeddingMonitorCallback needs a tokenizer"):
        trainer(EmbeddingMonitorCallback(None), model=model, processing_class=None).train()
    with pytest.raises(ValueError, match="DefinitionEMBCallback needs a tokenizer"):
        trainer(glossary_callback(new_tokens={"lynx": "a wild cat"}), model=model, processing_class=None)


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


def test_the_callback_class_uses_wordnet(trainer, model, tokenizer, monkeypatch) -> None:
    lexicon = Lexicon.from_definitions([Definition(*pair) for pair in tiny_glossary().items()], name="wordnet")
    monkeypatch.setattr("defemb_callbacks.definitions.loading.load_wordnet", lambda: lexicon)
    before = read_table(model)
    trainer(DefinitionEMBCallback, model=model)
    assert set(defined_ids(tokenizer).tolist()) <= set(changed_rows(before, read_table(model)).tolist())


@pytest.mark.parametrize("given", ["object", "folder"])
def test_ready_embeddings_are_written_without_a_build(trainer, model, tokenizer, tmp_path, given):
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary())
    twin = tiny_bert(tokenizer, BertForSequenceClassification)
    ready.apply(twin)
    ready.save_pretrained(tmp_path / "embeddings")
    embeddings = ready if given == "object" else tmp_path / "embeddings"
    with forward_calls() as calls:
        run = trainer(DefinitionEMBCallback(embeddings=embeddings, plots=False), model=model)
    assert not calls
    assert_same_weights(model, twin)
    run.train()
    assert measured_steps(run)


def test_ready_embeddings_of_another_tokenizer_are_an_error(trainer, model, tokenizer) -> None:
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
    run = trainer(glossary_callback(blend=0.3), model=model)  # "auto" may keep the rows of this language model
    run.save_model(tmp_path / "saved")
    loaded = auto_class.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, model)
    ids = defined_ids(tokenizer)
    assert not torch.equal(read_table(loaded)[ids], read_table(tiny_bert(tokenizer, model_class))[ids])
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_a_tied_output_table_is_rebuilt_too(trainer, tokenizer, tmp_path) -> None:
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


@pytest.mark.parametrize(
    ("model_class", "counted"),
    [(T5ForConditionalGeneration, {"dog", "house"}), (T5ForTokenClassification, {"dog"})],
    ids=["text", "classes"],
)
def test_target_texts_count_as_training_data(tmp_path: Path, model_class: Any, counted: set[str]) -> None:
    tokenizer = unigram_tokenizer()
    inputs, labels = tokenizer(["the dog"] * 4)["input_ids"], tokenizer(["a house"] * 4)["input_ids"]
    model = tiny_model(model_class, tokenizer, num_labels=len(tokenizer))
    before = read_table(model)
    run = Trainer(
        model,
        training_args(tmp_path, max_steps=1, learning_rate=0.0),
        train_dataset=Dataset.from_dict({"input_ids": inputs, "labels": labels}),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[glossary_callback(only_training_tokens=True)],
    )
    run.train()
    changed = changed_rows(before, read_table(model))
    assert {token.lstrip("▁") for token in tokenizer.convert_ids_to_tokens(changed.tolist())} == counted


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


@pytest.mark.parametrize("settings", [{}, {"frequency": "training_data"}, {"only_training_tokens": True}])
def test_a_resumed_run_equals_an_uninterrupted_one(trainer, tmp_path, settings) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    settings = {"monitor_steps": None, **settings}
    whole = trainer(glossary_callback(**settings), **saving, output_dir=tmp_path / "whole")
    whole.train()
    trainer(glossary_callback(**settings), StopAtStep4, **saving, output_dir=tmp_path / "half").train()
    resumed = trainer(glossary_callback(**settings), **saving, output_dir=tmp_path / "half")
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert len(losses(whole)) == 8
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.model.config.definition_emb == whole.model.config.definition_emb


def test_resuming_a_checkpoint_without_a_rebuild_keeps_its_rows(trainer, tmp_path, caplog) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(**saving, output_dir=tmp_path / "whole")
    whole.train()
    trainer(StopAtStep4, **saving, output_dir=tmp_path / "half").train()
    callback = glossary_callback()
    resumed = trainer(callback, **saving, output_dir=tmp_path / "half")
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.model.config.definition_emb is None
    assert callback.report is None
    assert "The checkpoint to resume from was not rebuilt" in caplog.text


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
    assert len(made) == 3  # one when the Trainer is created, one for each train()
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
    """Neither building nor measuring uses random numbers or changes anything else."""
    plain = trainer()
    plain.train()
    state = torch.random.get_rng_state()
    with_callback = trainer(glossary_callback(blend=0.0, monitor_steps=None, plots=True))
    with_callback.train()
    assert len(applications) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert losses(with_callback) == losses(plain)
    assert_same_weights(with_callback.model, plain.model)


def test_only_the_main_process_saves_files(trainer, model, tokenizer, tmp_path) -> None:
    callback = DefinitionEMBCallback(tiny_glossary())
    args = training_args(tmp_path / "other")
    state, control = TrainerState(is_world_process_zero=False), None
    callback.on_init_end(args, state, control, processing_class=tokenizer, model=model)
    callback.on_train_begin(args, state, control, processing_class=tokenizer, model=model)
    callback.on_train_end(args, state, control, model=model)
    assert callback.report is not None
    assert not (tmp_path / "other").exists()


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"'blendd' is not a setting\. Pass one of"):
        DefinitionEMBCallback(blendd=0.3)


def test_a_callback_added_later_rebuilds_at_train_begin(trainer, model, tokenizer) -> None:
    before = read_table(model)
    run, callback = trainer(model=model, learning_rate=0.0), glossary_callback()
    callback.attach(run)
    run.train()
    assert torch.equal(changed_rows(before, read_table(model)), defined_ids(tokenizer))
    assert callback.report is not None


def test_a_second_trainer_brings_its_own_tokenizer(trainer) -> None:
    callback, other = glossary_callback(), byte_bpe_tokenizer()
    trainer(callback)
    model = tiny_bert(other, BertForSequenceClassification)
    before = read_table(model)
    trainer(callback, model=model, processing_class=other)
    ids = torch.tensor(sorted(other.convert_tokens_to_ids(f"Ġ{word}") for word in tiny_glossary()))
    assert torch.isin(ids, changed_rows(before, read_table(model))).all()


def test_a_callback_can_be_pickled_before_and_after_a_run(trainer) -> None:
    """A hyper-parameter search with Ray sends the Trainer to its workers."""
    callback = DefinitionEMBCallback(tiny_glossary(), new_tokens={"lynx": "a wild cat"}, monitor_steps=1, plots=False)
    run = trainer(callback)
    sent = pickle.loads(pickle.dumps(callback))
    assert sent.report == callback.report
    run.train()
    fresh = trainer(pickle.loads(pickle.dumps(callback)))
    assert fresh.model.config.definition_emb["rebuilt"] == 66
