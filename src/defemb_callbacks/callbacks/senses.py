"""Measure the senses of tokens during a Trainer run. Thin adapter around `senses.analysis.measure_senses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.callbacks.reporters import NOT_SENT, ForwardingReporters, close_reporters
from defemb_callbacks.callbacks.tokenizer_search import require_tokenizer
from defemb_callbacks.senses.analysis import measure_senses
from defemb_callbacks.senses.build import build_from_states
from defemb_callbacks.senses.config import SenseConfig
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import require_no_senses
from defemb_callbacks.senses.sampling import SamplePlan, plan_samples, sampled_states, tokenize_texts
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.distributed import on_any_process
from defemb_callbacks.weights.rows import embedding_weight
from defemb_callbacks.weights.unwrapping import transformers_model


class SenseMonitorCallback(TrainerCallback):
    """Log sense metrics: number of senses per token, how well they fit the hidden states, how evenly they are used.

    With each evaluation and at the end of training, a sense dictionary of the current model is built from `texts`. The
    metrics of `measure_senses`, by frequency group, are added to the log history and to every tracker in `report_to`.

    Args:
        texts: A few thousand texts similar to the model's input. Each measurement encodes all of them.
        config: Settings of the dictionaries. With the default `rule`, the number of senses per token is fixed.
        tokenizer: Needed only if the Trainer has no `processing_class`.
        **overrides: Single settings of the config.

    Attributes:
        dictionary: The last dictionary that was built; `None` before the first measurement.

    Raises:
        ValueError: If a setting is out of range; at the start of training, if there is no tokenizer or no text, or if
            the model's outputs are sense vectors already.

    Example:
        >>> callback = SenseMonitorCallback(["The bank lends money.", "The river has two banks."], rule="silhouette")
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def __init__(
        self,
        texts: Sequence[str],
        config: SenseConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **overrides: Any,
    ) -> None:
        # Settings
        self.texts, self.tokenizer = texts, tokenizer
        self.config = SenseConfig.resolve(config, overrides)

        # Result
        self.dictionary: SenseDictionary | None = None

        # Internal state; on_train_begin sets the rest
        self._plan: SamplePlan | None = None
        self._measured_step = -1
        self._reporters: ForwardingReporters | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Choose the tokens whose hidden states are read, the same in each measurement."""
        tokenizer = require_tokenizer(self, processing_class, model, kwargs.get("train_dataloader"))
        require_no_senses(transformers_model(model))
        self._vocabulary = read_vocabulary(tokenizer, len(embedding_weight(model)))
        self._groups = frequency_groups(frequency_rank(self._vocabulary))
        self._texts = tokenize_texts(tokenizer, self.texts, self.config.max_length)
        self._plan = plan_samples(self._texts.ids, len(self._vocabulary), self.config.samples, self.config.seed)
        self._measured_step = -1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure and add the metrics to the log row."""
        if self._plan is None:  # evaluation without training
            return
        if logs is None or not any(key.startswith("eval_") or key == "train_runtime" for key in logs):
            return
        if state.global_step == self._measured_step:  # already measured at this step
            return
        self._measured_step = state.global_step
        metrics: dict[str, float] = {}
        with Attempt(f"The senses are not measured from step {state.global_step} on") as attempt:
            metrics = self._measure(transformers_model(model), self._plan)
        # All processes encode the texts together, so all of them stop.
        if on_any_process(attempt.failed):
            self._plan = None
            return
        state.log_history[-1].update(metrics)
        logs.update(metrics)
        if state.is_world_process_zero:
            with Attempt(NOT_SENT):
                self._reporters = self._reporters or ForwardingReporters(args)
                self._reporters.log(args, state, control, metrics, model=model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the reporters."""
        close_reporters(self._reporters)

    def _measure(self, model: Any, plan: SamplePlan) -> dict[str, float]:
        config = self.config
        states = sampled_states(model, self._texts, plan, layer=config.layer, batch_size=config.batch_size)
        self.dictionary = build_from_states(states, plan.offsets, self._vocabulary, config, device=model.device)
        ids = torch.repeat_interleave(plan.offsets.diff())
        return measure_senses(self.dictionary, states, ids, self._groups)
