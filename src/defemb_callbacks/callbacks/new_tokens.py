"""Add new tokens in a Trainer run, where tokenizer and model may get them at different times."""

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
from defemb_callbacks.weights.rows import table_shape
from defemb_callbacks.weights.unwrapping import transformers_model

logger = logging.getLogger(__name__)
MAX_INSPECTED_ROWS = 1000


class NewTokens:
    """Terms that a run adds to its tokenizer and model.

    Args:
        terms: Terms in any form accepted by `define_new_tokens`.
        definitions: Dictionary in any form accepted by `load_definitions`.
        config: Settings.
        texts: Texts to search for the terms.

    Attributes:
        report: Report of the terms; `None` before their rows are written.
    """

    def __init__(
        self, terms: TermSource, definitions: Any, config: DefinitionEMBConfig, texts: Iterable[str] = ()
    ) -> None:
        self.terms, self.definitions, self.config, self.texts = terms, definitions, config, texts
        self.report: RebuildReport | None = None
        self._plan: TokenPlan | None = None
        self._extended: PreTrainedTokenizerBase | None = None
        self._written: weakref.ref[PreTrainedModel] | None = None
        self._embeddings: DefinitionEmbeddings | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_written": None}

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the terms to a tokenizer, unless it was extended before."""
        if self._extended is not tokenizer:
            dictionary = load_definitions(self.definitions)
            self._plan = plan_new_tokens(tokenizer, self.terms, dictionary, self.config, self.texts)
            self._plan.extend(tokenizer)
            self._extended = tokenizer

    def write(self, model: Any, ready_embeddings: DefinitionEmbeddings | None = None) -> bool:
        """Write the rows of the terms into a model, except those that its config records as written.

        Args:
            model: Model that uses the extended tokenizer.
            ready_embeddings: Embeddings of `config.table`, if they need not be built.

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
            logger.info("The model already has all new tokens.")
            return False
        check_model(model)
        dictionary = load_definitions(self.definitions)
        ready = {} if ready_embeddings is None else {self.config.table: ready_embeddings}
        embeddings = new_token_embeddings(model, plan, dictionary, self.config, ready)
        self.report = write_new_tokens(model, plan, embeddings, dictionary, self.config)
        if (built := embeddings.get(self.config.table)) is not None:
            # The user's definition of a known token takes precedence over the dictionary's.
            defined = torch.tensor([token.word for token in plan.tokens], dtype=torch.int64)
            others = ~torch.isin(built.ids, defined)
            vocabulary = read_vocabulary(plan.after, table_shape(model, self.config.table)[0])
            self._embeddings = replace(built, ids=built.ids[others], rows=built.rows[others], vocabulary=vocabulary)
        self._written = weakref.ref(model)
        return True

    def embeddings_for(self, model: Any) -> DefinitionEmbeddings | None:
        """Return the embeddings of `config.table` for the rebuild, built before the table was extended."""
        is_written = self._written is not None and self._written() is transformers_model(model)
        return self._embeddings if is_written else None

    def check(self, model: Any, dataset: Any) -> None:
        """Check, before the first step, that training can use the new tokens.

        Args:
            model: Model about to be trained.
            dataset: Training data set, if there is one. A warning is logged if it contains none of the new tokens.

        Raises:
            ValueError: If the model has no rows for the new tokens because it was created after the Trainer.
        """
        assert self._plan is not None
        new = {index for token in self._plan.tokens if token.is_new for index in token.ids}
        if new and self._missing(model).tokens:
            raise ValueError(
                "The model has no rows for the new tokens because model_init created it after the callback added them. "
                "Call define_new_tokens(model, tokenizer, …) in model_init instead of passing new_tokens=."
            )
        if not new or not hasattr(dataset, "__len__") or not len(dataset):
            return
        rows = [dataset[index] for index in spread(len(dataset), MAX_INSPECTED_ROWS)]
        # Data sets that are tokenized in the collator cannot be checked.
        if all("input_ids" in row for row in rows) and not any(new & set(_ids(row["input_ids"])) for row in rows):
            logger.warning(
                "None of the %d new tokens occurs in the training data (%d rows checked). It may have been tokenized "
                "before they were added: pass tokenizer= to the callback and tokenize after creating it.",
                len(new),
                len(rows),
            )

    def _missing(self, model: Any) -> TokenPlan:
        """Return the plan without the terms whose rows the model already has."""
        assert self._plan is not None
        recorded = read_new_tokens_record(model) or {}
        wanted = {
            term.text: term
            for term in self._plan.terms
            if recorded.get(term.text) != term_fingerprint(term, self.config)
        }
        tokens = tuple(token for token in self._plan.tokens if token.term.text in wanted)
        return replace(self._plan, terms=tuple(wanted.values()), tokens=tokens)


def _ids(row: Any) -> Iterator[int]:
    """Yield the ids of a row, which may contain several texts (multiple choice)."""
    for item in row:
        if isinstance(item, Iterable):
            yield from _ids(item)
        else:
            yield int(item)
