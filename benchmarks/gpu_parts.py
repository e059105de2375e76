"""The parts of gpu.py. Each runs in a process of its own and returns its figures."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import learned_speed
import monitoring
import torch
from common import DATA, ROOT, WIKTIONARY, find_model
from learned_speed import synchronize
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import (
    DefinitionEMBCallback,
    DefinitionEMBConfig,
    EmbeddingMonitorCallback,
    Lexicon,
    build_definition_embeddings,
    define_new_tokens,
    load_definitions,
)
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows
from defemb_callbacks.senses import build_sense_dictionary, with_senses, without_senses
from defemb_callbacks.weights.rows import read_table

PARALLEL = ("nccl", "fsdp2", "zero3")


@dataclass(frozen=True)
class Setting:
    """What the parts share: a RoBERTa with random weights, a tokenizer, a dictionary, and how much is measured."""

    device: torch.device
    tokenizer: Any
    lexicon: Lexicon
    sizes: dict[str, int]
    rows: int  # of the closed form
    features: int
    words: int  # whose definitions are an epoch of the constructor
    tokens: int  # in its batches
    product: int  # size of the matrices that show the peak
    steps: int  # of the monitored run
    terms: int
    texts: int  # of the sense dictionary

    def model(self, model_class: type = RobertaModel, **config: Any) -> Any:
        """Return the same model at each call, on the device."""
        set_seed(0)
        return model_class(self.config(**config)).to(self.device).eval()

    def config(self, **config: Any) -> RobertaConfig:
        return RobertaConfig(
            vocab_size=len(self.tokenizer), pad_token_id=self.tokenizer.pad_token_id, **self.sizes | config
        )

    def glosses(self) -> list[str]:
        """Return the definitions of the first words of the dictionary, as running text."""
        found: list[str] = []
        for word in self.lexicon.words:
            found += [definition.gloss for definition in self.lexicon.lookup(word)]
            if len(found) >= self.texts:
                break
        return found[: self.texts]


def setting(device: str, quick: bool) -> Setting:
    """Return the sizes of RoBERTa-base, or those of the tests."""
    if quick:
        sys.path.append(str(ROOT / "tests"))
        from tiny import tiny_glossary, wordpiece_tokenizer

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return Setting(
            torch.device(device),
            wordpiece_tokenizer(),
            load_definitions(tiny_glossary()),
            sizes | {"max_position_embeddings": 140},
            *(200, 40, 60, 256, 64, 6, 5, 60),
        )
    folder = DATA / "tokenizers" / "roberta-base"
    tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else find_model())
    wordnet = Path(os.environ.get("WORDNET_DIR") or "/usr/share/wordnet")
    lexicon = load_definitions("wordnet" if wordnet.is_dir() or not WIKTIONARY.is_file() else WIKTIONARY)
    sizes = {"max_position_embeddings": 514, "type_vocab_size": 1}
    return Setting(
        torch.device(device), tokenizer, lexicon, sizes, *(50_000, 2304, 20_000, 4096, 8192, 500, 1000, 50_000)
    )


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[dict[str, float]]:
    """Measure the seconds of a block, and the largest memory on the GPU meanwhile."""
    figures: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize(device)
    start = time.perf_counter()
    yield figures
    synchronize(device)
    figures["seconds"] = time.perf_counter() - start
    if device.type == "cuda":
        figures["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6


def tests(given: Setting) -> dict[str, Any]:
    """Run the tests marked `gpu`; without a GPU, all of them are skipped."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        raise RuntimeError("\n".join(lines[-60:]))
    return {"summary": lines[-1]}


def closed_form(given: Setting) -> dict[str, Any]:
    """Compare the closed form on the device with the same on the CPU, on a problem with noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(given.rows, given.features, generator=generator)
    width = given.config().hidden_size
    y = x @ torch.randn(given.features, width, generator=generator) / given.features**0.5
    y += torch.randn(y.shape, generator=generator)
    few = slice(None, 64)
    cross_fitted_rows(x[few, :8], y[few], device=given.device)  # loads the libraries of linear algebra
    with measured(given.device) as here:
        found = cross_fitted_rows(x, y, device=given.device)
    with measured(torch.device("cpu")) as on_cpu:
        expected = cross_fitted_rows(x, y)
    error = float((found.rows - expected.rows).abs().max() / expected.rows.std())
    if found.strength != expected.strength or error > 1e-3:
        raise RuntimeError(f"The closed form on {given.device} differs from that on the CPU by {error:.2g}.")
    return {"rows": given.rows, "features": given.features, **here, "cpu_seconds": on_cpu["seconds"], "error": error}


def build(given: Setting) -> dict[str, Any]:
    """Measure a build without a cache and a second one that finds it, and write the rows."""
    model = given.model()
    with tempfile.TemporaryDirectory() as folder:
        config = DefinitionEMBConfig(cache_dir=folder)
        with measured(given.device) as cold:
            embeddings = build_definition_embeddings(model, given.tokenizer, given.lexicon, config)
        with measured(given.device) as warm:
            build_definition_embeddings(model, given.tokenizer, given.lexicon, config)
    with measured(given.device) as applied:
        report = embeddings.apply(model)
    return {
        "rows": len(embeddings.rows),
        "rows_written": report.rebuilt,
        "texts": embeddings.info["texts_encoded"],
        "tokens": embeddings.info["tokens_encoded"],
        "tokens_per_second": embeddings.info["tokens_encoded"] / cold["seconds"],
        **cold,
        "warm_seconds": warm["seconds"],
        "apply_seconds": applied["seconds"],
    }


def constructor(given: Setting) -> dict[str, Any]:
    """Measure the constructor's updates in bfloat16, and the share of the peak of one large product."""
    model = given.model()
    rows = learned_speed.find_rows(model, given.tokenizer, given.words, given.lexicon)
    figures = learned_speed.measure(model, given.tokenizer, rows, given.tokens, 2, given.product)
    speed = median(figures["trainer_tokens_per_second"])
    hours = learned_speed.PAPER_UPDATES * learned_speed.PAPER_TOKENS / speed / 3600
    return {**figures, "updates_per_second": speed / given.tokens, "hours_of_the_papers_updates": hours}


def monitored(given: Setting) -> dict[str, Any]:
    """Measure what the callbacks cost a run in bfloat16, relative to one without them."""
    on_cpu = given.device.type == "cpu"
    make = monitoring.random_tokens(given.config(), given.tokenizer, given.steps, 5, use_cpu=on_cpu)
    setups: monitoring.Setups = {
        "none": None,
        "monitor": lambda: EmbeddingMonitorCallback(given.lexicon),
        "rebuild": lambda: DefinitionEMBCallback(given.lexicon),
    }
    return monitoring.compare(make, 1, setups)


def new_tokens(given: Setting) -> dict[str, Any]:
    """Measure the definition of new tokens, with a cached map."""
    model, words = given.model(), [f"qx{number}zv" for number in range(given.terms)]
    terms = dict(zip(words, given.glosses(), strict=False))
    first = {"qxzv": "a word that no vocabulary has"}  # fits the map
    define_new_tokens(copy.deepcopy(model), copy.deepcopy(given.tokenizer), first, given.lexicon)
    with measured(given.device) as figures:
        report = define_new_tokens(model, copy.deepcopy(given.tokenizer), terms, given.lexicon)
    return {"terms": len(report.terms), **figures}


def senses(given: Setting) -> dict[str, Any]:
    """Measure the build of a sense dictionary, and forward passes with and without it."""
    model, texts = given.model(), given.glosses()
    with measured(given.device) as built:
        dictionary = build_sense_dictionary(model, given.tokenizer, texts, max_length=64)
    batch = given.tokenizer(texts[:32], padding=True, truncation=True, max_length=64, return_tensors="pt")
    batch = batch.to(given.device)

    def forward() -> float:
        synchronize(given.device)
        start = time.perf_counter()
        with torch.no_grad():
            model(**batch)
        synchronize(given.device)
        return time.perf_counter() - start

    ratios = []
    for _ in range(10):
        forward()
        plain = forward()
        with_senses(model, dictionary)
        forward()
        ratios.append(forward() / plain)
        without_senses(model)
    tokens = int(dictionary.info["tokens_read"])
    speed = tokens / built["seconds"]
    return {
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_second": speed,
        "senses": len(dictionary.vectors),
        **built,
        "forward_ratio": median(ratios),
    }


class Tables(TrainerCallback):
    """Records the input table when training begins, and the end of each step."""

    def __init__(self) -> None:
        self.begin: torch.Tensor | None = None
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.begin = read_table(model).float().cpu()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        self.ends.append(time.perf_counter())


def in_parallel(given: Setting, kind: str) -> dict[str, Any]:
    """Train in a launch of one process: the rows of a build in one process are written, and stay."""
    if kind == "zero3":
        import deepspeed as library  # installed in a folder of its own

        # Otherwise DeepSpeed compiles an exchange between processes, for minutes, that a single process does not need.
        library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    whole = given.model(RobertaForSequenceClassification)
    untouched = read_table(whole).float().cpu()
    config = DefinitionEMBConfig(strategy="replace")  # random weights would otherwise keep their rows
    build_definition_embeddings(whole, given.tokenizer, given.lexicon, config).apply(whole, config)
    rebuilt = read_table(whole).float().cpu()
    changed = (untouched != rebuilt).any(dim=1)
    del whole

    sizes = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    deepspeed = {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        **sizes,
    }
    tables = Tables()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=20,
            per_device_train_batch_size=32 if given.device.type == "cuda" else 4,
            learning_rate=1e-5,
            bf16=given.device.type == "cuda",
            use_cpu=given.device.type == "cpu" and kind != "zero3",
            deepspeed=deepspeed if kind == "zero3" else None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=given.device.type == "cuda",
        )
        trainer = Trainer(
            given.model(RobertaForSequenceClassification),
            arguments,
            train_dataset=monitoring.RandomTokens(32 * 20, 128, len(given.tokenizer)),
            processing_class=given.tokenizer,
            callbacks=[DefinitionEMBCallback(given.lexicon, config=config, monitor_steps=5), tables],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        end = read_table(trainer.model).float().cpu()
        trainer.save_model(folder)
        saved = sorted(path.name for path in Path(folder).glob("*.safetensors"))
    assert tables.begin is not None
    # ZeRO rounds the weights to bfloat16 before they are trained.
    error = float((tables.begin - rebuilt)[changed].norm() / rebuilt[changed].norm())
    lost = float((end - rebuilt)[changed].norm() / (untouched - rebuilt)[changed].norm())
    if error > 0.01 or lost > 0.5:
        raise RuntimeError(f"The written rows were lost: {error:.2g} at the start of training, {lost:.2g} at its end.")
    ends = tables.ends[len(tables.ends) // 2 :]
    return {
        "distributed_type": str(trainer.accelerator.distributed_type),
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        "wrapped": type(trainer.model_wrapped).__name__,
        "rows_written": int(changed.sum()),
        "error_at_start": error,
        "lost_at_end": lost,
        "seconds_per_step": (ends[-1] - ends[0]) / (len(ends) - 1),
        "saved": saved,
    }


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "tests": tests,
    "closed_form": closed_form,
    "build": build,
    "constructor": constructor,
    "monitoring": monitored,
    "new_tokens": new_tokens,
    "senses": senses,
    **{kind: lambda given, kind=kind: in_parallel(given, kind) for kind in PARALLEL},
}
