"""The notebook runs, and its stored outputs are clean."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from launching import CORES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
# Progress bars, warnings, terminal colours, absolute paths.
NOISE = re.compile(r"\d%\||it/s|Warning|WARNING|Traceback|\x1b|(?<![\w./<])/\w+/\w")


def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: Any) -> list[str]:
    """Returns the text of the outputs, without HTML."""
    found = [output.get("text") or output.get("data", {}).get("text/plain") for output in outputs(notebook)]
    return [text for text in found if text]


def pictures(notebook: Any) -> list[bytes]:
    found = [output.get("data", {}).get("image/png") for output in outputs(notebook)]
    return [base64.b64decode(picture) for picture in found if picture]


def check_outputs(notebook: Any) -> None:
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert len(pictures(notebook)) == 3
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in pictures(notebook))
    shown = "\n".join(texts(notebook))
    assert "Rebuilt 18,734 of 29,523 token embeddings" in shown
    without, rebuilt = (float(re.search(rf"^{name} +(0\.\d+)$", shown, re.MULTILINE)[1]) for name in ACCURACIES)
    assert rebuilt > without + 0.03  # as the text claims; the standard error is 0.02


ACCURACIES = ("without the callback", "with the callback")


def test_the_stored_outputs_are_from_one_complete_run() -> None:
    notebook = stored()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    check_outputs(notebook)


def test_the_stored_outputs_have_no_noise() -> None:
    notebook = stored()
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if NOISE.search(text)]
    assert NOTEBOOK.stat().st_size < 1_500_000


@pytest.mark.parametrize("noise", ["Loading:  50%|██", "FutureWarning: x", "saved in /tmp/run", "\x1b[31mred"])
def test_the_search_for_noise_finds(noise: str) -> None:
    assert NOISE.search(noise)
    assert not NOISE.search("defemb/isotropy/rare 0.5 ... ##° outputs/quickstart")


def test_links_are_valid() -> None:
    markdown = "\n".join(cell.source for cell in stored().cells if cell.cell_type == "markdown")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", markdown) if not target.startswith("http")]
    assert targets
    for path, _, section in (target.partition("#") for target in targets):
        assert (EXAMPLES / path).exists(), path
        if section:
            headings = re.findall(r"^#+ (.+)$", (EXAMPLES / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert section in [heading.lower().replace(" ", "-") for heading in headings], section


@pytest.mark.slow
def test_it_runs_without_network(
    minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quickstart.ipynb", "run_supersense.py", "console.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(CORES))
    notebook = stored()
    for cell in notebook.cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check_outputs(notebook)
    assert (tmp_path / "outputs/quickstart/definitions/defemb/index.html").is_file()
