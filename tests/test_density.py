"""Density and spectral decay against loops over pairs and a singular value decomposition by NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dmlcore.plugins import registry

DENSITY = registry("metric")["density"].component


def test_against_loops_and_numpy() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 6))
    labels = np.concatenate([np.repeat([7, 3, 5], 12), [9, 9, 2, 4]])  # classes of one sample too
    x[:, 2] *= 4
    got = DENSITY(skipped=1)(torch.from_numpy(x), torch.from_numpy(labels))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [math.dist(x[i], x[j]) for i, j in itertools.permutations(range(40), 2) if labels[i] == labels[j]]
    means = [x[labels == label].mean(0) for label in np.unique(labels)]
    between = [math.dist(a, b) for a, b in itertools.permutations(means, 2)]
    singular = np.linalg.svd(x, compute_uv=False)[1:]
    shares = singular / singular.sum()
    decay = sum((1 / 5) * math.log((1 / 5) / share) for share in shares)
    expected = {"intra_distance": np.mean(pairs), "inter_distance": np.mean(between), "spectral_decay": decay}
    expected["density"] = expected["intra_distance"] / expected["inter_distance"]
    assert got == pytest.approx(expected, rel=1e-9)


def test_directions_used_alike_have_no_decay() -> None:
    axes = torch.eye(5).repeat(3, 1)
    got = DENSITY(skipped=0)(axes, torch.arange(5).repeat(3))
    assert got["spectral_decay"] == pytest.approx(0, abs=1e-6) and got["intra_distance"] == 0
    assert got["inter_distance"] == pytest.approx(2**0.5)


def test_what_is_not_defined_is_nan() -> None:
    alone = DENSITY()(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(3))
    assert math.isnan(alone["intra_distance"]) and math.isnan(alone["density"])
    one = DENSITY()(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
    assert math.isnan(one["inter_distance"])
