"""The metrics in the rows of a Trainer's log: this decides when, everything else happens elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from defemb_callbacks.build import related_tokens
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.frequency import count_tokens
from defemb_callbacks.monitoring.monitor import EmbeddingMonitor
from defemb_callbacks.monitoring.reporters import ForwardingReporters
from defemb_callbacks.plots import TableSnapshot, save_run_plots
from defemb_callbacks.report import RebuildReport
from defemb_callbacks.rows import embedding_weight
from defemb_callbacks.vocabulary import Vocabulary, read_vocabulary

logger = logging.getLogger(__name__)

MOST_ROWS = 20  # measurements in a run unless monitor_steps says otherwise: enough for a curve

# What stands in the progress bar.
HEADLINES = tuple(f"defemb/{metric}/{group}" for metric in ("isotropy", "relation_auc") for group in ("all", "rare"))


class EmbeddingMonitorCallback(TrainerCallback):
    """Logs isotropy and meaning of a model's token embeddings by frequency group, in the rows of the loss.

    The keys are `defemb/<metric>/<group>`, see `measure_table`. They stand in the progress bar, in `state.log_history`,
    and in every tracker of `report_to`. At the end of training, pictures are in `output_dir/defemb/`.

    Args:
        definitions: a dictionary whose relations between words tell whether the embeddings keep their meaning; all that
            `load_definitions` takes. `None` leaves `relation_auc` out.
        tokenizer: needed only where the Trainer got no `processing_class`.
        config: settings; of a `DefinitionEMBConfig` only those of the monitoring matter.
        **config_overrides: single settings, such as `monitor_steps=100`.

    Raises:
        ValueError: an unknown or impossible setting; at the Trainer's construction, no tokenizer.

    Example:
        >>> callback = EmbeddingMonitorCallback({"cat": "a small feline"}, monitor_steps=100)
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def __init__(
        self,
        definitions: Any = "wordnet",
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: DefinitionEMBConfig | None = None,
        **config_overrides: Any,
    ) -> None:
        self.definitions = definitions
        self.tokenizer = tokenizer
        self.config = DefinitionEMBConfig.resolve(config, config_overrides)
        self.monitor: EmbeddingMonitor | None = None
        self.report: RebuildReport | None = None
        self._before: TableSnapshot | None = None
        self._start: TableSnapshot | None = None
        self._attached = False
        self._reporters: ForwardingReporters | None = None
        self._last_measured = 0

    def attach(self, trainer: Trainer) -> EmbeddingMonitorCallback:
        """Let every tracker get metrics and loss in one row, by running before the Trainer's reporters.

        To be called between the making of the Trainer and `trainer.train()`. Without it the metrics reach the same
        trackers at the same step, in a second row.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            trainer.add_callback(self)
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._attached = True
        return self

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find the tokenizer, so that a missing one is told before anything is loaded or trained."""
        self._find_tokenizer(processing_class)

    def _find_tokenizer(self, processing_class: Any) -> None:
        # The user's own comes first; the Trainer's is asked for anew, as a callback may serve several Trainers.
        found = getattr(processing_class, "tokenizer", processing_class) if self.tokenizer is None else self.tokenizer
        if found is None:
            raise ValueError(
                f"{type(self).__name__} needs the tokenizer. Pass processing_class=tokenizer to the Trainer, or "
                f"{type(self).__name__}(tokenizer=tokenizer)."
            )
        self._tokenizer: PreTrainedTokenizerBase = found

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Remember the rows that training starts from."""
        self._find_tokenizer(kwargs.get("processing_class"))  # a callback added later has seen no on_init_end
        counts = self._counts(model, train_dataloader)
        self._before_training(args, state, model, counts)
        self._last_measured = state.global_step
        if self.config.monitor_steps == 0:
            return
        vocabulary, pairs = self._vocabulary_and_pairs(model)
        self.monitor = EmbeddingMonitor(model, vocabulary, self.config, pairs, counts)
        if self.config.plots and state.is_world_process_zero:
            self._start = TableSnapshot.take(model, self.monitor.groups)
        self._reporters = None if self._attached or not state.is_world_process_zero else ForwardingReporters(args)

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """For subclasses: what is to happen before the first measurement."""

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        vocabulary = read_vocabulary(self._tokenizer, len(embedding_weight(model)))
        if self.definitions is None:
            return vocabulary, None
        return vocabulary, related_tokens(vocabulary, load_definitions(self.definitions))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a row of the log where one is due."""
        if self.monitor and self.config.monitor_steps and state.global_step % self.config.monitor_steps == 0:
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to a row of the loss."""
        if logs is None or self.monitor is None or not self._is_due(state, logs):
            return
        self._last_measured = state.global_step
        try:
            metrics = self.monitor.measure(model)
        except ValueError as error:  # NaN: the run may be lost, but not through its monitor
            logger.warning("The embeddings cannot be measured at step %d and no more: %s", state.global_step, error)
            self.monitor = None
            return
        # The Trainer has put a copy of the row into the history; `logs` goes to whichever callbacks come later. These
        # are the trackers when attached, else only the progress bar, which prints the whole row.
        state.log_history[-1].update(metrics)
        logs.update(metrics if self._attached else {key: metrics[key] for key in HEADLINES if key in metrics})
        if self._reporters is not None:
            self._reporters.log(args, state, control, metrics, model=model)

    def _is_due(self, state: TrainerState, logs: dict[str, Any]) -> bool:
        if "train_runtime" in logs:  # the last row: that of the whole run
            return state.global_step > self._last_measured
        if "loss" not in logs:
            return False
        if self.config.monitor_steps:
            return state.global_step % self.config.monitor_steps == 0
        last = state.global_step >= state.max_steps
        return last or (state.global_step - self._last_measured) * MOST_ROWS >= state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Save the pictures."""
        if self.monitor is None or self._start is None:
            return
        snapshots = {"before the rebuild": self._before, "at train start": self._start}
        snapshots["at train end"] = TableSnapshot.take(model, self.monitor.groups)
        taken = {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}
        history = [row for row in state.log_history if any(key.startswith("defemb/") for key in row)]
        before = None
        if self.report is not None:
            before = self.report.before
            history.insert(0, {"step": 0, **self.report.after})
        save_run_plots(Path(str(args.output_dir), "defemb"), history, taken, before)

    def _counts(self, model: Any, train_dataloader: Any) -> Tensor | None:
        if self.config.frequency != "training_data" and not self.config.only_training_tokens:
            return None
        return count_tokens(train_dataloader.dataset, len(embedding_weight(model)))
