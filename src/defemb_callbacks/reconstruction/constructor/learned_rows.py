"""Rows by a learned constructor: train it and predict the rows of the vocabulary, or load it and predict others."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from defemb_callbacks.cache import cached
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.definitions import Definition
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches, spread
from defemb_callbacks.reconstruction.constructor.data import (
    DefinedWords,
    DefinitionCollator,
    ReadingStyle,
    definition_rows,
    split_words,
)
from defemb_callbacks.reconstruction.constructor.model import (
    freeze_unused,
    load_constructor,
    open_constructor,
    solve_head,
    supports_bfloat16,
    unwrap_constructor,
)
from defemb_callbacks.reconstruction.constructor.training import (
    ConstructorTrainer,
    constructor_arguments,
    early_stopping,
    in_float32,
    isolated_training,
    last_checkpoint,
    show_only_progress,
    trains_in_bfloat16,
)
from defemb_callbacks.weights.rows import INPUT, TableName, read_rows


@dataclass(frozen=True)
class LearnedRows:
    """Rows predicted by a trained constructor.

    Attributes:
        rows: (n, d) float32.
        info: Plain JSON: `steps`; `loss` and `eval_loss`, lists of (step, value); `held_out`, the number of held-out
            words; for these `held_out_cosine`, the mean cosine similarity of predicted and pretrained rows, centered at
            the pretrained mean, and `r_squared`, the explained share of variance (both `None` without held-out words).
    """

    rows: Tensor
    info: dict[str, Any]


def learned_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    defined: DefinedWords,
    folder: Path,
    *,
    more: Callable[[], DefinedWords] | None = None,
    max_length: int = 64,
    precision: str = "auto",
    batch_size: int = 128,
    settings: ConstructorConfig | None = None,
    table: TableName = INPUT,
    callbacks: Sequence[TrainerCallback] = (),
) -> LearnedRows:
    """Train a constructor on definitions, and predict the rows of the words that they define.

    The constructor is a copy of the model, or the model with adapters, which are removed at the end. It learns to
    predict the pretrained embedding of a masked word from its definition. All processes of a distributed run must call
    this with the same arguments, and each gets all rows. An interrupted run resumes from its last checkpoint.

    Source: Zhang, Li, Okumura, arXiv 2408.01308.

    Args:
        model: The model; not changed.
        tokenizer: The model's tokenizer.
        ids: (n,) int64, tokens in ascending order; `filter_ratio` assumes that frequent tokens come first.
        defined: The word of each token with its definitions, at least one.
        folder: Folder for tokenized definitions and checkpoints; each training needs its own.
        more: Function that returns other words of the dictionary, for `words="dictionary"`.
        max_length: Maximum number of tokens of an input.
        precision: "float32", "bfloat16", or "auto": bfloat16 if it is fast.
        batch_size: Definitions encoded at once after training.
        settings: Settings of the constructor; defaults if `None`.
        table: Table whose rows are reconstructed; see `embedding_weight`.
        callbacks: Further callbacks of the Trainer.

    Returns:
        The predicted rows.

    Raises:
        ValueError: If the model does not support the masking, no word is left to train on, a training setting is
            unknown, or the processes see different checkpoints.
        ImportError: If `lora_r` is set and peft is not installed.
    """
    settings = settings or ConstructorConfig()
    style = ReadingStyle.of(model, tokenizer)

    def rows_of(words: DefinedWords, sub_tokens: Sequence[Sequence[int]], masking: Any) -> Dataset:
        names, definitions = [word for word, _ in words], [found for _, found in words]
        return definition_rows(style, tokenizer, names, sub_tokens, definitions, max_length=max_length, masking=masking)

    def tokenized(name: str, build: Callable[[], Dataset]) -> Dataset:
        # Tokenized once, for all processes and for resumed runs.
        return cached(folder / name, build, lambda rows, to: rows.save_to_disk(str(to)), _load)

    single = [[index] for index in ids.tolist()]
    every = tokenized("rows", lambda: rows_of(defined, single, "autoregressive"))
    source = every
    if settings.masking == "random":
        source = tokenized("random", lambda: rows_of(defined, single, "random"))
    held_out = held_out_words(len(ids), settings.held_out)
    targets = ~held_out
    targets[round(len(ids) * (1 - settings.filter_ratio)) :] = False
    train, evaluation = _of_words(source, targets), _of_words(every, held_out)
    if settings.words == "dictionary" and more is not None:
        others = tokenized("more", lambda: rows_of(*split_words(more(), tokenizer), settings.masking))
        # A held-out token is not a target within longer words either.
        left_out = set(ids[~targets].tolist())
        others = others.select([row for row, labels in enumerate(others["labels"]) if left_out.isdisjoint(labels)])
        train = concatenate_datasets([train, others])
    if not len(train):
        raise ValueError(
            f"None of {len(ids)} words is left to train on (held_out={settings.held_out}, "
            f"filter_ratio={settings.filter_ratio}). Lower these shares."
        )
    collator = DefinitionCollator(style.pad, vocabulary=len(tokenizer))
    with isolated_training():
        bfloat16 = trains_in_bfloat16(precision, model.device)
        arguments = constructor_arguments(
            folder / "run", settings, device=model.device, bfloat16=bfloat16, evaluates=len(evaluation) > 0
        )
        torch.manual_seed(arguments.seed)
        with open_constructor(model, settings, table) as constructor:
            batch = collator(list(train.select(spread(len(train), 64))))
            freeze_unused(constructor, batch)
            # A precision that is set explicitly is kept, and its errors are raised.
            chosen = precision == "auto" and "bf16" not in settings.training
            if chosen and arguments.bf16 and not supports_bfloat16(constructor, batch):
                arguments = in_float32(arguments)
            if settings.head == "ridge":
                solve_head(constructor, train, collator)
            trainer = ConstructorTrainer(
                constructor,
                arguments,
                tokens_per_batch=settings.tokens_per_batch,
                data_collator=collator,
                train_dataset=train,
                eval_dataset=evaluation if len(evaluation) else None,
                callbacks=[*callbacks, *early_stopping(settings, len(evaluation) > 0)],
            )
            show_only_progress(trainer)
            trainer.train(resume_from_checkpoint=last_checkpoint(folder / "run"))
            if settings.save_to is not None:
                trainer.save_model(settings.save_to)
            # Predict in the weights' own dtype, without autocast, as after loading from `save_to`.
            trainer.accelerator.unwrap_model(constructor, keep_fp32_wrapper=False)
            rows = predict_rows(constructor, every, collator, len(ids), batch_size)
            # Processes that do not share the main process's folder could not restore the best checkpoint.
            rows = broadcast(rows.to(arguments.device)).cpu()
        history, steps = trainer.state.log_history, trainer.state.global_step
        # Trainer and model refer to each other, so their memory is only freed by the garbage collector.
        del trainer, constructor
        gc.collect()
    old = read_rows(model, ids, table)
    info = {
        "steps": steps,
        "loss": _curve(history, "loss"),
        "eval_loss": _curve(history, "eval_loss"),
        "held_out": int(held_out.sum()),
        **_quality(rows[held_out], old[held_out], old.mean(dim=0)),
    }
    return LearnedRows(rows, info)


def read_definitions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    words: Sequence[str],
    definitions: Sequence[Sequence[Definition]],
    *,
    max_length: int = 64,
    batch_size: int = 128,
    table: TableName = INPUT,
) -> Tensor:
    """Predict rows from definitions of any words with a constructor that was saved.

    Args:
        model: The model that the constructor was trained from; not changed.
        tokenizer: The model's tokenizer.
        folder: `ConstructorConfig.save_to` of its training.
        words: The words, which need not be tokens.
        definitions: Definitions of each word, at least one.
        max_length: Maximum number of tokens of an input.
        batch_size: Definitions encoded at once.
        table: Table that the constructor was trained on.

    Returns:
        (n, d) float32, on the CPU.

    Raises:
        FileNotFoundError: If the folder contains no constructor.
        ImportError: If it contains adapters and peft is not installed.
    """
    style = ReadingStyle.of(model, tokenizer)
    # One sub-token per word; its id is a label, which prediction ignores.
    placeholder = [[style.pad]] * len(words)
    rows = definition_rows(style, tokenizer, words, placeholder, definitions, max_length=max_length)
    collator = DefinitionCollator(style.pad, vocabulary=len(tokenizer))
    with load_constructor(model, folder, table) as constructor:
        return predict_rows(constructor, rows, collator, len(words), batch_size)


def predict_rows(
    constructor: Any, rows: Dataset, collator: DefinitionCollator, words: int, batch_size: int = 128
) -> Tensor:
    """Predict rows with a constructor in eval mode: the weighted mean over the definitions of each word.

    Args:
        constructor: A `DefinitionEMBMixin`, with or without adapters.
        rows: From `definition_rows`, each with one target.
        collator: Collator for these rows.
        words: Number of words.
        batch_size: Definitions encoded at once.

    Returns:
        (words, d) float32, on the CPU.
    """
    model: Any = unwrap_constructor(constructor)
    word, weight = torch.as_tensor(rows["word"]), torch.as_tensor(rows["weight"])
    lengths = [len(ids) for ids in rows["input_ids"]]
    result = torch.zeros(words, model.definition_head.out_features)
    progress = ProgressBar(sum(lengths), "Reading definitions", "token")
    with progress, evaluating(model), torch.no_grad():
        for batch in equal_length_batches(lengths, batch_size):
            inputs = {name: tensor.to(model.device) for name, tensor in collator(list(rows.select(batch))).items()}
            predicted = model.reconstruct(inputs).float().cpu()
            result.index_add_(0, word[batch], predicted * weight[batch, None])
            progress.update(len(batch) * lengths[batch[0]])
    return result


def held_out_words(count: int, share: float) -> Tensor:
    """Mark the held-out words: (count,) bool, evenly spaced and always the same.

    Args:
        count: Number of words.
        share: Share that is held out.

    Example:
        >>> held_out_words(6, 0.5).int().tolist()
        [0, 1, 0, 1, 0, 1]
    """
    positions = torch.arange(count, dtype=torch.float64)
    return ((positions + 1) * share).floor() > (positions * share).floor()


def _of_words(rows: Dataset, words: Tensor) -> Dataset:
    """Select the rows of some words, sorted by length so that batches for evaluation have little padding."""
    lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
    order = lengths.argsort(stable=True)
    return rows.select(order[words[torch.as_tensor(rows["word"])[order]]].tolist())


def _load(folder: Path) -> Dataset:
    return load_from_disk(str(folder))


def _curve(history: list[dict[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in history if name in row]


def _quality(rows: Tensor, old: Tensor, mean: Tensor) -> dict[str, float | None]:
    if not len(rows):
        return {"held_out_cosine": None, "r_squared": None}
    cosine = torch.cosine_similarity(rows - mean, old - mean).mean()
    unexplained = (rows - old).square().sum() / (old - mean).square().sum()
    return {"held_out_cosine": float(cosine), "r_squared": float(1 - unexplained)}
