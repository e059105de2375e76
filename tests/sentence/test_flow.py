"""Flows: inverse, density, initialization, saving and loading."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hub_mixin
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from torch import Tensor

from defemb_callbacks.sentence import flow as module
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig
from defemb_callbacks.sentence.flow_layers import ActNorm, Coupling

COUPLINGS = ("additive", "affine")
SHAPES = ("paper", "code", "principal", "rotated")


def vectors(n: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Correlated vectors with a large mean and unequal scales, like the embeddings of a language model."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    mixing = torch.linalg.qr(torch.randn(dim, dim, **draw)).Q * torch.logspace(0, -1.5, dim, dtype=torch.float64)
    return ((torch.randn(n, dim, **draw) @ mixing.T) + torch.randn(dim, **draw)).to(dtype)


def config_of(shape: str, dim: int, **overrides: object) -> EmbeddingFlowConfig:
    """A preset, or "rotated": the paper's architecture on all principal axes."""
    if shape == "rotated":
        return EmbeddingFlowConfig(dim, components=dim, **overrides)
    return EmbeddingFlowConfig.preset(shape, dim, **overrides)


def trained(config: EmbeddingFlowConfig, data: Tensor, dtype: torch.dtype = torch.float32) -> EmbeddingFlow:
    """A flow with random parameters, so that no coupling is the identity."""
    flow = EmbeddingFlow(config).to(dtype).initialize(data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (0.5 * step / math.sqrt(parameter.shape[-1])).to(dtype)
    return flow


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [7, 33, 64, 385])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_inverse_of_forward_is_the_identity(shape, coupling, dim, dtype, tolerance):
    data = vectors(2 * dim, dim, dtype)
    flow = trained(config_of(shape, dim, coupling=coupling), data, dtype)
    z = flow(data)
    assert z.shape == (2 * dim, flow.config.latent_dim)
    assert z.dtype == dtype
    expected = data
    if flow.config.latent_dim < dim:  # projection on the axes
        reference = PCA(flow.config.latent_dim, svd_solver="full").fit(data.double().numpy())
        expected = torch.tensor(reference.inverse_transform(reference.transform(data.double().numpy())), dtype=dtype)
        torch.testing.assert_close(flow(flow.inverse(z)), z, rtol=0, atol=100 * tolerance)
    else:
        # The map is not trivial.
        assert (z - flow.levels[0].steps[0].norm(data)[0]).abs().mean() > 0.1
    torch.testing.assert_close(flow.inverse(z), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [5, 6, 9])
def test_log_determinant_equals_that_of_the_jacobian(shape, coupling, dim):
    data = vectors(50, dim, torch.float64)
    flow = trained(config_of(shape, dim, coupling=coupling, width=8), data, torch.float64)
    _, log_det = flow.forward_and_log_det(data[:4])
    assert log_det.std() > 0 or coupling == "additive"
    for row, found in zip(data, log_det, strict=False):
        jacobian = torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], row)
        if flow.axes is not None:  # within the span of the axes
            jacobian = jacobian @ flow.axes.axes
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-9)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_density_integrates_to_one(coupling):
    data = vectors(100, 2, torch.float64)
    flow = trained(EmbeddingFlowConfig(2, levels=1, depth=2, coupling=coupling), data, torch.float64)
    reach, points = 20.0, 801
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    mean, scale = data.mean(0), data.std(0)
    grid = torch.cartesian_prod(mean[0] + scale[0] * line, mean[1] + scale[1] * line)
    cell = float(scale.prod()) * (2 * reach / (points - 1)) ** 2
    with torch.no_grad():
        assert float(flow.log_prob(grid).exp().sum()) * cell == pytest.approx(1, abs=1e-3)


def test_initialized_flow_on_all_axes_is_the_best_gaussian():
    """The initialization is PCA whitening, whose density is that of the best Gaussian."""
    data = vectors(200, 6, torch.float64)
    flow = EmbeddingFlow(config_of("rotated", 6)).double().initialize(data)
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov(correction=0))
    torch.testing.assert_close(flow.log_prob(data), gaussian.log_prob(data), rtol=0, atol=1e-9)


@pytest.mark.parametrize("components", [3, 9])
def test_initialized_flow_on_principal_axes_is_pca_whitening(components):
    """Compares cosines, because permutations and signs of the axes are arbitrary."""
    data = vectors(300, 9, torch.float64)
    z = EmbeddingFlow(EmbeddingFlowConfig(9, components=components)).double().initialize(data)(data)
    reference = torch.from_numpy(PCA(components, whiten=True).fit_transform(data.numpy()))
    cosines = [
        torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T for x in (z, reference)
    ]
    torch.testing.assert_close(*cosines, rtol=0, atol=1e-9)


def test_each_actnorm_is_initialized_to_standardize_its_input():
    data = vectors(200, 7, torch.float64)
    flow = EmbeddingFlow(EmbeddingFlowConfig(7, depth=2)).double()
    for name, parameter in flow.named_parameters():
        if "net.4.weight" in name:  # the couplings are not the identity
            torch.nn.init.normal_(parameter)
    x = flow.initialize(data) and data
    for level in flow.levels:
        for step in level.steps:
            standard, _ = step.norm(x)
            zeros = torch.zeros(x.shape[1], dtype=torch.float64)
            torch.testing.assert_close(standard.mean(0), zeros, rtol=0, atol=1e-12)
            torch.testing.assert_close(standard.std(0, correction=0), zeros + 1, rtol=0, atol=1e-12)
            x, _ = step(x)
        x = x[:, : x.shape[1] - x.shape[1] // 2]


def test_replicas_of_data_parallel_compute_the_same():
    """`nn.DataParallel` copies parameters as plain attributes, which `parameters()` does not find."""
    data = vectors(100, 6)
    flow = EmbeddingFlow(EmbeddingFlowConfig(6, levels=2, components=5)).initialize(data)
    replicas = {part: part._replicate_for_data_parallel() for part in flow.modules()}
    for part, replica in replicas.items():
        for name, child in part.named_children():
            replica._modules[name] = replicas[child]
        for name, parameter in part.named_parameters(recurse=False):
            setattr(replica, name, parameter.detach().clone())
    assert not list(replicas[flow].parameters())
    assert torch.equal(replicas[flow].log_prob(data), flow.log_prob(data))
    assert torch.equal(replicas[flow].inverse(flow(data)), flow.inverse(flow(data)))


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-32])
def test_coordinate_without_variance_is_not_scaled_up(value):
    """Otherwise rounding error would be scaled to the size of the other coordinates."""
    data = vectors(100, 3)
    data[:, 1] = value * (1 + 1e-7 * torch.randn(100))
    norm = ActNorm(3)
    norm.initialize(data)
    y, log_det = norm(data)
    assert y[:, 1].abs().max() < 1e-6
    torch.testing.assert_close(y[:, [0, 2]].std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(log_det, -data[:, [0, 2]].std(0, correction=0).log().sum().expand(100))
    torch.testing.assert_close(norm.inverse(y), data, rtol=0, atol=1e-6)


def test_coupling_starts_as_the_identity_and_changes_one_half():
    x = torch.randn(5, 7)
    coupling = Coupling(7, 4, affine=True)
    y, log_det = coupling(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(5))
    torch.nn.init.normal_(coupling.net[-1].weight)
    y, _ = coupling(x)
    assert torch.equal(y[:, :4], x[:, :4])
    assert (y[:, 4:] != x[:, 4:]).all()


def test_each_level_factors_out_half_of_the_coordinates():
    flow = EmbeddingFlow(EmbeddingFlowConfig(33, levels=3))
    assert flow.part_sizes == [16, 8, 9]
    # The part factored out by the first level does not depend on the second.
    data = vectors(100, 33)
    flow = trained(flow.config, data)
    before = flow(data)
    with torch.no_grad():
        flow.levels[1].steps[0].norm.shift += 1
    after = flow(data)
    assert torch.equal(after[:, :16], before[:, :16])
    assert not torch.equal(after[:, 16:], before[:, 16:])


def test_number_of_parameters_matches_the_paper():
    """The paper reports about 128,000 parameters at d = 768."""
    flow = EmbeddingFlow(EmbeddingFlowConfig.preset("paper", 768))
    assert sum(parameter.numel() for parameter in flow.parameters()) == pytest.approx(128_000, rel=0.05)
    assert [len(level.steps) for level in flow.levels] == [3, 3]
    assert EmbeddingFlowConfig.preset("code", 768).levels == 3
    assert EmbeddingFlowConfig.preset("principal", 768).components == 256


def test_flow_depends_on_the_seed_only():
    state = torch.random.get_rng_state()
    first, same, other = (EmbeddingFlow(EmbeddingFlowConfig(9, seed=seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["levels.0.steps.0.permutation"], other["levels.0.steps.0.permutation"])
    assert not torch.equal(
        first["levels.0.steps.0.coupling.net.0.weight"], other["levels.0.steps.0.coupling.net.0.weight"]
    )


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gradients_reach_every_parameter_and_the_input(coupling):
    data = vectors(50, 7)
    flow = trained(EmbeddingFlowConfig(7, components=7, coupling=coupling), data)
    data.requires_grad_()
    flow.log_prob(data).mean().backward()
    assert data.grad is not None
    assert data.grad.abs().sum() > 0
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_computed_in_float32(dtype):
    data = vectors(50, 7).to(dtype)
    flow = trained(EmbeddingFlowConfig(7), data)
    assert torch.equal(flow(data), flow(data.float()))
    assert flow.inverse(flow(data)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flow(data), flow(data.float()))
        torch.testing.assert_close(flow.inverse(flow(data)), data.float(), rtol=0, atol=1e-5)


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_save_and_load(tmp_path, shape, coupling, dtype):
    data = vectors(50, 9, dtype)
    flow = trained(config_of(shape, 9, coupling=coupling, seed=5), data, dtype)
    flow.save_pretrained(tmp_path / "flow")
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = EmbeddingFlow.from_pretrained(tmp_path / "flow")
    assert loaded.config == flow.config
    assert not loaded.training
    assert torch.equal(loaded(data), flow(data))
    assert torch.equal(loaded.log_prob(data), flow.log_prob(data))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "flow" / name).read_bytes()


def test_uninitialized_flow_can_be_saved(tmp_path):
    EmbeddingFlow(EmbeddingFlowConfig(7)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="not initialized"):
        EmbeddingFlow.from_pretrained(tmp_path)(torch.zeros(1, 7))


def test_copies_are_independent():
    data = vectors(50, 7)
    flow = trained(EmbeddingFlowConfig(7), data)
    other = copy.deepcopy(flow)
    before = flow(data)
    assert torch.equal(other(data), before)
    with torch.no_grad():
        other.levels[0].steps[0].norm.shift += 1
    assert torch.equal(flow(data), before)


def test_hub_round_trip(tmp_path, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": f"user/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, **kwargs):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    flow = trained(EmbeddingFlowConfig(7), vectors(50, 7))
    assert flow.push_to_hub("calibrated", token="secret") == "https://hub/user/calibrated/commit/1"
    assert sorted(uploaded) == ["README.md", "config.json", "model.safetensors"]
    card = uploaded["README.md"].decode()
    assert "library_name: defemb_callbacks" in card
    assert "EmbeddingFlow.from_pretrained(" in card

    # Each file is downloaded by name.
    def download(repo_id, filename, revision=None, token=None, **kwargs):
        assert (repo_id, revision, token) == ("user/calibrated", "v1", "secret")
        (tmp_path / filename).write_bytes(uploaded[filename])
        return str(tmp_path / filename)

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(module, "hf_hub_download", download)
    loaded = EmbeddingFlow.from_pretrained("user/calibrated", revision="v1", token="secret")
    assert torch.equal(loaded(vectors(5, 7)), flow(vectors(5, 7)))


def test_folder_without_a_flow(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contains no EmbeddingFlow: it has no config\.json"):
        EmbeddingFlow.from_pretrained(tmp_path)
    EmbeddingFlow(EmbeddingFlowConfig(7)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["levels.0.steps.0.norm.shift"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key.*levels\.0\.steps\.0\.norm\.shift"):
        EmbeddingFlow.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"temperature": 1}))
    with pytest.raises(TypeError, match="temperature"):
        EmbeddingFlow.from_pretrained(tmp_path)


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "`levels` must be at least 1, got 0"),
        ({"depth": 0}, "`depth` must be at least 1, got 0"),
        ({"width": -1}, "`width` must be at least 1, got -1"),
        ({"coupling": "spline"}, "`coupling` must be one of additive, affine, got 'spline'"),
        ({"components": 8}, "`components` must be between 1 and dim=7, got 8"),
        ({"components": 0}, "`components` must be between 1 and dim=7, got 0"),
        ({"components": 2}, "levels=2 requires at least 3 coordinates, got 2"),
        ({"levels": 4}, "levels=4 requires at least 9 coordinates, got 7"),
    ],
)
def test_invalid_architectures(settings, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingFlowConfig(7, **settings)


def test_unknown_preset():
    with pytest.raises(ValueError, match="`name` must be one of principal, paper, code, got 'glow'"):
        EmbeddingFlowConfig.preset("glow", 7)


def test_smallest_width_named_in_the_error_works():
    for levels in (1, 2, 3, 4):
        fewest = 2 ** (levels - 1) + 1
        data = vectors(50, fewest, torch.float64)
        flow = trained(EmbeddingFlowConfig(fewest, levels=levels), data, torch.float64)
        torch.testing.assert_close(flow.inverse(flow(data)), data, rtol=0, atol=1e-10)


@pytest.mark.parametrize("call", ["__call__", "log_prob", "inverse"])
def test_vectors_of_another_width(call):
    flow = trained(EmbeddingFlowConfig(7), vectors(50, 7))
    for wrong in (torch.zeros(3, 8), torch.zeros(7), torch.zeros(1, 3, 7)):
        with pytest.raises(ValueError, match=r"Vectors must have shape \(n, 7\) for this flow, got"):
            getattr(flow, call)(wrong)


@pytest.mark.parametrize("call", ["__call__", "log_prob", "inverse", "forward_and_log_det"])
def test_uninitialized_flow_raises(call):
    with pytest.raises(RuntimeError, match=r"not initialized\. Fit it with fit_flow"):
        getattr(EmbeddingFlow(EmbeddingFlowConfig(7)), call)(torch.zeros(1, 7))


def with_value(value: float) -> Tensor:
    data = vectors(50, 7)
    data[31, 2] = value
    return data


def without_variance() -> Tensor:
    data = vectors(50, 7)
    data[:, 4] = 0.3
    return data


@pytest.mark.parametrize(
    ("components", "data", "error", "message"),
    [
        (None, vectors(50, 8), ValueError, r"`vectors` must have shape \(n, 7\), got \(50, 8\)"),
        (None, torch.zeros(50, 7, dtype=torch.int64), TypeError, "floating-point tensor, got torch.int64"),
        (None, np.zeros((50, 7)), TypeError, "floating-point tensor, got float64"),
        (None, [[0.0] * 7], TypeError, "floating-point tensor, got <class 'list'>"),
        (None, with_value(float("nan")), ValueError, "Row 31 of `vectors` contains NaN or infinity"),
        (None, with_value(float("inf")), ValueError, "Row 31 of `vectors` contains NaN or infinity"),
        (None, vectors(1, 7), ValueError, "at least 2 rows for this flow, got 1. Pass more vectors"),
        (5, vectors(5, 7), ValueError, "at least 6 rows for this flow, got 5. Use fewer components"),
        (7, without_variance(), ValueError, "vary along 6 directions, fewer than components=7. Use components=6"),
    ],
)
def test_invalid_vectors_for_initialization(components, data, error, message):
    flow = EmbeddingFlow(EmbeddingFlowConfig(7, components=components))
    with pytest.raises(error, match=message):
        flow.initialize(data)
    assert not flow.initialized


def test_number_of_components_named_in_the_error_works():
    data = without_variance()
    flow = EmbeddingFlow(EmbeddingFlowConfig(7, components=6)).initialize(data)
    torch.testing.assert_close(flow.inverse(flow(data)), data, rtol=0, atol=1e-5)
