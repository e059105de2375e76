"""Senses of the teacher as labels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import tiny
from defemb_callbacks.senses import (
    SenseDictionary,
    SenseDistillationArguments,
    SenseDistillationTrainer,
    build_sense_dictionary,
    first_layers,
)
from defemb_callbacks.senses import teacher_labels as module
from defemb_callbacks.senses.teacher_labels import IGNORED, WithSenseLabels, teacher_senses
from runs import forward_calls


@pytest.fixture(scope="module")
def dictionary(sentence_dictionary: SenseDictionary) -> SenseDictionary:
    return sentence_dictionary


def test_teacher_senses_are_cached(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    rows: Dataset,
) -> None:
    first = teacher_senses(teacher, dictionary, rows, tokenizer, batch_size=5)
    with forward_calls() as calls:
        again = teacher_senses(teacher, dictionary, rows, tokenizer)
    assert not calls
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert [len(labels) for labels in first] == [len(ids) for ids in rows["input_ids"]]
    with forward_calls() as calls:
        teacher_senses(teacher, dictionary, rows.select(range(9)), tokenizer)
    assert calls


def test_teacher_senses_are_independent_of_the_data_collator(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    rows: Dataset,
    tmp_path: Path,
) -> None:
    some = rows.select(range(12))
    args = SenseDistillationArguments(str(tmp_path), use_cpu=True, report_to=[])

    def hiding(batch: list[dict[str, Any]]) -> Any:
        return DataCollatorWithPadding(tokenizer)([row | {"input_ids": [5] * len(row["input_ids"])} for row in batch])

    trainer = SenseDistillationTrainer(
        first_layers(teacher, 1),
        teacher,
        dictionary,
        args,
        train_dataset=some,
        processing_class=tokenizer,
        data_collator=hiding,
    )
    # Not from the cache, which contains the trainer's result.
    expected, lengths = module._choose(teacher, dictionary, some, tokenizer, 64)
    assert trainer.train_dataset["sense_labels"] == [labels.tolist() for labels in expected.split(lengths.tolist())]


def test_left_padding(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    rows: Dataset,
    sentences: list[str],
) -> None:
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    # A decoder: with BERT, left padding changes positions and hidden states.
    model = tiny.tiny_model(LlamaForCausalLM, tokenizer)
    senses = build_sense_dictionary(model, tokenizer, sentences, senses=4)
    labels = [
        teacher_senses(model, senses, rows, some, batch_size=number) for some, number in ((tokenizer, 64), (left, 50))
    ]
    same = [float((one == two).mean()) for one, two in zip(*labels, strict=True)]
    assert min(same) > 0.99
    batch = WithSenseLabels(DataCollatorWithPadding(left), left=True)(
        [{"input_ids": [1, 2, 3], "sense_labels": [0, 1, 2]}, {"input_ids": [4], "sense_labels": [7]}]
    )
    assert batch["sense_labels"].tolist() == [[0, 1, 2], [IGNORED, IGNORED, 7]]
