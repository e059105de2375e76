"""What a GPU shows: tests, speed and memory of each part of the package, and training with NCCL, FSDP2 and ZeRO-3.

    python benchmarks/gpu.py                        # one GPU, less than 8 minutes: benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --quick   # tries the script with tiny models; saves only with --output

It has not been run on a GPU yet; without one, only its code is tested, by the second command.

The model is a RoBERTa-base with random weights, which do not affect the time, and real vocabulary and definitions. Each
part runs in a process of its own, so a failed part does not lose the results of the others: its entry holds the error.

- tests: those marked `gpu`, among them the results of all parts of the package, compared with the CPU's.
- closed_form: ridge regression with cross-fitting on the device; its result is compared with the CPU's.
- build: definition embeddings with an empty cache, and with a filled one.
- constructor: updates per second in bfloat16, relative to bare passes and to the peak of one matrix product.
- monitoring: time of training with the callbacks relative to training without.
- new_tokens, senses: adding terms; building and using a sense dictionary.
- nccl, fsdp2, zero3: a Trainer run in a launch of one process; the written rows must equal those of a build without a
  launch, and must survive training. zero3 needs DeepSpeed (`make deepspeed`).

Uses WordNet, or the Wiktionary extract in `shared/data`, and the tokenizer of RoBERTa there, or that of MiniLM.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, environment
from gpu_parts import PARALLEL, PARTS, setting

MINUTES = 7.5
PART_SECONDS = 150
DEEPSPEED = Path(sys.prefix) / "deepspeed"  # where `make deepspeed` installs it


def in_a_process(part: str, options: list[str], seconds: float, cache: str) -> dict[str, Any]:
    """Run a part and return its figures, or the reason why there are none."""
    if part == "zero3" and not DEEPSPEED.is_dir() and importlib.util.find_spec("deepspeed") is None:
        return {"skipped": "DeepSpeed is not installed: make deepspeed"}
    if seconds <= 0:
        return {"skipped": f"The {MINUTES} minutes of this script are over."}
    paths = [str(ROOT / "src"), *([str(DEEPSPEED)] if part == "zero3" else []), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "DEFEMB_CACHE": cache}
    env |= launched(part, options[1]) if part in PARALLEL else {}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--run", part, "--output", str(found), *options]
        start = time.perf_counter()
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds)
            log, reason = done.stdout + done.stderr, f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as expired:
            parts = (expired.stdout, expired.stderr)
            log = "".join(text.decode(errors="replace") if isinstance(text, bytes) else text or "" for text in parts)
            reason = f"not finished after {seconds:.0f} seconds"
        figures = {"process_seconds": round(time.perf_counter() - start, 1)}
        # Libraries of distributed training may abort a process that has finished its work.
        if found.is_file():
            return json.loads(found.read_text(encoding="utf-8")) | figures
        return {"failed": reason, "log": log.splitlines()[-30:]} | figures


def launched(kind: str, device: str) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for a single process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    variables["MASTER_PORT"] = str(port)
    if kind == "fsdp2":
        variables |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        variables |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
        variables |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "RobertaLayer"}
    if kind == "zero3":
        variables |= {"ACCELERATE_USE_DEEPSPEED": "true"}
        variables |= {"DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    return variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny models; saves results only with --output")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="parts to run")
    parser.add_argument("--output", type=Path, help=f"default {RESULTS / 'gpu.json'}")
    parser.add_argument("--run", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU with CUDA. To try the script without one, use --device cpu --quick.")
    if arguments.run:
        figures = PARTS[arguments.run](setting(arguments.device, arguments.quick))
        arguments.output.write_text(json.dumps(figures), encoding="utf-8")
        return
    output = arguments.output or (None if arguments.quick else RESULTS / "gpu.json")
    # Parts that are not measured now keep their results.
    result: dict[str, Any] = json.loads(output.read_text("utf-8")) if output and output.is_file() else {}
    options = ["--device", arguments.device, *(["--quick"] if arguments.quick else [])]
    end = time.perf_counter() + 60 * MINUTES
    with tempfile.TemporaryDirectory() as cache:
        for part in arguments.parts:
            seconds = min(PART_SECONDS, end - time.perf_counter())
            result[part] = in_a_process(part, options, seconds, cache)
            print(part, json.dumps(result[part], indent=1), flush=True)
            result["environment"] = environment()
            if output:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = [part for part in arguments.parts if "failed" in result[part]]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
