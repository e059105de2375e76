"""SST-2 with and without the callback, with paired seeds: does it help or harm?

    python benchmarks/sst2.py

`examples/compare.py` runs `examples/run_glue.py`: all-MiniLM-L6-v2, another sample of training sentences for each seed,
learning rate 5e-5, batches of 16, accuracy on the whole validation set. "blend" is the default; "replace" writes the
new rows without blending: cross-fitted rows of the ridge, of the learned constructor with default settings, and of a
constructor that was trained three times as long, on the first definition of each word only, as in the paper. Both
constructors are trained on the rows that they replace. An interrupted run continues. Needs `shared/data/sst2` next to
the repository, or $DEFEMB_TEST_DATA.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from common import DATA, RESULTS, ROOT, add_model_argument, centred_cosine, environment, find_model
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings
from defemb_callbacks.weights.rows import read_table

sys.path.append(str(ROOT / "examples"))
import compare
from arguments import parse

LONGER = '{"patience": null, "training": {"num_train_epochs": 6, "eval_steps": 0.25, "save_steps": 0.25}}'
VARIANTS = {
    "baseline": "--definition_emb false",
    "blend": "",
    "replace": "--strategy replace",
    "learned, replace": "--strategy replace --method learned",
    "learned longer, replace": "--strategy replace --method learned --definitions_per_token 1 "
    f"--constructor '{LONGER}'",
}
SETTINGS = (
    "--task_name sst2 --do_train --do_eval --learning_rate 5e-5 --per_device_train_batch_size 16 "
    "--per_device_eval_batch_size 64 --max_seq_length 64 --save_strategy no --report_to none --disable_tqdm true "
    "--monitor_steps 0 --plots false --dataloader_pin_memory false"
)


def closeness(name: str, variants: list[str]) -> dict[str, float]:
    """Compute the centred cosine of the new rows, before blending, to the pretrained rows, by variant."""
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    found = {}
    for variant in variants:
        if "--strategy replace" in VARIANTS[variant]:
            (config,) = parse([DefinitionEMBConfig], shlex.split(VARIANTS[variant]))
            embeddings = build_definition_embeddings(model, tokenizer, "wordnet", config)
            found[variant] = centred_cosine(embeddings.rows, read_table(model)[embeddings.ids])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sentences", nargs="+", default=["512:3", "4096:1"], help="NUMBER:EPOCHS")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "sst2", help="folder for the runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "sst2.json")
    arguments = parser.parse_args()
    if not (DATA / "sst2").is_dir():
        sys.exit("There is no folder sst2 in the data. Set DEFEMB_TEST_DATA.")
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    for sentences, epochs in (size.split(":") for size in arguments.sentences):
        command = [str(ROOT / "examples" / "run_glue.py"), "--output_dir", str(arguments.runs / sentences)]
        command += ["--seeds", str(arguments.seeds), "--variants", *(f"{v}={VARIANTS[v]}" for v in arguments.variants)]
        command += ["--", "--model_name_or_path", arguments.model or find_model(), *SETTINGS.split()]
        command += ["--train_file", str(DATA / "sst2" / "train.tsv"), "--max_train_samples", sentences]
        command += ["--validation_file", str(DATA / "sst2" / "validation.tsv"), "--num_train_epochs", epochs]
        accuracy = compare.main(command)["accuracy"]
        # Variants that were not run again keep their results, which are differences from the same baseline.
        earlier = known.get(sentences, {}).get("accuracy", {})
        accuracy = {group: earlier.get(group, {}) | found for group, found in accuracy.items()}
        known[sentences] = {"epochs": int(epochs), "seeds": arguments.seeds, "accuracy": accuracy}
        near = closeness(arguments.model or find_model(), arguments.variants)
        known["centred_cosine"] = known.get("centred_cosine", {}) | near
        arguments.output.write_text(json.dumps(known | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
