"""A tiny teacher with sense dictionaries."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import tiny
from defemb_callbacks.senses import SenseDictionary, build_sense_dictionary


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="session")
def teacher(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny.tiny_bert(tokenizer, BertForSequenceClassification)


@pytest.fixture(scope="session")
def dictionary(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SenseDictionary:
    return build_sense_dictionary(teacher, tokenizer, tiny.random_texts(160), senses=4, samples=50)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Sentences that share most of their tokens."""
    words = ("dog", "cat", "ship", "book", "table", "lion")
    return [f"the {word} was in the old house" for word in words] * 6 + [f"he saw a {word} ." for word in words] * 3


@pytest.fixture(scope="session")
def sentence_dictionary(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]
) -> SenseDictionary:
    return build_sense_dictionary(teacher, tokenizer, sentences, senses=4)


@pytest.fixture(scope="session")
def rows(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> Dataset:
    """The sentences, tokenized, with alternating labels."""
    encoded = tokenizer(sentences, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "labels": [index % 2 for index in range(len(sentences))]})
