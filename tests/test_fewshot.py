"""Few-shot transfer: what is drawn, how each arm learns and predicts, and that test samples stay unseen until the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmlcore.data.sources import Table
from dmlcore.data.stores import FeatureStore
from dmlcore.errors import ConfigError
from dmlcore.protocols.fewshot import batches, predicting
from dmlcore.protocols.fewshot.arms import arms_of
from dmlcore.protocols.fewshot.budgets import PRESETS, budget_of
from dmlcore.protocols.fewshot.cell import Experiment, Plan
from dmlcore.protocols.fewshot.classes import Sides, choose_sides, read_selection
from dmlcore.protocols.fewshot.fitting import Rule, fit
from dmlcore.protocols.fewshot.networks import MOMENTUM, build_classifier, build_network
from dmlcore.protocols.fewshot.objectives import Learner
from dmlcore.protocols.fewshot.samples import Samples
from dmlcore.protocols.fewshot.tasks import Part, draw_task

SHORT = {"epochs": 3, "target_epochs": 4, "patience": 2, "episodes": 6, "episode_patience": 4, "episode_check": 2, "batch": 16}


class Traced(FeatureStore):
    """A store that remembers what was fetched, in order."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values)
        self.fetched: list[np.ndarray] = []

    def fetch(self, indices: np.ndarray) -> Tensor:
        self.fetched.append(np.array(indices))
        return super().fetch(indices)


def samples_of(classes: int = 12, count: int = 12, width: int = 8, groups: bool = False) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    x = (rng.normal(size=(classes, width))[labels] + 0.7 * rng.normal(size=(len(labels), width))).astype(np.float32)
    order = rng.permutation(len(labels))
    names = [f"c{label}" for label in range(classes)]
    parted = ["low" if label < classes // 2 else "high high" for label in range(classes)] if groups else None
    return Samples(Table("features", Traced(x[order]), labels[order], names, (width,), class_groups=parted))


def plan_of(**more: Any) -> Plan:
    plan = Plan(
        data="",
        data_options={},
        image_size=None,
        source_classes="c0-c5",
        target_classes=None,
        n=3,
        source_n=4,
        shots=[1, 4],
        losses=[],
        loss_options={},
        model="mlp",
        model_options={"hidden": 8},
        embedding_dim=6,
        init="default",
        stopping="paper",
        budget=dataclasses.asdict(budget_of("cpu", SHORT)),
        seed=0,
        replication=0,
    )
    return dataclasses.replace(plan, **more)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times."""
    if isinstance(result, dict):
        return {key: figures(value) for key, value in result.items() if key != "seconds"}
    return result


# ---- which classes


def test_selections_name_classes_ranges_and_groups() -> None:
    table = samples_of(groups=True).table
    assert read_selection(table, "c3", "--x") == [3]
    assert read_selection(table, "c2-c4, c0", "--x") == [0, 2, 3, 4]
    assert read_selection(table, "@low,c11", "--x") == [0, 1, 2, 3, 4, 5, 11]
    assert read_selection(table, "@high high", "--x") == [6, 7, 8, 9, 10, 11]
    table.class_names[0] = "c1-c2"  # a name that looks like a range is a name
    assert read_selection(table, "c1-c2", "--x") == [0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c99", "no class 'c99'. Did you mean"),
        ("c4-c2", "runs backwards"),
        ("@lo", "no group 'lo'. Did you mean 'low'"),
        (" , ", "chooses no class"),
    ],
)
def test_wrong_selections_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_selection(samples_of(groups=True).table, text, "--x")


def test_groups_that_are_not_there_say_so() -> None:
    with pytest.raises(ConfigError, match="no groups of classes"):
        read_selection(samples_of().table, "@low", "--x")


def test_sides_are_disjoint_and_large_enough() -> None:
    samples = samples_of()
    sides = choose_sides(samples.table, samples.sizes, "c0-c3", None, 11)
    assert sides.source == [0, 1, 2, 3] and sides.target == list(range(4, 12))
    with pytest.raises(ConfigError, match="2 classes are on both sides, source and target: 'c2', 'c3'"):
        choose_sides(samples.table, samples.sizes, "c0-c3", "c2-c5", 3)
    with pytest.raises(ConfigError, match=r"class 'c4' of the target classes has 12 samples .* but k = 12"):
        choose_sides(samples.table, samples.sizes, "c0-c3", None, 12)
    with pytest.raises(ConfigError, match="cannot be given"):
        choose_sides(samples.table, samples.sizes, "random", "c1", 3)
    small = choose_sides(samples.table, [12] * 10 + [3, 4], "random", None, 3)
    assert small.target == [*range(10), 11] and "1 classes with fewer than 4" in small.notes[0]


# ---- tasks


def test_a_task_is_disjoint_nested_and_repeats() -> None:
    labels = samples_of().labels
    sides = Sides([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    task = draw_task(labels, sides, 3, 4, seed=1, replication=2)
    assert len(set(task.source_classes)) == 4 and set(task.source_classes) <= set(sides.source)
    assert len(set(task.target_classes)) == 3 and set(task.target_classes) <= set(sides.target)
    assert not set(task.source_train.rows) & set(task.source_validation.rows)
    assert len(task.source_validation) == 4 * 3 and len(task.source_train) == 4 * 9
    for k in (1, 4, 11):
        support, test = task.support(k), task.test(k)
        assert len(support) == 3 * k and not set(support.rows) & set(test.rows)
        assert set(support.rows) | set(test.rows) == set(task.target.rows)
        assert [task.target_classes[label] for label in test.labels] == labels[test.rows].tolist()
        assert set(task.support(1).rows) <= set(support.rows)
    again = draw_task(labels, sides, 3, 4, seed=1, replication=2)
    assert np.array_equal(again.target.rows, task.target.rows) and again.source_classes == task.source_classes
    other = draw_task(labels, sides, 3, 4, seed=1, replication=3)
    assert not np.array_equal(other.target.rows, task.target.rows)


def test_a_random_task_never_has_a_class_on_both_sides() -> None:
    labels = samples_of().labels
    for replication in range(30):
        task = draw_task(labels, Sides([], list(range(12))), 5, None, seed=0, replication=replication)
        assert not set(task.source_classes) & set(task.target_classes) and len(task.source_classes) == 7
    with pytest.raises(ConfigError, match="8 source classes are needed, but there are 7 beside 5"):
        draw_task(labels, Sides([], list(range(12))), 5, 8, seed=0, replication=0)
    with pytest.raises(ConfigError, match="n is 13, but there are 12"):
        draw_task(labels, Sides([], list(range(12))), 13, None, seed=0, replication=0)


def test_samples_can_be_limited() -> None:
    task = draw_task(samples_of().labels, Sides([0, 1], [2, 3]), 2, 2, seed=0, replication=0, source_most=6, test_most=2)
    assert len(task.source_train) + len(task.source_validation) == 12
    assert np.bincount(task.test(3).labels).tolist() == [2, 2] and not set(task.test(3).rows) & set(task.support(3).rows)


# ---- batches


def test_batches_by_class_use_each_sample_once() -> None:
    part = Part.of([np.arange(7), np.arange(10, 20), np.arange(30, 34)])
    found = list(batches.by_class(part, 10, np.random.default_rng(0)))
    assert np.bincount(part.labels[found[0]]).tolist() == [3, 3, 3]
    used = np.concatenate(found)
    assert len(set(used)) == len(used) and set(part.rows[used]) <= set(part.rows)
    assert len(used) >= 21 - 3  # what is left of one class alone is no batch
    pairs = list(batches.by_class(part, 2, np.random.default_rng(0)))
    assert np.bincount(part.labels[pairs[0]]).tolist() == [2, 2, 2]


def test_shuffled_batches_are_an_epoch() -> None:
    found = list(batches.shuffled(Part.of([np.arange(7), np.arange(10, 14)]), 4, np.random.default_rng(0)))
    assert [len(batch) for batch in found] == [4, 4, 3] and sorted(np.concatenate(found)) == list(range(11))


def test_episodes_keep_support_and_queries_apart() -> None:
    part = Part.of([np.arange(7), np.arange(10, 20)])
    for wanted, queries, expected in ((3, 2, ([3, 3], [2, 2])), (3, 0, ([3, 3], [4, 7])), (20, 5, ([6, 9], [1, 1]))):
        support, asked = batches.episode(part, wanted, queries, np.random.default_rng(1))
        assert not set(support) & set(asked)
        counts = tuple(np.bincount(part.labels[chosen]).tolist() for chosen in (support, asked))
        assert counts == expected


# ---- predictions and scores


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
        others = [b for b in range(23) if b != a]
        recall += int(y[max(others, key=lambda b: float(u[a] @ u[b]))] == y[a])
        means = {c: x[[b for b in others if y[b] == c]].mean(0) for c in range(5) if any(y[b] == c for b in others)}
        nearest += int(min(means, key=lambda c: float((x[a] - means[c]).norm())) == int(y[a]))
    for rows in (1024, 5):
        monkeypatch.setattr(predicting, "ROWS", rows)
        assert predicting.leave_one_out_recall(x, y) == pytest.approx(recall / counted)
        assert predicting.leave_one_out_prototypes(x, y, 5) == pytest.approx(nearest / counted)


# ---- training


def scripted(scores: list[float], rule: Rule) -> tuple[Any, nn.Module]:
    """Train a network whose score in each round is given; the weight counts the rounds."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    given = iter(scores)
    return fit(network, optimiser, lambda: iter([-network.weight.sum()]), lambda: next(given), rule), network


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
        more = {"sample_shape": shape, "kind": "images", "embedding_dim": 32, "init": init, "seed": seed}
        return build_network("conv", options={"channels": (16, 32)}, **more)

    one, same, other = build(1), build(1), build(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    kernels = [p for p in one.parameters() if p.ndim > 1]
    assert not torch.equal(kernels[0], next(p for p in other.parameters() if p.ndim > 1))
    deviation = torch.cat([kernel.flatten() for kernel in kernels]).std().item()
    assert (0.9 < deviation < 1.1) == (init == "normal")
    if init == "xavier":
        bound = (6 / (32 * 9 + 16 * 9)) ** 0.5
        assert 0.9 * bound < kernels[1].abs().max() <= bound
    layers = [layer for layer in one.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == 2 and all(layer.momentum == MOMENTUM and layer.weight.min() == 1 for layer in layers)


def test_the_small_trunk_can_do_without_normalisation() -> None:
    more = {"sample_shape": (1, 12, 12), "kind": "images", "embedding_dim": 4, "init": "default", "seed": 0}
    network = build_network("conv", options={"channels": (4, 8), "norm": "none"}, **more)
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


# ---- whole cells


def test_test_samples_are_not_fetched_before_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmlcore.protocols.fewshot import cell

    samples = samples_of()
    experiment = Experiment(plan_of(losses=["ms"]), samples)
    store, marks = samples.table.samples, []
    assert isinstance(store, Traced)
    real = cell.predict

    def predict(*given: Any) -> Tensor:
        marks.append(len(store.fetched))
        return real(*given)

    monkeypatch.setattr(cell, "predict", predict)
    store.fetched.clear()
    experiment.run()
    before = set(np.concatenate(store.fetched[: marks[0]]))
    after = set(np.concatenate(store.fetched[marks[0] :]))
    task = experiment.task
    allowed = set(task.source_train.rows) | set(task.source_validation.rows) | set(task.support(4).rows)
    assert before == allowed and not before & set(task.test(4).rows)
    assert set(task.test(4).rows) <= after and not after & set(task.source_train.rows)
    assert len(marks) == 8 * 2 - 3  # the three adapted arms predict nothing at k = 1


def test_a_cell_repeats_bit_by_bit_whatever_else_is_computed() -> None:
    first = Experiment(plan_of(), samples_of()).run()
    torch.manual_seed(123)
    torch.randn(5)
    again = Experiment(plan_of(), samples_of()).run()
    assert figures(first) == figures(again)
    more = Experiment(plan_of(losses=["ms", "triplet+norm_softmax"]), samples_of()).run()
    assert {arm: figures(more["arms"][arm]) for arm in first["arms"]} == figures(first["arms"])
    assert list(more["arms"])[6:] == ["ms", "adap_ms", "triplet+norm_softmax", "adap_triplet+norm_softmax"]
    other = Experiment(plan_of(seed=1), samples_of()).run()
    assert figures(other["arms"]) != figures(first["arms"])


def test_adaptation_is_not_defined_with_one_sample() -> None:
    arms = Experiment(plan_of(), samples_of()).run()["arms"]
    assert set(arms["hist_loss"]) == {"1", "4"} and set(arms["adap_hist_loss"]) == {"4"} == set(arms["adap_proto_net"])
    assert all(0 <= one["error"] <= 1 for shots in arms.values() for one in shots.values())


def test_adaptation_begins_with_the_source_model_and_leaves_it_alone() -> None:
    experiment = Experiment(plan_of(), samples_of())
    arms = {arm.name: arm for arm in experiment.arms}
    for base in ("hist_loss", "proto_net"):
        source, _ = experiment._train(arms[base], 4)
        kept = {name: tensor.clone() for name, tensor in source.items()}
        adapted, _ = experiment._train(arms[f"adap_{base}"], 4)
        assert all(torch.equal(source[name], kept[name]) for name in kept)
        change = max(float((adapted[name] - kept[name]).abs().max()) for name in kept)
        assert 0 < change < 0.5  # a few steps away
    scratch, _ = experiment._train(arms["baseline"], 4)
    transferred, _ = experiment._train(arms["weight_transfer"], 4)
    known = experiment._source(arms["weight_transfer"], 4)[0].state
    name = "network.trunk.hidden.weight"
    near, far = ((state[name] - known[name]).norm() for state in (transferred, scratch))
    assert near < far and transferred["head.weight"].shape == (3, 6) and known["head.weight"].shape == (4, 6)


def test_prototype_models_of_equal_support_are_trained_once() -> None:
    found = Experiment(plan_of(shots=[1, 3, 5, 9]), samples_of()).run()["sources"]
    assert {name for name in found if name.startswith("proto_net")} == {
        "proto_net 1 support",
        "proto_net 3 support",
        "proto_net 4 support",  # half of 9 training samples
    }


def test_held_out_stopping_trains_on_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = Learner.__init__

    def watched(self: Learner, arm: Any, network: Any, samples: Any, part: Part, *rest: Any) -> None:
        seen.append((arm.name, len(part)))
        real(self, arm, network, samples, part, *rest)

    monkeypatch.setattr(Learner, "__init__", watched)
    result = Experiment(plan_of(stopping="validation", shots=[2, 4, 8]), samples_of()).run()
    by_arm = {name: [count for arm, count in seen if arm == name] for name in ("baseline", "adap_hist_loss")}
    assert by_arm["baseline"] == [3 * 2, 3 * 3, 3 * 6]  # k = 2 is too few to hold a quarter out
    assert by_arm["adap_hist_loss"][-3:] == [3 * 2, 3 * 3, 3 * 6]
    assert all(one["epoch"] >= 1 for one in [result["arms"]["baseline"]["2"]])


def test_training_learns_something() -> None:
    budget = dataclasses.asdict(budget_of("cpu", {**SHORT, "epochs": 15, "target_epochs": 30, "patience": 10, "episodes": 40}))
    arms = Experiment(plan_of(budget=budget, shots=[8]), samples_of(count=24)).run()["arms"]
    errors = {name: shots["8"]["error"] for name, shots in arms.items()}
    assert max(errors.values()) < 0.45 and errors["adap_hist_loss"] < 0.25, errors  # two thirds by chance


def test_arms_need_names_of_their_own_and_known_losses() -> None:
    with pytest.raises(ConfigError, match="'ms' is there already"):
        arms_of(["ms", "ms"])
    with pytest.raises(ConfigError, match="no loss 'tripel'. Did you mean 'triplet'"):
        arms_of(["tripel+ms"])
    with pytest.raises(ConfigError, match="alpah"):
        arms_of(["ms"], {"ms": {"alpah": 3}})
    assert arms_of(["ms"], {"ms": {"alpha": 3}})[6].options == {"ms": {"alpha": 3}}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_budgets(preset: str) -> None:
    assert budget_of(preset, {"batch": 7}).batch == 7
    assert budget_of(preset, {}, "features").prototype_rate == 1e-4
    assert budget_of(preset, {"prototype_rate": 0.2}, "features").prototype_rate == 0.2
    with pytest.raises(ConfigError, match="patience"):
        budget_of(preset, {"patience": 0})


def test_the_folder_of_results_names_no_place_twice(tmp_path: Path) -> None:
    from dmlcore.protocols.fewshot.grid import Grid

    cells = Grid(plan_of(), [3, 4], 2).cells()
    assert [cell.key for cell in cells] == ["n3/000", "n4/000", "n3/001", "n4/001"]
    assert [cell.settings["source_n"] for cell in cells] == [3, 4, 3, 4]
    assert Grid(plan_of(), [3], 1, 0).cells()[0].settings["source_n"] == 0
