"""What `test_divided_evaluation.py` runs on several ranks and in one process, whose numbers must have the same bits: a program
that each rank runs, and the cases."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from launched import as_rank
from torch import Tensor, distributed

from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import DmlcoreError
from dmlcore.evaluation import centring, divided, metrics, plain, retrieval_metrics
from dmlcore.evaluation.queries import rank_queries
from dmlcore.ranks import Group, Layout
from dmlcore.ranks.dividing import DividedRows, agreeing, told_by_first

WIDTH = 9


def draw(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, WIDTH, generator=generator)
    return centres[labels] + torch.randn(count, WIDTH, generator=generator), labels


def sizes_of(count: int, size: int, split: str) -> tuple[int, ...]:
    """How many rows are each rank's: the same, all but a few the first's, or none the last's."""
    bounds = [count * rank // size for rank in range(size + 1)]
    if split == "uneven":
        bounds = [0, *(count - 3 * (size - rank) for rank in range(1, size)), count]
    if split == "empty":
        bounds[-2] = count
    return tuple(stop - start for start, stop in itertools.pairwise(bounds))


def parted(rows: Tensor, group: Group | None, split: str) -> Any:
    """The rows as each rank has them, or all of them in one process."""
    if group is None:
        return rows
    layout = Layout(group, group.rank, sizes_of(len(rows), group.size, split))
    return DividedRows(rows[layout.own], layout)


def of_ranks(group: Group | None, split: str) -> dict[str, Any]:
    """Everything that is ranked, by the name of the case."""
    results: dict[str, Any] = {}

    def rank(name: str, x: Tensor, y: Any, r: Tensor | None = None, ry: Any = None, **options: Any) -> None:
        vectors, theirs = parted(x, group, split), None if r is None else parted(r, group, "even")
        results[name] = metrics.rank(vectors, y, theirs, ry, (1, 3), **options)[0]

    x, y = draw(211, 23)
    r, ry = draw(97, 30, 1)
    for metric in metrics.METRICS:
        rank(metric, x, y, metric=metric)
        rank(f"{metric}, offset", x + torch.arange(WIDTH) * 40, y, metric=metric)
        rank(f"{metric}, references", x, y, r, ry, metric=metric)
    rank("float64", x.double(), y)
    rank("ties", x.round(), y, metric="dot")
    rank("collapsed", torch.ones_like(x), y)
    rank("a zero", torch.cat([x[:-1], torch.zeros(1, WIDTH)]) + 0.0, y)
    rank("two classes", x, y % 2)  # more positives than are compared one by one
    rank("alone", x, torch.arange(len(y)) // 2 * 2)
    rank("own", x[:50], y[:50], x, y, own=torch.arange(50))
    sets = (torch.rand(len(x), 5, generator=torch.Generator().manual_seed(3)) < 0.4).long()
    rank("sets", x, LabelSets.of_matrix(sets.numpy().astype(bool)))
    with mock.patch.object(divided, "MEMORY", 1):  # a run of queries for each panel
        rank("runs", x, y)
    with mock.patch.object(centring, "PIECE_ROWS", 16):
        rank("pieces", x * 1e-3 + 1, y)
        rank("pieces of distances", x + 100, y, metric="euclidean")
    with mock.patch.object(metrics.neighbours, "why_not", lambda x: "no"), mock.patch.object(plain, "CHUNK_CELLS", 2000):
        rank("plain", x, y)
    return results


class Samples:
    """A data set as `rank_queries` sees one."""

    def __init__(self, labels: Tensor, roles: np.ndarray | None) -> None:
        self.labels, self.roles, self.sets = labels.numpy(), roles, None
        everyone = np.arange(len(labels))
        self.queries = everyone if roles is None else everyone[roles == 0]
        self.references = everyone if roles is None else everyone[roles == 1]

    def __len__(self) -> int:
        return len(self.labels)


def of_data(group: Group | None, split: str) -> dict[str, Any]:
    """What the queries of a data set find, and its means."""
    x, y = draw(150, 20, 2)
    results = {}
    for name, roles in (("all", None), ("roles", (np.arange(150) * 7 % 5 == 0).astype(int))):
        scores = rank_queries(parted(x, group, split), Samples(y, roles), (1, 2))  # type: ignore[arg-type]
        results[f"data, {name}"] = np.stack(list(scores.values.values()))
        results[f"means, {name}"] = np.array(list(scores.means.values()))
    return results


def of_python(group: Group | None) -> dict[str, Any]:
    """`retrieval_metrics`, which every rank gives its own rows."""
    x, y = draw(60, 7, 4)
    r, ry = draw(40, 7, 5)
    matrix = torch.nn.functional.one_hot(y, 7)
    matrix[::3, 0] = 1

    def of(rows: Tensor) -> Tensor:
        return rows if group is None else parted(rows, group, "uneven").own

    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "python": ((of(x), of(y)), {}),
        "python, half": ((of(x).half(), of(y)), {}),
        "python, references": ((of(x), of(y), of(r), of(ry)), {"metric": "euclidean"}),
        "python, matrix": ((of(x), of(matrix)), {}),
    }
    return {
        name: np.array(list(retrieval_metrics(*arguments, process_group=group, **options).values()))
        for name, (arguments, options) in calls.items()
    }


def refused(act: Any) -> str:
    try:
        act()
    except DmlcoreError as error:
        return f"{'all: ' if error.is_of_all else ''}{error}"
    return "nothing was refused"


def refusals(group: Group) -> dict[str, str]:
    """What every rank says where something is wrong."""
    x, y = draw(20, 4)
    own = slice(10 * group.rank, 10 * group.rank + 10)
    broken = x.clone()
    broken[13, 2] = torch.nan

    def coming_through(is_wrong: bool) -> None:
        with agreeing(group):
            if is_wrong:
                raise DmlcoreError("a mistake")

    def first_fails() -> None:
        raise DmlcoreError("a mistake of the first")

    return {
        "nan": refused(lambda: retrieval_metrics(broken[own], y[own], process_group=group)),
        "widths": refused(lambda: retrieval_metrics(x[own, : 9 - group.rank], y[own], process_group=group)),
        "labels": refused(lambda: retrieval_metrics(x[own], y[own][: 10 - group.rank], process_group=group)),
        "every rank": refused(lambda: coming_through(True)),
        "one rank": refused(lambda: coming_through(group.rank == 1)),
        "the first": refused(lambda: told_by_first(group, first_fails)),
        "no rank": refused(lambda: coming_through(False)),
    }


def main(rank: int, size: int, folder: Path) -> None:
    """What each rank runs; results go to files."""
    with as_rank(rank, size, folder) as outcome:
        group = Group(distributed.new_group(list(range(size))))
        results = {split: of_ranks(group, split) | of_data(group, split) for split in ("even", "uneven", "empty")}
        rows = parted(draw(10, 3)[0], group, "uneven")
        first = rows.on_first()
        outcome |= {
            "results": results,
            "python": of_python(group),
            "refusals": refusals(group) if size == 2 else {},
            "whole": [rows.whole(), first],
        }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
