"""How the vectors of a dictionary are written: float32, half precision, or product quantisation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.senses.clustering import kmeans
from defemb_callbacks.vocabulary.tokens import Vocabulary

Storage = Literal["float32", "float16", "product"]

# Of product quantisation: numbers that share a code of one byte, which names one of so many codewords.
SUBVECTOR, CODEWORDS = 8, 256

# Vectors that codewords are learned from, at most, and how long.
_LEARNED_FROM, _ITERATIONS = 8192, 20


def compress(vectors: Tensor, storage: Storage, seed: int = 0) -> Tensor:
    """What will be read back of vectors that are stored in one of these ways.

    "product" cuts each vector into parts of 8 numbers, and writes for each part the nearest of 256 codewords, which
    k-means finds (Jégou, Douze, Schmid 2011): one byte instead of 32.

    Args:
        vectors: (n, d) float32.
        storage: "float32", "float16" or "product".
        seed: of the codewords.

    Returns:
        (n, d) float32.

    Raises:
        ValueError: another storage; "product" where d is not a multiple of 8.

    Example:
        >>> compress(torch.tensor([[0.1]]), "float16").tolist()
        [[0.0999755859375]]
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {', '.join(get_args(Storage))}, got {storage!r}")
    if storage == "float32":
        return vectors
    if storage == "float16":
        return vectors.half().float()
    if vectors.shape[1] % SUBVECTOR:
        raise ValueError(f"storage='product' needs a width that is a multiple of {SUBVECTOR}, got {vectors.shape[1]}")
    parts = vectors.view(len(vectors), -1, SUBVECTOR).transpose(0, 1)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:_LEARNED_FROM]
    number = torch.tensor([min(CODEWORDS, len(chosen))])
    size = torch.tensor([len(chosen)])
    quantised = []
    for part in parts:
        found = kmeans(part[chosen][None], size, number, iterations=_ITERATIONS, seed=seed)
        words = found.centres[0][found.counts[0] > 0]
        quantised.append(
            torch.cat([words[torch.cdist(some, words).argmin(dim=1)] for some in part.split(_LEARNED_FROM)])
        )
    return torch.cat(quantised, dim=1)


def pack(vectors: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Tensors to write for vectors that `compress` gave: `unpack` gives the same numbers again.

    Raises:
        ValueError: "product" of vectors that were not compressed so.
    """
    if storage == "float32":
        return {"vectors": vectors.contiguous()}
    if storage == "float16":
        return {"vectors": vectors.half().contiguous()}
    codes, words = [], []
    for part in vectors.split(SUBVECTOR, dim=1):
        different, code = part.unique(dim=0, return_inverse=True)
        if len(different) > CODEWORDS:
            raise ValueError(
                f"a part of the vectors takes {len(different)} values, a code names {CODEWORDS}: make the dictionary "
                'with dictionary.compressed("product")'
            )
        codes.append(code.to(torch.uint8))
        words.append(torch.nn.functional.pad(different, (0, 0, 0, CODEWORDS - len(different))))
    return {"codes": torch.stack(codes, dim=1), "codewords": torch.stack(words)}


def unpack(tensors: dict[str, Tensor]) -> Tensor:
    """(n, d) float32 vectors of what `pack` gave.

    Example:
        >>> vectors = torch.arange(32.0).view(2, 16)
        >>> torch.equal(unpack(pack(vectors, "product")), vectors)
        True
    """
    if "vectors" in tensors:
        return tensors["vectors"].float()
    codes, words = tensors["codes"].long(), tensors["codewords"]
    return torch.cat([words[part][codes[:, part]] for part in range(len(words))], dim=1)


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


@torch.compiler.disable
def sampled_products(states: Tensor, vectors: Tensor, starts: Tensor, sense: Tensor) -> Tensor:
    """(m,): dot products of state i with the vectors that `sense` names from `starts[i]` to `starts[i + 1]`.

    Gathering the vectors of each state instead would write every one of them to memory, which takes twenty times as
    long.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        size = (len(states), len(vectors))
        wanted = torch.sparse_csr_tensor(starts, sense, states.new_zeros(len(sense)), size, check_invariants=False)
    products: Tensor = torch.sparse.sampled_addmm(wanted, states, vectors.T, beta=0.0).values()
    return products.clone()  # what torch.compile goes on with must not be a view of something sparse
