"""Losses with proxies that leave classes out: the classes and the values by an own transcription, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlcore.errors import ConfigError
from dmlcore.losses import create
from dmlcore.losses.sampling import ClassSampling
from dmlcore.training import RunConfig, train

CLASSES, WIDTH, BITS = 40, 6, 2**64 - 1


def scrambled(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def transcribed(labels: list[int], fraction: float, seed: int) -> list[int]:
    factor = scrambled(0) | 1
    key = scrambled((sum(scrambled(label * factor & BITS) for label in labels) + seed) & BITS)
    chance = [(scrambled(key ^ scrambled(c)) >> 11) / 2**53 for c in range(CLASSES)]
    return [c for c in range(CLASSES) if chance[c] < fraction or c in labels]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, WIDTH, dtype=torch.float64, generator=generator), torch.randint(CLASSES, (9,), generator=generator)


def test_value_and_gradient_are_those_of_the_classes_that_are_drawn() -> None:
    x, y = batch()
    loss = create("norm_softmax", num_classes=CLASSES, embedding_dim=WIDTH, temperature=0.5).double()
    loss.sample_classes(0.3, seed=7)  # type: ignore[operator]
    classes = transcribed(y.tolist(), 0.3, 7)
    assert len(set(y.tolist())) < len(classes) < CLASSES
    x.requires_grad_()
    value = loss(x, y)
    of_x, of_proxies = torch.autograd.grad(value, [x, loss.proxies])  # type: ignore[list-item]
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(x, y.tolist(), strict=True):
        logits = {c: torch.cosine_similarity(row, loss.proxies[c], dim=0) / 0.5 for c in classes}  # type: ignore[index]
        total = total + torch.log(sum(torch.exp(s) for s in logits.values())) - logits[label]  # type: ignore[arg-type]
    expected = torch.autograd.grad(total / len(x), [x, loss.proxies])  # type: ignore[list-item]
    assert math.isclose(value.item(), total.item() / len(x), rel_tol=1e-12)
    for ours, theirs in zip((of_x, of_proxies), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    left_out = [c for c in range(CLASSES) if c not in classes]
    assert not of_proxies[left_out].any()
    loss.eval()
    assert loss(x, y) > value  # all classes


def test_other_batches_and_seeds_draw_other_classes_about_as_many() -> None:
    classes, draws = torch.arange(20_000), ClassSampling(0.1, 0)
    ones = [draws.drawn(classes, torch.tensor([label, 3])) for label in range(20)]
    assert len({tuple(rows.tolist()) for rows in ones}) == 20
    assert abs(np.mean([len(rows) for rows in ones]) / 2000 - 1) < 0.05
    assert torch.equal(ones[5], draws.drawn(classes, torch.tensor([3, 5])))  # in any order
    assert not torch.equal(ones[5], ClassSampling(0.1, 1).drawn(classes, torch.tensor([5, 3])))


def test_what_needs_all_classes_is_refused() -> None:
    for name, options in (
        ("norm_softmax", {"label_smoothing": 0.1}),
        ("soft_triple", {"tau": 0.2}),
        ("proxy_nca", {"variant": "wedl"}),
    ):
        loss = create(name, num_classes=4, embedding_dim=4, **options)
        with pytest.raises(ConfigError, match="none can be left out"):
            loss.sample_classes(0.5)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="sampled_classes"):
        create("arcface", num_classes=4, embedding_dim=4).sample_classes(0)  # type: ignore[operator]


def test_a_run_samples_its_classes(tmp_path) -> None:
    labels = np.repeat(np.arange(30), 6)
    x = np.random.default_rng(0).normal(size=(30, 8))[labels] + np.random.default_rng(1).normal(size=(180, 8)) * 0.3
    data, values = (x.astype(np.float32), labels), {"steps": 4, "report": False, "device": "cpu", "classes_per_batch": 4}
    result = train(data=data, losses="arcface", out=tmp_path / "run", sampled_classes=0.3, **values)
    assert result["steps_done"] == 4
    whole = train(data=data, losses="arcface", out=tmp_path / "whole", **values)
    first, of_all = (json.loads((Path(r["run"]) / "metrics.jsonl").read_text().splitlines()[1]) for r in (result, whole))
    assert first["step"] == of_all["step"] == 1 and first["total"] < of_all["total"]  # fewer other classes
    with pytest.raises(ConfigError, match="there is none; leave it out"):
        train(RunConfig.create(data="glyphs", plugins="ms", sampled_classes=0.3, **values), out=tmp_path / "none")
