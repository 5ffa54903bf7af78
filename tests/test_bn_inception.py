"""BN-Inception: its size, the names of its layers, its pixels, and a block beside one that is composed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore.errors import ConfigError, DataError
from dmlcore.models import Trunk, build_model, build_trunk, images_wanted


def trunk(**options) -> Trunk:
    return build_trunk("bn_inception", sample_shape=(3, 64, 64), kind="images", options={"weights": "none", **options})


@pytest.fixture(scope="module")
def drawn() -> Trunk:
    """With statistics that are not those of the beginning."""
    built = trunk()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in built.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
    return built.eval()


def test_size_and_names(drawn: Trunk) -> None:
    own = drawn.network.state_dict()
    assert sum(value.numel() for value in drawn.network.parameters()) + 1024 * 1000 + 1000 == 11_295_240
    with torch.no_grad():
        assert drawn(torch.rand(2, 3, 64, 64)).shape == (2, drawn.features) and drawn.features == 1024
        sizes = [tuple(drawn.network(torch.rand(1, 3, side, side)).shape) for side in (224, 227)]
    assert sizes == [(1, 1024, 7, 7), (1, 1024, 7, 7)]
    layers = {name.rsplit(".", 1)[0] for name in own}
    convolutions = {name for name in layers if not name.endswith("_bn")}
    assert layers == convolutions | {f"{name}_bn" for name in convolutions} and len(convolutions) == 69
    branches = ["1x1", "3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2", "pool_proj"]
    expected = {"conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"}
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        names = [name for name in branches if block not in ("3c", "4e") or name not in ("1x1", "pool_proj")]
        expected |= {f"inception_{block}_{name}" for name in names}
    assert convolutions == expected
    shapes = {name: tuple(own[f"{name}.weight"].shape) for name in convolutions}
    assert shapes["conv1_7x7_s2"] == (64, 3, 7, 7) and shapes["inception_4c_double_3x3_2"] == (160, 160, 3, 3)
    assert shapes["inception_5b_pool_proj"] == (128, 1024, 1, 1) and shapes["inception_5a_1x1"] == (352, 1056, 1, 1)
    assert all(f"{name}.bias" in own and f"{name}_bn.running_var" in own for name in convolutions)


def composed(weights: dict[str, Tensor], places: Tensor, block: str) -> Tensor:
    """An inception block of a state dict, written out with plain functions."""

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel, start = weights[f"inception_{block}_{name}.weight"], f"inception_{block}_{name}_bn"
        x = functional.conv2d(x, kernel, weights[f"inception_{block}_{name}.bias"], stride, kernel.shape[-1] // 2)
        scale = weights[f"{start}.weight"] / (weights[f"{start}.running_var"] + 1e-5).sqrt()
        x = (x - weights[f"{start}.running_mean"].view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        return (x + weights[f"{start}.bias"].view(1, -1, 1, 1)).clamp(min=0)

    stride = 2 if block in ("3c", "4e") else 1
    single = layer("3x3", layer("3x3_reduce", places), stride)
    double = layer("double_3x3_2", layer("double_3x3_1", layer("double_3x3_reduce", places)), stride)
    if stride == 2:  # pooled windows may stand out of the map
        padded = functional.pad(places, (0, 2, 0, 2), value=-torch.inf)
        windows = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))[:, :, : single.shape[2], : single.shape[3]]
        return torch.cat([single, double, windows], 1)
    if block == "5b":
        pooled = functional.pad(places, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
    else:
        pooled = functional.pad(places, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5)) / 9
    return torch.cat([layer("1x1", places), single, double, layer("pool_proj", pooled)], 1)


@pytest.mark.parametrize(("block", "channels"), [("3a", 192), ("3c", 320), ("4e", 608), ("5b", 1024)])
def test_a_block_beside_a_composed_one(drawn: Trunk, block: str, channels: int) -> None:
    network = drawn.network.double()
    places = torch.rand(2, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours = network.block(block, places)
    expected = composed(network.state_dict(), places, block)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(value.square().sum(), places)[0] for value in (ours, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-8)
    network.float()


def test_pixels_are_blue_green_red_in_255(drawn: Trunk) -> None:
    seen = []
    hook = drawn.network.conv1_7x7_s2.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    red_green_blue = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1) / 255
    with torch.no_grad():
        drawn(red_green_blue.expand(1, 3, 64, 64))
    hook.remove()
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([30.0 - 104, 20 - 117, 10 - 128]), rtol=0, atol=1e-4)
    assert images_wanted("bn_inception", {"weights": "none"}).size == 227


def test_weights_of_a_file(drawn: Trunk, tmp_path: Path) -> None:
    weights = {
        **drawn.network.state_dict(),
        "last_linear.weight": torch.zeros(1000, 1024),
        "last_linear.bias": torch.zeros(1000),
    }
    pictures = torch.rand(2, 3, 64, 64)
    # The first edition had rows of numbers, and another name for the classifier.
    rows = {re.sub("^last_linear", "fc", name): value for name, value in weights.items()}
    rows |= {name: value[None] for name, value in rows.items() if "_bn." in name and value.ndim}
    for name, values in (("new", weights), ("old", rows)):
        torch.save(values, tmp_path / f"{name}.pth")
        loaded = trunk(weights=str(tmp_path / f"{name}.pth")).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(pictures), drawn(pictures))
    torch.save({name: value for name, value in weights.items() if "4d_3x3" not in name}, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match="not of 'BN-Inception': the file lacks"):
        trunk(weights=str(tmp_path / "part.pth"))
    with pytest.raises(DataError, match="there is no weights file"):
        trunk(weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match="cannot be cls"):
        trunk(pool="cls")


@pytest.mark.parametrize("side", [16, 32, 36, 37, 40, 61, 66, 96, 227])
def test_sizes_are_refused_before_training(drawn: Trunk, side: int) -> None:
    """The trunk refuses just the sizes that its blocks cannot join."""
    with torch.no_grad():
        try:
            drawn.network(torch.zeros(1, 3, side, side))
            fits = True
        except RuntimeError:
            fits = False
    if side < 32 or not fits:
        with pytest.raises(ConfigError, match=f"cannot take images of {side} x {side} pixels"):
            build_trunk("bn_inception", sample_shape=(3, side, side), kind="images", options={"weights": "none"})
    else:
        build_trunk("bn_inception", sample_shape=(3, side, side), kind="images", options={"weights": "none"})


def test_less_memory_gives_the_same_gradients() -> None:
    model = build_model("bn_inception", sample_shape=(3, 32, 32), kind="images", embedding_dim=4, options={"weights": "none"})
    pictures = torch.rand(2, 3, 32, 32)
    model.eval()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.trunk.checkpoint_gradients()
        model.zero_grad()
        model(pictures)[:, 0].sum().backward()
        gradients.append(model.trunk.network.conv1_7x7_s2.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
