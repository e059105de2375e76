"""New tokens in a Trainer's run, where tokenizer and model may get them at different times."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.new_tokens.define import new_token_embeddings, plan_new_tokens, term_fingerprint, write_new_tokens
from defemb_callbacks.new_tokens.growth import check_model
from defemb_callbacks.new_tokens.terms import TermSource
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.reconstruction.batching import spread
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import read_new_tokens_record
from defemb_callbacks.weights.rows import table_shape, transformers_model

logger = logging.getLogger(__name__)
ROWS_LOOKED_AT = 1000


class NewTokens:
    """Terms that a run adds.

    Attributes:
        report: what became of the terms, once rows are written.

    Args:
        terms: as `define_new_tokens` takes them.
        definitions: the dictionary.
        config: settings.
    """

    def __init__(self, terms: TermSource, definitions: Any, config: DefinitionEMBConfig) -> None:
        self.terms, self.definitions, self.config = terms, definitions, config
        self.report: RebuildReport | None = None
        self._plan: TokenPlan | None = None
        self._extended: PreTrainedTokenizerBase | None = None
        self._written: weakref.ref[PreTrainedModel] | None = None
        self._embeddings: DefinitionEmbeddings | None = None

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the terms to a tokenizer, once."""
        if self._extended is not tokenizer:
            self._plan = plan_new_tokens(tokenizer, self.terms, load_definitions(self.definitions), self.config)
            self._plan.extend(tokenizer)
            self._extended = tokenizer

    def write(self, model: Any, given: DefinitionEmbeddings | None = None) -> bool:
        """Write the rows into a model, but for those that it has, as its config says.

        Args:
            model: of the tokenizer that was extended.
            given: embeddings of `config.table`, where they need not be built.

        Returns:
            Whether rows were written.
        """
        assert self._plan is not None
        model = transformers_model(model)
        if self._written is not None and self._written() is model:
            return False
        self.report = self._embeddings = self._written = None
        plan = self._missing(model)
        if not plan.terms:
            logger.info("The model has all new tokens already.")
            return False
        check_model(model)
        dictionary = load_definitions(self.definitions)
        ready = {} if given is None else {self.config.table: given}
        embeddings = new_token_embeddings(model, plan, dictionary, self.config, ready)
        self.report = write_new_tokens(model, plan, embeddings, dictionary, self.config)
        if (built := embeddings.get(self.config.table)) is not None:
            # A term that was a token already is no longer the dictionary's to define.
            defined = torch.tensor([token.word for token in plan.tokens], dtype=torch.int64)
            others = ~torch.isin(built.ids, defined)
            vocabulary = read_vocabulary(plan.after, table_shape(model, self.config.table)[0])
            self._embeddings = replace(built, ids=built.ids[others], rows=built.rows[others], vocabulary=vocabulary)
        self._written = weakref.ref(model)
        return True

    def embeddings_for(self, model: Any) -> DefinitionEmbeddings | None:
        """What the rebuild of `config.table` is to write into a model: built before its table grew."""
        is_this = self._written is not None and self._written() is transformers_model(model)
        return self._embeddings if is_this else None

    def check(self, model: Any, dataset: Any) -> None:
        """Tell, before the first step, of new tokens that training could not use.

        Args:
            model: about to be trained.
            dataset: of the training, if there is one.

        Raises:
            ValueError: the model was made after its Trainer, and has no rows for them.
        """
        assert self._plan is not None
        new = {index for token in self._plan.tokens if token.is_new for index in token.ids}
        if new and self._missing(model).tokens:
            raise ValueError(
                "The model has no rows for the new tokens, as it was made when training began (model_init). Call "
                "define_new_tokens(model, tokenizer, …) in model_init instead of new_tokens=."
            )
        if not new or not hasattr(dataset, "__len__") or not len(dataset):
            return
        rows = [dataset[index] for index in spread(len(dataset), ROWS_LOOKED_AT)]
        # What is tokenized only in the collator cannot be looked at.
        if all("input_ids" in row for row in rows) and not any(new & set(_ids(row["input_ids"])) for row in rows):
            logger.warning(
                "None of the %d new tokens is in the training data (%d rows of it were looked at). Was it tokenized "
                "before they were added? Pass tokenizer= to the callback, and tokenize after it is made.",
                len(new),
                len(rows),
            )

    def _missing(self, model: Any) -> TokenPlan:
        """The plan but for the terms whose rows the model has."""
        assert self._plan is not None
        noted = read_new_tokens_record(model) or {}
        wanted = [term for term in self._plan.terms if noted.get(term.text) != term_fingerprint(term, self.config)]
        tokens = tuple(token for token in self._plan.tokens if token.term in wanted)
        return replace(self._plan, terms=tuple(wanted), tokens=tokens)


def _ids(row: Any) -> Iterator[int]:
    """The ids of a row, which may hold several texts (multiple choice)."""
    for item in row:
        if isinstance(item, Iterable):
            yield from _ids(item)
        else:
            yield int(item)
