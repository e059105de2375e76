"""Time and memory of the ridge regression and of the rebuild, at the width and vocabulary of small and large models.

    python benchmarks/width.py                       # about 7 minutes on two cores; 6 GB
    python benchmarks/width.py --widths 384 1024 --vocabularies 32000

Ridge regression, by width: two features for each dimension, as by default, and targets that are linear in them but for
noise; about a third of the rows share their group with another row. The time is compared with one float64 product
`x.T @ x` of the same size, alternating in the same process; the widest is run once.

Rebuild, by vocabulary: `apply` blends and writes the rows and measures the table before and after, which reads the
whole table several times. The time is compared with one float64 product `table.T @ table`.

"Peak" is the memory of a process of its own above its inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, environment, held_mb
from torch import Tensor
from transformers import BertConfig, BertModel

from defemb_callbacks import DefinitionEmbeddings
from defemb_callbacks.reconstruction import cross_fitted_rows
from defemb_callbacks.vocabulary.tokens import Vocabulary
from defemb_callbacks.weights.rows import embedding_weight

ROWS = 25_000
WIDTHS = (384, 1024, 2048, 4096)
VOCABULARIES = (32_000, 128_000, 256_000)
WIDE = 4096  # from here on, one round: two would take minutes


def inputs(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, targets (both float32) and groups."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2 * width, generator=generator)
    y = torch.randn(rows, width, generator=generator).mul_(3).add_(x[:, :width])
    return x, y, torch.randint(0, 5 * rows // 2, (rows,), generator=generator)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def timed_product(x: Tensor) -> float:
    """Time the product without the conversion to float64."""
    features = x.to(torch.float64)
    return timed(lambda: features.T @ features)


def memory_above(function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call and its peak memory above what the process held before, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = held_mb("VmRSS")
    seconds = timed(function)
    return seconds, held_mb("VmHWM") - before


def figures(closed: list[float], product: list[float], peak: float) -> dict[str, float]:
    return {
        "seconds": round(min(closed), 2),
        "product_seconds": round(min(product), 2),
        "ratio": round(min(closed) / min(product), 2),
        "peak_mb": round(peak),
    }


def measure_ridge(rows: int, width: int, rounds: int) -> dict[str, float]:
    """Measure the ridge regression of one width in this process."""
    x, y, groups = inputs(rows, width)
    seconds, peak = memory_above(lambda: cross_fitted_rows(x, y, groups=groups))
    closed, product = [seconds], [timed_product(x)]
    for _ in range(rounds - 1 if width < WIDE else 0):  # alternating, so that load on the machine affects both
        closed.append(timed(lambda: cross_fitted_rows(x, y, groups=groups)))
        product.append(timed_product(x))
    return {"rows": rows, "features": x.shape[1], **figures(closed, product, peak)}


def measure_rebuild(rows: int, width: int, size: int) -> dict[str, float]:
    """Measure the rebuild of a table of `size` rows in this process."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 8}
    model = BertModel(BertConfig(vocab_size=size, hidden_size=width, **sizes))
    words = tuple(f"{number * 7919 % size:x}" for number in range(size))
    ids = torch.linspace(0, size - 1, min(rows, size // 2)).long()
    noise = torch.randn(len(ids), width).mul_(0.02)
    table = embedding_weight(model).detach()
    ready = DefinitionEmbeddings(ids, noise.add_(table[ids]), Vocabulary(words, words, (None,) * size, uncased=True))
    seconds, peak = memory_above(lambda: ready.apply(model))
    return {
        "rows": len(ids),
        "width": width,
        "table_mb": round(table.nbytes / 1e6),
        **figures([seconds], [timed_product(table)], peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--vocabularies", type=int, nargs="*", default=VOCABULARIES)
    parser.add_argument("--table-width", type=int, default=1024, help="width of the tables of these vocabularies")
    parser.add_argument("--rows", type=int, default=ROWS, help="number of tokens with definitions")
    parser.add_argument("--rounds", type=int, default=3, help="number of repetitions; the fastest counts")
    parser.add_argument("--output", type=Path, default=RESULTS / "width.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, _, number = arguments.worker.partition(" ")
        if kind == "width":
            found = measure_ridge(arguments.rows, int(number), arguments.rounds)
        else:
            found = measure_rebuild(arguments.rows, arguments.table_width, int(number))
        print(json.dumps(found))
        return
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    result = known | {"environment": environment()}
    names = [f"width {number}" for number in arguments.widths]
    names += [f"vocabulary {number}" for number in arguments.vocabularies]
    for name in names:
        # A process of its own, whose peak is not that of an earlier one.
        command = [sys.executable, __file__, "--worker", name, "--table-width", str(arguments.table_width)]
        command += ["--rows", str(arguments.rows), "--rounds", str(arguments.rounds)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result[name] = json.loads(output)
        print(name, output.strip(), flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
