"""The cells of a grid: every n and replication, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.protocols.cells import Cell, run_cells
from dmlcore.protocols.fewshot.arms import arms_of
from dmlcore.protocols.fewshot.budgets import Budget
from dmlcore.protocols.fewshot.cell import Plan, compute
from dmlcore.protocols.fewshot.classes import choose_sides
from dmlcore.protocols.fewshot.networks import build_network
from dmlcore.protocols.fewshot.samples import open_samples
from dmlcore.protocols.fewshot.tasks import check_counts


@dataclasses.dataclass(frozen=True)
class Grid:
    """A plan for all n and replications.

    Attributes:
        plan: of the first cell; the others differ in `n`, `source_n` and `replication`.
        numbers: the n, target classes.
        replications: R.
        source_n: source classes; None: n; 0: all.
    """

    plan: Plan
    numbers: list[int]
    replications: int
    source_n: int | None = None

    def cells(self) -> list[Cell]:
        """Replication by replication, so that an unfinished grid has something of every n."""
        return [self.cell(n, replication) for replication in range(self.replications) for n in self.numbers]

    def cell(self, n: int, replication: int) -> Cell:
        """One cell."""
        source_n = n if self.source_n is None else self.source_n
        plan = dataclasses.replace(self.plan, n=n, source_n=source_n, replication=replication)
        return Cell(f"n{n}/{replication:03d}", dataclasses.asdict(plan))


def check(grid: Grid) -> list[str]:
    """Whether all cells can be drawn and trained; nothing is trained.

    Returns:
        What the user should know.

    Raises:
        ConfigError: numbers out of range, classes that do not suffice, unknown losses, a network that cannot be built.
        DataError: the data cannot be read.
    """
    plan = grid.plan
    for name, values in (("--n", grid.numbers), ("--k", plan.shots)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} must be one or more different numbers, got {', '.join(map(str, values)) or 'none'}")
    if min(plan.shots) < 1:
        raise ConfigError(f"--k must be at least 1, got {min(plan.shots)}")
    if grid.replications < 1:
        raise ConfigError(f"--replications must be at least 1, got {grid.replications}")
    Budget(**plan.budget)
    arms_of(plan.losses, plan.loss_options)
    samples = open_samples(plan.data, plan.data_options, plan.image_size)
    sides = choose_sides(samples.table, samples.sizes, plan.source_classes, plan.target_classes, max(plan.shots))
    for n in grid.numbers:
        check_counts(sides, n, (n if grid.source_n is None else grid.source_n) or None)
    build_network(
        plan.model,
        options=plan.model_options,
        sample_shape=samples.shape,
        kind=samples.kind,
        embedding_dim=plan.embedding_dim,
        init=plan.init,
        seed=0,
    )
    sources = f"{len(sides.source)} source and {len(sides.target)} target" if sides.source else f"{len(sides.target)}"
    drawn = "" if sides.source else " classes, of which each replication draws both sides"
    return [*samples.table.skipped, *sides.notes, f"{sources}{drawn or ' classes to draw from'}"]


def run(
    grid: Grid, folder: Path, *, processes: int = 1, tell: Callable[[str], None] = lambda line: None, again: str
) -> dict[str, dict[str, Any]]:
    """Run what is missing; arguments, results and errors as `run_cells`."""
    return run_cells(folder, grid.cells(), compute, processes=processes, tell=tell, again=again)


def read_numbers(text: str | Sequence[int], name: str) -> list[int]:
    """Whole numbers separated by commas, ascending.

    Raises:
        ConfigError: something else.
    """
    words = text.split(",") if isinstance(text, str) else [str(number) for number in text]
    try:
        return sorted(int(word) for word in words)
    except ValueError:
        raise ConfigError(f"{name} must be whole numbers separated by commas, got '{text}'") from None
