"""Every architecture of transformers that reads text works, or is refused with a message that names the cure.

The outcome of each case is compared with `docs/architectures.md`, which `benchmarks/every_architecture.py` writes.
Families that this table does not have yet, those of later versions of transformers, must work or be refused as well.
Earlier versions may refuse more.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

import architecture_checks
from architecture_checks import FAILS, REFUSED, UNKNOWN, WORKS, check, documented
from architectures import Architecture, architectures

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
DOCUMENTED = documented(PAGE)
[VERSION] = re.findall(r"^Every model type of transformers ([\d.]+) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
IS_EARLIER = Version(transformers.__version__) < Version(VERSION)

# One of each kind: encoder, decoder, encoder-decoder, two tables, state space, bytes, a tower inside a joint model.
QUICK = ("BertForMaskedLM", "Qwen3ForCausalLM", "T5ForConditionalGeneration", "CLIPModel", "MambaForCausalLM")
CASES = [
    pytest.param(case, id=str(case), marks=[] if case.class_name in QUICK else pytest.mark.slow)
    for case in architectures()
]


@pytest.fixture(scope="module")
def thaw() -> Iterator[None]:
    """Undo `frozen` at the end."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def frozen(thaw: None) -> None:
    """As `imports_are_frozen`, for each test: each imports another architecture."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("case", CASES)
def test_it_works_or_is_refused_with_the_cure(
    case: Architecture, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = check(case, tmp_path)
    for name, outcome in found.items():
        record_property(name, f"{outcome.result} {outcome.text}")
    known = DOCUMENTED.get(str(case), {})
    if not known and found["rebuild"].result == UNKNOWN:
        pytest.skip(f"add it to EXCEPTIONS: {found['rebuild'].text}")
    allowed = {name: {known[name]} if name in known else {WORKS, REFUSED} for name in found}
    if IS_EARLIER:
        allowed = {name: results | {REFUSED} for name, results in allowed.items()}
    assert not {name: outcome for name, outcome in found.items() if outcome.result not in allowed[name]}


def test_the_registry_is_walked() -> None:
    cases = list(architectures())
    assert len(set(map(str, cases))) == len(cases)
    families = {case.family for case in cases}
    assert len(families) > (250 if IS_EARLIER else 300)
    assert {"bert", "llama", "t5", "clip", "llava", "whisper", "dpr"} <= families
    # The decoder of an encoder-decoder is also a model of its own.
    assert {case.class_name for case in cases if case.family == "bart"} == {
        "BartForCausalLM",
        "BartForConditionalGeneration",
    }


def test_damaged_weights_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = architecture_checks.build_definition_embeddings

    def damages(model: Any, *args: Any) -> Any:
        with torch.no_grad():
            next(model.parameters()).zero_()
        return build(model, *args)

    monkeypatch.setattr(architecture_checks, "build_definition_embeddings", damages)
    found = check(Architecture("bert", "BertModel"), tmp_path)["rebuild"]
    assert found.result == FAILS
    assert "were changed" in found.text


def test_senses_without_effect_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture_checks, "with_senses", lambda model, dictionary: model)
    monkeypatch.setattr(architecture_checks, "without_senses", lambda model: model)
    assert check(Architecture("bert", "BertModel"), tmp_path)["senses"].result == FAILS
