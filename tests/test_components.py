"""The built-in transforms, samplers and metrics that are chosen by name: their values, beside the contract that
`test_authoring.py` checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmlcore import plugins
from dmlcore.data import ShiftAugmentation, Transforms, create_sampler
from dmlcore.errors import ConfigError, PluginError
from dmlcore.evaluation import MetricOptions
from dmlcore.evaluation.metric import Embedded, Metric, further


def test_uniformity_and_alignment_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    import dmlcore_plugins.metrics.uniformity

    x, y = torch.randn(9, 4), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    unit = torch.nn.functional.normalize(x).double()
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    square = {(i, j): float((unit[i] - unit[j]).square().sum()) for i, j in pairs}
    alignment = np.mean([square[i, j] for i, j in pairs if y[i] == y[j]])
    uniformity = np.log(np.mean([np.exp(-3 * square[pair]) for pair in pairs]))
    metric = plugins.find("metric", "uniformity").component(t=3.0)
    for similarities in (1 << 22, 20):  # all at once, and two rows at a time
        monkeypatch.setattr(dmlcore_plugins.metrics.uniformity, "SIMILARITIES", similarities)
        measures = metric(x, y)
        assert measures["alignment"] == pytest.approx(alignment, rel=1e-5)
        assert measures["uniformity"] == pytest.approx(uniformity, rel=1e-5)
    assert np.isnan(metric(x[:1], y[:1])["uniformity"]) and np.isnan(metric(x[:1], y[:1])["alignment"])


def test_a_metric_must_give_numbers() -> None:
    class Wrong(Metric):
        """Gives no numbers."""

        name = "wrong"
        Options = MetricOptions

        def __call__(self, embeddings, labels):
            return [1.0]

    with pytest.raises(PluginError, match=r"the metric 'wrong' gave \[1\.0\], but must give numbers by name"):
        further([Wrong()], Embedded(torch.zeros(2, 2), torch.zeros(2)))


def test_shuffled_batches_pass_over_all_samples() -> None:
    labels = np.repeat(np.arange(7), 5)
    batches = list(create_sampler("shuffled", labels, 2, 5, seed=3, steps=7))
    drawn = np.concatenate(batches)
    assert all(len(batch) == 10 for batch in batches)
    assert sorted(drawn[:35]) == list(range(35)) and sorted(drawn[35:]) == list(range(35))
    assert list(drawn[:35]) != list(drawn[35:])


def test_transforms_by_name_are_the_augmentations() -> None:
    images = torch.rand(4, 1, 12, 12)
    shift = plugins.find("transform", "shift").component(turn=20.0, flip=True)
    expected = ShiftAugmentation(turn=20.0, flip=True)(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(shift(images, torch.Generator().manual_seed(1)), expected)
    noise = plugins.find("transform", "noise").component(deviation=0.5)
    x = 3 * torch.randn(400, 50)
    added = noise(x, torch.Generator().manual_seed(1)) - x
    assert float(added.std()) == pytest.approx(1.5, rel=0.05) and abs(float(added.mean())) < 0.05
    both = Transforms([shift, noise], "images")(images, torch.Generator().manual_seed(1))
    assert both.shape == images.shape and not both.equal(images)
    with pytest.raises(ConfigError, match="the transform 'shift' changes images, but the data are features"):
        Transforms([shift], "features")
