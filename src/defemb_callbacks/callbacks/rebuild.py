"""Rebuild the embeddings in a Trainer run: when rows are written, and what happens on resume."""

from __future__ import annotations

import json
import logging
import weakref
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from defemb_callbacks.callbacks.monitor import EmbeddingMonitorCallback
from defemb_callbacks.callbacks.new_tokens import NewTokens
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.new_tokens.terms import TermSource
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.config_record import read_record, restore_records
from defemb_callbacks.weights.rows import INPUT, bare_model, table_shape

logger = logging.getLogger(__name__)


class DefinitionEMBCallback(EmbeddingMonitorCallback):
    """Rebuild a model's token embeddings from dictionary definitions before training, and monitor them.

    Each rebuilt row is a blend of the old row and a row reconstructed from the definitions of the token; see
    `DefinitionEMBConfig` for the settings.

    When rows are written:

    - when the Trainer is created, before the optimizer and distributed wrappers see the weights;
    - when training begins, if the model is created by then (`model_init`), or if token counts of the training data are
      needed (`frequency="training_data"`, `only_training_tokens=True`).

    A model is rebuilt only once: the rebuild is recorded in its config, also for models loaded from a checkpoint. A
    resumed run keeps the rows of its checkpoint.

    Source: Zhang, Li, Okumura, "Reconsidering Degeneration of Token Embeddings with Definitions for Encoder-based
    Pre-trained Language Models", arXiv 2408.01308.

    Args:
        definitions: `"wordnet"`, a path, a dict {word: definition}, a `Lexicon`, or a list of these.
        embeddings: `DefinitionEmbeddings` that were built before, or their folder or hub id. No embeddings are built
            then.
        new_tokens: Terms to add, in any form accepted by `define_new_tokens`. If `tokenizer` is given, they are added
            to it immediately, so that the data can be tokenized before the Trainer is created; otherwise they are added
            when the Trainer is created.
        tokenizer: Needed only if the Trainer has no `processing_class`, or for `new_tokens`.
        config: Settings.
        force: Rebuild a model even if it was rebuilt before.
        **config_overrides: Single settings, such as `blend=0.3`.

    Attributes:
        report: `RebuildReport` of the rebuild; `None` before. Use `print(callback.report)`.
        new_tokens_report: `RebuildReport` of the new tokens; `None` before.

    Raises:
        ValueError, TypeError, FileNotFoundError: See `build_definition_embeddings`, `DefinitionEmbeddings.apply` and
            `define_new_tokens`. `new_tokens` cannot be used with `model_init`.

    Example:
        >>> callback = DefinitionEMBCallback(blend=0.3, monitor_steps=100)
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def __init__(
        self,
        definitions: Any = "wordnet",
        *,
        embeddings: DefinitionEmbeddings | str | Path | None = None,
        new_tokens: TermSource | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: DefinitionEMBConfig | None = None,
        force: bool = False,
        **config_overrides: Any,
    ) -> None:
        super().__init__(definitions, tokenizer=tokenizer, config=config, **config_overrides)
        if isinstance(embeddings, (str, Path)):
            embeddings = DefinitionEmbeddings.from_pretrained(embeddings)
        self.embeddings = embeddings
        self.force = force
        self.new_tokens = None if new_tokens is None else NewTokens(new_tokens, definitions, self.config)

        # Internal state
        self._ready_embeddings = embeddings  # those of the user; self.embeddings may be built later
        self._rebuilt_model: weakref.ref[Any] | None = None
        self._built_for: weakref.ref[Any] | None = None

        if self.new_tokens is not None and tokenizer is not None:
            self.new_tokens.extend(tokenizer)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Rebuild now: optimizers and shards are created from the current weights."""
        same_model = _refers_to(self._rebuilt_model, model)
        snapshots = self._snapshots
        super().on_init_end(args, state, control, processing_class=processing_class, **kwargs)
        if same_model:  # a second Trainer for one model: the rebuild is still valid
            self._snapshots = snapshots
        else:
            self.embeddings, self.report = self._ready_embeddings, None
        if self.new_tokens is not None:
            self.new_tokens.extend(self._tokenizer)
            if self.new_tokens.write(model, self._ready_embeddings):
                self._save_report(args, state, self.new_tokens_report, "new_tokens.json")
        needs_data = self.config.frequency == "training_data" or self.config.only_training_tokens
        if not needs_data:
            self._rebuild(args, state, model, counts=None)
        elif not self._is_rebuilt(model):  # build while each process still has the whole model
            self.embeddings = self._embeddings_for(model)

    @property
    def new_tokens_report(self) -> RebuildReport | None:
        """Report of the new tokens; `None` before their rows are written."""
        return None if self.new_tokens is None else self.new_tokens.report

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Rebuild a model that was created by `model_init`, then measure the embeddings."""
        if self.new_tokens is not None:
            self.new_tokens.check(model, getattr(train_dataloader, "dataset", None))
        super().on_train_begin(args, state, control, model=model, train_dataloader=train_dataloader, **kwargs)

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """Rebuild the model unless the run is resumed."""
        if state.global_step == 0:
            self._rebuild(args, state, model, counts)
        else:
            self._on_resume(args, state, model)

    def _on_resume(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Copy the record of the rebuild from the config of the checkpoint; its rows are kept as they are."""
        saved = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / CONFIG_NAME
        if not saved.is_file():  # resumed from another folder, or from a checkpoint without a config
            return
        applied = json.loads(saved.read_text(encoding="utf-8")).get("definition_emb")
        restore_records(model, applied)
        if read_record(model, self.config.table) is None:
            self.report = None
            logger.warning("The checkpoint to resume from was not rebuilt. Its embeddings are kept as they are.")

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        if self.embeddings is not None:
            return self.embeddings.vocabulary, self.embeddings.pairs
        return super()._vocabulary_and_pairs(model)

    def _lexicon(self) -> Lexicon | None:
        # Ready embeddings need no dictionary, and this machine may not have it.
        return None if self._ready_embeddings is not None else super()._lexicon()

    def _is_rebuilt(self, model: Any) -> bool:
        # `force` applies to earlier runs only: a second train() does not rebuild again.
        rebuilt_here = _refers_to(self._rebuilt_model, model)
        return read_record(model, self.config.table) is not None and (rebuilt_here or not self.force)

    def _embeddings_for(self, model: Any) -> DefinitionEmbeddings:
        if self.new_tokens is not None and (built := self.new_tokens.embeddings_for(model)) is not None:
            return built
        if self._ready_embeddings is not None:
            vocabulary = read_vocabulary(self._tokenizer, table_shape(model, self.config.table)[0])
            self._ready_embeddings.check_tokenizer(vocabulary)
            return self._ready_embeddings
        if self.embeddings is None or not _refers_to(self._built_for, model):
            # Build again for each model: `model_init` may return different weights each time.
            self.embeddings = build_definition_embeddings(model, self._tokenizer, self.definitions, self.config)
            self._built_for = weakref.ref(bare_model(model))
        return self.embeddings

    def _rebuild(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        if self._is_rebuilt(model):
            logger.info("The embeddings were rebuilt before. They are kept as they are.")
            return
        embeddings = self._embeddings_for(model)
        ids = embeddings.chosen(self.config, counts)

        def picture(table: Tensor, metrics: dict[str, float]) -> None:
            self._snapshots.take_before_rebuild(table, embeddings.vocabulary, ids, self.config, counts, metrics)

        # Pictures show the input table.
        pictured = self.config.plots and self.config.table == INPUT and state.is_world_process_zero
        self.report = embeddings.apply(
            model, self.config, counts=counts, force=self.force, look=picture if pictured else None
        )
        self._snapshots.rebuilt_ids = ids
        self.embeddings = embeddings
        self._rebuilt_model = weakref.ref(bare_model(model))
        self._save_report(args, state, self.report, "report.json")

    def _save_report(self, args: TrainingArguments, state: TrainerState, report: Any, name: str) -> None:
        if state.is_world_process_zero:
            logger.info("%s", report)
            folder = Path(str(args.output_dir), "defemb")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(report.to_json(), encoding="utf-8")


def _refers_to(reference: weakref.ref[Any] | None, model: Any) -> bool:
    return reference is not None and reference() is bare_model(model)
