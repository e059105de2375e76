"""Run the checks of every architecture, and write `docs/architectures.md`.

python benchmarks/every_architecture.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import transformers
from common import ROOT

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from architecture_checks import CHECKS, NOT_RUN, REFUSALS, REFUSED, UNKNOWN  # noqa: E402 - found through the path above

TEST = "tests/test_every_architecture.py"
INTRODUCTION = """# Architectures

Every model type of transformers {version} that reads text, as a tiny model with random weights. This table is written
by `benchmarks/every_architecture.py` and checked by `{test}`, which walks the registry of transformers.

The model type is `model_type` in the `config.json` of a model: that of DeBERTa-v3 is `deberta-v2`, that of most
sentence encoders `bert`, `mpnet` or `xlm-roberta`. The columns:

- **rebuild**: embeddings are built and applied, metrics are computed, a Trainer with the callback makes a step, and the
  checkpoint has the new rows when it is loaded;
- **learned**: the same rows from a trained constructor (`method="learned"`);
- **new tokens**: `define_new_tokens` adds terms, the output for other text is unchanged, and the checkpoint can be
  loaded;
- **senses**: `with_senses` changes the output, and `without_senses` restores it.

"no" means that the model is refused with an error that names the cure, and that nothing is changed; the letter is the
reason, see below. "fails" is a known fault, and "–" means that the check was not run. Names in parentheses are the part
of a joint model that was passed, as the error recommends.

{counts}

"""


def run_checks(processes: int) -> dict[str, dict[str, str]]:
    """Run all cases; return the result of each check, with the message of an error, by family and class."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-m", "", "-n", str(processes), "-o", "junit_family=xunit1", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, TEST], cwd=ROOT, env=os.environ, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    found = {}
    for case in cases:
        name = re.search(r"\[(.*)\]", case.attrib["name"])
        results = {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}
        if name and results and not results["rebuild"].startswith(UNKNOWN):
            found[name[1]] = results
    return found


def cell(result: str, letters: dict[str, str]) -> str:
    """What the table shows of a check: "yes", "fails", or "no" with the letter of the reason."""
    word, _, message = result.partition(" ")
    part = re.match(r"`\w[\w.]*`", message)
    if word != REFUSED:
        return f"{word} ({part[0]})" if part else word
    reason = next(text for pattern, text in REFUSALS.items() if re.search(pattern, message))
    return f"no ({letters[reason]})"


def page(found: dict[str, dict[str, str]], version: str) -> str:
    """The page in Markdown."""
    letters = {reason: chr(ord("a") + number) for number, reason in enumerate(dict.fromkeys(REFUSALS.values()))}
    lines = [f"| model type | class | {' | '.join(CHECKS)} |", f"|---|---{'|---' * len(CHECKS)}|"]
    for name, results in sorted(found.items(), key=lambda item: item[0].lower()):
        family, _, class_name = name.rpartition("-")
        cells = [cell(results.get(check, NOT_RUN), letters) for check in CHECKS]
        lines.append(f"| {' | '.join([family, f'`{class_name}`', *cells])} |")
    counts = {check: Counter(results.get(check, NOT_RUN).split()[0] for results in found.values()) for check in CHECKS}
    summary = ["| | yes | no | fails |", "|---|--:|--:|--:|"]
    summary += [f"| {check} | {count['yes']} | {count['no']} | {count['fails']} |" for check, count in counts.items()]
    reasons = "\n".join(f"- **{letter}**: {reason}." for reason, letter in letters.items())
    introduction = INTRODUCTION.format(version=version, test=TEST, counts="\n".join(summary))
    return introduction + "\n".join(lines) + f"\n\n## Why a model is refused\n\n{reasons}\n"


def main() -> None:
    """Run the checks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architectures.md")
    arguments = parser.parse_args()
    arguments.output.write_text(page(run_checks(arguments.processes), transformers.__version__), encoding="utf-8")


if __name__ == "__main__":
    main()
