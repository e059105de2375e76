"""Rebuild the embeddings in a Trainer run: when rows are written, and what happens on resume."""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy
from transformers.utils import CONFIG_NAME

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.callbacks.console import show, shown_operations
from defemb_callbacks.callbacks.monitor import EmbeddingMonitorCallback
from defemb_callbacks.callbacks.new_tokens import NewTokens
from defemb_callbacks.callbacks.reference_model import warn_about_reference_model
from defemb_callbacks.callbacks.tokenizer_search import require_tokenizer
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.new_tokens.terms import TermSource
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.config_record import read_record, restore_records
from defemb_callbacks.weights.rows import INPUT, table_shape
from defemb_callbacks.weights.unwrapping import bare_model

logger = logging.getLogger(__name__)


class DefinitionEMBCallback(EmbeddingMonitorCallback):
    """Rebuild a model's token embeddings from dictionary definitions before training, and monitor them.

    Each rebuilt row is a blend of the old row and a row reconstructed from the definitions of the token; see
    `DefinitionEMBConfig` for the settings.

    When rows are written:

    - when the Trainer is created, before the optimizer and distributed wrappers see the weights;
    - when training begins, if the model is created by then (`model_init`), if token counts of the training data are
      needed (`frequency="training_data"`, `only_training_tokens=True`), or if only the data collator has a tokenizer;
    - never in a run that only evaluates: with `do_eval` or `do_predict`, but without `do_train`.

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
        new_token_texts: Texts to search for the new tokens, such as `dataset["text"]`; see `define_new_tokens`.
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
        new_token_texts: Iterable[str] = (),
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
        self.new_tokens: NewTokens | None = None
        if new_tokens is not None:
            self.new_tokens = NewTokens(new_tokens, definitions, self.config, new_token_texts)

        # Internal state
        self._ready_embeddings = embeddings  # those of the user; self.embeddings may be built later
        self._rebuilt_model: weakref.ref[Any] | None = None
        self._built_for: weakref.ref[Any] | None = None
        self._untrained = False  # whether the model was rebuilt, but not trained since
        self._trainer: weakref.ref[Any] | None = None  # set by attach

        if self.new_tokens is not None and tokenizer is not None:
            self.new_tokens.extend(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, as a hyper-parameter search with Ray does, without references to models."""
        return {**self.__dict__, "_rebuilt_model": None, "_built_for": None, "_trainer": None}

    def attach(self, trainer: Trainer) -> DefinitionEMBCallback:
        """See `EmbeddingMonitorCallback.attach`; also looks for a reference model that keeps the old embeddings."""
        super().attach(trainer)
        self._trainer = weakref.ref(trainer)
        return self

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
        super().on_init_end(args, state, control, processing_class=processing_class, model=model, **kwargs)
        self._trainer = None
        if same_model:  # a second Trainer for one model: the rebuild is still valid
            self._snapshots = snapshots
        else:
            self.embeddings, self.report, self._untrained = self._ready_embeddings, None, False
        if self.new_tokens is not None:
            self._tokenizer = require_tokenizer(self, processing_class, model)
            self.new_tokens.extend(self._tokenizer)
            with shown_operations(args, state):
                written = self.new_tokens.write(model, self._ready_embeddings)
            if written:
                if state.is_world_process_zero:
                    logger.info("%s", self.new_tokens_report)
                self._save_report(args, state, self.new_tokens_report, "new_tokens.json")
        if self._tokenizer is None:
            show(args, state, "The Trainer has no tokenizer. The data collator may have one when training begins.")
            return
        needs_data = self.config.frequency == "training_data" or self.config.only_training_tokens
        if _only_evaluates(args):
            text = "The token embeddings are left as they are, because the model is only evaluated (without do_train)."
            show(args, state, text)
        elif not needs_data:
            self._rebuild(args, state, model, counts=None)
        elif not self._is_rebuilt(model):  # build while each process still has the whole model
            with shown_operations(args, state):
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

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Warn once if the model is evaluated that was rebuilt but not trained since."""
        if self._untrained and state.is_world_process_zero and _refers_to(self._rebuilt_model, model):
            self._untrained = False
            logger.warning(
                "The model is evaluated with rebuilt token embeddings, but it has not been trained since. To evaluate "
                "the original model, set do_eval=True or do_predict=True without do_train, or remove the callback."
            )

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """Rebuild the model unless the run is resumed."""
        if state.global_step > 0:
            self._on_resume(args, state, model)
        elif not self._is_rebuilt(model):
            self._rebuild(args, state, model, counts)
        if self._untrained and self._trainer is not None and state.is_world_process_zero:
            with Attempt("The reference model is not compared with the rebuilt model"):
                if self.report is not None and self.report.rebuilt:
                    warn_about_reference_model(self._trainer(), self.config.table)
        self._untrained = False

    def _on_resume(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Copy the record of the rebuild from the config of the checkpoint; its rows are kept as they are."""
        text = f"The token embeddings are left as in the checkpoint of step {state.global_step}."
        show(args, state, text + " They replace those rebuilt above." if self._untrained else text)
        saved = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / CONFIG_NAME
        if not saved.is_file():  # resumed from another folder, or from a checkpoint without a config
            return
        with Attempt("The record of the rebuild is not restored from the checkpoint") as attempt:
            restore_records(model, json.loads(saved.read_text(encoding="utf-8")).get("definition_emb"))
        if attempt.failed:
            return
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
            logger.debug("The embeddings were rebuilt before. They are kept as they are.")
            show(args, state, "The token embeddings were rebuilt before and are kept as they are.")
            return
        start = time.perf_counter()
        with shown_operations(args, state) as display:
            embeddings = self._embeddings_for(model)
        ids = embeddings.chosen(self.config, counts)

        def picture(table: Tensor, metrics: dict[str, float]) -> None:
            with Attempt("The pictures do not show the embeddings before the rebuild"):
                self._snapshots.take_before_rebuild(table, embeddings.vocabulary, ids, self.config, counts, metrics)

        # Pictures show the input table.
        pictured = self.config.plots and self.config.table == INPUT and state.is_world_process_zero
        self.report = embeddings.apply(
            model, self.config, counts=counts, force=self.force, look=picture if pictured else None
        )
        self._untrained = True
        self._snapshots.rebuilt_ids = ids
        self.embeddings = embeddings
        self._rebuilt_model = weakref.ref(bare_model(model))
        self._save_report(args, state, self.report, "report.json")
        self._show_report(args, state, time.perf_counter() - start, is_new=display.used)

    def _show_report(self, args: TrainingArguments, state: TrainerState, seconds: float, is_new: bool) -> None:
        assert self.report is not None
        source = "ready embeddings" if self._ready_embeddings else "built now" if is_new else "from the cache"
        text = f"{self.report.headline} It took {seconds:.1f} s ({source})."
        if self.config.plots and self.config.monitor_steps != 0 and self._saves_files:
            text += f" Metrics and pictures will be in {Path(str(args.output_dir), 'defemb', 'index.html')}."
        show(args, state, text)

    def _save_report(self, args: TrainingArguments, state: TrainerState, report: Any, name: str) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir), "defemb", name)
        with Attempt(f"No files are saved in {path.parent}") as attempt:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(report.to_json(), encoding="utf-8")
        self._saves_files = not attempt.failed


def _only_evaluates(args: TrainingArguments) -> bool:
    """Whether the flags of a script ask for evaluation or prediction without training.

    `do_train` alone is not reliable, because `Trainer.train` ignores it, and `eval_strategy` sets `do_eval`.
    """
    asked = args.do_predict or (args.do_eval and args.eval_strategy == IntervalStrategy.NO)
    return bool(asked) and not args.do_train


def _refers_to(reference: weakref.ref[Any] | None, model: Any) -> bool:
    return reference is not None and reference() is bare_model(model)
