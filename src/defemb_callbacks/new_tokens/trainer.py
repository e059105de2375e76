"""New tokens in a Trainer's run, where tokenizer and model may get them at different times."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.applied import new_tokens_in
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings import DefinitionEmbeddings
from defemb_callbacks.new_tokens.define import (
    new_token_embeddings,
    plan_fingerprint,
    plan_new_tokens,
    write_new_tokens,
)
from defemb_callbacks.new_tokens.terms import TermSource
from defemb_callbacks.new_tokens.tokenization import TokenPlan
from defemb_callbacks.reconstruction.batches import spread
from defemb_callbacks.report import RebuildReport
from defemb_callbacks.rows import table_shape
from defemb_callbacks.vocabulary import read_vocabulary

logger = logging.getLogger(__name__)

ROWS_LOOKED_AT = 1000


class NewTokens:
    """Terms that a run adds.

    Attributes:
        embeddings: once rows are written, those that the rebuild of `config.table` is to use; they were built before
            that table grew.
        report: what became of the terms, once rows are written.

    Args:
        terms: as `define_new_tokens` takes them.
        definitions: the dictionary; of it and of a file, what cannot be read is told now.
        config: settings.
    """

    def __init__(self, terms: TermSource, definitions: Any, config: DefinitionEMBConfig) -> None:
        self.terms, self.config = terms, config
        self.dictionary = load_definitions(definitions)
        self.embeddings: DefinitionEmbeddings | None = None
        self.report: RebuildReport | None = None
        self._plan: TokenPlan | None = None
        self._extended: PreTrainedTokenizerBase | None = None

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the terms to a tokenizer, once."""
        if self._extended is not tokenizer:
            self._plan = plan_new_tokens(tokenizer, self.terms, self.dictionary, self.config)
            self._plan.extend(tokenizer)
            self._extended = tokenizer

    def write(self, model: PreTrainedModel, given: DefinitionEmbeddings | None = None) -> bool:
        """Write the rows into a model, unless its config says that it has them.

        Args:
            model: of the tokenizer that was extended.
            given: embeddings of `config.table`, where they need not be built.

        Returns:
            Whether rows were written.
        """
        assert self._plan is not None
        noted = new_tokens_in(model)
        self.embeddings = self.report = None
        if noted is not None and noted["fingerprint"] == plan_fingerprint(self._plan, self.config):
            logger.info("The model has these new tokens already (%s).", noted)
            return False
        ready = {} if given is None else {self.config.table: given}
        embeddings = new_token_embeddings(model, self._plan, self.dictionary, self.config, ready)
        self.report = write_new_tokens(model, self._plan, embeddings, self.config)
        if self.config.table in embeddings:
            vocabulary = read_vocabulary(self._plan.after, table_shape(model, self.config.table)[0])
            self.embeddings = replace(embeddings[self.config.table], vocabulary=vocabulary)
        return True

    def check(self, model: PreTrainedModel, dataset: Any) -> None:
        """Tell, before the first step, of new tokens that training could not use.

        Args:
            model: about to be trained.
            dataset: of the training, if there is one.

        Raises:
            ValueError: the model was made after its Trainer, and has no rows for them.
        """
        assert self._plan is not None
        new = {index for token in self._plan.tokens if token.is_new for index in token.ids}
        size = table_shape(model)[0]
        if new and max(new) >= size:
            raise ValueError(
                f"The model has {size} rows, and none for the new tokens, as it was made when training began "
                "(model_init). Call define_new_tokens(model, tokenizer, …) in model_init instead of new_tokens=."
            )
        if not new or not hasattr(dataset, "__len__") or not len(dataset):
            return
        looked_at = spread(len(dataset), ROWS_LOOKED_AT)
        rows = [dataset[index] for index in looked_at]
        # What is tokenized only in the collator cannot be looked at.
        if all("input_ids" in row for row in rows) and not any(new & set(_ids(row["input_ids"])) for row in rows):
            logger.warning(
                "None of the %d new tokens is in the training data (%d rows of it were looked at). Was it tokenized "
                "before they were added? Pass tokenizer= to the callback, and tokenize after it is made.",
                len(new),
                len(rows),
            )


def _ids(row: Any) -> list[int]:
    return row if isinstance(row, list) else list(map(int, row))
