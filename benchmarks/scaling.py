"""Speed-up of a build with two processes over one: real weights, WordNet, one core per process.

Two speed-ups are reported: of the wall-clock time, which other programs on the machine disturb, and of the CPU time of
the busiest process, which they do not.

python benchmarks/scaling.py --output benchmarks/results/scaling.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object
from common import RESULTS, add_model_argument, environment, find_model
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks import build_definition_embeddings, load_definitions
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.weights.distributed import this_process

WORDS = 4_000


def worker(model_name: str, folder: Path) -> None:
    """Run one process of a launch: a cold build, timed from when all are ready until all have the rows."""
    torch.set_num_threads(1)
    process = this_process()
    model, tokenizer = AutoModel.from_pretrained(model_name).eval(), AutoTokenizer.from_pretrained(model_name)
    wordnet = load_definitions("wordnet")
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and wordnet.lookup(word)][:WORDS]
    glossary = {word: list(dict.fromkeys(found.gloss for found in wordnet.lookup(word)[:2])) for word in words}
    config = DefinitionEMBConfig(cache_dir=str(folder / "cache"), definitions_per_token=2, precision="float32")
    process.wait_for_everyone()
    began, worked = time.perf_counter(), time.process_time()
    embeddings = build_definition_embeddings(model, tokenizer, glossary, config)
    worked = max(gather_object([time.process_time() - worked]))
    process.wait_for_everyone()
    seconds = time.perf_counter() - began
    if process.is_main_process:
        found = {
            "processes": process.num_processes,
            "seconds": round(seconds, 2),
            "processor_seconds": round(worked, 2),
            "tokens_encoded": embeddings.info["tokens_encoded"],
            "fingerprint": embeddings.fingerprint,
        }
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launch(processes: int, model_name: str) -> dict[str, object]:
    """Launch `processes` processes and return the result of the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        command += [__file__, "--worker", folder, "--model", model_name]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_argument(parser)
    parser.add_argument("--output", default=str(RESULTS / "scaling.json"))
    parser.add_argument("--rounds", type=int, default=2, help="number of builds; the fastest counts")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.model or find_model()
    if options.worker:
        worker(name, Path(options.worker))
        return
    found: dict[int, list[dict[str, object]]] = {1: [], 2: []}
    for _ in range(options.rounds):  # alternating, so that load on the machine affects both
        for processes, runs in found.items():
            runs.append(launch(processes, name))
    best, busiest = (
        {processes: min(float(str(run[name])) for run in runs) for processes, runs in found.items()}
        for name in ("seconds", "processor_seconds")
    )
    prints = {str(run["fingerprint"]) for runs in found.values() for run in runs}
    results = {
        "environment": environment(),
        "tokens_encoded": found[1][0]["tokens_encoded"],
        "seconds": best,
        "processor_seconds_of_the_busiest": busiest,
        "speedup": round(best[1] / best[2], 2),
        "speedup_in_processor_time": round(busiest[1] / busiest[2], 2),
        "same_rows": len(prints) == 1,
    }
    Path(options.output).write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
