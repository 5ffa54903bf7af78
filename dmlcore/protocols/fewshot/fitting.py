"""The training loop of every arm: rounds of steps, a score after each, the best state kept, a rule when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmlcore.protocols.fewshot.networks import copy_of

LEAST_RISE = 0.01  # relative, of the best score, between two looks at it

MOST = 1.0  # a share that is right: no later round can be better, and of equal ones the first is kept


@dataclass(frozen=True)
class Rule:
    """When training stops.

    Attributes:
        most: rounds.
        patience: rounds.
        looks_back: training stops after `patience` rounds without a better score, as on the source; else every `patience`
            rounds, where the best score has risen by less than 1 % since the last time, as on the target.
        from_start: the state before the first round may be the best.
    """

    most: int
    patience: int
    looks_back: bool = False
    from_start: bool = False


@dataclass(frozen=True)
class Fitted:
    """What is left of a training.

    Attributes:
        state: of the network in its best round, by value.
        round: the best one, 0 for the state before the first.
        score: its score.
        rounds: done.
        diverged: it ended because a loss was not finite.
    """

    state: dict[str, Tensor]
    round: int
    score: float
    rounds: int
    diverged: bool = False


def fit(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Callable[[], Iterator[Tensor]],
    score: Callable[[], float],
    rule: Rule,
) -> Fitted:
    """Train until the rule says stop and return the best round; the first of several equal ones.

    A loss that is not finite ends the training. Large weights can do that, and what was best before stays.

    Args:
        network: whose state is kept.
        optimiser: of its and the losses' parameters.
        losses: the losses of one round, each computed when it is asked for and stepped on before the next.
        score: of the network as it is, the higher the better.
        rule: when to stop.
    """
    best = Fitted(copy_of(network), 0, score() if rule.from_start else -math.inf, 0)
    looked = best.score
    for number in range(1, rule.most + 1):
        network.train()
        for loss in losses():
            if not bool(torch.isfinite(loss)):
                return Fitted(best.state, best.round, best.score, number, True)
            if not loss.requires_grad:
                continue  # a batch without any pair
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        current = score()
        if current > best.score:
            best = Fitted(copy_of(network), number, current, number)
        if best.score >= MOST or (rule.looks_back and number - best.round >= rule.patience):
            return Fitted(best.state, best.round, best.score, number)
        if not rule.looks_back and number % rule.patience == 0:
            if best.score <= looked or best.score - looked < LEAST_RISE * abs(looked):
                return Fitted(best.state, best.round, best.score, number)
            looked = best.score
    return Fitted(best.state, best.round, best.score, rule.most)
