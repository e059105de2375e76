"""Settings of sense dictionaries."""

from __future__ import annotations

import pytest

from defemb_callbacks.senses import SenseConfig


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="`samples` must be at least `senses`=30, got 20"):
        SenseConfig(senses=30, samples=20)
    assert SenseConfig(rule="markov", samples=10).samples == 10  # `senses` is ignored
    with pytest.raises(ValueError, match="`min_samples` must be at least 1, got 0"):
        SenseConfig(min_samples=0)
    with pytest.raises(ValueError, match="`rule` must be one of fixed, markov, silhouette, got 'best'"):
        SenseConfig(rule="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`similarity` must be one of dot, cosine, euclidean, got 'l2'"):
        SenseConfig(similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`name` must be one of deberta-v3, llama-3-8b, got 'bert'"):
        SenseConfig.paper("bert")
