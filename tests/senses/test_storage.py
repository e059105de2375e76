"""Compression of sense vectors."""

from __future__ import annotations

import pytest
import torch

from defemb_callbacks.senses.storage import compress, pack, unpack


def test_product_quantization_uses_one_byte_for_eight_numbers() -> None:
    vectors = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    quantised = compress(vectors, "product")
    stored = pack(quantised, "product")
    assert stored["codes"].shape == (4000, 2)
    assert torch.equal(unpack(stored), quantised)
    # Lower bound for 256 codewords and 8 independent normals (a rate of 1 bit each): a distortion of 2^-2.
    assert 0.25 < float((vectors - quantised).square().mean()) < 0.45


def test_invalid_storage() -> None:
    with pytest.raises(ValueError, match="`storage` must be one of float32, float16, product, got 'int8'"):
        compress(torch.zeros(1, 8), "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="requires a width that is a multiple of 8, got 12"):
        compress(torch.zeros(1, 12), "product")
    with pytest.raises(ValueError, match=r'takes 300 values, more than 256.*dictionary\.compressed\("product"\)'):
        pack(torch.arange(2400.0).view(300, 8), "product")
