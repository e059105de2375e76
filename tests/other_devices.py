"""Script that `test_other_devices.py` runs: everything on another device than the CPU, and on both.

    python tests/other_devices.py outcomes.json [cuda:0]

Without a device, it uses the stand-in for a GPU without float64, which is registered for the whole process and would
change what accelerate chooses in other tests.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import BertForMaskedLM, BertModel, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from defemb_callbacks import (
    DefinitionEMBConfig,
    build_definition_embeddings,
    define_new_tokens,
    measure_embeddings,
)
from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.new_tokens.growth import resized
from defemb_callbacks.reconstruction.constructor.training import isolated_training
from defemb_callbacks.reconstruction.ridge import cross_fitted_rows
from defemb_callbacks.senses import SenseConfig, build_sense_dictionary, with_senses
from defemb_callbacks.senses.clustering import kmeans
from defemb_callbacks.sentence import EmbeddingFlow, EmbeddingFlowConfig, fit_whitening
from defemb_callbacks.sentence.modules import calibration_module
from defemb_callbacks.weights.precision import float64_device
from defemb_callbacks.weights.random_states import same_random_states
from defemb_callbacks.weights.rows import read_table, write_rows
from stand_in_device import NAME, use_stand_in
from tiny import random_texts, tiny_bert, tiny_glossary, tiny_model, wordpiece_tokenizer

CPU = torch.device("cpu")
GPU = sys.argv[2] if __name__ == "__main__" and len(sys.argv) > 2 else f"{NAME}:0"
# The stand-in computes on the CPU, but the order of sums may differ.
TOLERANCE = 1e-5 if GPU.startswith(NAME) else 1e-3
TOKENIZER = wordpiece_tokenizer()
# How much is mixed: "auto" compares losses, which may differ by rounding.
MIXED: tuple[dict[str, Any], ...] = ({"strategy": "replace"}, {"blend": 0.3})
TEXT = "the dog saw a cat"

Make = Callable[[], PreTrainedModel]


def exact(**settings: Any) -> DefinitionEMBConfig:
    """Settings in float32, as "auto" would choose bfloat16 on some CPUs, with a cache that has no rows of the CPU."""
    return DefinitionEMBConfig(precision="float32", cache_dir=tempfile.mkdtemp(), **settings)


def bert() -> PreTrainedModel:
    return tiny_bert(TOKENIZER, BertModel)


def masked() -> PreTrainedModel:
    return tiny_bert(TOKENIZER, BertForMaskedLM)


def gpt2() -> PreTrainedModel:
    return tiny_model(GPT2LMHeadModel, TOKENIZER)


def llama() -> PreTrainedModel:
    return tiny_model(LlamaForCausalLM, TOKENIZER, num_hidden_layers=2)


def divided(first: str = "cpu", last: str = GPU) -> PreTrainedModel:
    """A model on two devices, as with `device_map`; its own device is the first one."""
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.rotary_emb"), first)
    places |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), last)
    return dispatch_model(llama(), places, main_device="cpu", force_hooks=True)


def vectors(rows: int = 300, width: int = 6) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * 5 + 3


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


def the_device_has_no_float64() -> None:
    for create in (vectors().to(GPU).double, lambda: torch.zeros(1, dtype=torch.float64, device=GPU)):
        with pytest.raises(TypeError, match="float64"):
            create()
    assert float64_device(torch.device(GPU)) == CPU


def the_device_is_another_one() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        vectors().to(GPU) + vectors()


def random_states() -> None:
    """Those of the device, which a training inside another Trainer's run seeds."""
    backend = torch.get_device_module(GPU)
    torch.manual_seed(1)
    before = backend.get_rng_state(GPU)
    with isolated_training():
        torch.manual_seed(7)
        assert not torch.equal(backend.get_rng_state(GPU), before)
    assert torch.equal(backend.get_rng_state(GPU), before)
    with same_random_states(torch.device(GPU)):
        torch.manual_seed(7)
    assert torch.equal(backend.get_rng_state(GPU), before)


def autocast_of_a_failed_step() -> None:
    @isolated_training()
    def fails() -> None:
        torch.autocast(torch.device(GPU).type, torch.bfloat16).__enter__()
        raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        fails()
    assert not torch.is_autocast_enabled(torch.device(GPU).type)


def ridge() -> None:
    x, y = vectors(60, 5), vectors(60, 4)
    close(cross_fitted_rows(x.to(GPU), y.to(GPU)).rows, cross_fitted_rows(x, y).rows)
    close(cross_fitted_rows(x, y, device=torch.device(GPU)).rows, cross_fitted_rows(x, y).rows)


def rebuild_of(make: Make, move: Callable[[PreTrainedModel], PreTrainedModel], table: str = "input") -> None:
    """The same rows are written as on the CPU."""
    for settings in MIXED if table == "input" and make is bert else MIXED[:1]:
        found, expected = move(make()), make()
        for model in (found, expected):
            config = exact(table=table, **settings)
            report = build_definition_embeddings(model, TOKENIZER, tiny_glossary(), config).apply(model, config)
            assert report.after
        close(read_table(found, table), read_table(expected, table))  # type: ignore[arg-type]


def rebuild_an_encoder() -> None:
    rebuild_of(bert, lambda model: model.to(GPU))


def rebuild_a_masked_language_model() -> None:
    rebuild_of(masked, lambda model: model.to(GPU))


def rebuild_a_decoder() -> None:
    rebuild_of(gpt2, lambda model: model.to(GPU))


def rebuild_an_output_table_on_another_device() -> None:
    for devices in (("cpu", GPU), (GPU, "cpu")):
        rebuild_of(llama, lambda model, devices=devices: divided(*devices), "output")  # type: ignore[misc]


def rebuild_an_input_table_beside_another_device() -> None:
    for devices in (("cpu", GPU), (GPU, "cpu")):
        rebuild_of(llama, lambda model, devices=devices: divided(*devices))  # type: ignore[misc]


def write_to_a_table_on_another_device() -> None:
    model, ids = divided(), torch.tensor([7, 3, 470])
    assert model.device == CPU
    for table in ("input", "output"):
        write_rows(model, ids, torch.ones(3, 32), table)  # type: ignore[arg-type]
        assert bool((read_table(model, table)[ids.to(read_table(model, table).device)] == 1).all())  # type: ignore[arg-type]


def new_tokens_of(make: Make, found: PreTrainedModel) -> None:
    terms = {"qxzv": "a large animal that barks", "house": "a building for people"}
    expected = make()
    for model in (found, expected):
        define_new_tokens(model, wordpiece_tokenizer(), terms, tiny_glossary(), exact())
    close(read_table(found), read_table(expected), 10 * TOLERANCE)
    if found.get_output_embeddings() is not None:
        outputs = (model.get_output_embeddings().weight.detach() for model in (found, expected))
        close(*outputs, tolerance=10 * TOLERANCE)


def new_tokens_of_an_encoder() -> None:
    new_tokens_of(bert, bert().to(GPU))


def new_tokens_of_a_decoder() -> None:
    new_tokens_of(llama, llama().to(GPU))


def new_tokens_of_a_model_on_two_devices() -> None:
    for devices in (("cpu", GPU), (GPU, "cpu")):
        new_tokens_of(llama, divided(*devices))


def senses_of_a_model_on_two_devices() -> None:
    for devices in (("cpu", GPU), (GPU, "cpu")):
        senses_of(divided(*devices), llama())


def metrics_of_a_model_on_two_devices() -> None:
    expected = measure_embeddings(llama(), TOKENIZER, tiny_glossary())
    for devices in (("cpu", GPU), (GPU, "cpu")):
        found = measure_embeddings(divided(*devices), TOKENIZER, tiny_glossary())
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def a_failure_restores_tables_on_two_devices() -> None:
    ids = torch.tensor([7, 3, 470])
    for devices in (("cpu", GPU), (GPU, "cpu")):
        model = divided(*devices)
        before = [read_table(model, table).clone() for table in ("input", "output")]
        with contextlib.suppress(KeyError), resized(model, 476, ids):
            write_rows(model, ids, torch.ones(3, 32))
            write_rows(model, ids, torch.ones(3, 32), "output")
            raise KeyError("reason")
        for table, old in zip(("input", "output"), before, strict=True):
            close(read_table(model, table), old.cpu(), 0.0)  # type: ignore[arg-type]


def metrics() -> None:
    found, expected = (measure_embeddings(model, TOKENIZER, tiny_glossary()) for model in (bert().to(GPU), bert()))
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def snapshots() -> None:
    table, ids = read_table(bert()), torch.arange(476)
    groups = {"all": ids, "frequent": ids[:100], "medium": ids[100:400], "rare": ids[400:]}
    found, expected = (TableSnapshot.take(one, groups) for one in (table.to(GPU), table))
    close(found.basis, expected.basis)
    close(found.spectrum, expected.spectrum)


def clustering() -> None:
    points, sizes, numbers = vectors(40).view(2, 20, 6), torch.tensor([20, 11]), torch.tensor([3, 2])
    found = kmeans(points.to(GPU), sizes.to(GPU), numbers.to(GPU))
    assert torch.equal(found.labels.cpu(), kmeans(points, sizes, numbers).labels)


def senses_of(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    states = []
    for model in (found, expected):
        for similarity in ("dot", "cosine", "euclidean"):
            config = SenseConfig(senses=3, min_samples=5, similarity=similarity)  # type: ignore[arg-type]
            dictionary = build_sense_dictionary(model, TOKENIZER, random_texts(60), config)
        with_senses(model, dictionary)
        output = model(**TOKENIZER(TEXT, return_tensors="pt").to(model.device), output_hidden_states=True)
        states.append(output[0].detach())
    close(states[0], states[1])


def senses() -> None:
    senses_of(bert().to(GPU), bert())


def whitening() -> None:
    close(fit_whitening(vectors().to(GPU)).transform, fit_whitening(vectors()).transform)


def flow() -> None:
    config = EmbeddingFlowConfig.preset("principal", 6)
    found, expected = EmbeddingFlow(config).to(GPU).initialize(vectors()), EmbeddingFlow(config).initialize(vectors())
    close(found(vectors().to(GPU)).detach(), expected(vectors()).detach())


def sentence_transformers_module() -> None:
    calibration = fit_whitening(vectors())
    found, expected = calibration_module(calibration.to(GPU)), calibration_module(calibration)
    close(found.linear.bias.detach(), expected.linear.bias.detach())


OF_THE_STAND_IN: tuple[Callable[[], None], ...] = (the_device_has_no_float64, the_device_is_another_one)
CASES: tuple[Callable[[], None], ...] = (
    random_states,
    autocast_of_a_failed_step,
    ridge,
    rebuild_an_encoder,
    rebuild_a_masked_language_model,
    rebuild_a_decoder,
    rebuild_an_output_table_on_another_device,
    rebuild_an_input_table_beside_another_device,
    write_to_a_table_on_another_device,
    new_tokens_of_an_encoder,
    new_tokens_of_a_decoder,
    new_tokens_of_a_model_on_two_devices,
    senses_of_a_model_on_two_devices,
    metrics_of_a_model_on_two_devices,
    a_failure_restores_tables_on_two_devices,
    metrics,
    snapshots,
    clustering,
    senses,
    whitening,
    flow,
    sentence_transformers_module,
)


def main(path: Path) -> None:
    if GPU.startswith(NAME):
        use_stand_in()
    torch.set_num_threads(1)
    outcomes = {}
    for case in (*OF_THE_STAND_IN, *CASES) if GPU.startswith(NAME) else CASES:
        outcomes[case.__name__] = ""
        try:
            case()
        except Exception:
            outcomes[case.__name__] = traceback.format_exc()
    path.write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
