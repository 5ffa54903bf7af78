"""Passes that ranks divide, against one process. The ranks are threads of this one, which tell one another what is told between
stages; `test_distributed.py` has processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from cases import LOSSES, Case, embeddings_of
from torch import Tensor

from dmlcore.kernels import extension, functors, merging_functors, plan_options
from dmlcore.kernels.cpu import CpuPasses
from dmlcore.kernels.divided import DividedPasses, divided_passes
from dmlcore.kernels.fused import fused_pass
from dmlcore.kernels.passes import FunctorCall, Pass
from dmlcore.losses.path import Rows, reduced

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
TILES = {"tile_rows": 16, "tile_columns": 32}


class Group:
    """What the kernels need of the ranks: each is a thread."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def _told(self, own: Any) -> list[Any]:
        self.board[self.rank] = own
        self.barrier.wait(30)
        everything = list(self.board)
        self.barrier.wait(30)
        return everything

    def all_gather(self, own: Tensor) -> Tensor:
        return torch.cat(self._told(own))

    def add_up(self, values: Tensor) -> Tensor:
        return torch.stack(self._told(values)).sum(0)

    def board_for(self, _: Tensor) -> None:
        """None: they share no memory."""

    def all_to_all(self, blocks: list[Tensor], sizes: list[int]) -> Tensor:
        own = torch.cat([told[self.rank] for told in self._told(blocks)])
        assert len(own) == sum(sizes)
        return own


def on_ranks(size: int, act: Callable[[Any], Any]) -> list[Any]:
    """What a function gives for each rank."""
    board, barrier = [None] * size, Barrier(size)
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(act, [Group(rank, size, board, barrier) for rank in range(size)]))


def calls_of(names: tuple[str, ...]) -> tuple[FunctorCall, ...]:
    calls = []
    for name in names:
        call = next(case for case in LOSSES if case.id == name).create().functor_call()
        assert isinstance(call, FunctorCall) and call.functor in merging_functors()
        calls.append(call)
    return tuple(calls)


def merging_cases() -> list[Case]:
    """The losses whose functors merge and take nothing but a batch."""
    calls = [(case, getattr(case.create(), "functor_call", lambda: "")()) for case in LOSSES]
    is_call = [(case, call) for case, call in calls if isinstance(call, FunctorCall) and call.given is None and not call.cells]
    return [case for case, call in is_call if call.functor in merging_functors()]


def labels_of(samples: int, classes: int) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(samples))


def check(size: int, labels: Tensor, calls: tuple[FunctorCall, ...], **options: int) -> None:
    vectors = embeddings_of(labels, seed=3).double()
    alone = vectors.clone().requires_grad_()
    values, counts, _ = fused_pass(alone, labels, None, None, calls)
    rows = [functors("cpu")[call.functor][1] for call in calls]
    reductions = [("default", "sum", "mean")[index % 3] for index in range(len(calls))]
    pairs = zip(values.split(rows), counts.split(rows), strict=True)
    expected = torch.stack([reduced(Rows(*pair), kind) for pair, kind in zip(pairs, reductions, strict=True)])
    cotangents = torch.rand(len(calls), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected * cotangents).sum().backward()
    assert alone.grad is not None

    def rank(group: Any) -> tuple[Tensor, ...]:
        with plan_options(**TILES, **options):  # of this thread
            here = vectors.clone().requires_grad_()
            pass_ = Pass(here, labels, None, None, calls)
            own, own_counts = DividedPasses([pass_._replace(anchors=vectors)], group).forward()
            terms, shares = divided_passes([pass_], reductions, group)
        (terms * cotangents).sum().backward()
        assert here.grad is not None
        return own.view_as(values), own_counts.view_as(counts), here.grad, terms.detach(), shares

    parts = on_ranks(size, rank)
    torch.testing.assert_close(sum(part[0] for part in parts), values.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(part[1] for part in parts), counts)
    torch.testing.assert_close(sum(part[2] for part in parts), alone.grad, rtol=1e-11, atol=1e-12)
    closed = torch.stack([(part[0] != 0).any(0) for part in parts])  # [W, N]
    assert (closed.sum(0) <= 1).all()
    active = torch.stack([(part > 0).any(0).sum() for part in values.split(rows)]) / max(len(labels), 1)
    for *_, terms, shares in parts:
        torch.testing.assert_close(terms, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shares, active)
        assert torch.equal(terms, parts[0][3])  # numbers that steer are the same to the last bit


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("samples, classes", [(150, 9), (61, 40), (33, 1), (5, 3), (1, 1), (0, 1)])
def test_parts_of_ranks_are_the_pass(size: int, samples: int, classes: int) -> None:
    """Many tiles and few, one class, and more ranks than tiles or classes."""
    check(size, labels_of(samples, classes), calls_of(("ms", "circle", "lifted_structure")))


def test_every_functor_that_merges_is_divided() -> None:
    cases = merging_cases()
    assert {"ms", "contrastive", "circle", "binomial_deviance", "sup_con", "fast_ap"} <= {case.id for case in cases}
    for case in cases:
        check(2, labels_of(90, 7), (case.create().functor_call(),))  # type: ignore[arg-type]


def test_threads_of_ranks() -> None:
    check(3, labels_of(150, 9), calls_of(("ms", "sup_con")), threads=2, thread_work=1)


def test_a_value_that_is_not_finite_stays_where_it_is() -> None:
    labels = labels_of(60, 5)
    vectors = embeddings_of(labels, seed=3)
    vectors[17, 2] = torch.inf

    def rank(group: Any) -> Tensor:
        return DividedPasses([Pass(vectors, labels, None, None, calls_of(("ms",)))], group).forward()[0]

    parts = on_ranks(3, rank)
    assert sum(int(part[17].isnan()) for part in parts) == 1
    expected, _, _ = fused_pass(vectors, labels, None, None, calls_of(("ms",)))
    assert torch.equal(torch.stack(parts).sum(0).isnan(), expected[0].isnan())


def test_each_tile_is_one_rank_s_and_ranks_have_about_as_many() -> None:
    labels = labels_of(2048, 64)
    whole = Pass(torch.zeros(2048, 8), labels, None, None, calls_of(("ms",)))
    cells = []
    for rank in range(4):
        plan = DividedPasses([whole], Group(rank, 4, [], Barrier(1))).passes.plan(0)  # type: ignore[arg-type]
        cells.append(plan["cells"])
        assert plan["triangle"] == 1
    assert sum(cells) == CpuPasses([whole]).plan()["cells"]
    assert max(cells) - min(cells) <= 2 * 128 * 512  # a tile more or less at each end


def test_what_cannot_be_divided_is_refused() -> None:
    labels = labels_of(20, 4)
    vectors = embeddings_of(labels, seed=3)
    group: Any = Group(0, 2, [], Barrier(1))
    slots = Pass(vectors, labels, None, None, (FunctorCall("triplet_all", (0.2,)),))
    against = Pass(vectors, labels, vectors, labels, calls_of(("ms",)))
    for refused in (slots, against):
        with pytest.raises(ValueError, match="ranks divide"):
            DividedPasses([refused], group)
    with pytest.raises(ValueError, match="two ranks"):
        DividedPasses([Pass(vectors, labels, None, None, calls_of(("ms",)))], Group(0, 1, [], Barrier(1)))  # type: ignore[arg-type]
