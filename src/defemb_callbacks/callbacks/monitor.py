"""Monitor embeddings during a Trainer run: when they are measured, and where the metrics and pictures go."""

from __future__ import annotations

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

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.callbacks.console import show
from defemb_callbacks.callbacks.events import stops_measuring
from defemb_callbacks.callbacks.reporters import ForwardingReporters, close_reporters, move_to_front
from defemb_callbacks.callbacks.schedule import MeasuringSchedule
from defemb_callbacks.callbacks.snapshots import RunSnapshots
from defemb_callbacks.callbacks.tokenizer_search import find_tokenizer, require_tokenizer
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.metrics.catalog import HEADLINES
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.reporting.page import save_pictures
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import training_counts
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.distributed import on_any_process
from defemb_callbacks.weights.rows import table_shape

# Errors before the first step that the user has to correct; other failures only disable the monitoring.
SETTINGS_ERRORS = (ValueError, TypeError, ImportError, FileNotFoundError)


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
    between, within 0.5 % of the run time or, in short runs, one second.

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
        self._tokenizer: Any = None
        self._is_measuring, self._saves_files = False, True
        self._best_metric: str | None = None
        self._lexicon_cache: Lexicon | None = None
        self._trainer_callbacks: list[TrainerCallback] | None = None  # set by attach
        self._reporters: ForwardingReporters | None = None
        self._snapshots = RunSnapshots()

    def attach(self, trainer: Trainer) -> EmbeddingMonitorCallback:
        """Run before the Trainer's reporters, so that trackers get metrics and loss in one row instead of two.

        Call this after creating the Trainer and before `trainer.train()`.
        """
        self._trainer_callbacks = move_to_front(self, trainer, self._trainer_callbacks)
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
        """Look for the tokenizer. If there is none yet, the data collator may have one when training begins."""
        # Those of an earlier Trainer do not apply.
        self._trainer_callbacks, self._snapshots = None, RunSnapshots()
        self._saves_files = True
        self._tokenizer, place = find_tokenizer(self, processing_class, model)
        if self._tokenizer is not None and place:
            show(args, state, f"The Trainer has no tokenizer, so that of {place} is used to read the vocabulary.")

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
        self._tokenizer = require_tokenizer(self, kwargs.get("processing_class"), model, train_dataloader)
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
        self._start_step = self._logged_step = state.global_step
        self._evaluated_step = -1
        self._evaluated: dict[str, float] = {}
        # Nothing is lost yet: wrong settings are errors, and so is any failure if the best checkpoint depends on it.
        fatal = (Exception,) if self._best_metric else SETTINGS_ERRORS
        attempt = Attempt("The embeddings are not measured in this run", *fatal)
        with attempt:
            self._schedule = MeasuringSchedule(self.config.monitor_steps, state.max_steps)
            with self._schedule.measuring(state.global_step):
                self._measure_start(state, model, counts)
        self._is_measuring = not on_any_process(attempt.failed)
        if self._best_metric and self._best_metric not in self._latest_metrics:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is not measured. Choose one of: "
                f"{', '.join(sorted(self._latest_metrics))}."
            )
        if self._is_measuring and state.global_step == 0:  # a resumed run has this row
            state.log_history.append({"epoch": 0.0, "step": 0, **self._latest_metrics})

    def _before_training(self, args: TrainingArguments, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        """Hook for subclasses, called before the first measurement."""

    def _measure_start(self, state: TrainerState, model: Any, counts: Tensor | None) -> None:
        self._vocabulary, pairs = self._vocabulary_and_pairs(model)
        self.monitor = EmbeddingMonitor(model, self._vocabulary, self.config, pairs, counts)
        if self.config.plots and state.is_world_process_zero:
            self._latest_metrics = self._snapshots.take_start(model, self.monitor, self._vocabulary)
        else:
            self._latest_metrics = self.monitor.measure(model)

    def _vocabulary_and_pairs(self, model: Any) -> tuple[Vocabulary, Tensor | None]:
        vocabulary, lexicon = read_vocabulary(self._tokenizer, table_shape(model)[0]), self._lexicon()
        return vocabulary, None if lexicon is None else related_tokens(vocabulary, lexicon)

    def _lexicon(self) -> Lexicon | None:
        if self._lexicon_cache is None and self.definitions is not None:
            self._lexicon_cache = load_definitions(self.definitions)
        return self._lexicon_cache

    @stops_measuring
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

    @stops_measuring
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
            metrics = shown = self._at_evaluation(state, model)
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
            attempt = Attempt(f"Embedding metrics stop at step {state.global_step}")
            with attempt, self._schedule.measuring(state.global_step):
                self._latest_metrics = self.monitor.measure(model)
            # All processes stop together, because reading a sharded table takes all of them.
            self._is_measuring = not on_any_process(attempt.failed)
        return self._latest_metrics if self._is_measuring else {}

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

    @stops_measuring
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
        elif metrics is not None and self._best_metric:  # measuring has failed; no later checkpoint is better
            metrics.setdefault(f"eval_{self._best_metric}", self._latest_metrics[self._best_metric])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Save the pictures and the HTML page."""
        finished, self._is_measuring, self._best_metric = self._is_measuring, False, None
        close_reporters(self._reporters)
        if not (finished and self.config.plots):
            return
        assert self.monitor is not None
        page = Path(str(args.output_dir), "defemb", "index.html")
        with Attempt("The page of this run is not saved"):
            if not state.is_world_process_zero or not self._saves_files:
                self.monitor.take_part(model)
                return
            # If the best checkpoint was loaded, the last metrics do not describe the current weights.
            known = self._latest_metrics if not args.load_best_model_at_end else None
            self._snapshots.take_end(model, self.monitor, known)
            record = self._snapshots.record(
                model, self._vocabulary, self._lexicon(), state.log_history, self._start_step, self.report
            )
            if save_pictures(page.parent, record):
                show(args, state, f"Metrics and pictures of the token embeddings in this run: {page}")
