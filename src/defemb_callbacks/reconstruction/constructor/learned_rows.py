"""The learned constructor of DefinitionEMB: definitions in, the vectors that it has learned to make of them out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from defemb_callbacks.cache import cached
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.definitions import Definition
from defemb_callbacks.reconstruction.backbone import evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches, spread
from defemb_callbacks.reconstruction.constructor.data import (
    DefinitionCollator,
    ReadingStyle,
    definition_rows,
    sub_tokens_of,
)
from defemb_callbacks.reconstruction.constructor.model import (
    bare_constructor,
    freeze_unused,
    kept_constructor,
    open_constructor,
    solve_head,
)
from defemb_callbacks.reconstruction.constructor.training import (
    ConstructorTrainer,
    constructor_arguments,
    isolated_training,
    stopping,
    trains_in_bfloat16,
)
from defemb_callbacks.weights.rows import INPUT, TableName, read_table

logger = logging.getLogger(__name__)

# Of a dictionary's word that is no token: longer ones are names of chemicals and the like.
MOST_SUB_TOKENS = 8
DefinedWords = Sequence[tuple[str, Sequence[Definition]]]


@dataclass(frozen=True)
class LearnedRows:
    """What a trained constructor makes of definitions.

    Attributes:
        rows: (n, d) float32.
        info: plain JSON: `steps`; `loss` and `eval_loss`, lists of (step, value); `held_out`, how many words were; and
            of these `held_out_cosine`, the mean cosine of new and old rows less the old rows' mean, and `r_squared`,
            the share of the old rows' variation that the new ones explain (both `None` without such words).
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
    """Train a constructor on definitions, and let it make the vectors of the words that they define.

    The constructor is a copy of the model (or the model with adapters, which are taken off at the end). It learns to
    predict the pretrained embedding of a masked word from its definition. All processes of a distributed run call this
    with the same arguments, and each gets all rows. A run that was killed goes on from its last checkpoint.

    Source: Zhang, Li, Okumura, arXiv 2408.01308.

    Args:
        model: stays as it is.
        tokenizer: the model's.
        ids: (n,) int64, tokens in growing order; for `filter_ratio` the frequent ones come first.
        defined: the word that each token is, and its definitions, at least one.
        folder: for tokenized definitions and checkpoints; two different trainings need two folders.
        more: gives other words of the dictionary, for `words="dictionary"`.
        max_length: longest input in tokens.
        precision: "float32", "bfloat16", or "auto": bfloat16 where it is fast.
        batch_size: definitions read at once after training.
        settings: default `ConstructorConfig()`.
        table: whose rows are to be reconstructed, see `embedding_weight`.
        callbacks: of the Trainer.

    Raises:
        ValueError: masking that the model cannot do, no word left to learn from, unknown training settings, or
            processes that see different checkpoints.
        ImportError: `lora_r` without peft.
    """
    settings = settings or ConstructorConfig()
    style = ReadingStyle.of(model, tokenizer)

    def rows_of(words: DefinedWords, sub_tokens: Sequence[Sequence[int]], masking: Any) -> Dataset:
        names, definitions = [word for word, _ in words], [found for _, found in words]
        return definition_rows(style, tokenizer, names, sub_tokens, definitions, max_length=max_length, masking=masking)

    def kept(name: str, build: Callable[[], Dataset]) -> Dataset:
        # Tokenized once for all processes, and for a run that goes on.
        return cached(folder / name, build, lambda rows, to: rows.save_to_disk(str(to)), _load)

    single = [[index] for index in ids.tolist()]
    every = kept("rows", lambda: rows_of(defined, single, "autoregressive"))
    source = every
    if settings.masking == "random":
        source = kept("random", lambda: rows_of(defined, single, "random"))
    held_out = held_out_words(len(ids), settings.held_out)
    targets = ~held_out
    targets[round(len(ids) * (1 - settings.filter_ratio)) :] = False
    train, evaluation = _of_words(source, targets), _of_words(every, held_out)
    if settings.words == "dictionary" and more is not None:
        others = kept("more", lambda: rows_of(*_sub_tokens(more(), tokenizer), settings.masking))
        # Also as a part of a longer word, a token that is held out is no target.
        left_out = set(ids[~targets].tolist())
        others = others.select([row for row, labels in enumerate(others["labels"]) if left_out.isdisjoint(labels)])
        train = concatenate_datasets([train, others])
    if not len(train):
        raise ValueError(
            f"None of {len(ids)} words is left to learn from (held_out={settings.held_out}, "
            f"filter_ratio={settings.filter_ratio}); lower these shares."
        )
    collator = DefinitionCollator(style.pad, vocabulary=len(tokenizer))
    with isolated_training():
        bfloat16 = trains_in_bfloat16(precision, model.device)
        arguments = constructor_arguments(
            folder / "run", settings, device=model.device, bfloat16=bfloat16, evaluates=len(evaluation) > 0
        )
        torch.manual_seed(arguments.seed)
        with open_constructor(model, settings, table) as constructor:
            freeze_unused(constructor, collator(list(train.select(spread(len(train), 64)))))
            if settings.head == "ridge":
                solve_head(constructor, train, collator)
            trainer = ConstructorTrainer(
                constructor,
                arguments,
                tokens_per_batch=settings.tokens_per_batch,
                data_collator=collator,
                train_dataset=train,
                eval_dataset=evaluation if len(evaluation) else None,
                callbacks=[*callbacks, *stopping(settings, len(evaluation) > 0)],
            )
            trainer.train(resume_from_checkpoint=last_checkpoint(folder / "run"))
            if settings.save_to is not None:
                trainer.save_model(settings.save_to)
            # Whatever it was trained in, it reads in its own type, as it will when it is loaded from `save_to`.
            trainer.accelerator.unwrap_model(constructor, keep_fp32_wrapper=False)
            rows = constructed_rows(constructor, every, collator, len(ids), batch_size)
            # The best checkpoint is read by those processes alone that see the folder of the first one.
            rows = broadcast(rows.to(arguments.device)).cpu()
        history, steps = trainer.state.log_history, trainer.state.global_step
        # The Trainer and its model hold each other, and with them a copy's memory, until they are looked for.
        del trainer, constructor
        gc.collect()
    old = read_table(model, table)[ids.to(model.device)].cpu()
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
    """What a constructor that was kept makes of the definitions of any words.

    Args:
        model: that it was trained from; stays as it is.
        tokenizer: the model's.
        folder: `ConstructorConfig.save_to` of its training.
        words: need not be tokens.
        definitions: of each word, at least one.
        max_length: longest input in tokens.
        batch_size: definitions read at once.
        table: whose rows it was trained on.

    Returns:
        (n, d) float32, on the CPU.

    Raises:
        FileNotFoundError: the folder holds no constructor.
        ImportError: adapters without peft.
    """
    style = ReadingStyle.of(model, tokenizer)
    # Read as words of one sub-token: what it would be plays no part in reading.
    one = [[style.pad]] * len(words)
    rows = definition_rows(style, tokenizer, words, one, definitions, max_length=max_length)
    collator = DefinitionCollator(style.pad, vocabulary=len(tokenizer))
    with kept_constructor(model, folder, table) as constructor:
        return constructed_rows(constructor, rows, collator, len(words), batch_size)


def constructed_rows(
    constructor: Any, rows: Dataset, collator: DefinitionCollator, words: int, batch_size: int = 128
) -> Tensor:
    """The vectors that a constructor makes of definitions, in eval mode; the weighted mean over those of a word.

    Args:
        constructor: a `DefinitionEMBMixin`, also one with adapters.
        rows: from `definition_rows`, each with one target.
        collator: for these rows.
        words: how many.
        batch_size: definitions read at once.

    Returns:
        (words, d) float32, on the CPU.
    """
    model: Any = bare_constructor(constructor)
    word, weight = torch.as_tensor(rows["word"]), torch.as_tensor(rows["weight"])
    lengths = [len(ids) for ids in rows["input_ids"]]
    result = torch.zeros(words, model.definition_head.out_features)
    progress = tqdm(total=sum(lengths), desc="Reading definitions", unit="token", unit_scale=True, disable=None)
    with progress, evaluating(model), torch.inference_mode():
        for batch in equal_length_batches(lengths, batch_size):
            inputs = {name: tensor.to(model.device) for name, tensor in collator(list(rows.select(batch))).items()}
            made = model.reconstruct(inputs).float().cpu()
            result.index_add_(0, word[batch], made * weight[batch, None])
            progress.update(len(batch) * lengths[batch[0]])
    return result.clone()  # out of inference mode


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; on all processes the same one.

    Raises:
        ValueError: the processes see different checkpoints.
    """
    # Of what the Trainer writes this file is the last.
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    names = gather_object([newest and newest.name])
    if len(set(names)) > 1:
        raise ValueError(f"The processes see different checkpoints in {folder} ({names}); let them share cache_dir.")
    if newest is None:
        return None
    logger.info("Training of the constructor goes on from %s.", newest)
    return str(newest)


def held_out_words(count: int, share: float) -> Tensor:
    """Which words are no targets: (count,) bool, spread over all of them, always the same.

    Example:
        >>> held_out_words(6, 0.5).int().tolist()
        [0, 1, 0, 1, 0, 1]
    """
    positions = torch.arange(count, dtype=torch.float64)
    return ((positions + 1) * share).floor() > (positions * share).floor()


def _of_words(rows: Dataset, words: Tensor) -> Dataset:
    """The rows of some words, in growing length, so that a batch for evaluation holds little padding."""
    lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
    order = lengths.argsort(stable=True)
    return rows.select(order[words[torch.as_tensor(rows["word"])[order]]].tolist())


def _sub_tokens(
    defined: DefinedWords, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, Sequence[Definition]]], list[list[int]]]:
    """Those words that consist of several sub-tokens, and these."""
    found = zip(defined, sub_tokens_of([word for word, _ in defined], tokenizer), strict=True)
    several = [(entry, ids) for entry, ids in found if 1 < len(ids) <= MOST_SUB_TOKENS]
    return [entry for entry, _ in several], [ids for _, ids in several]


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
