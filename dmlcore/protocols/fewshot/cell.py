"""One replication of one n: source models, training on the target samples for every k, and then the predictions.

All training of a cell ends before the first test sample is fetched, so a cell keeps the state of every trained arm and k in
memory: arms x k networks.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dmlcore.protocols.fewshot.arms import Arm, arms_of
from dmlcore.protocols.fewshot.budgets import Budget
from dmlcore.protocols.fewshot.classes import choose_sides
from dmlcore.protocols.fewshot.fitting import Fitted, Rule, fit
from dmlcore.protocols.fewshot.networks import Init, build_classifier, build_network
from dmlcore.protocols.fewshot.objectives import Learner, predict
from dmlcore.protocols.fewshot.samples import Samples, open_samples
from dmlcore.protocols.fewshot.tasks import Part, Task, draw_task

Stopping = Literal["paper", "validation"]
LEAST_HELD_OUT = 4  # samples of a class from which on a quarter of them can be held out to choose the epoch


@dataclass(frozen=True)
class Plan:
    """Everything a cell depends on; its fields are the cell's settings.

    Attributes:
        data, data_options, image_size: as `open_samples`.
        source_classes, target_classes: selections of classes.
        n: target classes.
        source_n: source classes; 0: all.
        shots: the k, ascending.
        losses, loss_options: as `arms_of`.
        model, model_options, embedding_dim, init: of the network.
        stopping: `paper`: the epoch of the best training score; `validation`: of the best score on a quarter of the support
            samples, where k >= 4.
        budget: values of `Budget`.
        seed, replication: of all random numbers.
    """

    data: str
    data_options: dict[str, Any]
    image_size: int | None
    source_classes: str
    target_classes: str | None
    n: int
    source_n: int
    shots: list[int]
    losses: list[str]
    loss_options: dict[str, dict[str, Any]]
    model: str | None
    model_options: dict[str, Any]
    embedding_dim: int
    init: Init
    stopping: Stopping
    budget: dict[str, Any]
    seed: int
    replication: int


def compute(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """A cell's result from its settings, as `run_cells` calls it.

    Args:
        settings: the fields of a `Plan`.
        work: not used: a cell takes seconds to minutes and leaves nothing behind.
    """
    plan = Plan(**settings)
    return Experiment(plan, open_samples(plan.data, plan.data_options, plan.image_size)).run()


class Experiment:
    """One cell.

    Args:
        plan: what to do.
        samples: of the data.

    Attributes:
        task: what was drawn.
    """

    def __init__(self, plan: Plan, samples: Samples) -> None:
        self.plan, self.samples = plan, samples
        self.budget = Budget(**plan.budget)
        self.arms = arms_of(plan.losses, plan.loss_options)
        sides = choose_sides(samples.table, samples.sizes, plan.source_classes, plan.target_classes, max(plan.shots))
        self.task: Task = draw_task(
            samples.labels,
            sides,
            plan.n,
            plan.source_n or None,
            seed=plan.seed,
            replication=plan.replication,
            validation_share=self.budget.validation_share,
            source_most=self.budget.source_samples,
            test_most=self.budget.test_samples,
        )
        self._sources: dict[tuple[str, int], tuple[Fitted, float]] = {}

    def run(self) -> dict[str, Any]:
        """Train everything, then predict."""
        trained: dict[tuple[str, int], tuple[dict[str, Tensor], dict[str, Any]]] = {}
        for arm in self.arms:
            for k in self.plan.shots:
                if arm.is_defined(k):
                    trained[arm.name, k] = self._train(arm, k)
        results: dict[str, dict[str, Any]] = {arm.name: {} for arm in self.arms}
        for arm in self.arms:
            for k in self.plan.shots:
                if (arm.name, k) in trained:
                    state, about = trained[arm.name, k]
                    results[arm.name][str(k)] = {"error": self._test_error(arm, k, state), **about}
        sources = {
            f"{name}{f' {support} support' if support else ''}": {**_about(fitted), "seconds": seconds}
            for (name, support), (fitted, seconds) in self._sources.items()
        }
        task = {
            "source": [self.samples.table.class_names[label] for label in self.task.source_classes],
            "target": [self.samples.table.class_names[label] for label in self.task.target_classes],
            "tests": {str(k): len(self.task.test(k)) for k in self.plan.shots},
        }
        return {"arms": results, "sources": sources, "task": task, "headline": _headline(results, max(self.plan.shots))}

    def _train(self, arm: Arm, k: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State of the network an arm predicts with, and what is to be told about its training on the target samples."""
        if not arm.trains_on_target:
            return self._source(arm, k)[0].state, {}
        network = self._network()
        if arm.uses_source and arm.kind != "classifier":
            network.load_state_dict(self._source(arm, k)[0].state)
        elif arm.uses_source:
            whole = self._classifier(network, len(self.task.source_classes), "source head")
            whole.load_state_dict(self._source(arm, k)[0].state)  # `network` is part of it and takes the weights too
        start = time.perf_counter()
        if arm.kind == "classifier":
            network = self._classifier(network, self.plan.n, f"target head {k}")
        fitted = self._fit_target(arm, network, self.task.support(k), k)
        return fitted.state, {**_about(fitted), "seconds": time.perf_counter() - start}

    def _source(self, arm: Arm, k: int) -> tuple[Fitted, float]:
        """The source model of an arm, trained when it is first asked for; of prototypes one for each size of support."""
        budget, train = self.budget, self.task.source_train
        support = 0
        if arm.kind == "prototypes":
            least = int(np.bincount(train.labels).min())
            support = min(k, budget.episode_support or k, max(least // 2, 1))
        key = (arm.base, support)
        if key in self._sources:
            return self._sources[key]
        start = time.perf_counter()
        network = self._network()
        if arm.kind == "classifier":
            network = self._classifier(network, train.classes, "source head")
        learner, seed = self._learner(arm, network, train, "source", support)
        rule = _rule(arm, budget, budget.epochs, looks_back=True)
        with _drawing(seed):
            fitted = fit(
                network,
                learner.optimiser,
                lambda: learner.losses_of_a_round(support, budget.episode_queries),
                lambda: learner.source_score(self.task.source_validation),
                rule,
            )
        self._sources[key] = fitted, time.perf_counter() - start
        return self._sources[key]

    def _fit_target(self, arm: Arm, network: nn.Module, support: Part, k: int) -> Fitted:
        """Train on the target samples: all of them, or all but those that choose the epoch."""
        held = k // 4 if self.plan.stopping == "validation" and k >= LEAST_HELD_OUT else 0
        part, chosen_by = (support.without_first(held), support.first(held)) if held else (support, None)
        learner, seed = self._learner(arm, network, part, "target", k)

        def score() -> float:
            return learner.training_score() if chosen_by is None else learner.accuracy(part, chosen_by)

        shots = k - held
        with _drawing(seed):
            return fit(
                network,
                learner.optimiser,
                lambda: learner.losses_of_a_round(int(0.75 * shots), 0),
                score,
                _rule(arm, self.budget, self.budget.target_epochs, from_start=held > 0),
            )

    def _test_error(self, arm: Arm, k: int, state: dict[str, Tensor]) -> float:
        network = self._network()
        if arm.kind == "classifier":
            network = self._classifier(network, self.plan.n, "prediction")
        network.load_state_dict(state)
        test = self.task.test(k)
        predicted = predict(arm, network, self.samples, self.task.support(k), test)
        return float((predicted != torch.from_numpy(test.labels)).double().mean())

    def _network(self) -> nn.Module:
        """The network of all arms, with the weights they all begin with."""
        plan = self.plan
        return build_network(
            plan.model,
            options=plan.model_options,
            sample_shape=self.samples.shape,
            kind=self.samples.kind,
            embedding_dim=plan.embedding_dim,
            init=plan.init,
            seed=self._seed("weights"),
        )

    def _classifier(self, network: nn.Module, classes: int, purpose: str) -> nn.Module:
        return build_classifier(network, self.plan.embedding_dim, classes, self.plan.init, self._seed(purpose))

    def _learner(self, arm: Arm, network: nn.Module, part: Part, phase: str, k: int) -> tuple[Learner, int]:
        """A learner, and the seed of torch's random numbers from here on: of its losses' weights first."""
        seed = self._seed(arm.base, phase, k)
        with _drawing(seed):
            rng = np.random.default_rng(seed)
            return Learner(arm, network, self.samples, part, self.budget, self.plan.embedding_dim, rng), seed + 1

    def _seed(self, *purpose: str | int) -> int:
        """A seed of its own for everything that is drawn, the same whatever else the cell computes."""
        name = zlib.crc32("/".join(map(str, purpose)).encode())
        return int(np.random.SeedSequence((self.plan.seed, self.plan.replication, self.plan.n, name)).generate_state(1)[0])


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Torch's global generator from a seed inside a `with` block, as it was after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _rule(arm: Arm, budget: Budget, epochs: int, **flags: bool) -> Rule:
    if arm.kind != "prototypes":
        patience = (arm.kind == "classifier" and budget.classifier_patience) or budget.patience
        return Rule(epochs, patience, **flags)
    check = budget.episode_check
    return Rule(max(budget.episodes // check, 1), max(budget.episode_patience // check, 1), **flags)


def _about(fitted: Fitted) -> dict[str, Any]:
    return {"epoch": fitted.round, "score": fitted.score, "epochs": fitted.rounds, "diverged": fitted.diverged}


def _headline(results: dict[str, dict[str, Any]], k: int) -> str:
    return f"error at k = {k}: " + ", ".join(
        f"{name} {100 * ks[str(k)]['error']:.1f}" for name, ks in results.items() if str(k) in ks
    )
