"""Compression and files of a sense dictionary."""

from __future__ import annotations

import json
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

TENSORS, VOCABULARY = "senses.safetensors", "vocabulary.json"

# Product quantization: width of a subvector, and codewords per codebook (one byte per code).
SUBVECTOR, CODEWORDS = 8, 256

# Maximum number of vectors that a codebook is trained on, and k-means iterations.
_TRAINING_VECTORS, _ITERATIONS = 8192, 20


def compress(vectors: Tensor, storage: Storage, seed: int = 0) -> Tensor:
    """Round vectors to the values that a storage format can represent.

    Product quantization (Jégou, Douze, Schmid 2011) splits each vector into subvectors of 8 numbers and replaces each
    with the nearest of 256 codewords found by k-means: one byte instead of 32.

    Args:
        vectors: Shape (n, d), float32.
        storage: `"float32"`, `"float16"` or `"product"`.
        seed: Seed of the codebook.

    Returns:
        Shape (n, d), float32.

    Raises:
        ValueError: If `storage` is unknown, or if it is `"product"` and d is not a multiple of 8.

    Example:
        >>> compress(torch.tensor([[0.1]]), "float16").tolist()
        [[0.0999755859375]]
    """
    if storage not in get_args(Storage):
        raise ValueError(f"`storage` must be one of {', '.join(get_args(Storage))}, got {storage!r}.")
    if storage == "float32":
        return vectors
    if storage == "float16":
        return vectors.half().float()
    if vectors.shape[1] % SUBVECTOR:
        raise ValueError(
            f"storage='product' requires a width that is a multiple of {SUBVECTOR}, got {vectors.shape[1]}. "
            "Use storage='float16'."
        )
    parts = vectors.view(len(vectors), -1, SUBVECTOR).transpose(0, 1)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:_TRAINING_VECTORS]
    number = torch.tensor([min(CODEWORDS, len(chosen))])
    size = torch.tensor([len(chosen)])
    quantized = []
    for part in parts:
        clusters = kmeans(part[chosen][None], size, number, iterations=_ITERATIONS, seed=seed)
        codewords = clusters.centres[0][clusters.counts[0] > 0]
        blocks = part.split(_TRAINING_VECTORS)
        quantized.append(torch.cat([codewords[torch.cdist(block, codewords).argmin(dim=1)] for block in blocks]))
    return torch.cat(quantized, dim=1)


def pack(vectors: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Convert vectors from `compress` to the tensors to save; lossless, see `unpack`.

    Raises:
        ValueError: If `storage` is `"product"` and the vectors are not quantized.
    """
    if storage == "float32":
        return {"vectors": vectors.contiguous()}
    if storage == "float16":
        return {"vectors": vectors.half().contiguous()}
    codes, codebooks = [], []
    for part in vectors.split(SUBVECTOR, dim=1):
        codewords, code = part.unique(dim=0, return_inverse=True)
        if len(codewords) > CODEWORDS:
            raise ValueError(
                f"The vectors are not quantized: a subvector takes {len(codewords)} values, more than {CODEWORDS}. "
                'Call dictionary.compressed("product") first.'
            )
        codes.append(code.to(torch.uint8))
        codebooks.append(torch.nn.functional.pad(codewords, (0, 0, 0, CODEWORDS - len(codewords))))
    return {"codes": torch.stack(codes, dim=1), "codewords": torch.stack(codebooks)}


def unpack(tensors: dict[str, Tensor]) -> Tensor:
    """Restore vectors, (n, d) float32, from the output of `pack`.

    Example:
        >>> vectors = torch.arange(32.0).view(2, 16)
        >>> torch.equal(unpack(pack(vectors, "product")), vectors)
        True
    """
    if "vectors" in tensors:
        return tensors["vectors"].float()
    codes, codebooks = tensors["codes"].long(), tensors["codewords"]
    return torch.cat([codebooks[part][codes[:, part]] for part in range(len(codebooks))], dim=1)


def write_senses(
    folder: Path,
    tensors: dict[str, Tensor],
    vocabulary: Vocabulary,
    similarity: str,
    storage: str,
    info: dict[str, Any],
) -> None:
    """Write a dictionary to an existing folder.

    Args:
        folder: The folder.
        tensors: Offsets, counts, and the output of `pack`.
        vocabulary: The tokens.
        similarity: Similarity of the dictionary.
        storage: Storage format of the dictionary.
        info: How the dictionary was built; plain JSON.
    """
    save_file(tensors, folder / TENSORS)
    entries = {name: getattr(vocabulary, name) for name in ("tokens", "words", "reasons", "uncased")}
    (folder / VOCABULARY).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    files = {name: fingerprint(folder / name) for name in (TENSORS, VOCABULARY)}
    config = {"similarity": similarity, "storage": storage, "info": info, "files": files}
    (folder / constants.CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read_senses(source: str, config: dict[str, Any], download: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of a `SenseDictionary` that `write_senses` has written.

    Args:
        source: A folder, or the id of a repository on the hub.
        config: Contents of its `config.json`.
        download: Options of `hf_hub_download`.

    Raises:
        ValueError: If a checksum does not match.
        KeyError: If an entry is missing.
    """
    local = Path(source).is_dir()
    files = {
        name: Path(source) / name if local else Path(hf_hub_download(source, name, **download))
        for name in (TENSORS, VOCABULARY)
    }
    for name, path in files.items():
        if fingerprint(path) != config["files"][name]:
            raise ValueError(f"The checksum of {name} does not match. Save or download the dictionary again.")
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
