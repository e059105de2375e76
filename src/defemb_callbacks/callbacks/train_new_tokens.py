"""Train only the rows of new tokens in a Trainer run. Thin adapter around `new_tokens.trained_rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from defemb_callbacks.callbacks.console import show
from defemb_callbacks.callbacks.tokenizer_search import require_tokenizer
from defemb_callbacks.new_tokens.trained_rows import IN_DEEPSPEED, TrainedRows
from defemb_callbacks.weights.adapters import adapted_tokens, adapter_kind, train_tokens
from defemb_callbacks.weights.config_record import read_new_token_ids
from defemb_callbacks.weights.rows import embedding_weight, table_layers, tables_of
from defemb_callbacks.weights.unwrapping import transformers_model


class TrainNewTokensCallback(TrainerCallback):
    """Train the rows of new tokens, and keep all other rows of the embedding tables bitwise as they are.

    Works with tied tables, separate output and decoder tables, DDP and FSDP2, and with any optimizer: weight decay and
    moments do not move the other rows. Other weights are trained as usual, unless `freeze_other_weights` is set. Needs
    a copy of the tables.

    In a PEFT model whose embeddings are not adapted, `trainable_token_indices` of the active adapter is set when the
    Trainer is created; its embeddings are then saved with the adapter, and no copy is needed.

    Args:
        tokens: Texts or ids of the tokens to train. By default those that `define_new_tokens` or
            `DefinitionEMBCallback(new_tokens=…)` has added, which the model's config records.
        tokenizer: Needed only for texts, if the Trainer has no `processing_class`.
        freeze_other_weights: Whether no weight but the tables is trained. Ignored for PEFT models.

    Attributes:
        ids: The ids of the trained tokens; empty before training.

    Raises:
        ValueError: When the Trainer is created, if DeepSpeed is used, a text is not a token, or the kind of adapter
            cannot train single rows; before the first step, if there is no new token, or see `TrainedRows`.

    Example:
        >>> callback = TrainNewTokensCallback(freeze_other_weights=True)
        >>> # Trainer(model, args, train_dataset=…, processing_class=tokenizer, callbacks=[callback])
    """

    def __init__(
        self,
        tokens: Sequence[str | int] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        freeze_other_weights: bool = False,
    ) -> None:
        # Settings
        self.tokens, self.tokenizer = tokens, tokenizer
        self.freeze_other_weights = freeze_other_weights

        # Result
        self.ids: list[int] = []

        # Internal state
        self._given: list[int] = []
        self._rows: TrainedRows | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, as a hyper-parameter search with Ray does, without references to weights."""
        return {**self.__dict__, "_rows": None}

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Choose the weights to train before the optimizer is created."""
        if AcceleratorState().distributed_type == DistributedType.DEEPSPEED and not _has_adapters(model):
            raise ValueError(IN_DEEPSPEED)
        if self.tokens is not None:
            self._given = self._read(self.tokens, processing_class, model)
        if _has_adapters(model):
            self._adapt(args, state, model)
            return
        trained = {id(embedding_weight(model, table)) for table in tables_of(model)}
        for weight in model.parameters():
            if id(weight) in trained:
                weight.requires_grad_(True)
            elif self.freeze_other_weights:
                weight.requires_grad_(False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the weights of an earlier run."""
        self._release()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Keep the other rows from now on: other callbacks may write rows when training begins."""
        if self._rows is not None or (self.ids and _trains_tokens(model)):
            return
        self.ids = self._ids(model)
        if _trains_tokens(model):
            return
        self._rows = TrainedRows(model, self.ids)
        text = (
            f"Training {self._rows.trained:,} rows of the token embeddings; {self._rows.kept:,} are kept as they are."
        )
        show(args, state, text)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write back the rows that weight decay has moved."""
        if self._rows is not None:
            self._rows.restore()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Free the copies."""
        self._release()

    def _release(self) -> None:
        self.ids = []
        if self._rows is not None:
            self._rows.release()
            self._rows = None

    def _ids(self, model: Any) -> list[int]:
        ids = self._given or read_new_token_ids(model)
        if not ids:
            raise ValueError(
                "TrainNewTokensCallback found no new tokens: the model's config records none. Add them with "
                "define_new_tokens or DefinitionEMBCallback(new_tokens=…), or pass tokens=[…]."
            )
        return ids

    def _read(self, tokens: Sequence[str | int], processing_class: Any, model: Any) -> list[int]:
        texts = [token for token in tokens if isinstance(token, str)]
        known = require_tokenizer(self, processing_class, model).get_vocab() if texts else {}
        for text in texts:
            if text not in known:
                raise ValueError(f"{text!r} is not a token of the tokenizer. Add it first, or correct `tokens`.")
        return [known[token] if isinstance(token, str) else int(token) for token in tokens]

    def _adapt(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        inner, ids = transformers_model(model), self._ids(model)
        layers = list(table_layers(model).values())
        kinds = {adapter_kind(layer) for layer in layers}
        if kinds == {"none"}:
            names = [_name(inner, layer) for layer in layers]
            train_tokens(inner, names, ids)
            text = f"PEFT trains {len(ids):,} rows of the token embeddings: trainable_token_indices is set for "
            show(args, state, f"{text}{', '.join(names)}.")
        elif kinds == {"tokens"}:
            missing = sorted(set(ids).difference(*(adapted_tokens(layer) for layer in layers)))
            if missing:
                raise ValueError(
                    f"The adapter does not train the rows of {len(missing):,} new tokens, the first one of token "
                    f"{missing[0]}. Add them to trainable_token_indices, or leave it out: the callback sets it."
                )


def _has_adapters(model: Any) -> bool:
    return hasattr(transformers_model(model), "peft_config")


def _trains_tokens(model: Any) -> bool:
    return any(adapter_kind(layer) == "tokens" for layer in table_layers(model).values())


def _name(model: Any, layer: Any) -> str:
    """The name of a layer in its parent module."""
    return next(name for name, module in model.named_modules() if module is layer).rpartition(".")[2]
