"""The choice between sets of features."""

from __future__ import annotations

import pytest
import torch

from defemb_callbacks import Definition
from defemb_callbacks.reconstruction.feature_choice import best_rows, names_to_compute, select_features
from defemb_callbacks.reconstruction.features import word_features
from defemb_callbacks.reconstruction.model_settings import ENCODER_FEATURES, feature_widths
from defemb_callbacks.reconstruction.prompts import definition_texts
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows
from tiny import tiny_bert, tiny_glossary, wordpiece_tokenizer

WIDTHS = {"mean": 4, "bag": 3}


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_features_are_the_same_alone_and_among_others(layers) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, num_hidden_layers=layers)
    glossary = tiny_glossary()
    words = list(glossary)
    texts = definition_texts(words, [[Definition(word, gloss)] for word, gloss in glossary.items()], tokenizer, 32)
    names = ["layers", "middle", "bag"]
    together = word_features(model, tokenizer, texts, names, precision="float32")
    for chosen in (["mean", "bag"], ["bag"], ["middle", "layers"], names):
        alone = word_features(model, tokenizer, texts, chosen, precision="float32")
        torch.testing.assert_close(select_features(together, names, chosen, feature_widths(model)), alone)


def test_the_set_that_predicts_left_out_rows_best_is_chosen() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(300, 7, generator=random)
    groups, candidates = torch.arange(300), [["mean", "bag"], ["bag"], ["mean"]]
    for columns, best in ((slice(0, 4), ["mean"]), (slice(4, 7), ["bag"]), (slice(0, 7), ["mean", "bag"])):
        x = features[:, columns]
        targets = x @ torch.randn(x.shape[1], 5, generator=random) + 0.1 * torch.randn(300, 5, generator=random)
        found = best_rows(
            features, ["mean", "bag"], candidates, WIDTHS, targets, groups=groups, device=torch.device("cpu")
        )
        expected = cross_fitted_rows(x, targets, groups=groups)
        assert found.features == best
        assert found.r_squared == pytest.approx(expected.r_squared)
        torch.testing.assert_close(found.rows, expected.rows)
        torch.testing.assert_close(found.weights, expected.weights)


def test_the_first_of_equally_good_sets_is_chosen() -> None:
    random = torch.Generator().manual_seed(0)
    x, targets = torch.randn(50, 4, generator=random), torch.randn(50, 2, generator=random)
    # A model that does not return the states of its layers has one layer.
    features = torch.cat([x, torch.zeros(50, 3)], dim=1)
    found = best_rows(
        features,
        names_to_compute(ENCODER_FEATURES),
        ENCODER_FEATURES,
        WIDTHS,
        targets,
        groups=torch.arange(50),
        device=torch.device("cpu"),
    )
    assert found.features == ["layers", "bag"]
