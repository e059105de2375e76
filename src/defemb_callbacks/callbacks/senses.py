"""The senses of a model while it is trained: this decides when, everything else happens elsewhere."""

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

from defemb_callbacks.callbacks.reporters import ForwardingReporters
from defemb_callbacks.senses.analysis import measure_senses
from defemb_callbacks.senses.config import SenseConfig
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import require_own_states
from defemb_callbacks.senses.sampling import SamplePlan, plan_samples, tokenize_texts
from defemb_callbacks.senses.states import sampled_states
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import bare_model, embedding_weight


class SenseMonitorCallback(TrainerCallback):
    """Logs what senses the tokens of a model have: how many, how well they stand for its states, how evenly used.

    In the rows of evaluations and in the last row of a run, a dictionary of the model as it is then is built of some
    texts. The keys are those of `measure_senses`, by the frequency groups of the vocabulary's order; they reach the
    history and every tracker of `report_to`.

    Args:
        texts: a few thousand, like those that the model reads; each measurement reads all of them.
        config: of the dictionaries; with the default rule the number of senses does not change.
        tokenizer: needed only where the Trainer got no `processing_class`.
        **overrides: single settings of the config.

    Attributes:
        dictionary: the last one that was built; `None` before the first measurement.

    Raises:
        ValueError: a setting outside its range; at train start, no tokenizer, no text, or a model that gives senses.

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
        self.texts, self.tokenizer = texts, tokenizer
        self.config = SenseConfig.resolve(config, overrides)
        self.dictionary: SenseDictionary | None = None
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
        """Choose whose states are looked at, the same ones in each measurement."""
        tokenizer = self.tokenizer or getattr(processing_class, "tokenizer", processing_class)
        if tokenizer is None:
            raise ValueError(
                "SenseMonitorCallback needs the tokenizer. Pass processing_class=tokenizer to the Trainer, or "
                "SenseMonitorCallback(texts, tokenizer=tokenizer)."
            )
        require_own_states(bare_model(model))  # type: ignore[arg-type]
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
        """Measure, and add what was found to the row."""
        if self._plan is None:  # an evaluation before any training
            return
        if logs is None or not any(key.startswith("eval_") or key == "train_runtime" for key in logs):
            return
        if state.global_step == self._measured_step:  # another data set, or the end of the run, at the same step
            return
        self._measured_step = state.global_step
        metrics = self._measure(bare_model(model), self._plan)
        state.log_history[-1].update(metrics)
        logs.update(metrics)
        if state.is_world_process_zero:
            self._reporters = self._reporters or ForwardingReporters(args)
            self._reporters.log(args, state, control, metrics, model=model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the trackers."""
        if self._reporters is not None:
            self._reporters.close()

    def _measure(self, model: Any, plan: SamplePlan) -> dict[str, float]:
        config = self.config
        states = sampled_states(model, self._texts, plan, layer=config.layer, batch_size=config.batch_size)
        self.dictionary = SenseDictionary.of_states(states, plan.offsets, self._vocabulary, config, device=model.device)
        ids = torch.repeat_interleave(plan.offsets.diff())
        return measure_senses(self.dictionary, states, ids, self._groups)
