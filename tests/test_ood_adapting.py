"""Adaptation of the last layer to episodes: what is tuned, from where, on which samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ood_files import PER_CLASS, make_features, only

from dmlcore.data import open_data
from dmlcore.errors import ConfigError
from dmlcore.evaluation import evaluating
from dmlcore.models import build_model
from dmlcore.protocols.shift import adapting
from dmlcore.protocols.shift.adapting import Adaptation, Augmented, Tail, adapt, trunk_features, tune

MODELS: list[dict[str, Any]] = [
    {},
    {"normalize": False},
    {"heads": 2},
    {"student": 5, "served": "student"},
    {"head_norm": "layer"},
]


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_a_tail_is_the_model_behind_its_trunk_and_tunes_its_last_layeronly(settings: dict[str, Any], tmp_path: Path) -> None:
    splits = open_data(make_features(tmp_path / "features.npz"))
    model = build_model(sample_shape=(12,), kind="features", embedding_dim=6, **settings)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = trunk_features(model, splits.test)
    expected = torch.nn.functional.normalize(evaluating.embed(model, splits.test), dim=1)
    tail = Tail(model)
    assert torch.allclose(tail(features), expected, atol=1e-6) and model.training
    tune(tail, features, splits.test.dense_labels, 3, 1e-2, 0)
    changed = {name for name, value in tail.model.state_dict().items() if not torch.equal(value, before[name])}
    layer = "student." if settings.get("student") else "head."
    assert changed and all(name.startswith(layer) for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_episodes_start_from_the_same_weights_and_see_their_supportonly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = open_data(make_features(tmp_path / "features.npz")).test
    model = build_model(sample_shape=(12,), kind="features", embedding_dim=6)
    features = trunk_features(model, test)
    support = [np.arange(n, len(test), PER_CLASS) for n in (0, 3)]
    support = [np.sort(np.concatenate([rows, rows + 1])) for rows in support]
    seen: list[tuple[torch.Tensor, np.ndarray]] = []
    first_weights: list[torch.Tensor] = []
    whole_tune = adapting.tune

    def watched(tail: Tail, rows: torch.Tensor, labels: np.ndarray, *arguments: Any) -> Tail:
        seen.append((rows, labels))
        first_weights.append(next(tail.layer.parameters()).detach().clone())
        return whole_tune(tail, rows, labels, *arguments)

    monkeypatch.setattr(adapting, "tune", watched)
    measures = adapt(model, features, test.dense_labels, support, 20, 1e-2, 0)
    for (rows, labels), support_rows in zip(seen, support, strict=True):
        assert torch.equal(rows, features[support_rows]) and np.array_equal(labels, test.dense_labels[support_rows])
    assert torch.equal(first_weights[0], first_weights[1])
    queries = np.setdiff1d(np.arange(len(test)), support[1])
    again = adapt(model, features, test.dense_labels, support[1:], 20, 1e-2, 1)  # the second episode on its own
    assert again[0] == measures[1] and measures[1]["before"] != measures[1]["after"]
    measured = evaluating.evaluate(Tail(model)(features[queries]).detach(), only(test, queries))
    assert measured["map@r"] == pytest.approx(measures[1]["before"]["map@r"])


def test_adaptation_learns_what_separates_the_support() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    signal, noise = np.eye(10)[labels] * 2 + 0.3 * generator.normal(size=(120, 10)), 3 * generator.normal(size=(120, 10))
    features = torch.from_numpy(np.concatenate([signal, noise], 1).astype(np.float32))
    model = build_model("identity", sample_shape=(20,), kind="features", embedding_dim=8, seed=1)
    support = np.flatnonzero(np.arange(120) % 12 < 5)
    (measures,) = adapt(model, features, labels, [support], 200, 1e-2, 0)
    assert measures["after"]["recall@1"] > measures["before"]["recall@1"] + 0.1


def test_the_boundary_and_the_cutoff_are_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = open_data(make_features(tmp_path / "features.npz")).test
    model = build_model(sample_shape=(12,), kind="features", embedding_dim=6)
    features, created = trunk_features(model, test), []
    create = adapting.losses.create

    def watched(*names: Any, **options: Any) -> Any:
        created.append(create(*names, **options))
        return created[-1]

    monkeypatch.setattr(adapting.losses, "create", watched)
    tails = []
    for options in ({}, {"learn_beta": True, "cutoff": 1.4}):
        tails.append(tune(Tail(model), features, test.dense_labels, 3, 1e-2, 0, Adaptation(**options)))
    fixed, learnt = created
    assert fixed.options.nonzero_loss_cutoff == 2 and fixed.options.average == "triplets"
    assert fixed.beta.tolist() == pytest.approx([1.2]) and not list(fixed.parameters())
    assert len(learnt.beta) == test.num_classes and (learnt.beta < 1.1999).any() and learnt.options.nonzero_loss_cutoff == 1.4
    assert not torch.equal(*(next(tail.layer.parameters()) for tail in tails))


def test_support_is_changed_at_random_before_every_step(tmp_path: Path) -> None:
    test = open_data(make_features(tmp_path / "features.npz")).test
    model = build_model("identity", sample_shape=(12,), kind="features", embedding_dim=6)
    support, rows = np.array([3, 9, 20, 31, 40]), [[0, 2], [0, 2], [1, 4]]

    def shift(samples: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return samples + torch.randn(len(samples), 1, generator=generator)

    plain, changed = Augmented(model.trunk, test), Augmented(model.trunk, test.augmented(shift))
    features = trunk_features(model, test)
    for batch, places in zip(plain.batches(support, rows, 5), rows, strict=True):
        assert torch.allclose(batch, features[support[places]], atol=1e-6)
    first, second, third = changed.batches(support, rows, 5)
    assert not torch.allclose(first, second, atol=1e-3) and not torch.allclose(third, features[support[rows[2]]], atol=1e-3)
    again, *_ = changed.batches(support, rows, 5)
    assert torch.equal(first, again) and model.trunk.training
    same = adapt(model, features, test.dense_labels, [support_of(test)], 3, 1e-2, 0)
    other = adapt(model, features, test.dense_labels, [support_of(test)], 3, 1e-2, 0, changed=changed)
    assert same[0]["before"] == other[0]["before"] and same[0]["after"] != other[0]["after"]


def support_of(test: Any) -> np.ndarray:
    return np.flatnonzero(np.arange(len(test)) % PER_CLASS < 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shots": (2, 5), "steps": (1, 2, 3)}, "3 numbers for 2"),
        ({"shots": (1,), "steps": (5,)}, "shots is 1"),
        ({"shots": (2, 2), "steps": (5,)}, "each may be named once"),
        ({"steps": (0,)}, "adapt_steps is 0"),
        ({"rate": 0.0}, "adapt_rate is 0"),
        ({"episodes": 0}, "episodes is 0"),
        ({"cutoff": 2.5}, "adapt_cutoff is 2.5"),
    ],
)
def test_adaptations_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adaptation(**options)
    assert Adaptation(shots=(2, 5), steps=(7,)).steps == (7, 7)
