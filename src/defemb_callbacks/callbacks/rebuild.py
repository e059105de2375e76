"""The rebuild in a Trainer: this decides when, everything else happens elsewhere."""

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
from defemb_callbacks.metrics.snapshot import TableSnapshot, watched_tokens
from defemb_callbacks.new_tokens.terms import TermSource
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.config_record import read_record, restore_records
from defemb_callbacks.weights.rows import INPUT, bare_model, read_table, table_shape

logger = logging.getLogger(__name__)


class DefinitionEMBCallback(EmbeddingMonitorCallback):
    """Rebuilds a model's token embeddings from dictionary definitions before training, and monitors them.

    The rows are written when the Trainer is made, or, where the model is made later (`model_init`) or the training data
    are needed first, when training begins. A model that was rebuilt, also one loaded from such a checkpoint, is never
    rebuilt again, and a resumed run is left alone.

    Source: Zhang, Li, Okumura, "Reconsidering Degeneration of Token Embeddings with Definitions for Encoder-based
    Pre-trained Language Models", arXiv 2408.01308.

    Args:
        definitions: `"wordnet"`, a path, a dict {word: definition}, a `Lexicon`, or a list of these.
        embeddings: ready `DefinitionEmbeddings`, or their folder or hub id; nothing is built then.
        new_tokens: terms to add, as `define_new_tokens` takes them. With `tokenizer=` they are added to it here and
            now, so that the data can be tokenized with them before the Trainer is made; else when it is made.
        tokenizer: needed only where the Trainer got no `processing_class`.
        config: settings.
        force: rebuild although the model was rebuilt before.
        **config_overrides: single settings, such as `blend=0.3`.

    Attributes:
        report: a `RebuildReport` once rows are written; `print(callback.report)`.
        new_tokens_report: the same of `new_tokens`.

    Raises:
        ValueError, TypeError, FileNotFoundError: see `build_definition_embeddings`, `DefinitionEmbeddings.apply` and
            `define_new_tokens`; new tokens for a model that is made in training (`model_init`).

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
        self._given = embeddings
        self._rebuilt: weakref.ref[Any] | None = None
        self._built_for: weakref.ref[Any] | None = None
        self.new_tokens = None if new_tokens is None else NewTokens(new_tokens, definitions, self.config)
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
        """Rebuild now, before anything copies the weights: optimizers and shards are made of what stands there then."""
        seen_before = _refers_to(self._rebuilt, model)
        snapshots, rebuilt_ids = self._snapshots, self._rebuilt_ids
        super().on_init_end(args, state, control, processing_class=processing_class, **kwargs)
        if seen_before:  # a second Trainer for one model: what was done to it still holds
            self._snapshots, self._rebuilt_ids = snapshots, rebuilt_ids
        else:
            self.embeddings, self.report = self._given, None
        if self.new_tokens is not None:
            self.new_tokens.extend(self._tokenizer)
            if self.new_tokens.write(model, self._given):
                self._save_report(args, state, self.new_tokens_report, "new_tokens.json")
        needs_data = self.config.frequency == "training_data" or self.config.only_training_tokens
        if not needs_data:
            self._rebuild(args, state, model, counts=None)
        elif not self._is_done(model):  # the vectors at least, while the model is whole on each process
            self.embeddings = self._embeddings_for(model)

    @property
    def new_tokens_report(self) -> RebuildReport | None:
        """What became of `new_tokens`, once their rows are written."""
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
        """Rebuild a model that was made since; remember and measure the rows that training starts from."""
        if self.new_tokens is not None:
            self.new_tokens.check(model, getattr(train_dataloader, "dataset", None))
        super().on_train_begin(args, state, control, model=model, train_dataloader=train_dataloader, **kwargs)

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """Rebuild a model that was made since, unless the run is resumed."""
        if state.global_step == 0:
            self._rebuild(args, state, model, counts)
        else:
            self._recognise(args, state, model)

    def _recognise(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Let the config of a resumed model say of its rows what its checkpoint says."""
        saved = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / CONFIG_NAME
        if not saved.is_file():  # resumed from elsewhere, or from a checkpoint without a config
            return
        applied = json.loads(saved.read_text(encoding="utf-8")).get("definition_emb")
        restore_records(model, applied)
        if read_record(model, self.config.table) is None:
            self.report = None
            logger.warning("The run is resumed from a checkpoint with its own embeddings; they are not rebuilt.")

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        if self.embeddings is not None:
            return self.embeddings.vocabulary, self.embeddings.pairs
        return super()._vocabulary_and_pairs(model)

    def _lexicon(self) -> Lexicon | None:
        # Ready embeddings need no dictionary, which may not even be on this machine.
        return None if self._given is not None else super()._lexicon()

    def _is_done(self, model: Any) -> bool:
        # `force` is for what others rebuilt: a second train() is no second rebuild.
        rebuilt_here = _refers_to(self._rebuilt, model)
        return read_record(model, self.config.table) is not None and (rebuilt_here or not self.force)

    def _embeddings_for(self, model: Any) -> DefinitionEmbeddings:
        if self.new_tokens is not None and (built := self.new_tokens.embeddings_for(model)) is not None:
            return built
        if self._given is not None:
            vocabulary = read_vocabulary(self._tokenizer, table_shape(model, self.config.table)[0])
            self._given.check_tokenizer(vocabulary)
            return self._given
        if self.embeddings is None or not _refers_to(self._built_for, model):
            # Built anew for each model, as a `model_init` may give other weights each time.
            self.embeddings = build_definition_embeddings(model, self._tokenizer, self.definitions, self.config)
            self._built_for = weakref.ref(bare_model(model))
        return self.embeddings

    def _rebuild(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        if self._is_done(model):
            logger.info("The embeddings were rebuilt before; they are left as they are.")
            return
        embeddings = self._embeddings_for(model)
        ids = embeddings.chosen(self.config, counts)
        # The pictures are those of the input table, in which, where it is sharded, all processes have a part.
        table = read_table(model) if self.config.plots and self.config.table == INPUT else None
        self.report = embeddings.apply(model, self.config, counts=counts, force=self.force)
        if table is not None and state.is_world_process_zero:
            rank = configured_rank(embeddings.vocabulary, self.config, counts)
            groups = frequency_groups(rank, self.config.group_edges)
            watched = watched_tokens(ids, groups, embeddings.vocabulary)
            self._snapshots["before the rebuild"] = TableSnapshot.take(
                table, groups, metrics=self.report.before, watched=watched, among=embeddings.vocabulary.word_ids
            )
        self._rebuilt_ids = ids
        self.embeddings = embeddings
        self._rebuilt = weakref.ref(bare_model(model))
        self._save_report(args, state, self.report, "report.json")

    def _save_report(self, args: TrainingArguments, state: TrainerState, report: Any, name: str) -> None:
        if state.is_world_process_zero:
            logger.info("%s", report)
            folder = Path(str(args.output_dir), "defemb")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(report.to_json(), encoding="utf-8")


def _refers_to(reference: weakref.ref[Any] | None, model: Any) -> bool:
    return reference is not None and reference() is bare_model(model)
