"""The metric `linear_probe`: the classifier against scikit-learn's, and how samples are parted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmlcore import plugins
from dmlcore.data import FeatureStore, LabelledDataset
from dmlcore.evaluation import evaluating


def samples(count: int = 200, classes: int = 5, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, count)
    x = generator.normal(size=(classes, 8))[y] + noise * generator.normal(size=(count, 8))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def test_the_classifier_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the oracle is scikit-learn")
    from dmlcore_plugins.metrics.linear_probe import fit

    x, y = samples()
    x = torch.nn.functional.normalize(x.double(), dim=1)
    for strength in (0.5, 100.0):
        oracle = linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-10).fit(x.numpy(), y.numpy())
        weights = fit(x, y, 5, strength)
        np.testing.assert_allclose(
            torch.softmax(x @ weights[:-1] + weights[-1], 1).numpy(), oracle.predict_proba(x.numpy()), atol=2e-5
        )


def test_gallery_and_queries_are_its_parts() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the oracle is scikit-learn")
    x, y = samples()
    roles = np.array(["query", "gallery"] * 100)
    names = [str(label) for label in range(5)]
    dataset = LabelledDataset(FeatureStore(x.numpy()), np.arange(200), y.numpy(), names, (8,), roles=roles)
    metric = plugins.find("metric", "linear_probe").component()
    value = evaluating.evaluate(x, dataset, [metric])["linear_probe.accuracy"]
    unit = torch.nn.functional.normalize(x.double(), dim=1).numpy()
    oracle = linear_model.LogisticRegression(C=100, max_iter=5000, tol=1e-10).fit(unit[1::2], y[1::2])
    assert value == pytest.approx(oracle.score(unit[::2], y[::2]), abs=1e-12) and 0.3 < value < 1


def test_halves_of_classes() -> None:
    metric = plugins.find("metric", "linear_probe").component
    x, y = samples(noise=0.1)
    assert metric()(x, y)["accuracy"] == 1
    assert metric(most=20)(x, y)["accuracy"] > 0.9
    order = torch.randperm(len(x))
    noisy = samples()[0]
    assert metric()(noisy, y) == metric()(noisy[order], y[order])
    with torch.inference_mode():
        of_inference = noisy * 1.0
    assert metric()(of_inference, y) == metric()(noisy, y)
    shuffled = metric()(noisy, y[torch.randperm(200, generator=torch.Generator().manual_seed(1))])["accuracy"]
    assert shuffled < 0.4  # labels that say nothing
    assert np.isnan(metric()(x[:3], torch.zeros(3, dtype=torch.int64))["accuracy"])
    assert np.isnan(metric()(x[:3], torch.arange(3))["accuracy"])
