"""The files of a sense dictionary: tensors, vocabulary, and a config with their checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.senses.storage import unpack
from defemb_callbacks.vocabulary import Vocabulary

TENSORS, VOCABULARY = "senses.safetensors", "vocabulary.json"

MODEL_CARD = """---
{{ card_data }}
---

# A sense dictionary

The senses of each token as vectors: centres of the hidden states that a model gives the token in context
(arXiv 2504.06036).

```python
from defemb_callbacks.senses import SenseDictionary, with_senses

dictionary = SenseDictionary.from_pretrained("{{ repo_id | default("path or hub id") }}")
model = with_senses(model, dictionary)  # its last hidden states are senses now
```
"""


def write_senses(
    folder: Path,
    tensors: dict[str, Tensor],
    vocabulary: Vocabulary,
    similarity: str,
    storage: str,
    info: dict[str, Any],
) -> None:
    """Write a dictionary into an existing folder.

    Args:
        folder: to write into.
        tensors: offsets, counts, and the vectors as `pack` gives them.
        vocabulary: the tokens.
        similarity: of the dictionary.
        storage: of the dictionary.
        info: of the dictionary; plain JSON.
    """
    save_file(tensors, folder / TENSORS)
    entries = {name: getattr(vocabulary, name) for name in ("tokens", "words", "reasons", "uncased")}
    (folder / VOCABULARY).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    files = {name: fingerprint(folder / name) for name in (TENSORS, VOCABULARY)}
    config = {"similarity": similarity, "storage": storage, "info": info, "files": files}
    (folder / constants.CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read_senses(source: str, config: dict[str, Any], download: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `SenseDictionary` that `write_senses` has written.

    Args:
        source: folder, or id of a repository on the hub.
        config: of the dictionary there.
        download: how to get at the hub, as `hf_hub_download` takes it.

    Raises:
        ValueError: a checksum that is wrong.
        KeyError: something that is missing.
    """
    here = Path(source).is_dir()
    files = {
        name: Path(source) / name if here else Path(hf_hub_download(source, name, **download))
        for name in (TENSORS, VOCABULARY)
    }
    for name, path in files.items():
        if fingerprint(path) != config["files"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
    tensors = load_file(files[TENSORS])
    entries = json.loads(files[VOCABULARY].read_text(encoding="utf-8"))
    tokens, words, reasons = (tuple(entries[name]) for name in ("tokens", "words", "reasons"))
    return {
        "offsets": tensors["offsets"].long(),
        "vectors": unpack(tensors),
        "counts": tensors["counts"].long(),
        "vocabulary": Vocabulary(tokens, words, reasons, entries["uncased"]),
        **{name: config[name] for name in ("similarity", "storage", "info")},
    }
