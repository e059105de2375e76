"""Fit flows with `transformers.Trainer`: to vectors, or to texts encoded by a frozen encoder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from defemb_callbacks.reconstruction.backbone import backbone_of
from defemb_callbacks.reconstruction.batching import spread
from defemb_callbacks.reconstruction.constructor.training import isolated_training
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig, check_vectors
from defemb_callbacks.sentence.pooling import STATIC, encode_texts, pool

COLUMN = "vectors"

# Maximum number of rows for the initialization; more would change it by less than training does.
INITIAL_ROWS = 65_536
_ROWS_PER_CHECK = 16_384


def flow_training_arguments(output_dir: str = "flow", **overrides: Any) -> TrainingArguments:
    """Default settings of `fit_flow`: the paper's, except for the number of epochs.

    AdamW with a constant learning rate of 1e-3 and weight decay 0.01, gradients clipped to norm 1, batches of 64
    vectors (32 pairs in the paper), 8 epochs (1 in the paper). Nothing is saved or reported.

    Args:
        output_dir: Folder for checkpoints, if `overrides` enables them.
        **overrides: Fields of `TrainingArguments`.

    Example:
        >>> flow_training_arguments(num_train_epochs=1).learning_rate
        0.001
    """
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 64,
        "num_train_epochs": 8,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),  # warns without an accelerator
    }
    return TrainingArguments(output_dir=output_dir, **settings | overrides)


def fit_flow(
    vectors: Tensor | Dataset,
    config: EmbeddingFlowConfig | None = None,
    args: TrainingArguments | None = None,
    *,
    eval_vectors: Tensor | Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from_checkpoint: str | bool | None = None,
) -> EmbeddingFlow:
    """Fit a flow to vectors by maximum likelihood; the loss is the negative log-likelihood in nats per dimension.

    In a distributed run, each process must pass the same vectors and gets the same flow.

    Args:
        vectors: Shape (n, d), any floating-point dtype; or a `Dataset` with such a column `vectors`, which is not
            loaded into memory as a whole.
        config: Architecture; by default `EmbeddingFlowConfig.preset("principal", d)`.
        args: Arguments of the Trainer; by default `flow_training_arguments()`.
        eval_vectors: Held-out vectors, for `args.eval_strategy`.
        callbacks: Callbacks of the Trainer.
        resume_from_checkpoint: Passed to `Trainer.train`.

    Returns:
        The fitted flow, float32, on the device of the vectors.

    Raises:
        TypeError: If the vectors are not floating-point tensors.
        ValueError: If the vectors have another shape, contain NaN or infinity, are too few, or do not vary along
            enough directions.

    Example:
        >>> vectors = torch.randn(256, 6, generator=torch.Generator().manual_seed(0)) * 5 + 3
        >>> flow = fit_flow(vectors, EmbeddingFlowConfig(6))
        {'train_runtime': ...}
        >>> flow(vectors).shape
        torch.Size([256, 6])
    """
    rows = _rows(vectors)
    eval_rows = None if eval_vectors is None else _rows(eval_vectors)
    with isolated_training(), _arguments_or_default(args) as arguments:
        flow = _initialized(config, rows[spread(len(rows), INITIAL_ROWS)][COLUMN])
        trainer = Trainer(
            _Likelihood(flow), arguments, train_dataset=rows, eval_dataset=eval_rows, callbacks=list(callbacks)
        )
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return flow.eval().to(vectors.device if isinstance(vectors, Tensor) else "cpu")


def fit_flow_on_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: EmbeddingFlowConfig | None = None,
    args: TrainingArguments | None = None,
    *,
    pooling: str = "last",
    dropout: bool = False,
    max_length: int | None = 64,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from_checkpoint: str | bool | None = None,
) -> EmbeddingFlow:
    """Fit a flow to sentence embeddings of a frozen encoder; no labels are needed.

    Args:
        model: Any model, with or without a head. It runs on its own device and is not changed.
        tokenizer: The tokenizer of the model.
        texts: Texts like those that will be compared.
        config: See `fit_flow`.
        args: See `fit_flow`.
        pooling: See `pooled_layers`; use the same pooling for encoding.
        dropout: Encode each batch again in each epoch with the encoder's dropout, as the paper's code does, instead of
            all texts once without dropout. Each epoch then takes as long as encoding all texts.
        max_length: Maximum text length in tokens (64 in the paper); `None` for the tokenizer's `model_max_length`.
        callbacks: Callbacks of the Trainer.
        resume_from_checkpoint: Passed to `Trainer.train`.

    Returns:
        The fitted flow, float32, on the model's device.

    Raises:
        TypeError: If `texts` is a single string.
        ValueError: If `texts` is empty or too short, or the pooling is unknown or uses no dropout.
    """
    if not dropout:
        vectors = encode_texts(model, tokenizer, texts, pooling, max_length=max_length)
        flow = fit_flow(vectors, config, args, callbacks=callbacks, resume_from_checkpoint=resume_from_checkpoint)
        return flow.to(model.device)
    if pooling == STATIC:
        raise ValueError("pooling='static' does not support dropout=True. Use dropout=False or another pooling.")
    # No dropout here: every process must get the same initialization.
    first = encode_texts(
        model, tokenizer, [texts[row] for row in spread(len(texts), INITIAL_ROWS)], pooling, max_length=max_length
    )
    with isolated_training(), _arguments_or_default(args) as arguments, _training_mode(model):
        flow = _initialized(config, first)
        trainer = _TextTrainer(
            _Likelihood(flow),
            arguments,
            data_collator=_Tokenize(tokenizer, max_length),
            train_dataset=list(texts),
            callbacks=list(callbacks),
        )
        trainer.encoder, trainer.pooling = model, pooling
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return flow.eval().to(model.device)


class _Likelihood(nn.Module):
    """Wraps a flow for the Trainer: its forward pass returns the loss."""

    def __init__(self, flow: EmbeddingFlow) -> None:
        super().__init__()
        self.flow = flow

    # With `return_loss` in the signature, the Trainer computes an evaluation loss without labels.
    def forward(self, vectors: Tensor, return_loss: bool = True) -> dict[str, Tensor]:
        return {"loss": -self.flow.log_prob(vectors).mean() / self.flow.config.latent_dim}


class _TextTrainer(Trainer):
    """Encodes each batch of texts in each step."""

    encoder: PreTrainedModel
    pooling: str

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        texts = {name: tensor.to(self.encoder.device) for name, tensor in inputs.items()}
        with torch.no_grad():
            states = backbone_of(self.encoder)(**texts, output_hidden_states=True, return_dict=True).hidden_states
            vectors = pool(states, texts["attention_mask"], self.pooling)
        return super().compute_loss(model, {COLUMN: vectors.to(self.args.device)}, *args, **kwargs)


@dataclass(frozen=True)
class _Tokenize:
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        settings = {"padding": True, "truncation": True, "return_tensors": "pt", "return_token_type_ids": False}
        return dict(self.tokenizer(texts, max_length=self.max_length, **settings))


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A tensor with the interface of a `Dataset`."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors.detach().cpu()

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, row: int | list[int]) -> dict[str, Tensor]:
        return {COLUMN: self.vectors[row]}


def _rows(vectors: Tensor | Dataset) -> _Rows | Dataset:
    """Check all vectors before fitting: one NaN in the last batch would invalidate the flow."""
    if not isinstance(vectors, Dataset):
        check_vectors(vectors)
        return _Rows(vectors)
    if COLUMN not in vectors.column_names:
        raise ValueError(f"The dataset must have a column {COLUMN!r}, got {', '.join(vectors.column_names)}.")
    rows = vectors.select_columns(COLUMN).with_format("torch")
    for start in range(0, len(rows), _ROWS_PER_CHECK):
        check_vectors(rows[start : start + _ROWS_PER_CHECK][COLUMN], first_row=start)
    return rows


def _initialized(config: EmbeddingFlowConfig | None, vectors: Tensor) -> EmbeddingFlow:
    config = config or EmbeddingFlowConfig.preset("principal", vectors.shape[1])
    return EmbeddingFlow(config).initialize(vectors)


@contextlib.contextmanager
def _arguments_or_default(args: TrainingArguments | None) -> Iterator[TrainingArguments]:
    """The defaults save nothing, but the Trainer creates the output folder."""
    if args is not None:
        yield args
        return
    with tempfile.TemporaryDirectory() as folder:
        yield flow_training_arguments(folder)


@contextlib.contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
