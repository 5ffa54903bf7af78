"""Heads with a normalisation or a hidden layer, and ways of pooling: values against plain formulas, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.models import Pool, architecture_of, build_architecture, build_model, build_trunk, serving_state
from dmlcore.training.settings import Settings


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 6)
    path = tmp_path_factory.mktemp("features") / "x.npz"
    np.savez(path, x=(generator.normal(size=(12, 10))[y] + generator.normal(size=(72, 10))).astype(np.float32), y=y)
    return path


def normalised(x: torch.Tensor, axis: int) -> torch.Tensor:
    return (x - x.mean(axis, keepdim=True)) / (x.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("hidden", [0, 7, None])
def test_a_head_is_its_formula(norm: str, hidden: int | None) -> None:
    model = build_model(
        "identity", sample_shape=(10,), kind="features", embedding_dim=4, normalize=False, head_norm=norm, head_hidden=hidden
    )
    x = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    expected = {"none": x, "layer": normalised(x, 1), "batch": normalised(x, 0)}[norm]
    maps = [layer for layer in model.head.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in maps] == ([4] if hidden == 0 else [hidden or 10, 4])
    for layer in maps[:-1]:
        expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
    expected = expected @ maps[-1].weight.T + maps[-1].bias
    torch.testing.assert_close(model.train()(x), expected)
    # The same model is built of its plain description.
    again = build_architecture(architecture_of(model), (10,), "features")
    again.load_state_dict(serving_state(model))
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


def test_heads_of_a_run(features: Path, tmp_path: Path) -> None:
    settings = {"head": "mlp", "head_hidden": 9, "head_norm": "batch", "embedding_dim": 5, "compress": 0}
    run = tmp_path / "run"
    dmlcore.train(data=str(features), plugins="ms", steps=3, out=run, report=False, **settings)
    model = dmlcore.load(run, checkpoint="last")
    kinds = [type(layer).__name__ for layer in model.model.head]
    assert kinds == ["BatchNorm1d", "Linear", "ReLU", "Linear"] and model.model.head[1].out_features == 9
    assert float(model.model.head[0].num_batches_tracked) == 3
    assert model.embed(str(features)).embeddings.shape == (72, 5)


def test_what_cannot_be_is_refused() -> None:
    for values, message in (
        ({"head": "mlp", "head_start": "principal"}, "head is mlp: only a linear head"),
        ({"head_norm": "batch", "head_start": "principal"}, "head_norm is batch: only a linear head"),
        ({"head": "none", "head_norm": "layer"}, "head_norm is layer, but head is none"),
        ({"head_hidden": 8}, "head_hidden is given, but it is for head = mlp"),
        ({"head": "mlp", "head_hidden": 0}, "head_hidden"),
        ({"head_norm": "group"}, "head_norm"),
    ):
        with pytest.raises(ConfigError, match=message):
            Settings.of(values)


def test_the_sum_of_mean_and_maximum() -> None:
    places = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.stack([row[:, c].mean() + row[:, c].max() for c in range(4)]) for row in places])
    torch.testing.assert_close(Pool("avg+max")(places), expected)
    is_there = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    sums = [row[present].mean(0) + row[present].amax(0) for row, present in zip(places, is_there, strict=True)]
    torch.testing.assert_close(Pool("avg+max")(places, is_there), torch.stack(sums))


@pytest.mark.parametrize("pool", ["avg", "max", "avg+max", "gem"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("conv", {}), ("torchvision/resnet18", {"weights": "none"}), ("timm/resnet18", {"weights": "none"})],
)
def test_trunks_pool_so(name: str, options: dict, pool: str) -> None:
    library = name.partition("/")[0]
    if library != name:
        pytest.importorskip(library)
    made = {"sample_shape": (3, 64, 64), "kind": "images"}
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = {how: build_trunk(name, **made, options={**options, "pool": how}).eval()(pictures) for how in ("avg", "max")}
        ours = build_trunk(name, **made, options={**options, "pool": pool}).eval()
        features = ours(pictures)
    assert features.shape == pooled["avg"].shape == (2, ours.features)
    if pool == "gem":  # between the mean and the maximum of what is not negative
        assert (features >= pooled["avg"] - 1e-4).all() and (features <= pooled["max"] + 1e-4).all()
    else:
        torch.testing.assert_close(features, pooled["avg"] + pooled["max"] if pool == "avg+max" else pooled[pool])


def test_the_small_network_keeps_mean_and_maximum_by_itself() -> None:
    assert build_trunk("conv", sample_shape=(3, 32, 32), kind="images").features == 512
    with pytest.raises(ConfigError, match="pool"):
        build_trunk("conv", sample_shape=(3, 32, 32), kind="images", options={"pool": "cls"})
