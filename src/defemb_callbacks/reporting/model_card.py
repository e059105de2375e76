"""A section of the model card that says what was rebuilt, and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from defemb_callbacks.reporting.summary import RebuildReport

START, END = "<!-- definition-emb: start -->", "<!-- definition-emb: end -->"
TAG = "definition-emb"
METHODS = {
    "ridge": "the frozen model read each definition, and a linear map from what it read to its own embeddings was "
    "solved in closed form (cross-fitted ridge regression), so that the new vector of a token comes from a map that "
    "never saw the old one",
}

# Of the headings in the report's table.
LEGEND = {
    "isotropy": "I(E), in (0, 1], higher is more isotropic",
    "avg cosine": "mean over all pairs of rows, lower is more isotropic",
    "eff. rank": "number of directions in use",
    "norm": "mean length of the rows",
    "relation AUC": "how well the cosine tells words that the dictionary relates from others, 0.5 is chance",
}
LOADING = (
    "The new rows are part of the weights: the checkpoint loads without defemb-callbacks. What was written is noted in "
    "`config.json`, under `definition_emb`."
)
CITATION = """```bibtex
@misc{zhang2024reconsidering,
  title = {Reconsidering Degeneration of Token Embeddings with Definitions
           for Encoder-based Pre-trained Language Models},
  author = {Zhang, Ying and Li, Dongyuan and Okumura, Manabu},
  year = {2024},
  eprint = {2408.01308},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2408.01308}
}
```"""
WORDNET = (
    "The definitions are those of WordNet®, a lexical database of Princeton University, used under the "
    "[WordNet licence](https://wordnet.princeton.edu/license-and-commercial-use). The checkpoint holds vectors that "
    "were computed from them, no text."
)


def update_model_card(folder: str | Path, report: RebuildReport) -> Path:
    """Write what was rebuilt into the model card of a checkpoint, its `README.md`.

    The section stands between two comments, and a second call replaces it; everything else stays as it is. The metadata
    get the tag `definition-emb` and, if there is none, a `library_name`; only where one of them is missing does
    huggingface_hub write them anew, without the comments in them.

    Of the Trainer, `save_model` leaves the card alone, but `create_model_card` and `push_to_hub` write it anew: call
    this after them. To upload everything at once, do what `push_to_hub` does, with this in between::

        trainer.save_model()
        trainer.create_model_card()
        update_model_card(args.output_dir, callback.report)
        HfApi().upload_folder(repo_id=…, folder_path=args.output_dir, ignore_patterns=["_*", "checkpoint-*"])

    Args:
        folder: where the checkpoint was saved; a card is made if it has none.
        report: from `DefinitionEmbeddings.apply`, or `callback.report`.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a card with metadata that huggingface_hub cannot read, or with one of the two comments only.
        yaml.YAMLError: a card with metadata that are no YAML.

    Example:
        >>> import tempfile
        >>> from defemb_callbacks.reporting.summary import GroupSummary
        >>> report = RebuildReport({"all": GroupSummary(3, 2, 2, 0.25)}, {}, {}, {}, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     update_model_card(folder, report).read_text(encoding="utf-8").splitlines()[:5]
        ['---', 'library_name: transformers', 'tags:', '- definition-emb', '---']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}; save the model there first.")
    path = folder / REPOCARD_NAME
    content = f"---\nlibrary_name: transformers\n---\n\n# {folder.resolve().name}\n"
    if path.is_file():
        content = path.read_bytes().decode("utf-8-sig")  # as text, its line breaks would be changed
    try:
        card = ModelCard(content)
        text = _with_section(card.text, model_card_section(report))
    except ValueError as error:
        raise ValueError(f"{path} cannot be updated: {error}") from error
    header = content.removesuffix(card.text)
    tags, library = card.data.get("tags", []), card.data.get("library_name")
    if TAG not in tags or library is None:
        card.data["tags"] = list(dict.fromkeys([*tags, TAG]))
        card.data["library_name"] = library or "transformers"
        header = card.content.removesuffix(card.text)
    path.write_bytes((header + text).encode("utf-8"))
    return path


def model_card_section(report: RebuildReport) -> str:
    """What was rebuilt, from which dictionary, how, with which effect, and how to cite it: Markdown under a heading.

    Args:
        report: from `DefinitionEmbeddings.apply`, or `callback.report`.

    Example:
        >>> from defemb_callbacks.reporting.summary import GroupSummary
        >>> report = RebuildReport({"all": GroupSummary(3, 2, 2, 0.25)}, {}, {}, {}, {"definitions": "wordnet"})
        >>> model_card_section(report).splitlines()[0]
        '## Token embeddings rebuilt from definitions'
    """
    table = report.group_table()
    paragraphs = [
        "## New tokens from definitions" if report.terms else "## Token embeddings rebuilt from definitions",
        _what_was_done(report),
        _markdown_table(_term_table(report)) if report.terms else "",
        "\n".join(_facts(report)),
        _markdown_table(table),
        _legend(table[0]),
        LOADING,
        WORDNET if any(re.fullmatch(r"wordnet(-\d+)?", name) for name in _dictionaries(report)) else "",
        "If you use this, please cite the paper:",
        CITATION,
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _what_was_done(report: RebuildReport) -> str:
    by = "by the library defemb-callbacks, after the idea of [DefinitionEMB](https://arxiv.org/abs/2408.01308)."
    if report.terms:
        number = sum(term.is_new for term in report.terms)
        return f"{number:,} terms were added to the vocabulary, with embeddings made from their definitions, {by}"
    total = report.groups["all"]
    return f"{total.rebuilt:,} of {total.tokens:,} token embeddings were rebuilt from dictionary definitions, {by}"


def _term_table(report: RebuildReport, shown: int = 20) -> list[list[str]]:
    rows = [[term.term, ", ".join(map(str, term.tokens.values())), term.made_of] for term in report.terms[:shown]]
    more = len(report.terms) - shown
    return [["term", "token", "row made of"], *rows, *([[f"… and {more:,} more", "", ""]] if more > 0 else [])]


def _facts(report: RebuildReport) -> list[str]:
    info = report.info
    facts = []
    if _is_hub_id(info.get("model", "")):
        facts.append(f"- **Embeddings of:** `{info['model']}`")
    if dictionaries := _dictionaries(report):
        names = ", ".join(f"`{name}`" for name in dictionaries)
        number = f" ({info['definitions_read']:,} definitions)" if "definitions_read" in info else ""
        facts.append(f"- **Dictionary:** {names}{number}")
    if method := info.get("method"):
        what = f": {METHODS[method]}" if method in METHODS else ""
        facts.append(f"- **Method:** `{method}`{what}")
    if "r_squared" in info:
        facts.append(f"- **Share of the old rows' variation that definitions explain:** {info['r_squared']:.3f}")
    if settings := info.get("settings"):
        facts.append(f"- **Strategy:** `{settings['strategy']}`: {_strategy(settings)}")
    return facts


def _strategy(settings: dict[str, Any]) -> str:
    if settings["strategy"] == "blend":
        lightest, heaviest = settings["blend"] * settings["blend_floor"], settings["blend"]
        what = (
            "each row was turned towards its new vector and kept its length; the new vector's weight grows from "
            f"{lightest:.2f} for the most frequent token to {heaviest:.2f} for the least frequent one"
        )
    else:
        scaled = ", scaled to the typical length of its frequency group" if settings["rescale"] else ""
        what = f"each row is the new vector{scaled}"
    if settings["alpha"] < 1:
        what += f"; only the least frequent {settings['alpha']:.0%} of the tokens with a definition"
    if settings["only_training_tokens"]:
        what += "; only tokens of the training data"
    return what


def _dictionaries(report: RebuildReport) -> list[str]:
    names = report.info.get("definitions", "")
    return names.split("+") if names else []


def _is_hub_id(name: str) -> bool:
    # The name of somebody's folder tells a reader nothing, and should not be published.
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _markdown_table(cells: list[list[str]]) -> str:
    heading, *rows = cells
    lines = [heading, [":--", *["--:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _legend(headings: list[str]) -> str:
    meanings = [f"*{heading}*: {meaning}" for heading, meaning in LEGEND.items() if heading in headings]
    return f"By token frequency, just before → just after the rebuild: {'; '.join(meanings)}." if meanings else ""


def _with_section(text: str, section: str) -> str:
    """The text with the section in place of an earlier one, or at the end."""
    line_break = "\r\n" if "\r\n" in text else "\n"
    section = f"{START}\n{section}\n{END}".replace("\n", line_break)
    found = re.findall(f"{START}|{END}", text)
    if not found:
        gap = "" if not text or text.endswith("\n") else line_break
        return f"{text}{gap}{line_break}{section}{line_break}"
    if found != [START, END]:
        raise ValueError(f"needs {START} and, after it, {END}, each once, or neither; has {', '.join(found)}")
    before, rest = text.split(START)
    return before + section + rest.split(END)[1]
