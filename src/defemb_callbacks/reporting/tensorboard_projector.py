"""Export an embedding table to TensorBoard's embedding projector."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from defemb_callbacks.metrics.groups import evenly
from defemb_callbacks.vocabulary.frequency import GROUPS
from defemb_callbacks.vocabulary.tokens import Vocabulary

# Names of the files; TensorBoard requires that of the config.
TENSORS, METADATA, CONFIG = "tensors.tsv", "metadata.tsv", "projector_config.pbtxt"


def save_projector(
    folder: Path,
    table: Tensor,
    vocabulary: Vocabulary,
    groups: Mapping[str, Tensor],
    rebuilt: Tensor | None = None,
    most: int = 10_000,
) -> list[Path]:
    """Write token vectors for TensorBoard's embedding projector: `tensorboard --logdir FOLDER`, tab "Projector".

    The metadata of each vector are its token, its word, its frequency group, and whether it was rebuilt. Tabs, line
    breaks and other control characters in tokens are written as Python escapes, and a backslash as two backslashes.
    The projector at projector.tensorflow.org also loads the two `.tsv` files.

    Args:
        folder: Folder to write into; created if it does not exist.
        table: Table, (n, d), any floating dtype, any device. Vectors are written with 5 significant digits.
        vocabulary: The tokens of its rows.
        groups: Token ids by group, from `frequency_groups`.
        rebuilt: Ids of the rebuilt tokens, (r,) int64; `None` leaves out this column.
        most: Maximum number of tokens, evenly spaced over the frequency order.

    Returns:
        The paths of `tensors.tsv`, `metadata.tsv` and `projector_config.pbtxt`.

    Raises:
        ValueError: If `most` is below 1, or `groups["all"]` is empty.
    """
    if most < 1:
        raise ValueError(f"`most` must be at least 1, got {most!r}.")
    if not len(groups["all"]):
        raise ValueError(
            "The group `all` is empty: no token of the vocabulary occurs in text. Pass the tokenizer of the model."
        )
    ids = evenly(groups["all"], most)
    group_of_token = {index: name for name in GROUPS for index in groups[name].tolist()}
    columns = ["token", "word", "group"] + (["rebuilt"] if rebuilt is not None else [])
    rebuilt_ids = set() if rebuilt is None else set(rebuilt.tolist())
    lines = ["\t".join(columns)]
    for index in ids.tolist():
        cells = [vocabulary.tokens[index], vocabulary.words[index] or "", group_of_token.get(index, "")]
        if rebuilt is not None:
            cells.append("yes" if index in rebuilt_ids else "no")
        lines.append("\t".join(map(_one_line, cells)))

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TENSORS).open("w", encoding="utf-8", newline="\n") as file:
        for block in ids.split(1000):
            for row in table[block.to(table.device)].detach().to(torch.float32).tolist():
                file.write("\t".join(f"{value:.5g}" for value in row) + "\n")
    (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    shape = "".join(f"  tensor_shape: {number}\n" for number in (len(ids), table.shape[1]))
    config = (
        f'embeddings {{\n  tensor_name: "token embeddings"\n{shape}'
        f"  tensor_path: {json.dumps(TENSORS)}\n  metadata_path: {json.dumps(METADATA)}\n}}\n"
    )
    (folder / CONFIG).write_text(config, encoding="utf-8", newline="\n")
    return [folder / name for name in (TENSORS, METADATA, CONFIG)]


def _one_line(text: str) -> str:
    """Write characters that would break a line or a cell as Python escapes."""
    escaped = (
        char.encode("unicode_escape").decode()
        if char == "\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )
    return "".join(escaped)
