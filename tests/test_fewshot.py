"""Few-shot transfer: whole cells, and that test samples stay unseen until the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewshot_samples import SHORT, Traced, figures, plan_of, samples_of
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.protocols.fewshot import batches
from dmlcore.protocols.fewshot.arms import arms_of
from dmlcore.protocols.fewshot.budgets import PRESETS, Budget, budget_of
from dmlcore.protocols.fewshot.cell import Experiment, _rule
from dmlcore.protocols.fewshot.objectives import Learner
from dmlcore.protocols.fewshot.tasks import Part


def test_test_samples_are_not_fetched_before_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmlcore.protocols.fewshot import cell

    samples = samples_of()
    experiment = Experiment(plan_of(losses=["ms"]), samples)
    store, marks = samples.table.samples, []
    assert isinstance(store, Traced)
    real = cell.predict

    def predict(*arguments: Any) -> Tensor:
        marks.append(len(store.fetched))
        return real(*arguments)

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
    larger = Experiment(plan_of(losses=["ms", "triplet+norm_softmax"]), samples_of()).run()
    assert {arm: figures(larger["arms"][arm]) for arm in first["arms"]} == figures(first["arms"])
    assert list(larger["arms"])[6:] == ["ms", "adap_ms", "triplet+norm_softmax", "adap_triplet+norm_softmax"]
    other = Experiment(plan_of(seed=1), samples_of()).run()
    assert figures(other["arms"]) != figures(first["arms"])


def test_adaptation_is_not_defined_with_one_sample() -> None:
    arms = Experiment(plan_of(), samples_of()).run()["arms"]
    assert set(arms["hist_loss"]) == {"1", "4"} and set(arms["adap_hist_loss"]) == {"4"} == set(arms["adap_proto_net"])
    assert all(0 <= measured["error"] <= 1 for shots in arms.values() for measured in shots.values())


def test_adaptation_begins_with_the_source_model_and_leaves_it_alone() -> None:
    experiment = Experiment(plan_of(), samples_of())
    arms = {arm.name: arm for arm in experiment.arms}
    for base in ("hist_loss", "proto_net"):
        source, _ = experiment._train(arms[base], 4)
        before = {name: tensor.clone() for name, tensor in source.items()}
        adapted, _ = experiment._train(arms[f"adap_{base}"], 4)
        assert all(torch.equal(source[name], before[name]) for name in before)
        change = max(float((adapted[name] - before[name]).abs().max()) for name in before)
        assert 0 < change < 0.5  # a few steps away
    scratch, _ = experiment._train(arms["baseline"], 4)
    transferred, _ = experiment._train(arms["weight_transfer"], 4)
    source_classifier = experiment._source(arms["weight_transfer"], 4)[0].state
    name = "network.trunk.hidden.weight"
    near, far = ((state[name] - source_classifier[name]).norm() for state in (transferred, scratch))
    assert near < far and transferred["head.weight"].shape == (3, 6) and source_classifier["head.weight"].shape == (4, 6)


def test_prototype_models_of_equal_support_are_trained_once() -> None:
    sources = Experiment(plan_of(shots=[1, 3, 5, 9]), samples_of()).run()["sources"]
    assert {name for name in sources if name.startswith("proto_net")} == {
        "proto_net 1 support",
        "proto_net 3 support",
        "proto_net 4 support",  # half of 9 training samples
    }


def test_held_out_stopping_trains_on_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = Learner.__init__

    def watched(self: Learner, arm: Any, network: Any, samples: Any, part: Part, *arguments: Any) -> None:
        seen.append((arm.name, len(part)))
        real(self, arm, network, samples, part, *arguments)

    monkeypatch.setattr(Learner, "__init__", watched)
    result = Experiment(plan_of(stopping="validation", shots=[2, 4, 8]), samples_of()).run()
    by_arm = {name: [count for arm, count in seen if arm == name] for name in ("baseline", "adap_hist_loss")}
    assert by_arm["baseline"] == [3 * 2, 3 * 3, 3 * 6]  # k = 2 is too few to hold a quarter out
    assert by_arm["adap_hist_loss"][-3:] == [3 * 2, 3 * 3, 3 * 6]
    assert all(measured["epoch"] >= 1 for measured in [result["arms"]["baseline"]["2"]])


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


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # epochs, patience, that of classifiers, batch, that of classifiers, patience and queries of episodes, their rate
        ("mnist", (500, 20, 20, 1024, 2048, 2000, 100, 1e-3)),
        ("isolet", (750, 50, 50, 1024, 1024, 4000, 50, 1e-4)),
        ("omniglot", (500, 70, 100, 1024, 2048, 4000, 5, 1e-4)),
        ("tiny_imagenet", (750, 100, 100, 1024, 1024, 6000, 50, 1e-4)),
    ],
)
def test_the_paper_has_a_budget_for_each_of_its_data_sets(data: str, expected: tuple[float, ...]) -> None:
    """By the option files of the authors' public code."""
    budget = budget_of(f"paper/{data}", {})
    assert budget == budget_of("paper", {}, "features", data)
    assert (
        budget.epochs,
        budget.patience,
        budget.classifier_patience or budget.patience,
        budget.batch,
        budget.classifier_batch or budget.batch,
        budget.episode_patience,
        budget.episode_queries,
        budget.prototype_rate,
    ) == expected
    assert (budget.learning_rate, budget.episodes, budget.episode_check, budget.validation_prototypes) == (5e-3, 10_000, 200, 0)
    assert budget_of(f"paper/{data}", {"patience": 3}).patience == 3
    assert budget_of("cpu", {}, "images", data) == budget_of("cpu", {})


@pytest.mark.parametrize("preset", ["papers", "paper/cifar", "cpu/mnist"])
def test_a_budget_that_is_not_there(preset: str) -> None:
    with pytest.raises(ConfigError, match=r"--budget must be one of cpu, paper, .*paper/mnist"):
        budget_of(preset, {})


def test_results_of_earlier_versions_have_the_same_settings() -> None:
    values = budget_of("cpu", {}).values()
    assert not {"classifier_batch", "classifier_patience", "validation_prototypes"} & set(values)
    assert {"classifier_batch", "validation_prototypes"} <= set(budget_of("paper/mnist", {}).values())
    assert Budget(**values) == budget_of("cpu", {})


def test_classifiers_have_batches_and_patience_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = batches.shuffled

    def shuffled(part: Part, batch: int, rng: np.random.Generator) -> Any:
        sizes.append(batch)
        return real(part, batch, rng)

    monkeypatch.setattr(batches, "shuffled", shuffled)
    budget = budget_of("cpu", {**SHORT, "classifier_batch": 7, "classifier_patience": 3}).values()
    cell = Experiment(plan_of(budget=budget), samples_of())
    cell.run()
    assert set(sizes) == {7}
    rules = {arm.name: _rule(arm, cell.budget, 10).patience for arm in cell.arms}
    assert (rules["baseline"], rules["hist_loss"]) == (3, 2)


def test_the_folder_of_results_names_no_place_twice(tmp_path: Path) -> None:
    from dmlcore.protocols.fewshot.grid import Grid

    cells = Grid(plan_of(), [3, 4], 2).cells()
    assert [cell.key for cell in cells] == ["n3/000", "n4/000", "n3/001", "n4/001"]
    assert [cell.settings["source_n"] for cell in cells] == [3, 4, 3, 4]
    assert Grid(plan_of(), [3], 1, 0).cells()[0].settings["source_n"] == 0
