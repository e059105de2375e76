"""Flows are fitted by `transformers.Trainer`: on ready vectors, or on texts through a frozen encoder."""

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
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig, check_vectors
from defemb_callbacks.sentence.pooling import STATIC, encode_texts, pool

COLUMN = "vectors"

# Of these the axes, shifts and scales are taken; more would not move them by what training does.
INITIAL_ROWS = 65_536
_CHECKED_AT_ONCE = 16_384


def flow_training_arguments(output_dir: str = "flow", **overrides: Any) -> TrainingArguments:
    """The settings that `fit_flow` uses where it is given none: the paper's, but for the number of epochs.

    AdamW at a constant 1e-3, decay 0.01, gradients clipped to norm 1, batches of 64 vectors (the paper's 32 pairs),
    8 epochs (the paper: 1). Nothing is saved or reported.

    Args:
        output_dir: for checkpoints, should `overrides` ask for any.
        **overrides: any field of `TrainingArguments`.

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

    Under `accelerate launch` or `torchrun` each process gives the same vectors and gets the same flow.

    Args:
        vectors: (n, d), any floating dtype; or a `Dataset` with such a column "vectors", read from disk as needed.
        config: sizes; default `EmbeddingFlowConfig.preset("principal", d)`.
        args: passed to the Trainer as they are; default `flow_training_arguments()`.
        eval_vectors: held-out vectors, for `args.eval_strategy`.
        callbacks: of the Trainer.
        resume_from_checkpoint: as `Trainer.train` takes it.

    Returns:
        The fitted flow, float32, on the device of the vectors.

    Raises:
        TypeError, ValueError: vectors that are not such, NaN or infinity, too few, or without variance in a direction.

    Example:
        >>> vectors = torch.randn(256, 6, generator=torch.Generator().manual_seed(0)) * 5 + 3
        >>> flow = fit_flow(vectors, EmbeddingFlowConfig(6))
        {'train_runtime': ...}
        >>> flow(vectors).shape
        torch.Size([256, 6])
    """
    rows = _rows(vectors)
    eval_rows = None if eval_vectors is None else _rows(eval_vectors)
    flow = _initialized(config, rows[spread(len(rows), INITIAL_ROWS)][COLUMN])
    with _or_default(args) as arguments:
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
    """Fit a flow to the sentence embeddings that a frozen encoder gives of texts; no labels, and the model stays as is.

    Args:
        model: with any head, or none; read on its own device and left in the mode it was in.
        tokenizer: the model's.
        texts: those that will be compared, or like them.
        config: see `fit_flow`.
        args: see `fit_flow`.
        pooling: see `pooled_layers`; use the same one when you encode.
        dropout: encode each batch anew with the encoder's dropout on, as the paper's code does, instead of all texts
            once without. An epoch then costs as much as encoding all texts.
        max_length: longest text in tokens, as in the paper; `None` is the tokenizer's `model_max_length`.
        callbacks: of the Trainer.
        resume_from_checkpoint: as `Trainer.train` takes it.

    Returns:
        The fitted flow, float32, on the model's device.

    Raises:
        TypeError: `texts` is a single string.
        ValueError: no texts, too few of them, an unknown pooling, or one that passes no dropout.
    """
    if not dropout:
        vectors = encode_texts(model, tokenizer, texts, pooling, max_length=max_length)
        flow = fit_flow(vectors, config, args, callbacks=callbacks, resume_from_checkpoint=resume_from_checkpoint)
        return flow.to(model.device)
    if pooling == STATIC:
        raise ValueError("pooling 'static' passes no dropout; leave dropout=False")
    # Without dropout, so that every process gets the same axes and scales.
    first = encode_texts(
        model, tokenizer, [texts[row] for row in spread(len(texts), INITIAL_ROWS)], pooling, max_length=max_length
    )
    flow = _initialized(config, first)
    with _or_default(args) as arguments, _training_mode(model):
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
    """What the Trainer trains: a flow whose forward is its loss."""

    def __init__(self, flow: EmbeddingFlow) -> None:
        super().__init__()
        self.flow = flow

    # `return_loss` tells the Trainer that there is a loss to evaluate without labels.
    def forward(self, vectors: Tensor, return_loss: bool = True) -> dict[str, Tensor]:
        return {"loss": -self.flow.log_prob(vectors).mean() / self.flow.config.latent_dim}


class _TextTrainer(Trainer):
    """Encodes each batch of texts anew."""

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
    """A tensor as the Trainer, and `_initialized`, read a `Dataset`."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors.detach().cpu()

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, row: int | list[int]) -> dict[str, Tensor]:
        return {COLUMN: self.vectors[row]}


def _rows(vectors: Tensor | Dataset) -> _Rows | Dataset:
    """Every vector is looked at before anything is fitted: one NaN in the last batch would spoil the flow."""
    if not isinstance(vectors, Dataset):
        check_vectors(vectors)
        return _Rows(vectors)
    if COLUMN not in vectors.column_names:
        raise ValueError(f"the dataset has no column {COLUMN!r}, it has {', '.join(vectors.column_names)}")
    rows = vectors.select_columns(COLUMN).with_format("torch")
    for start in range(0, len(rows), _CHECKED_AT_ONCE):
        check_vectors(rows[start : start + _CHECKED_AT_ONCE][COLUMN], first_row=start)
    return rows


def _initialized(config: EmbeddingFlowConfig | None, vectors: Tensor) -> EmbeddingFlow:
    config = config or EmbeddingFlowConfig.preset("principal", vectors.shape[1])
    return EmbeddingFlow(config).initialize(vectors)


@contextlib.contextmanager
def _or_default(args: TrainingArguments | None) -> Iterator[TrainingArguments]:
    """The defaults save nothing, but the Trainer makes their folder."""
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
