"""Fitting flows to vectors and texts."""

from __future__ import annotations

import copy
import csv
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy.stats import multivariate_normal, spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, TrainerCallback

from defemb_callbacks.sentence import fit as module
from defemb_callbacks.sentence.fit import fit_flow, fit_flow_on_texts, flow_training_arguments
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig
from defemb_callbacks.sentence.pooling import encode_texts
from launching import exit_together, launch
from tiny import tiny_bert, tiny_dataset, wordpiece_tokenizer


def arguments(output_dir: Path | str = "flow", **overrides: object):
    """Default arguments with one epoch, no progress bar, on the CPU."""
    return flow_training_arguments(
        str(output_dir), **{"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True} | overrides
    )


def bananas(n: int, dim: int, *, correlated: bool, seed: int = 0) -> Tensor:
    """Every second coordinate is a quadratic function of the one before, plus noise; optionally mixed linearly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    bent = torch.arange(1, dim, 2)
    x[:, bent] = (x[:, bent - 1] ** 2 - 1) + 0.3 * x[:, bent]
    if correlated:
        mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
        x = x @ mixing / dim**0.5
    return x * 0.2 + 1


def gaussian_nats(train: Tensor, held_out: Tensor) -> float:
    """Mean log-density of held-out vectors under a Gaussian fitted to the others, in nats per dimension."""
    train, held_out = train.double(), held_out.double()
    gaussian = multivariate_normal(train.mean(0).numpy(), train.T.cov(correction=0).numpy())
    return float(gaussian.logpdf(held_out.numpy()).mean()) / train.shape[1]


@torch.no_grad()
def nats(flow: EmbeddingFlow, held_out: Tensor) -> float:
    return float(flow.log_prob(held_out).mean()) / flow.config.latent_dim


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize(
    ("sizes", "dim", "correlated"),
    [({}, 7, False), ({"levels": 3}, 33, False), ({"components": 33}, 33, True)],
    ids=str,
)
def test_fitted_flow_beats_the_best_gaussian_on_held_out_vectors(tmp_path, sizes, dim, correlated, coupling):
    """Correlated data only with principal axes: permutations and narrow couplings learn correlations slowly."""
    data = bananas(3_000, dim, correlated=correlated)
    train, held_out = data[:2_000], data[2_000:]
    config = EmbeddingFlowConfig(dim, coupling=coupling, **sizes)
    flow = fit_flow(train, config, arguments(tmp_path, num_train_epochs=6, learning_rate=1e-2))
    assert not flow.training
    gain = nats(flow, held_out) - gaussian_nats(train, held_out)
    assert gain > 0.02


def test_fitted_flow_approaches_the_true_density(tmp_path):
    """On one banana, whose entropy is known, the flow closes most of the gap between Gaussian and true density."""
    data = bananas(6_000, 2, correlated=False)
    config = EmbeddingFlowConfig(2, levels=1, depth=4)
    flow = fit_flow(data[:5_000], config, arguments(tmp_path, num_train_epochs=4, learning_rate=1e-2))
    entropy = torch.log(2 * torch.pi * torch.e * torch.tensor([1.0, 0.3]) ** 2 * 0.2**2) / 2
    truth, gaussian = -float(entropy.mean()), gaussian_nats(data[:5_000], data[5_000:])
    assert gaussian < truth - 0.4
    assert truth - 0.1 < nats(flow, data[5_000:]) < truth + 0.03  # sampling error of the held-out vectors


def test_fitting_twice_gives_the_same_flow(tmp_path):
    data = bananas(300, 7, correlated=True)
    config = EmbeddingFlowConfig(7)
    flows = [fit_flow(data, config, arguments(tmp_path)) for _ in range(2)]
    assert torch.equal(flows[0](data), flows[1](data))
    assert not torch.equal(flows[0](data), EmbeddingFlow(config).initialize(data)(data))


def test_flow_is_initialized_from_data_before_the_first_step(tmp_path):
    data = bananas(300, 7, correlated=True)
    config = EmbeddingFlowConfig(7)
    flow = fit_flow(data, config, arguments(tmp_path, max_steps=1, learning_rate=0.0))
    assert torch.equal(flow(data), EmbeddingFlow(config).initialize(data)(data))


def test_defaults_are_the_principal_preset_and_the_settings_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        module, "flow_training_arguments", lambda path: flow_training_arguments(path, use_cpu=True, num_train_epochs=1)
    )
    flow = fit_flow(bananas(300, 12, correlated=True))
    assert flow.config == EmbeddingFlowConfig.preset("principal", 12)
    assert list(tmp_path.iterdir()) == []  # no output folder
    args = flow_training_arguments()
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-3, 0.01, 1.0)
    assert (args.lr_scheduler_type, args.per_device_train_batch_size) == ("constant", 64)


def test_arguments_are_passed_to_the_trainer_unchanged(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append((args, state.max_steps))

    args = arguments(tmp_path, max_steps=3, adam_beta2=0.9)
    before = args.to_dict()
    fit_flow(bananas(300, 7, correlated=True), EmbeddingFlowConfig(7), args, callbacks=[Look()])
    ((found, steps),) = seen
    assert found is args
    assert steps == 3
    assert args.to_dict() == before


def test_weight_decay_only_applies_to_network_weights(tmp_path):
    decayed = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            for group in optimizer.param_groups:
                if group["weight_decay"]:
                    decayed.extend(names[id(parameter)] for parameter in group["params"])

    fit_flow(
        bananas(300, 7, correlated=True), EmbeddingFlowConfig(7), arguments(tmp_path, max_steps=1), callbacks=[Look()]
    )
    assert decayed
    assert all(".net." in name and name.endswith("weight") for name in decayed)


def test_dataset_on_disk_gives_the_same_flow_as_a_tensor(tmp_path):
    data = bananas(300, 7, correlated=True)
    Dataset.from_dict({"text": ["x"] * 300, "vectors": data.tolist()}).save_to_disk(tmp_path / "vectors")
    config = EmbeddingFlowConfig(7, components=5)
    from_disk = fit_flow(Dataset.load_from_disk(tmp_path / "vectors"), config, arguments(tmp_path))
    assert torch.equal(from_disk(data), fit_flow(data, config, arguments(tmp_path))(data))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_vectors_of_any_precision_give_a_float32_flow(tmp_path, dtype):
    data = bananas(300, 7, correlated=True).to(dtype)
    config = EmbeddingFlowConfig(7, components=5)
    flow = fit_flow(data, config, arguments(tmp_path))
    assert flow(data).dtype == torch.float32
    assert torch.equal(flow(data), fit_flow(data.float(), config, arguments(tmp_path))(data))


def test_mixed_precision_does_not_change_the_flow(tmp_path):
    data = bananas(300, 7, correlated=True)
    plain, mixed = (fit_flow(data, EmbeddingFlowConfig(7), arguments(tmp_path, bf16=bf16)) for bf16 in (False, True))
    assert torch.equal(plain(data), mixed(data))


def test_held_out_vectors_are_evaluated(tmp_path):
    data = bananas(400, 7, correlated=True)
    losses = []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            losses.append(metrics["eval_loss"])

    args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=2, per_device_eval_batch_size=100)
    flow = fit_flow(data[:300], EmbeddingFlowConfig(7), args, eval_vectors=data[300:], callbacks=[Look()])
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(-nats(flow, data[300:]), abs=1e-5)


def test_resumed_run_gives_the_same_flow(tmp_path):
    data = bananas(300, 7, correlated=True)
    config = EmbeddingFlowConfig(7, components=7)
    saving = {"num_train_epochs": 3, "save_strategy": "epoch"}
    whole = fit_flow(data, config, arguments(tmp_path / "whole", **saving))

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    broken = fit_flow(data, config, arguments(tmp_path / "broken", **saving), callbacks=[Stop()])
    assert not torch.equal(broken(data), whole(data))
    resumed = fit_flow(data, config, arguments(tmp_path / "broken", **saving), resume_from_checkpoint=True)
    assert torch.equal(resumed(data), whole(data))


# On texts


def tiny_texts(tokenizer) -> list[str]:
    ids = list(tiny_dataset(tokenizer, 300)["input_ids"])
    return sorted(set(tokenizer.batch_decode(ids, skip_special_tokens=True)))


@pytest.fixture(scope="module")
def texts(tokenizer):
    return tiny_texts(tokenizer)


def test_texts_give_the_same_flow_as_their_vectors(tmp_path, tokenizer, texts):
    model = tiny_bert(tokenizer)
    config = EmbeddingFlowConfig(32, components=8)
    vectors = encode_texts(model, tokenizer, texts, "first_last", max_length=64)
    expected = fit_flow(vectors, config, arguments(tmp_path))
    found = fit_flow_on_texts(model, tokenizer, texts, config, arguments(tmp_path), pooling="first_last")
    assert torch.equal(found(vectors), expected(vectors))


@pytest.mark.parametrize("dropout", [False, True])
def test_encoder_is_not_changed(tmp_path, tokenizer, texts, dropout):
    model = tiny_bert(tokenizer, BertForMaskedLM)
    model.train()
    model.bert.encoder.layer[0].eval()
    model.bert.embeddings.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    config = EmbeddingFlowConfig(32, components=8)
    fit_flow_on_texts(model, tokenizer, texts, config, arguments(tmp_path), dropout=dropout)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_encodes_texts_again_in_each_epoch(tmp_path, tokenizer, texts):
    """With a dropout rate of 0, both options agree; otherwise the flow is fitted to noisy vectors."""
    config = EmbeddingFlowConfig(32, components=8)
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for rate in (0.0, 0.3):
        model = tiny_bert(tokenizer, **settings | {"hidden_dropout_prob": rate})
        once, repeatedly = (
            fit_flow_on_texts(model, tokenizer, texts, config, arguments(tmp_path, num_train_epochs=3), dropout=dropout)
            for dropout in (False, True)
        )
        vectors = encode_texts(model, tokenizer, texts, max_length=64)
        if rate == 0.0:
            torch.testing.assert_close(repeatedly(vectors), once(vectors), rtol=0, atol=1e-4)
        else:
            assert (repeatedly(vectors) - once(vectors)).abs().mean() > 0.01
            # Noisy vectors have a larger variance, so vectors without noise are mapped closer to 0.
            assert repeatedly(vectors).square().mean() < once(vectors).square().mean()


# Errors


def test_invalid_vectors_are_rejected_before_training(tmp_path, monkeypatch):
    class NoTraining(TrainerCallback):
        def on_init_end(self, args, state, control, **kwargs):
            raise AssertionError("A Trainer was created.")

    no_training = [NoTraining()]
    good = bananas(300, 7, correlated=True)
    broken = good.clone()
    broken[299, 3] = float("nan")
    config = EmbeddingFlowConfig(7)
    with pytest.raises(ValueError, match="Row 299 of `vectors` contains NaN or infinity"):
        fit_flow(broken, config, callbacks=no_training)
    with pytest.raises(ValueError, match="Row 299 of `vectors` contains NaN or infinity"):
        fit_flow(good, config, eval_vectors=broken, callbacks=no_training)
    monkeypatch.setattr(module, "_ROWS_PER_CHECK", 128)
    with pytest.raises(ValueError, match="Row 299 of `vectors` contains NaN or infinity"):
        fit_flow(Dataset.from_dict({"vectors": broken.tolist()}), config)
    with pytest.raises(ValueError, match="must have a column 'vectors', got text, embedding"):
        fit_flow(Dataset.from_dict({"text": ["a"], "embedding": [[1.0]]}), config)
    with pytest.raises(TypeError, match="`vectors` must be a floating-point tensor, got float64"):
        fit_flow(good.double().numpy(), config)
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(n, d\), got \(7,\)"):
        fit_flow(good[0])
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(n, 8\), got \(300, 7\)"):
        fit_flow(good, EmbeddingFlowConfig(8))
    with pytest.raises(ValueError, match="must have at least 5 rows for this flow, got 4"):
        fit_flow(good[:4], EmbeddingFlowConfig(7, components=4))


def test_invalid_texts_are_rejected(tmp_path, tokenizer, texts):
    model = tiny_bert(tokenizer)
    with pytest.raises(TypeError, match="got a single string"):
        fit_flow_on_texts(model, tokenizer, "the dog")
    for dropout in (False, True):
        with pytest.raises(ValueError, match="`texts` must not be empty"):
            fit_flow_on_texts(model, tokenizer, [], dropout=dropout)
    with pytest.raises(ValueError, match="pooling='static' does not support dropout=True"):
        fit_flow_on_texts(model, tokenizer, texts, pooling="static", dropout=True)


# Slow


def worker(folder: Path) -> None:
    """Code of each process."""
    tokenizer = wordpiece_tokenizer()
    data = bananas(300, 7, correlated=True)
    flows = {"vectors": fit_flow(data, EmbeddingFlowConfig(7, components=7), arguments(folder))}
    texts = tiny_texts(tokenizer)
    sizes = EmbeddingFlowConfig(32, components=8)
    flows["texts"] = fit_flow_on_texts(tiny_bert(tokenizer), tokenizer, texts, sizes, arguments(folder), dropout=True)
    assert torch.distributed.get_world_size() == 2
    rank = torch.distributed.get_rank()
    for name, flow in flows.items():
        save_file(flow.state_dict(), folder / f"{name}-{rank}.safetensors")
    exit_together(folder)


@pytest.mark.slow
def test_two_processes_fit_the_same_flow(tmp_path):
    launch(__file__, str(tmp_path), timeout=240)
    for name in ("vectors", "texts"):
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
    # Both processes started from the same initialization.
    data = bananas(300, 7, correlated=True)
    alone = EmbeddingFlow(EmbeddingFlowConfig(7, components=7)).initialize(data)
    start = {name: tensor for name, tensor in alone.state_dict().items() if "net" not in name and "shift" not in name}
    found = load_file(tmp_path / "vectors-0.safetensors")
    assert torch.equal(found["axes.axes"], start["axes.axes"])
    assert torch.equal(found["levels.0.steps.0.norm.spread"], start["levels.0.steps.0.norm.spread"])


@pytest.mark.slow
def test_real_embeddings(data_dir, minilm_dir, several_threads, tmp_path):
    """Layer 3 of all-MiniLM-L6-v2 on STS-B: better than a Gaussian, and closer to human ratings than raw cosines."""
    rows = []
    for split in ("train", "validation"):
        with (data_dir / "stsb" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows.append([(first, second, float(score)) for first, second, score in csv.reader(file)])
    sentences = list(dict.fromkeys(text for split in rows for row in split for text in row[:2]))
    model, tokenizer = AutoModel.from_pretrained(minilm_dir), AutoTokenizer.from_pretrained(minilm_dir)
    vectors = encode_texts(model, tokenizer, sentences, "layer:3")

    half = len(vectors) // 2
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    train, held_out = vectors[order[:half]], vectors[order[half:]]
    # The output of LayerNorm spans 383 directions; it has no density in 384.
    for components in (383, 128):
        flow = fit_flow(train, EmbeddingFlowConfig(384, components=components), arguments(tmp_path, num_train_epochs=2))
        within = [flow.axes(part) for part in (train, held_out)]
        assert nats(flow, held_out) > gaussian_nats(*within)

    position = {sentence: row for row, sentence in enumerate(sentences)}
    pairs = torch.tensor([[position[first], position[second]] for first, second, _ in rows[1]])
    scores = [score for *_, score in rows[1]]

    def spearman(z: Tensor) -> float:
        return float(spearmanr(torch.cosine_similarity(z[pairs[:, 0]], z[pairs[:, 1]]).tolist(), scores).statistic)

    flow = fit_flow(vectors, args=arguments(tmp_path, num_train_epochs=3))
    with torch.no_grad():
        z = flow(vectors)
    assert spearman(vectors) == pytest.approx(0.630, abs=0.005)
    assert spearman(z) > 0.783  # the best whitening


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
