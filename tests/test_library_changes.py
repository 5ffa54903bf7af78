"""Random changes of torchvision by dmlcore's generator: each picture as torchvision changes it, and the same draws again."""

from __future__ import annotations

import random

import pytest
import torch

from dmlcore import plugins
from dmlcore.errors import ConfigError

v2 = pytest.importorskip("torchvision.transforms.v2")
PICTURES = torch.randint(0, 256, (6, 3, 24, 24), generator=torch.Generator().manual_seed(0)) / 255
CASES = {
    "color_jitter": ({"hue": 0.1}, v2.ColorJitter(0.25, 0.25, 0.25, 0.1), False),
    "random_erasing": ({"area": (0.1, 0.3)}, v2.RandomErasing(0.5, (0.1, 0.3), (0.3, 3.3)), False),
    "rand_augment": ({"magnitude": 12}, v2.RandAugment(2, 12), True),
    "trivial_augment": ({}, v2.TrivialAugmentWide(), True),
    "auto_augment": ({}, v2.AutoAugment(), True),
}


@pytest.mark.parametrize("name", CASES)
def test_each_picture_is_changed_as_by_torchvision(name: str) -> None:
    options, theirs, as_bytes = CASES[name]
    change = plugins.find("transform", name).component(**options)
    state, python_state = torch.get_rng_state(), random.getstate()
    before = PICTURES.clone()
    ours = change(PICTURES, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state and torch.equal(PICTURES, before)
    seeds = torch.randint(2**62, (len(PICTURES),), generator=torch.Generator().manual_seed(4)).tolist()
    for row, seed in enumerate(seeds):
        torch.manual_seed(seed)
        picture = (PICTURES[row] * 255).round().to(torch.uint8) if as_bytes else PICTURES[row].clone()
        expected = theirs(picture)
        torch.testing.assert_close(ours[row], expected.float() / 255 if as_bytes else expected, rtol=0, atol=1e-6)
    assert not torch.equal(ours, PICTURES) and ours.dtype == torch.float32
    assert torch.equal(ours, change(PICTURES, torch.Generator().manual_seed(4)))
    assert not torch.equal(ours, change(PICTURES, torch.Generator().manual_seed(5)))


def test_mirrored_images() -> None:
    flip = plugins.find("transform", "flip").component
    many = PICTURES[:1].repeat(400, 1, 1, 1)
    changed = flip()(many, torch.Generator().manual_seed(0))
    is_mirrored = torch.tensor([torch.equal(row, PICTURES[0].flip(2)) for row in changed])
    assert 0.4 < is_mirrored.float().mean() < 0.6 and torch.equal(changed[~is_mirrored], many[~is_mirrored])
    assert torch.equal(flip(share=0.0)(many, torch.Generator()), many)


def test_what_cannot_be_is_refused() -> None:
    for name, options in (
        ("color_jitter", {"hue": 0.6}),
        ("random_erasing", {"area": (0.5, 0.1)}),
        ("rand_augment", {"magnitude": 31}),
        ("flip", {"share": 2.0}),
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            plugins.find("transform", name).component(**options)
