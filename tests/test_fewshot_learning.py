"""Few-shot transfer: predictions, scores, the stopping rules and the networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmlcore.protocols.fewshot import predicting
from dmlcore.protocols.fewshot.fitting import Rule, fit
from dmlcore.protocols.fewshot.networks import MOMENTUM, build_classifier, build_network


def test_predictions_by_hand() -> None:
    support, labels = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    queries = torch.tensor([[10.0, 1.0], [0.1, 0.2], [1.0, 1.0]])
    assert predicting.nearest_support(queries, support, labels).tolist() == [0, 1, 0]  # equal cosines: the first
    prototypes = predicting.prototypes_of(support, labels, 2)
    assert prototypes.tolist() == [[1.0, 0.0], [0.0, 3.0]]
    assert predicting.nearest_prototype(queries, prototypes).tolist() == [0, 0, 0]


def test_leave_one_out_scores_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (23,), generator=generator)
    y[-1] = 4  # alone
    u = x / x.norm(dim=1, keepdim=True)
    recall, nearest, counted = 0, 0, 0
    for a in range(23):
        if (y == y[a]).sum() < 2:
            continue
        counted += 1
        all_but_a = [b for b in range(23) if b != a]
        recall += int(y[max(all_but_a, key=lambda b: float(u[a] @ u[b]))] == y[a])
        means = {c: x[[b for b in all_but_a if y[b] == c]].mean(0) for c in range(5) if any(y[b] == c for b in all_but_a)}
        nearest += int(min(means, key=lambda c: float((x[a] - means[c]).norm())) == int(y[a]))
    for rows in (1024, 5):
        monkeypatch.setattr(predicting, "ROWS", rows)
        assert predicting.leave_one_out_recall(x, y) == pytest.approx(recall / counted)
        assert predicting.leave_one_out_prototypes(x, y, 5) == pytest.approx(nearest / counted)


def scripted(scores: list[float], rule: Rule) -> tuple[Any, nn.Module]:
    """Train a network whose score in each round is given; the weight counts the rounds."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    scores_in_turn = iter(scores)
    return fit(network, optimiser, lambda: iter([-network.weight.sum()]), lambda: next(scores_in_turn), rule), network


def test_the_best_state_is_kept_by_value() -> None:
    fitted, network = scripted([0.2, 0.5, 0.5, 0.4, 0.3], Rule(5, 5))
    assert fitted.round == 2 and fitted.score == 0.5 and fitted.rounds == 5
    assert fitted.state["weight"].item() == 2 and network.weight.item() == 5  # later steps left it alone


def test_stopping_on_the_target_looks_at_the_relative_rise() -> None:
    # after rounds 2, 4 and 6 the best is .50, .52 and .522: the last rise is below 1 %
    fitted, _ = scripted([0.4, 0.5, 0.5, 0.52, 0.52, 0.522, 0.9], Rule(7, 2))
    assert fitted.rounds == 6 and fitted.round == 6
    assert scripted([0.0, 0.0, 0.5, 0.5, 0.5, 0.5], Rule(6, 2))[0].rounds == 6  # never at the first look
    assert scripted([0.3, 1.0, 0.2, 0.2], Rule(4, 4))[0].rounds == 2  # nothing can be better than 1


def test_stopping_on_the_source_waits_for_a_better_score() -> None:
    fitted, _ = scripted([0.4, 0.5, 0.45, 0.501, 0.4, 0.4, 0.4, 0.9], Rule(8, 3, looks_back=True))
    assert fitted.round == 4 and fitted.rounds == 7


def test_the_state_before_training_can_be_the_best() -> None:
    fitted, _ = scripted([0.6, 0.5, 0.4], Rule(2, 2, from_start=True))
    assert fitted.round == 0 and fitted.state["weight"].item() == 0


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    network = nn.Linear(1, 1)

    def losses() -> Iterator[Tensor]:
        yield network.weight.sum() * torch.nan

    before = network.weight.detach().clone()
    fitted = fit(network, torch.optim.SGD(network.parameters(), lr=1.0), losses, lambda: 0.5, Rule(3, 3))
    assert fitted.diverged and fitted.round == 0 and torch.equal(fitted.state["weight"], before)


@pytest.mark.parametrize("init", ["default", "normal", "xavier"])
def test_weights_are_drawn_as_asked(init: Any) -> None:
    def build(seed: int) -> nn.Module:
        shape = (1, 12, 12)
        settings = {"sample_shape": shape, "kind": "images", "embedding_dim": 32, "init": init, "seed": seed}
        return build_network("conv", options={"channels": (16, 32)}, **settings)

    network, same, other = build(1), build(1), build(2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    kernels = [p for p in network.parameters() if p.ndim > 1]
    assert not torch.equal(kernels[0], next(p for p in other.parameters() if p.ndim > 1))
    deviation = torch.cat([kernel.flatten() for kernel in kernels]).std().item()
    assert (0.9 < deviation < 1.1) == (init == "normal")
    if init == "xavier":
        bound = (6 / (32 * 9 + 16 * 9)) ** 0.5
        assert 0.9 * bound < kernels[1].abs().max() <= bound
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == 2 and all(layer.momentum == MOMENTUM and layer.weight.min() == 1 for layer in layers)


def test_the_small_trunk_can_do_without_normalisation() -> None:
    settings = {"sample_shape": (1, 12, 12), "kind": "images", "embedding_dim": 4, "init": "default", "seed": 0}
    network = build_network("conv", options={"channels": (4, 8), "norm": "none"}, **settings)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 2 and all(layer.bias is not None for layer in convolutions)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    x = torch.rand(3, 1, 12, 12)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6)  # a sample does not depend on the others, in training too


def test_a_classifier_takes_the_network_over() -> None:
    network = build_network("mlp", options={}, sample_shape=(5,), kind="features", embedding_dim=3, init="default", seed=0)
    classifier = build_classifier(network, 3, 4, "xavier", 1)
    x = torch.randn(2, 5)
    assert torch.equal(classifier(x), classifier.head(network(x).relu()))
    assert classifier.head.weight.shape == (4, 3) and classifier.head.bias.abs().sum() == 0


def test_features_without_a_named_trunk_take_one_with_hidden_units() -> None:
    network: Any = build_network(None, options={}, sample_shape=(5,), kind="features", embedding_dim=3, init="default", seed=0)
    assert network.trunk.name == "mlp"
