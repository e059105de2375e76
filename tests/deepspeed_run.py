"""Script that `weights/test_deepspeed.py` runs in its own process: several Trainers with DeepSpeed on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

from defemb_callbacks import TrainNewTokensCallback, build_definition_embeddings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.weights.rows import embedding_weight, read_table, write_rows
from runs import glossary_callback
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

IDS = torch.tensor([7, 3, 470, 100])


def settings(stage: int, **more: Any) -> dict[str, Any]:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 8,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        **more,
    }


def trained(folder: Path, checkpoint: Path, stage: int, late: bool, **callback: Any) -> dict[str, Any]:
    """Train, and return the table at the start and end of training, after the first step, and as saved."""
    tokenizer = wordpiece_tokenizer()
    found: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            found["begin"] = read_table(model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                found["first"] = read_table(model)

    args = training_args(folder, deepspeed=settings(stage), use_cpu=False, max_steps=2)

    def load() -> BertForSequenceClassification:
        return BertForSequenceClassification.from_pretrained(checkpoint)

    model = None if late else load()
    shape = None if model is None else list(embedding_weight(model).shape)
    trainer = Trainer(
        model,
        args,
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[glossary_callback(monitor_steps=1, plots=True, **callback), Look],
        **({"model_init": load} if late else {}),
    )
    trainer.train()
    found["end"] = read_table(trainer.model)
    trainer.save_model(folder / "saved")
    saved = BertForSequenceClassification.from_pretrained(folder / "saved") if stage == 2 else None
    return found | {
        "shape": shape,
        "engine": type(trainer.model_wrapped).__name__,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "isotropy": [row["defemb/isotropy/all"] for row in trainer.state.log_history if "loss" in row],
        **({} if saved is None else {"saved": read_table(saved)}),
    }


def in_bfloat16(stage: int) -> dict[str, Any]:
    """Write rows into a prepared bfloat16 model, whose optimizer trains float32 copies."""
    import deepspeed

    model = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    config = settings(stage, bf16={"enabled": True})
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    write_rows(engine, IDS, torch.full((4, 32), 9.0))
    ids = IDS.expand(8, 4)
    loss = engine(input_ids=ids, labels=torch.ones(8, dtype=torch.int64)).loss
    engine.backward(loss)
    engine.step()
    return {"first": read_table(engine)}


def refused(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """The error of a callback that cannot keep rows which DeepSpeed trains."""
    tokenizer = wordpiece_tokenizer()
    args = training_args(folder, deepspeed=settings(2), use_cpu=False, max_steps=1)
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    try:
        Trainer(model, args, processing_class=tokenizer, callbacks=[TrainNewTokensCallback(["the"])])
    except ValueError as error:
        return {"error": str(error)}
    return {"error": "none"}


def main(folder: Path) -> None:
    import deepspeed  # not at the top, because pytest imports this module as well

    # Otherwise DeepSpeed compiles a minute for an exchange between processes that a single process does not need.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    tokenizer = wordpiece_tokenizer()
    whole = tiny_bert(tokenizer, BertForSequenceClassification)
    whole.save_pretrained(folder / "checkpoint")
    outcomes: dict[str, dict[str, Any]] = {"reference": {"untouched": read_table(whole)}}
    build_definition_embeddings(whole, tokenizer, tiny_glossary()).apply(whole)
    outcomes["reference"]["rebuilt"] = read_table(whole)
    counting = DefinitionEMBConfig(frequency="training_data")
    counts = torch.bincount(torch.tensor(tiny_dataset(tokenizer)["input_ids"]).flatten(), minlength=len(tokenizer))
    whole = tiny_bert(tokenizer, BertForSequenceClassification)
    build_definition_embeddings(whole, tokenizer, tiny_glossary(), counting).apply(whole, counting, counts=counts)
    outcomes["reference"]["rebuilt by counts"] = read_table(whole)
    for stage in (2, 3):
        for late in (False, True):
            name = f"zero{stage}-{'late' if late else 'init'}"
            outcomes[name] = trained(folder / name, folder / "checkpoint", stage, late)
    outcomes["zero3-data"] = trained(folder / "data", folder / "checkpoint", 3, False, frequency="training_data")
    outcomes["refused"] = refused(folder / "refused", folder / "checkpoint")
    # TrainingArguments would otherwise shard every model that is loaded after them.
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    outcomes |= {f"zero{stage}-bfloat16": in_bfloat16(stage) for stage in (2, 3)}
    for name, outcome in outcomes.items():
        tensors = {key: value for key, value in outcome.items() if isinstance(value, torch.Tensor)}
        save_file(tensors, folder / f"{name}.safetensors")
        plain = {key: value for key, value in outcome.items() if key not in tensors}
        (folder / f"{name}.json").write_text(json.dumps(plain))
    # DeepSpeed's or gloo's threads occasionally keep a finished process from exiting.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
