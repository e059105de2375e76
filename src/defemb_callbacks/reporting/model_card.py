"""The section of a model card that describes a rebuild."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from defemb_callbacks.reporting.summary import REPORTED_METRICS, RebuildReport
from defemb_callbacks.reporting.tables import markdown_table

START, END = "<!-- definition-emb: start -->", "<!-- definition-emb: end -->"
TAG = "definition-emb"

# Markdown, so nothing is escaped.
TEMPLATES = Environment(
    loader=PackageLoader("defemb_callbacks.reporting"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
)
SHOWN_TERMS = 20


def update_model_card(folder: str | Path, report: RebuildReport) -> Path:
    """Describe a rebuild in the model card of a checkpoint, its `README.md`.

    The section is enclosed in two comments. A second call replaces it, and everything else stays as it is. The tag
    `definition-emb` is added to the metadata, and a `library_name` if there is none; only then does huggingface_hub
    rewrite the metadata, which drops comments in them.

    `Trainer.save_model` does not touch the card, but `create_model_card` and `push_to_hub` overwrite it: call this
    function after them. To upload everything at once, do what `push_to_hub` does, with this call in between:

    ```python
    trainer.save_model()
    trainer.create_model_card()
    update_model_card(args.output_dir, callback.report)
    HfApi().upload_folder(repo_id=…, folder_path=args.output_dir, ignore_patterns=["_*", "checkpoint-*"])
    ```

    Args:
        folder: Folder of the checkpoint. A card is created if it has none.
        report: Report from `DefinitionEmbeddings.apply`, or `callback.report`.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If huggingface_hub cannot read the metadata, or the card contains only one of the two comments.
        yaml.YAMLError: If the metadata are not valid YAML.

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
        raise FileNotFoundError(f"The folder {str(folder)!r} does not exist. Save the model there first.")
    path = folder / REPOCARD_NAME
    # read_text would convert line breaks.
    content = path.read_bytes().decode("utf-8-sig") if path.is_file() else _new_card(folder.resolve().name)
    try:
        card = ModelCard(content)
        text = _with_section(card.text, model_card_section(report))
    except ValueError as error:
        raise ValueError(f"{path} cannot be updated: {error}") from error
    header = content.removesuffix(card.text)
    # Not from `card.data`: huggingface_hub 1 makes a list of letters of a single tag.
    stored = metadata_load(path) if path.is_file() else None
    tags = (stored or {}).get("tags") or card.data.get("tags", [])
    tags, library = [tags] if isinstance(tags, str) else tags, card.data.get("library_name")
    if TAG not in tags or library is None:
        card.data["tags"] = list(dict.fromkeys([*tags, TAG]))
        card.data["library_name"] = library or "transformers"
        header = card.content.removesuffix(card.text)
    path.write_bytes((header + text).encode("utf-8"))
    return path


def model_card_section(report: RebuildReport) -> str:
    """Describe a rebuild in Markdown: what was rebuilt, from which dictionary, how, its effect, and how to cite it.

    Args:
        report: Report from `DefinitionEmbeddings.apply`, or `callback.report`.

    Example:
        >>> from defemb_callbacks.reporting.summary import GroupSummary
        >>> report = RebuildReport({"all": GroupSummary(3, 2, 2, 0.25)}, {}, {}, {}, {"definitions": "wordnet"})
        >>> model_card_section(report).splitlines()[0]
        '## Token embeddings rebuilt from definitions'
    """
    headers, rows = report.group_table()
    info, total = report.info, report.groups["all"]
    dictionaries = info["definitions"].split("+") if info.get("definitions") else []
    return TEMPLATES.get_template("model_card_section.md.jinja").render(
        new_terms=f"{sum(term.is_new for term in report.terms):,}",
        rebuilt=f"{total.rebuilt:,}",
        tokens=f"{total.tokens:,}",
        term_table=_term_table(report) if report.terms else "",
        model=info["model"] if _is_hub_id(info.get("model", "")) else "",
        dictionaries=dictionaries,
        definitions_read=info.get("definitions_read"),
        method=info.get("method"),
        r_squared=info.get("r_squared"),
        settings=info.get("settings"),
        blend_weight=info.get("blend_weight"),
        language_model=info.get("language_model"),
        group_table=markdown_table(rows, headers),
        metrics=[metric for metric in REPORTED_METRICS if metric.column in headers],
        has_wordnet=any(re.fullmatch(r"wordnet(-\d+)?", name) for name in dictionaries),
    )


def _new_card(name: str) -> str:
    template = files("defemb_callbacks.reporting").joinpath("templates/model_card.md.jinja").read_text(encoding="utf-8")
    data = ModelCardData(library_name="transformers", tags=[TAG])
    return ModelCard.from_template(data, template_str=template, name=name).content


def _term_table(report: RebuildReport) -> str:
    headers, rows = report.term_table(SHOWN_TERMS)
    more = len(report.terms) - SHOWN_TERMS
    return markdown_table([*rows, *([[f"… and {more:,} more", "", ""]] if more > 0 else [])], headers, align="<")


def _is_hub_id(name: str) -> bool:
    # The path of a local folder is useless to readers and may be private.
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _with_section(text: str, section: str) -> str:
    """Replace the section in the text, or append it."""
    line_break = "\r\n" if "\r\n" in text else "\n"
    section = f"{START}\n{section}\n{END}".replace("\n", line_break)
    found = re.findall(f"{START}|{END}", text)
    if not found:
        gap = "" if not text or text.endswith("\n") else line_break
        return f"{text}{gap}{line_break}{section}{line_break}"
    if found != [START, END]:
        raise ValueError(
            f"it must contain {START} and, after it, {END}, each once, or neither of them, but it contains "
            f"{', '.join(found)}. Remove these comments and the section between them."
        )
    before, rest = text.split(START)
    return before + section + rest.split(END)[1]
