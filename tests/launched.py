"""Script that each process of `weights/test_distributed.py` runs: all cases in turn, with results written to disk.

A launch takes ten seconds for imports, so there is only one for each number of processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from transformers import BertForMaskedLM, BertForSequenceClassification, Trainer, TrainerCallback
from transformers.models.bert.modeling_bert import BertLayer

from defemb_callbacks import DefinitionEMBCallback, TrainNewTokensCallback, build_definition_embeddings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.new_tokens import TrainedRows
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights import distributed
from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.distributed import main_process_first, on_main_process, this_process
from defemb_callbacks.weights.rows import read_table, write_rows
from defemb_callbacks.weights.sharding import whole, write_into
from launching import CONFIGS, exit_together, fsdp_environment
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

Outcome = dict[str, Any]  # tensors and JSON values
IDS = torch.tensor([7, 3, 470, 100])
RATE = 0.5
ADAPTERS: dict[str, dict[str, Any]] = {
    "modules_to_save": {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
    "tokens": {"target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [100, 3, 8]}},
    "lora_on_embeddings": {"target_modules": ["word_embeddings"]},
}


def new_rows(width: int = 32) -> Tensor:
    return torch.randn(len(IDS), width, generator=torch.Generator().manual_seed(5))


def trained(model: nn.Module, steps: int = 1) -> list[Tensor]:
    """Return the table after each step of gradient descent, on the same sentences on every process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batch = tiny_dataset(wordpiece_tokenizer(), 4)[:]
    ids = torch.tensor(batch["input_ids"])
    ids[:, 1] = IDS  # gives the written rows gradients
    tables = []
    for _ in range(steps):
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        tables.append(read_table(model))
    return tables


def metrics_of(model: nn.Module) -> dict[str, float]:
    vocabulary = read_vocabulary(wordpiece_tokenizer(), 476)
    return EmbeddingMonitor(model, vocabulary, DefinitionEMBConfig()).measure(model)


def sharded(model: nn.Module) -> nn.Module:
    """Shard in place, as accelerate does for FSDP2: the layers, then the rest of the model."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, BertLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def ddp(folder: Path, frequency: str) -> Outcome:
    """Train with a Trainer, and return the table when it is created, when training starts and at the end."""
    found: Outcome = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            found["begin"] = read_table(model)

    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    callback = DefinitionEMBCallback(
        tiny_glossary(), frequency=frequency, monitor_steps=1 if frequency == "vocabulary" else None
    )
    trainer = Trainer(
        model,
        training_args(folder, report_to=["tensorboard"], per_device_train_batch_size=4),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback, Look],
    )
    found["init"] = read_table(model)
    found["world"] = [trainer.args.world_size, torch.distributed.get_world_size()]
    found["backend"] = torch.distributed.get_backend()
    trainer.train()
    return {**found, "end": read_table(model), "history": trainer.state.log_history}


def ddp_vocabulary(folder: Path) -> Outcome:
    return ddp(folder, "vocabulary")


def ddp_training_data(folder: Path) -> Outcome:
    return ddp(folder, "training_data")


def fsdp_tied(folder: Path) -> Outcome:
    """Rows written after sharding, with tied input and output tables."""
    model = sharded(tiny_bert(wordpiece_tokenizer(), BertForMaskedLM))
    assert isinstance(model.get_input_embeddings().weight, DTensor)
    write_rows(model, IDS, new_rows())
    written, metrics = read_table(model), metrics_of(model)
    with torch.no_grad():  # afterwards FSDP2 keeps the unsharded table, which is not the one that is trained
        logits = model(input_ids=IDS[None]).logits
    write_rows(model, IDS, 2 * new_rows())
    tables = trained(model, 2)
    return {"written": written, "metrics": metrics, "logits": logits, "first": tables[0], "second": tables[1]}


def ddp_new_rows(folder: Path) -> Outcome:
    """A Trainer that trains four rows of the table, with weight decay."""
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    before = read_table(model)
    trainer = Trainer(
        model,
        training_args(folder, per_device_train_batch_size=4, weight_decay=0.1, num_train_epochs=3),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[TrainNewTokensCallback(IDS.tolist())],
    )
    trainer.train()
    return {"before": before, "after": read_table(model), "world": trainer.args.world_size}


def fsdp_new_rows(folder: Path) -> Outcome:
    """The same with tied tables that are sharded; the last shard may have no trained row."""
    model = sharded(tiny_bert(wordpiece_tokenizer(), BertForMaskedLM))
    before = read_table(model)
    rows = TrainedRows(model, IDS.tolist())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    ids = torch.stack([IDS, IDS.roll(1) + torch.distributed.get_rank()])
    for _ in range(20):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.restore()
    moments = [value["exp_avg_sq"] for weight, value in optimizer.state.items() if weight.shape == before.shape]
    return {"before": before, "after": read_table(model), "moments": whole(moments[0])}


def fsdp_untied(folder: Path) -> Outcome:
    """Rows of the output table only, also sharded by columns, as tensor parallelism may do."""
    model = tiny_bert(wordpiece_tokenizer(), BertForMaskedLM, tie_word_embeddings=False)
    sharded(model)
    write_rows(model, IDS, new_rows(), "output")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    by_column = nn.Parameter(distribute_tensor(torch.zeros(476, 5), mesh, [Shard(1)]))
    write_into(by_column, IDS, new_rows(5))
    small = nn.Parameter(distribute_tensor(torch.zeros(2, 5), mesh, [Shard(0)]))  # one of three processes has no rows
    write_into(small, torch.tensor([1]), torch.ones(1, 5))
    return {
        "input": read_table(model),
        "output": read_table(model, "output"),
        "metrics": metrics_of(model),
        "by_column": whole(by_column),
        "small": whole(small),
        "shard": len(small.to_local()),
    }


def shard_by_accelerate(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Shard in place, as an `Accelerator` with this plugin does; on CPUs it would use DDP instead."""
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        device=torch.device("cpu"),
        is_main_process=torch.distributed.get_rank() == 0,
    )
    fsdp2_prepare_model(accelerator, model)


def fsdp_of_the_file(folder: Path) -> Outcome:
    """Layers sharded as with `accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml`."""
    environment = fsdp_environment(CONFIGS / "fsdp2.yaml")
    os.environ |= environment
    try:
        model = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
        shard_by_accelerate(model, FullyShardedDataParallelPlugin())
    finally:
        for name in environment:
            del os.environ[name]
    write_rows(model, IDS, new_rows())
    layers = [isinstance(module, FSDPModule) for module in model.modules() if isinstance(module, BertLayer)]
    return {"written": read_table(model), "first": trained(model)[0], "layers": layers}


def awaited(folder: Path) -> Outcome:
    """FSDP2 with `cpu_ram_efficient_loading`: only the main process has weights when rows are written."""
    tokenizer = wordpiece_tokenizer()
    checkpoint = folder / "checkpoint"
    on_main_process(lambda: tiny_bert(tokenizer, BertForSequenceClassification).save_pretrained(checkpoint))
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    try:
        model = BertForSequenceClassification.from_pretrained(checkpoint).eval()
        if torch.distributed.get_rank() != 0:
            # transformers 5.24 leaves only weights that the checkpoint lacks on the meta device, other versions all.
            for module in model.modules():
                for name, weight in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(weight.to("meta")))
        embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary())
        report = embeddings.apply(model)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=True
        )
        shard_by_accelerate(model, plugin)
        # A second model with the same weights, created after sharding (`model_init`): its rows are in the cache.
        second = sharded(tiny_bert(tokenizer, BertForSequenceClassification))
        again = build_definition_embeddings(second, tokenizer, tiny_glossary())
        other = sharded(tiny_bert(tokenizer, BertForSequenceClassification, hidden_size=16))
        refused = error_of(lambda: build_definition_embeddings(other, tokenizer, tiny_glossary()))
        return {
            "before": report.before,
            "rows": embeddings.rows,
            "again": again.rows,
            "refused": refused,
            "note": read_record(model),
            "table": read_table(model),
            "first": trained(model)[0],
        }
    finally:
        del os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]


def fsdp_peft(folder: Path) -> Outcome:
    """Adapters on sharded embeddings."""
    return {
        f"{name} {moment}": table
        for name in ADAPTERS
        for moment, table in zip(("written", "first"), written_and_trained(sharded(adapted(name))), strict=True)
    }


def written_and_trained(model: Any) -> list[Tensor]:
    write_rows(model, IDS, new_rows())
    return [read_table(model), *trained(model)]


def adapted(name: str) -> Any:
    import peft

    model = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, r=4, **ADAPTERS[name]))


def together(folder: Path) -> Outcome:
    """A build shared by all processes, and errors raised on all of them."""
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    read = [0]
    model.register_forward_hook(lambda *call: read.__setitem__(0, read[0] + 1))
    config = DefinitionEMBConfig(cache_dir=str(folder / "cache"), batch_size=4, precision="float32")
    with pickled_tensors() as pickled:
        built = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
        batches = read[0]
        again = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    none = error_of(lambda: build_definition_embeddings(model, tokenizer, {"zzzz": "not a word of it"}, config))
    main_fails = error_of(lambda: on_main_process(lambda: 1 / 0))
    first_fails = error_of(lambda: main_process_first(lambda: 1 / 0))
    return {
        "rows": built.rows,
        "again": again.rows,
        "batches": batches,
        "read_again": read[0] - batches,
        "pickled": pickled,
        "errors": [none, main_fails, first_fails],
    }


@dataclass(frozen=True)
class Found:
    """A result of the main process."""

    name: str
    rows: Tensor
    flags: Tensor
    half: Tensor
    number: Tensor
    empty: Tensor
    missing: Tensor | None = None


def from_main(folder: Path) -> Outcome:
    """A dataclass of which only the main process knows the values, broadcast in blocks of 5 elements."""
    rows = torch.arange(12.0).view(4, 3).T  # not contiguous
    found = Found("main", rows, rows > 3, rows.half(), torch.tensor(7), torch.zeros(0, 3))
    is_main = torch.distributed.get_rank() == 0
    block, distributed.BROADCAST_BLOCK = distributed.BROADCAST_BLOCK, 5
    try:
        with pickled_tensors() as pickled:
            received = on_main_process(lambda: found if is_main else None)
    finally:
        distributed.BROADCAST_BLOCK = block
    types = [str(part.dtype) for part in (received.rows, received.flags, received.half, received.number)]
    shapes = [list(part.shape) for part in (received.rows, received.number, received.empty)]
    return {
        "rows": received.rows,
        "flags": received.flags,
        "half": received.half,
        "number": int(received.number),
        "types": types,
        "shapes": shapes,
        "others": [type(received).__name__, received.name, received.missing],
        "none": on_main_process(lambda: None),
        "pickled": pickled,
    }


@contextmanager
def pickled_tensors() -> Iterator[list[int]]:
    """Record the number of elements of each tensor that is pickled."""
    sizes: list[int] = []
    reduce = Tensor.__reduce_ex__

    def recorded(tensor: Tensor, protocol: Any) -> Any:
        sizes.append(tensor.numel())
        return reduce(tensor, protocol)

    Tensor.__reduce_ex__ = recorded  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        Tensor.__reduce_ex__ = reduce  # type: ignore[method-assign]


def error_of(do: Callable[[], Any]) -> str:
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


CASES: dict[int, list[Callable[[Path], Outcome]]] = {
    2: [
        ddp_vocabulary,
        ddp_training_data,
        fsdp_tied,
        fsdp_untied,
        ddp_new_rows,
        fsdp_new_rows,
        fsdp_of_the_file,
        fsdp_peft,
        awaited,
        together,
        from_main,
    ],
    3: [ddp_vocabulary, fsdp_tied, fsdp_untied, ddp_new_rows, fsdp_new_rows, together, from_main],
}


def dying(folder: Path) -> None:
    """Kill the last process while all encode definitions."""
    process, tokenizer = this_process(), wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    texts: list[int] = []

    def die(module: nn.Module, inputs: Any, output: Any) -> None:
        texts.append(len(output.last_hidden_state))
        # Before that, a few texts show how the model reads.
        if process.process_index == process.num_processes - 1 and sum(texts) > 12:
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_hook(die)
    config = DefinitionEMBConfig(cache_dir=str(folder / "cache"), batch_size=4)
    build_definition_embeddings(model, tokenizer, tiny_glossary(), config)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    this_process()  # opens the process group
    world = int(os.environ["WORLD_SIZE"])
    for case in CASES[world]:
        own = folder / case.__name__
        outcome = case(own)
        rank = torch.distributed.get_rank()
        own.mkdir(exist_ok=True)
        tensors = {name: value.contiguous() for name, value in outcome.items() if isinstance(value, Tensor)}
        save_file(tensors, own / f"{rank}.safetensors")
        plain = {name: value for name, value in outcome.items() if name not in tensors}
        (own / f"{rank}.json").write_text(json.dumps(plain))
    exit_together(folder)


if __name__ == "__main__":
    if sys.argv[2:] == ["dying"]:
        dying(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
