"""The small convolutional trunk: features of several blocks."""

from __future__ import annotations

import pytest
import torch

from dmlcore.errors import ConfigError
from dmlcore.plugins import registry

CONV = registry("model")["conv"].component


def trunk(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return CONV(CONV.Options(channels=(3, 5, 7), **options), (1, 16, 16)).double()


def test_features_of_the_last_blocks_stand_side_by_side() -> None:
    network = trunk(pooled_blocks=2).eval()
    pixels = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    expected, places = [], pixels - 0.5
    for layer in network.blocks:
        places = layer(places)
        if isinstance(layer, torch.nn.ReLU):
            flat = places.reshape(4, places.shape[1], -1)
            expected.append(torch.cat([flat.mean(-1), flat.max(-1).values], 1))
    features = network(pixels)
    torch.testing.assert_close(features, torch.cat(expected[1:], 1))
    assert network.features == features.shape[1] == 2 * (5 + 7)


@pytest.mark.parametrize("blocks", [1, 3])
def test_computing_again_changes_nothing(blocks: int) -> None:
    pixels = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    gradients = []
    for again in (False, True):
        network = trunk(pooled_blocks=blocks)
        if again:
            network.checkpoint_gradients()
        network(pixels).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_other_poolings_and_no_more_blocks_than_there_are() -> None:
    assert trunk(pooled_blocks=3, pool="gem").features == 3 + 5 + 7
    with pytest.raises(ConfigError, match="pooled_blocks"):
        trunk(pooled_blocks=4)


@pytest.mark.parametrize("side", [16, 19])
def test_without_gradients_the_bits_are_the_same(side: int) -> None:
    network = trunk(pooled_blocks=3).float().eval()
    pixels = torch.rand(4, 1, side, side)
    expected = network(pixels).detach()
    with torch.no_grad():
        assert torch.equal(network(pixels), expected)
