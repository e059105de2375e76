"""Full-size run of the fault and parser tests: 20 kills of each kind, 10,000 inputs per parser.

python benchmarks/faults.py --output benchmarks/results/faults.json
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from common import RESULTS, ROOT, environment


def run_tests(arguments: list[str], environ: dict[str, str]) -> dict[str, dict[str, object]]:
    """Run tests in a new process; return outcome, seconds and recorded numbers of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            *arguments,
        ]
        subprocess.run(command, cwd=ROOT, env=os.environ | environ, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        return {case.attrib["name"]: _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> dict[str, object]:
    kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
    figures = {entry.attrib["name"]: _value(entry.attrib["value"]) for entry in case.iter("property")}
    return {"outcome": next(iter(kinds), "passed"), "seconds": round(float(case.attrib["time"]), 1), **figures}


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=str(RESULTS / "faults.json"))
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs per parser")
    parser.add_argument("--kills", type=int, default=20, help="kills of each kind")
    options = parser.parse_args()
    began = time.perf_counter()
    faults = run_tests(["tests/test_faults.py"], {"DEFEMB_FAULTS": str(options.kills // 5)})
    parts = ["glossary or entries or extract", "counts or ratings or wordnet", "record or embeddings or manifest"]
    with ThreadPoolExecutor() as several:
        runs = [
            several.submit(run_tests, ["tests/test_fuzz.py", "-k", part], {"DEFEMB_FUZZ": str(options.inputs)})
            for part in parts
        ]
    fuzz = {name: found for run in runs for name, found in run.result().items()}
    results = {
        "environment": environment(),
        "inputs_per_parser": options.inputs,
        "failed": [name for name, found in (faults | fuzz).items() if found["outcome"] != "passed"],
        "faults": faults,
        "fuzz": fuzz,
        "seconds": round(time.perf_counter() - began),
    }
    Path(options.output).write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(json.dumps(results["failed"]), results["seconds"], "s")


if __name__ == "__main__":
    main()
