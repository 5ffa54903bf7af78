"""Signs that a run learns nothing, or the wrong thing, each told once and in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from dmlcore.losses import ProxyLoss
from dmlcore.training.measurements import StepRecord

if TYPE_CHECKING:
    from dmlcore.training.run import Run

DEAD_STEPS = 50  # in a row in which a loss has no active anchor
SKIPPED_STEPS = 20  # in a row whose gradients overflow in float16
COLLAPSED = 2.0  # effective rank of a batch's embeddings, all of them at least
SETTLED = 100  # steps: a network at random gives similar embeddings to everything
WORSE = 3  # evaluations in a row below the first one


class Guards:
    """Watches the steps and evaluations of a run.

    Args:
        run: is watched; its proxies are remembered as they are now.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._told: dict[str, str] = {}
        self._dead: dict[str, int] = {}
        self._skipped = 0
        self._scores: list[float] = []
        self._first = ""  # evaluation that this process saw
        self._proxies = {
            name: _size(loss)
            for name, loss in zip(run.ensemble.names, run.ensemble.members, strict=True)
            if isinstance(loss, ProxyLoss)
        }

    @property
    def told(self) -> list[str]:
        """What was wrong so far."""
        return list(self._told.values())

    def of_schedule(self) -> Iterator[str]:
        """What of the schedule does not come true."""
        text = self.run.schedule.unreached(self.run.steps)
        if text:
            yield from self._once("schedule", f"the schedule '{self.run.schedule.name}': {text}")

    def of_batch(self, labels: Tensor) -> Iterator[str]:
        """What is wrong with a batch, labels [B] or bool [B, L]."""
        is_alone = len(labels.unique()) == len(labels) if labels.ndim == 1 else int(labels.sum(0).max()) < 2
        if is_alone:
            what = "class" if labels.ndim == 1 else "label"
            yield from self._once(
                "pairs", f"no two samples of a batch share a {what}: losses between samples learn nothing from it"
            )

    def of_step(self, record: StepRecord) -> Iterator[str]:
        """What a step shows."""
        for name, active in record.active.items():
            self._dead[name] = self._dead.get(name, 0) + 1 if active == 0 else 0
            if self._dead[name] == DEAD_STEPS:
                yield from self._once(
                    f"dead {name}",
                    f"loss '{name}' had no active sample in {DEAD_STEPS} steps: its margins are kept, and it trains nothing."
                    " Try a larger margin, a harder miner, or leave it out",
                )
        self._skipped = self._skipped + 1 if record.is_skipped else 0
        if self._skipped == SKIPPED_STEPS:
            text = f"gradients overflowed in float16 for {SKIPPED_STEPS} steps, which were left out. Try --precision bf16"
            yield from self._once("skipped", text)
        rank = record.effective_rank
        if rank is not None and rank < COLLAPSED < self.run.model.head_dim and record.step >= SETTLED:
            yield from self._once(
                "collapse",
                f"step {record.step}: the embeddings of a batch have collapsed onto {rank:.1f} directions."
                " Try a smaller --learning-rate, or another loss",
            )

    def of_evaluation(self, score: float) -> Iterator[str]:
        """What an evaluation shows, by its MAP@R on the validation classes."""
        if not self._scores:
            self._first = "before any training" if self.run.step == 0 else f"of step {self.run.step}"
        self._scores.append(score)
        if len(self._scores) > WORSE and all(later < self._scores[0] for later in self._scores[-WORSE:]):
            yield from self._once(
                "worse",
                f"{WORSE} evaluations in a row are below the one {self._first}."
                " Try a smaller --learning-rate; the best checkpoint is kept",
            )
        if self.run.step:
            for name, loss in zip(self.run.ensemble.names, self.run.ensemble.members, strict=True):
                if isinstance(loss, ProxyLoss) and _size(loss) == self._proxies[name]:
                    yield from self._once(f"proxies {name}", f"the proxies of '{name}' have not moved in {self.run.step} steps")

    def _once(self, key: str, text: str) -> Iterator[str]:
        if key not in self._told:
            self._told[key] = text
            yield text


def _size(loss: ProxyLoss) -> float:
    return float(loss.proxies.detach().double().square().sum())
