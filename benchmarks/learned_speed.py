"""Training speed of the constructor relative to the bare forward and backward pass of the same model.

    python benchmarks/learned_speed.py                                              # all-MiniLM-L6-v2
    python benchmarks/learned_speed.py --architecture roberta-base --device cuda   # random weights

The bare passes use the same texts in unpadded batches with the same number of tokens, without an optimizer, alternating
with epochs of the Trainer; both use bfloat16. "Share of peak" is the FLOPS of the backbone's matrices (6 per weight and
token) divided by the FLOPS of one large bfloat16 product on the same device.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DATA, RESULTS, add_model_argument, environment, find_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, RobertaConfig, RobertaModel, TrainerCallback

from defemb_callbacks import DefinitionEMBConfig, Lexicon, load_definitions
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction import resolve_settings
from defemb_callbacks.reconstruction.constructor.data import DefinitionCollator, ReadingStyle, definition_rows
from defemb_callbacks.reconstruction.constructor.model import freeze_unused, open_constructor
from defemb_callbacks.reconstruction.constructor.training import ConstructorTrainer, constructor_arguments
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary

PAPER_UPDATES, PAPER_TOKENS = 400_000, 4096  # RoBERTa-base


class StepTimes(TrainerCallback):
    """Record when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        self.ends.append(time.perf_counter())


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def find_rows(model: PreTrainedModel, tokenizer: Any, words: int, lexicon: Lexicon) -> Any:
    """Return the training rows of `words` words, spread over the vocabulary."""
    vocabulary, config = read_vocabulary(tokenizer), resolve_settings(DefinitionEMBConfig(), model)
    found = definitions_of_tokens(vocabulary, lexicon, config.definitions_per_token)
    chosen = list(found)[:: max(1, len(found) // words)]
    names = [vocabulary.words[index] or "" for index in chosen]
    definitions = [found[index] for index in chosen]
    style = ReadingStyle.of(model, tokenizer)
    return definition_rows(
        style, tokenizer, names, [[index] for index in chosen], definitions, max_length=config.max_length
    )


def trainer_speed(
    model: PreTrainedModel, rows: Any, collator: DefinitionCollator, settings: ConstructorConfig
) -> float:
    """Measure tokens per second in one epoch without its first step, a warm-up."""
    with tempfile.TemporaryDirectory() as folder, open_constructor(model, settings) as constructor:
        times = StepTimes()
        freeze_unused(constructor, collator([rows[0]]))
        arguments = constructor_arguments(Path(folder), settings, device=model.device, bfloat16=True, evaluates=False)
        trainer = ConstructorTrainer(
            constructor,
            arguments,
            tokens_per_batch=settings.tokens_per_batch,
            data_collator=collator,
            train_dataset=rows,
            callbacks=[times],
        )
        trainer.train()
    share = 1 - 1 / len(times.ends)
    return share * sum(map(len, rows["input_ids"])) / (times.ends[-1] - times.ends[0])


def bare_speed(model: PreTrainedModel, batches: list[Tensor]) -> float:
    """Measure tokens per second of the forward and backward passes alone."""
    bare = copy.deepcopy(model).train()
    bare.get_input_embeddings().requires_grad_(False)
    for batch in [batches[len(batches) // 2], *batches]:
        if batch is batches[0]:
            synchronize(model.device)
            start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16):
            states = bare(input_ids=batch.to(model.device)).last_hidden_state
        states.float().square().mean().backward()
        bare.zero_grad()
    synchronize(model.device)
    return sum(batch.numel() for batch in batches) / (time.perf_counter() - start)


def unpadded_batches(texts: list[list[int]], tokens: int) -> list[Tensor]:
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        by_length.setdefault(len(text), []).append(text)
    return [
        torch.tensor(same[start : start + max(1, tokens // length)])
        for length, same in by_length.items()
        for start in range(0, len(same), max(1, tokens // length))
    ]


def peak(device: torch.device, size: int = 0) -> float:
    """Measure the FLOPS of one bfloat16 product of square matrices."""
    size = size or (8192 if device.type != "cpu" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def measure(
    model: PreTrainedModel, tokenizer: Any, rows: Any, tokens: int, rounds: int, product: int = 0
) -> dict[str, Any]:
    """Alternate epochs of the Trainer over these rows with bare passes, in batches of `tokens` tokens."""
    settings = ConstructorConfig(
        held_out=0.0, tokens_per_batch=tokens, training={"save_strategy": "no", "num_train_epochs": 1}
    )
    collator = DefinitionCollator(ReadingStyle.of(model, tokenizer).pad, len(tokenizer))
    batches = unpadded_batches(list(rows["input_ids"]), tokens)
    speeds = [(trainer_speed(model, rows, collator, settings), bare_speed(model, batches)) for _ in range(rounds)]
    weights = sum(
        p.numel() for name, p in model.named_parameters() if "embeddings" not in name and "pooler" not in name
    )
    best = peak(model.device, product)
    return {
        "tokens": sum(map(len, rows["input_ids"])),
        "tokens_per_batch": tokens,
        "trainer_tokens_per_second": [speed for speed, _ in speeds],
        "bare_tokens_per_second": [speed for _, speed in speeds],
        "share_of_bare": median(a / b for a, b in speeds),
        "matrix_peak_tflops": best / 1e12,
        "share_of_peak": 6 * weights * median(speed for speed, _ in speeds) / best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--architecture", choices=["minilm", "roberta-base"], default="minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=700, help="words whose definitions are one epoch")
    parser.add_argument("--tokens", type=int, default=0, help="per batch; default: 1,024, or the paper's for RoBERTa")
    parser.add_argument("--output", type=Path, default=RESULTS / "learned_speed.json")
    arguments = parser.parse_args()
    if arguments.architecture == "minilm":
        name = arguments.model or find_model()
        model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    else:
        tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "roberta-base")
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "type_vocab_size": 1}
        model = RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False)
    model = model.to(arguments.device)
    tokens = arguments.tokens or (PAPER_TOKENS if arguments.architecture == "roberta-base" else 1024)
    rows = find_rows(model, tokenizer, arguments.words, load_definitions("wordnet"))
    figures = {"environment": environment(), **measure(model, tokenizer, rows, tokens, arguments.rounds)}
    trained = median(figures["trainer_tokens_per_second"])
    if arguments.architecture == "roberta-base":
        figures["hours_of_the_papers_updates"] = PAPER_UPDATES * PAPER_TOKENS / trained / 3600
    print(json.dumps(figures, indent=1))
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    known[f"{arguments.architecture}, {model.device.type}"] = figures
    arguments.output.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
