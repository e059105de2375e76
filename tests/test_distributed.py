"""Two processes on gloo: the same rows on both, before and after training, and every file written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

from defemb_callbacks import DefinitionEMBCallback, build_definition_embeddings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.rows import read_table
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer


def worker(folder: Path, frequency: str) -> None:
    """What each process runs: a real Trainer, its tables at init, at train begin and at the end written down."""
    tables = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            tables["begin"] = read_table(model)

    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    callback = DefinitionEMBCallback(
        tiny_glossary(), frequency=frequency, monitor_steps=1 if frequency == "vocabulary" else None
    )
    trainer = Trainer(
        model,
        training_args(folder / "run", report_to=["tensorboard"], per_device_train_batch_size=4),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback, Look],
    )
    rank = trainer.args.process_index
    tables["init"] = read_table(model)
    assert trainer.args.world_size == torch.distributed.get_world_size() == 2
    assert torch.distributed.get_backend() == "gloo"
    trainer.train()
    tables["end"] = read_table(model)
    save_file(tables, folder / f"tables-{rank}.safetensors")
    (folder / f"history-{rank}.json").write_text(json.dumps(trainer.state.log_history))
    # A process that exits while gloo's threads still run may be aborted by them.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("frequency", ["vocabulary", "training_data"])
def test_two_processes_have_the_same_rows(tmp_path: Path, frequency: str) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", __file__, str(tmp_path), frequency]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]

    first, second = (load_file(tmp_path / f"tables-{rank}.safetensors") for rank in (0, 1))
    for moment in ("init", "begin", "end"):
        assert torch.equal(first[moment], second[moment])
    assert not torch.equal(first["begin"], first["end"])

    # What one process writes is what both have written; the data are counted in whole, not the share of a process.
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    untouched = read_table(model)
    config = DefinitionEMBConfig(frequency=frequency, cache_dir=str(tmp_path / "one-process"))
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    ids = torch.tensor(tiny_dataset(tokenizer)["input_ids"]).flatten()
    ready.apply(model, config, counts=torch.bincount(ids, minlength=len(untouched)))
    rebuilt = read_table(model)
    assert torch.equal(first["init"], rebuilt if frequency == "vocabulary" else untouched)
    assert torch.equal(first["begin"], rebuilt)

    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "defemb").iterdir()) == [
        *("index.html", "metrics.png", "projection.png", "report.json", "singular_values.png")
    ]
    assert len(list(run.rglob("events.out.tfevents.*"))) == 2  # the Trainer's and ours, of the main process
    histories = [json.loads((tmp_path / f"history-{rank}.json").read_text()) for rank in (0, 1)]
    measured = [[row for row in history if "defemb/isotropy/all" in row] for history in histories]
    steps = [[row["step"] for row in rows] for rows in measured]
    # By default clocks decide, those of the main process for all: the processes agree on the rows.
    assert steps[0] == steps[1]
    assert steps[0][-1] == 8
    if frequency == "vocabulary":
        assert steps[0] == list(range(1, 9))
    assert measured[0][0]["defemb/isotropy/rare"] == measured[1][0]["defemb/isotropy/rare"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2])
