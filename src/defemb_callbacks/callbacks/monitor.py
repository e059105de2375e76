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

from defemb_callbacks.callbacks.headlines import HEADLINES, own_metric, shield_screen
from defemb_callbacks.callbacks.reporters import ForwardingReporters
from defemb_callbacks.callbacks.schedule import MeasuringSchedule
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.metrics.snapshot import TableSnapshot, watched_tokens
from defemb_callbacks.reporting.run_files import save_pictures
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import training_counts
from defemb_callbacks.vocabulary.lookup import first_glosses
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import table_shape

logger = logging.getLogger(__name__)
MOMENTS = ("before the rebuild", "at train start", "at train end")


class EmbeddingMonitorCallback(TrainerCallback):
    """Logs isotropy and meaning of a model's token embeddings by frequency group, in the rows of the loss.

    The keys are `defemb/<metric>/<group>`, see `measure_table`; those of an output table that is not tied to the input
    are `defemb/output_<metric>/<group>`. They stand in `state.log_history` and in every tracker of `report_to`, which
    also get those of the train start, at its step. A few stand in the progress bar. Evaluations get these few too, as
    `eval_defemb/…`, where `monitor_steps` is set or the best checkpoint is chosen by one of our metrics:
    `metric_for_best_model="defemb/isotropy/rare"`. A callback that reads an evaluation's metrics itself, such as
    `EarlyStoppingCallback`, must come later in the list. At the end of training, pictures and a page are in
    `output_dir/defemb/`.

    Unless `monitor_steps` says when, the embeddings are measured at the start, at the end, and between in at most 20
    rows of the log, as long as measuring takes less than 0.5 % of the time.

    Args:
        definitions: a dictionary whose relations between words tell whether the embeddings keep their meaning; all that
            `load_definitions` takes. `None` leaves `relation_auc` out.
        tokenizer: needed only where the Trainer got no `processing_class`.
        config: settings; of a `DefinitionEMBConfig` only those of the monitoring matter.
        **config_overrides: single settings, such as `monitor_steps=100`.

    Raises:
        ValueError: an unknown or impossible setting; at the Trainer's construction, no tokenizer; at train start,
            embeddings with NaN, or a `metric_for_best_model` that is not measured.

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
        self._watching = False
        self._loaded: Lexicon | None = None
        self.report: RebuildReport | None = None
        self._callbacks: list[TrainerCallback] | None = None  # the Trainer's, once attached
        self._reporters: ForwardingReporters | None = None
        self._snapshots: dict[str, TableSnapshot] = {}
        self._rebuilt_ids: Tensor | None = None

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
        if self._callbacks is not callbacks:
            shield_screen(callbacks)
        self._callbacks = callbacks
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
        # Of another Trainer, where this is not the first one.
        self._callbacks, self._snapshots, self._rebuilt_ids = None, {}, None
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
        """Remember and measure the rows that training starts from."""
        self._find_tokenizer(kwargs.get("processing_class"))  # a callback added later has seen no on_init_end
        counts = training_counts(model, train_dataloader, self.config)
        self._before_training(args, state, model, counts)
        self._watching, self._reporters = False, None
        self._best_metric = own_metric(args.metric_for_best_model)
        if self.config.monitor_steps == 0:
            if self._best_metric:
                raise ValueError(
                    f"metric_for_best_model={args.metric_for_best_model!r} needs other monitor_steps than 0."
                )
            return
        self._schedule = MeasuringSchedule(self.config.monitor_steps, state.max_steps)
        self._start_step = self._logged_step = state.global_step
        self._evaluated_step = -1
        self._evaluated: dict[str, float] = {}
        with self._schedule.measuring(state.global_step):
            self._vocabulary, pairs = self._vocabulary_and_pairs(model)
            self.monitor = EmbeddingMonitor(model, self._vocabulary, self.config, pairs, counts)
            self._figures = self._start_figures(state, model, self.monitor)
        self._watching = True
        if self._best_metric and self._best_metric not in self._figures:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is not measured here. Measured are: "
                f"{', '.join(sorted(self._figures))}."
            )

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """For subclasses: what is to happen before the first measurement."""

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        vocabulary, lexicon = read_vocabulary(self._tokenizer, table_shape(model)[0]), self._lexicon()
        return vocabulary, None if lexicon is None else related_tokens(vocabulary, lexicon)

    def _lexicon(self) -> Lexicon | None:
        if self._loaded is None and self.definitions is not None:
            self._loaded = load_definitions(self.definitions)
        return self._loaded

    def _start_figures(self, state: TrainerState, model: Any, monitor: EmbeddingMonitor) -> dict[str, float]:
        if not (self.config.plots and state.is_world_process_zero):
            return monitor.measure(model)
        candidates = monitor.groups["all"] if self._rebuilt_ids is None else self._rebuilt_ids
        self._watched = watched_tokens(candidates, monitor.groups, self._vocabulary)
        self._snapshots["at train start"] = monitor.snapshot(model, watched=self._watched)
        return self._snapshots["at train start"].metrics

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Before the first step, now that every tracker has begun its run, send the metrics of the start."""
        if not self._watching or self._reporters is not None or not state.is_world_process_zero:
            return
        self._reporters = ForwardingReporters(args, self._callbacks)
        if state.global_step == 0:  # what a resumed run starts from, it has logged before
            self._reporters.log(args, state, control, self._figures, model=model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a row of the log where one is due."""
        if self._watching and self.config.monitor_steps and state.global_step % self.config.monitor_steps == 0:
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
        """Add the metrics to a row of the loss, and the headlines to that of an evaluation."""
        if logs is None or not self._watching:
            return
        if any(key.startswith("eval_") for key in logs):
            metrics = self._at_evaluation(state, model)
            shown = metrics
        elif self._is_due(state, logs):
            self._logged_step = state.global_step
            metrics = self._measure(state, model)
            shown = {key: metrics[key] for key in HEADLINES if key in metrics}
        else:
            return
        # The Trainer has put a copy of the row into the history; `logs` goes to whichever callbacks come later. These
        # are the trackers when attached, else only the progress bar, which prints the whole row.
        state.log_history[-1].update(metrics)
        attached = self._callbacks is not None
        logs.update(metrics if attached else shown)
        if metrics and self._reporters is not None and not attached:
            self._reporters.log(args, state, control, metrics, model=model)

    def _is_due(self, state: TrainerState, logs: dict[str, Any]) -> bool:
        if "train_runtime" in logs:  # the last row: that of the whole run
            return state.global_step > self._logged_step
        return "loss" in logs and self._schedule.is_due(state.global_step)

    def _measure(self, state: TrainerState, model: Any) -> dict[str, float]:
        assert self.monitor is not None
        if state.global_step > self._schedule.last_step:
            try:
                with self._schedule.measuring(state.global_step):
                    self._figures = self.monitor.measure(model)
            except ValueError as error:  # NaN: the run may be lost, but not through its monitor
                logger.warning("The embeddings cannot be measured at step %d and no more: %s", state.global_step, error)
                self._watching, self._figures = False, {}
        return self._figures

    def _at_evaluation(self, state: TrainerState, model: Any) -> dict[str, float]:
        """The headlines for the first row of an evaluation; of several data sets each has its row."""
        if state.global_step == self._evaluated_step:
            return {}
        self._evaluated_step, self._evaluated = state.global_step, {}
        # All evaluations or none: the Trainer's model card makes a table whose columns are those of the first one.
        if self._best_metric or self.config.monitor_steps:
            figures = self._measure(state, model)
            wanted = dict.fromkeys((*HEADLINES, self._best_metric))
            self._evaluated = {f"eval_{key}": figures[key] for key in wanted if key in figures}
        return self._evaluated

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Let `metric_for_best_model` see what was logged with the evaluation."""
        if metrics is not None and self._watching and state.global_step == self._evaluated_step:
            metrics.update(self._evaluated)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Save the pictures and the page."""
        watched_to_the_end, self._watching = self._watching, False
        if self._reporters is not None:
            self._reporters.close()
        if not (watched_to_the_end and self.config.plots):
            return
        assert self.monitor is not None
        if not state.is_world_process_zero:
            self.monitor.take_part(model)
            return
        # Where the best checkpoint was loaded, the rows are not those that the log's last row is about.
        known = self._figures if not args.load_best_model_at_end else None
        try:
            self._snapshots["at train end"] = self.monitor.snapshot(model, known, watched=self._watched)
        except ValueError as error:  # NaN: no reason for a run that is over to fail
            logger.warning("No pictures are saved, as the embeddings cannot be measured: %s", error)
            return
        start = {"step": self._start_step, **self._snapshots["at train start"].metrics}
        rows = [row for row in state.log_history if any(key.startswith("defemb/") for key in row)]
        record = RunRecord(
            title=f"Token embeddings of {Path(getattr(model, 'name_or_path', '')).name or type(model).__name__}",
            snapshots={name: self._snapshots[name] for name in MOMENTS if name in self._snapshots},
            vocabulary=self._vocabulary,
            history=sorted([start, *rows], key=lambda row: row["step"]),
            report=self.report,
            rebuilt=self._rebuilt_ids,
            glosses=first_glosses(self._vocabulary, self._lexicon(), self._watched),
        )
        save_pictures(Path(str(args.output_dir), "defemb"), record)
