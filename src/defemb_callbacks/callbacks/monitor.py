"""Monitor embeddings during a Trainer run: when they are measured, and where the metrics and pictures go."""

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

from defemb_callbacks.callbacks.reporters import ForwardingReporters, insert_headline_filter
from defemb_callbacks.callbacks.schedule import MeasuringSchedule
from defemb_callbacks.callbacks.snapshots import RunSnapshots
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.metrics.catalog import HEADLINES
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.reporting.page import save_pictures
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import training_counts
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import table_shape

logger = logging.getLogger(__name__)


class EmbeddingMonitorCallback(TrainerCallback):
    """Log isotropy and meaning of a model's token embeddings, by frequency group, with the training loss.

    The keys are `defemb/<metric>/<group>`, see `measure_table`; an output table that is not tied to the input table has
    the keys `defemb/output_<metric>/<group>`.

    - The metrics are added to `state.log_history` and to every tracker in `report_to`. Trackers also get the metrics at
      the start of training. The progress bar shows a few headline metrics.
    - Evaluations get the headline metrics as `eval_defemb/…` if `monitor_steps` is set, or if one of these metrics
      selects the best checkpoint: `metric_for_best_model="defemb/isotropy/rare"`. Callbacks that read the metrics of an
      evaluation, such as `EarlyStoppingCallback`, must come later in the list.
    - At the end of training, pictures and an HTML page are saved in `output_dir/defemb/`.

    If `monitor_steps` is `None`, the embeddings are measured at the start, at the end, and in at most 20 log rows in
    between, within 0.5 % of the run time.

    Args:
        definitions: Dictionary whose relations between words are used for `relation_auc`, in any form accepted by
            `load_definitions`. `None` omits this metric.
        tokenizer: Needed only if the Trainer has no `processing_class`.
        config: Settings. Only those of the monitoring are used.
        **config_overrides: Single settings, such as `monitor_steps=100`.

    Attributes:
        monitor: The `EmbeddingMonitor` of the current run; `None` before training.

    Raises:
        ValueError: If a setting is invalid; when the Trainer is created, if there is no tokenizer; at the start of
            training, if the embeddings contain NaN or `metric_for_best_model` is not measured.

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
        # Settings
        self.definitions, self.tokenizer = definitions, tokenizer
        self.config = DefinitionEMBConfig.resolve(config, config_overrides)

        # Results
        self.monitor: EmbeddingMonitor | None = None
        self.report: RebuildReport | None = None

        # Internal state; on_train_begin sets the rest
        self._is_measuring = False
        self._lexicon_cache: Lexicon | None = None
        self._trainer_callbacks: list[TrainerCallback] | None = None  # set by attach
        self._reporters: ForwardingReporters | None = None
        self._snapshots = RunSnapshots()

    def attach(self, trainer: Trainer) -> EmbeddingMonitorCallback:
        """Run before the Trainer's reporters, so that trackers get metrics and loss in one row.

        Call this after creating the Trainer and before `trainer.train()`. Otherwise, the same trackers get the metrics
        at the same step in a second row.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            trainer.add_callback(self)
        callbacks.remove(self)
        callbacks.insert(0, self)
        if self._trainer_callbacks is not callbacks:
            insert_headline_filter(callbacks)
        self._trainer_callbacks = callbacks
        return self

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find the tokenizer, so that a missing one is an error before anything is loaded or trained."""
        # Those of an earlier Trainer do not apply.
        self._trainer_callbacks, self._snapshots = None, RunSnapshots()
        self._tokenizer = find_tokenizer(self, processing_class)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure the embeddings at the start of training, the reference of `drift`."""
        # A callback added with add_callback has not seen on_init_end.
        self._tokenizer = find_tokenizer(self, kwargs.get("processing_class"))
        counts = training_counts(model, train_dataloader, self.config)
        self._before_training(args, state, model, counts)
        self._is_measuring, self._reporters = False, None
        best_metric = (args.metric_for_best_model or "").removeprefix("eval_")
        self._best_metric = best_metric if best_metric.startswith("defemb/") else None
        if self.config.monitor_steps == 0:
            if self._best_metric:
                raise ValueError(
                    f"metric_for_best_model={args.metric_for_best_model!r} is not measured with monitor_steps=0. Set "
                    "monitor_steps to None or a positive number."
                )
            return
        self._schedule = MeasuringSchedule(self.config.monitor_steps, state.max_steps)
        self._start_step = self._logged_step = state.global_step
        self._evaluated_step = -1
        self._evaluated: dict[str, float] = {}
        with self._schedule.measuring(state.global_step):
            self._vocabulary, pairs = self._vocabulary_and_pairs(model)
            self.monitor = EmbeddingMonitor(model, self._vocabulary, self.config, pairs, counts)
            if self.config.plots and state.is_world_process_zero:
                self._latest_metrics = self._snapshots.take_start(model, self.monitor, self._vocabulary)
            else:
                self._latest_metrics = self.monitor.measure(model)
        self._is_measuring = True
        if self._best_metric and self._best_metric not in self._latest_metrics:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is not measured. Choose one of: "
                f"{', '.join(sorted(self._latest_metrics))}."
            )

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """Hook for subclasses, called before the first measurement."""

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        vocabulary, lexicon = read_vocabulary(self._tokenizer, table_shape(model)[0]), self._lexicon()
        return vocabulary, None if lexicon is None else related_tokens(vocabulary, lexicon)

    def _lexicon(self) -> Lexicon | None:
        if self._lexicon_cache is None and self.definitions is not None:
            self._lexicon_cache = load_definitions(self.definitions)
        return self._lexicon_cache

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Send the start metrics before the first step, when every tracker has started its run."""
        if not self._is_measuring or self._reporters is not None or not state.is_world_process_zero:
            return
        self._reporters = ForwardingReporters(args, self._trainer_callbacks)
        if state.global_step == 0:  # a resumed run has logged them already
            self._reporters.log(args, state, control, self._latest_metrics, model=model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Request a log row if a measurement is due."""
        if self._is_measuring and self.config.monitor_steps and state.global_step % self.config.monitor_steps == 0:
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
        """Add the metrics to a loss row, or the headline metrics to an evaluation row."""
        if logs is None or not self._is_measuring:
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
        # The Trainer has already copied the row into the history. `logs` goes to the callbacks that follow: with
        # `attach` these include the trackers, otherwise only the progress bar, which prints the whole row.
        state.log_history[-1].update(metrics)
        attached = self._trainer_callbacks is not None
        logs.update(metrics if attached else shown)
        if metrics and self._reporters is not None and not attached:
            self._reporters.log(args, state, control, metrics, model=model)

    def _is_due(self, state: TrainerState, logs: dict[str, Any]) -> bool:
        if "train_runtime" in logs:  # the last row, a summary of the run
            return state.global_step > self._logged_step
        return "loss" in logs and self._schedule.is_due(state.global_step)

    def _measure(self, state: TrainerState, model: Any) -> dict[str, float]:
        assert self.monitor is not None
        if state.global_step > self._schedule.last_step:
            try:
                with self._schedule.measuring(state.global_step):
                    self._latest_metrics = self.monitor.measure(model)
            except ValueError as error:  # NaN; monitoring must never fail training
                logger.warning("Embedding metrics stop at step %d: %s", state.global_step, error)
                self._is_measuring, self._latest_metrics = False, {}
        return self._latest_metrics

    def _at_evaluation(self, state: TrainerState, model: Any) -> dict[str, float]:
        """Return the headline metrics for the first row of an evaluation. Each data set has its own row."""
        if state.global_step == self._evaluated_step:
            return {}
        self._evaluated_step, self._evaluated = state.global_step, {}
        # All evaluations or none: the columns of the table in the Trainer's model card are those of the first one.
        if self._best_metric or self.config.monitor_steps:
            measured = self._measure(state, model)
            wanted = dict.fromkeys((*HEADLINES, self._best_metric))
            self._evaluated = {f"eval_{key}": measured[key] for key in wanted if key in measured}
        return self._evaluated

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics logged with the evaluation, so that `metric_for_best_model` can use them."""
        if metrics is not None and self._is_measuring and state.global_step == self._evaluated_step:
            metrics.update(self._evaluated)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Save the pictures and the HTML page."""
        finished, self._is_measuring = self._is_measuring, False
        if self._reporters is not None:
            self._reporters.close()
        if not (finished and self.config.plots):
            return
        assert self.monitor is not None
        if not state.is_world_process_zero:
            self.monitor.take_part(model)
            return
        # If the best checkpoint was loaded, the last metrics do not describe the current weights.
        known = self._latest_metrics if not args.load_best_model_at_end else None
        try:
            self._snapshots.take_end(model, self.monitor, known)
        except ValueError as error:  # NaN; monitoring must never fail training
            logger.warning("No pictures are saved because the embeddings cannot be measured: %s", error)
            return
        record = self._snapshots.record(
            model, self._vocabulary, self._lexicon(), state.log_history, self._start_step, self.report
        )
        save_pictures(Path(str(args.output_dir), "defemb"), record)


def find_tokenizer(callback: Any, processing_class: Any) -> PreTrainedTokenizerBase:
    """Return the callback's own tokenizer, or else the Trainer's, which may be part of a processor."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    found = tokenizer if callback.tokenizer is None else callback.tokenizer
    if found is None:
        name = type(callback).__name__
        raise ValueError(
            f"{name} needs a tokenizer. Pass processing_class=tokenizer to the Trainer, or tokenizer= to the callback."
        )
    return found
