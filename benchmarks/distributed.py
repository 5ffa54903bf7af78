"""`python -m benchmarks distributed`: losses on several processes beside one. For every loss the worst relative difference of
value and gradients, the bytes that cross in a step, and the time of one; and for some ensembles `over the ideal`, the
processor time of all processes together over that of one process: computed whole by each, divided, divided without memory that
they share, and by rows. The processes share this machine, so times of clocks say little. The table is kept as distributed.csv.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed, nn

import dmlcore
from benchmarks.measuring import Row, environment, read, write
from benchmarks.starting import told_by_ranks
from dmlcore.allocation import keep_freed_memory
from dmlcore.ensemble.division import Division
from dmlcore.kernels.divided import DividedPasses
from dmlcore.kernels.prepared import PreparedPasses
from dmlcore.ranks import Group, inside

RESULTS = Path(__file__).parent / "results" / "distributed.csv"
SAMPLES, WIDTH, CLASSES = 256, 64, 32
LARGE = (2048, 128), (4096, 128)
ENSEMBLES = {
    "default": ("circle", "binomial_deviance", "sup_con"),
    "one": ("ms",),
    "four": ("ms", "contrastive", "sup_con", "circle"),
    "with one by rows": ("ms", "contrastive", "sup_con", "triplet", "circle", "n_pair"),
}
ROUNDS = 9
RANKS = (2, 4)
HALVES = ("bf16", "fp16")


def _batch(samples: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    centres = torch.randn(CLASSES, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise).to(dtype), labels


def _network(width: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(width, width, dtype=dtype)


class _Counted:
    """Counts the bytes that a rank receives or adds up, while losses are called."""

    def __init__(self) -> None:
        self.bytes, self.is_inside = 0, False
        for name in ("all_gather", "gather", "reduce_scatter", "all_to_all", "add_up"):
            self._count(Group, name, lambda group, sent, result: max(_size(sent), _size(result)))
        for name in ("_tell_all", "_merge_sums"):  # through shared memory they are no call of the group
            self._count(DividedPasses, name, self._told)
        self._count(Group, "meet", lambda group, words, _: 8 * len(words) * group.size)
        self._count_rows()

    def _count_rows(self) -> None:
        """What comes with a meeting, and what ranks then tell one another in one call of the extension."""
        met, divide = Group.met, PreparedPasses.divide

        def meeting(group: Group, tensors: Any, sizes: Any) -> Any:
            rows = met(group, tensors, sizes)
            if group.board_for(tensors[0].device) is not None:  # elsewhere they are gathered
                self.bytes += _size(rows)
            return rows

        def dividing(prepared: Any, board: Any, rank: int, counts: Any, width: int, dtype: torch.dtype) -> Any:
            passes = divide(prepared, board, rank, counts, width, dtype)
            numbers = sum(sum(passes.sizes(what)) for what in ("limits", "sums", "slopes"))
            self.bytes += (numbers + 2 * sum(counts) * width) * dtype.itemsize + 8 * sum(counts)  # vectors, gradients, labels
            return passes

        Group.met, PreparedPasses.divide = meeting, dividing  # type: ignore[method-assign]

    @staticmethod
    def _told(passes: DividedPasses, what: Any, _: Any) -> int:
        return sum(passes.passes.sizes(what or "sums")) * passes.like.element_size()

    def _count(self, owner: Any, name: str, bytes_of: Any) -> None:
        call = getattr(owner, name)

        def counting(group: Any, sent: Any = None, *more: Any) -> Any:
            is_outermost, self.is_inside = not self.is_inside, True
            try:
                result = call(group, *(() if sent is None else (sent,)), *more)
            finally:
                self.is_inside = not is_outermost
            if is_outermost:
                self.bytes += bytes_of(group, sent, result)
            return result

        setattr(owner, name, counting)


def _size(tensors: Any) -> int:
    return tensors.nbytes if isinstance(tensors, torch.Tensor) else sum(tensor.nbytes for tensor in tensors)


def _over_sockets() -> Group:
    """All ranks, who share no memory, as if each were on a machine of its own."""
    os.environ["DML_SHARED_MEMORY"] = "0"
    group = Group(distributed.new_group(), work="divided")
    group.all_gather(torch.zeros(1))  # here they find out
    del os.environ["DML_SHARED_MEMORY"]
    return group


class _Steps:
    """Steps of losses on this rank's share of a batch. Embeddings are made outside of what is timed."""

    def __init__(
        self,
        names: tuple[str, ...],
        rank: int,
        size: int,
        work: Any,
        shape: tuple[int, int],
        dtype: torch.dtype,
        transport: Any = "full",
    ) -> None:
        (samples, width), self.size = shape, size
        x, y = _batch(samples, width, dtype)
        own = slice(samples * rank // size, samples * (rank + 1) // size)
        self.x, self.y, self.net = x[own], y[own], _network(width, dtype)
        torch.manual_seed(2)
        self.loss: Any = dmlcore.LossEnsemble(list(names), num_classes=CLASSES, embedding_dim=width).to(dtype)
        if isinstance(work, Group):
            self.loss = dmlcore.distributed(self.loss, work)
        elif size > 1:
            self.loss = dmlcore.distributed(self.loss, work=work, transport=transport)
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.value = torch.zeros(())

    def step(self) -> None:
        self.net.zero_grad()
        self.loss.zero_grad()
        embeddings = self.net(self.x).detach().requires_grad_()
        if self.size > 1:
            distributed.barrier()
        began, used = time.perf_counter(), time.process_time()
        self.value = self.loss(embeddings, self.y)
        self.value.backward()
        self.seconds.append(time.perf_counter() - began)
        self.cpu.append(time.process_time() - used)
        self.net(self.x).backward(embeddings.grad)

    def numbers(self) -> list[torch.Tensor]:
        """Value and gradients of the last step."""
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        if self.size > 1:
            for gradient in gradients:
                distributed.all_reduce(gradient)
                gradient /= self.size
        own = [p.grad for p in self.loss.parameters() if p.grad is not None]
        return [n.double() for n in (self.value.detach()[None], *gradients, *own)]

    @property
    def milliseconds(self) -> float:
        """The median by the clock, without the first step."""
        return 1000 * statistics.median(self.seconds[1:])

    @property
    def cpu_milliseconds(self) -> float:
        """The median of the processor, without the first step."""
        return 1000 * statistics.median(self.cpu[1:])


def _run(steps: int, *arguments: Any) -> _Steps:
    run = _Steps(*arguments)
    for _ in range(steps):
        run.step()
    return run


def _ensembles(number: int, size: int, counted: _Counted) -> list[Row]:
    """Ensembles in one process, whole on each and divided, in turn, so that whatever else the machine does meets all."""
    rows: list[Row] = []
    sockets = _over_sockets()
    for (name, members), shape in itertools.product(ENSEMBLES.items(), LARGE):
        alone = _Steps(members, 0, 1, None, shape, torch.float32)
        works = {"whole": "whole", "divided": "divided", "over sockets": sockets, "by rows": "divided"}
        runs = {work: _Steps(members, number, size, group, shape, torch.float32) for work, group in works.items()}
        counts = dict.fromkeys(runs, 0)
        for _ in range(ROUNDS):
            with inside():
                alone.step()
            for work, run in runs.items():
                counted.bytes = 0
                no_pairs = mock.patch.object(Division, "_merging", lambda *_: {})
                with no_pairs if work == "by rows" else contextlib.nullcontext():
                    run.step()
                counts[work] = counted.bytes
        with inside():
            expected = alone.numbers()
        for work, run in runs.items():
            costs: list[Any] = [None] * size
            distributed.all_gather_object(costs, (run.cpu_milliseconds, alone.cpu_milliseconds))
            row: Row = {"loss": "+".join(members), "ensemble": name, "work": work, "processes": size}
            kind = "whole" if work == "whole" else "divided"
            row |= {"samples": shape[0], "width": shape[1], f"float32 {kind}": _worst(run.numbers(), expected)}
            row |= {f"bytes {kind}": counts[work], f"ms {kind}": run.milliseconds}
            row |= {"cpu ms alone": statistics.mean(c for _, c in costs), "cpu ms": statistics.mean(c for c, _ in costs)}
            rows.append(row | {"over the ideal": row["cpu ms"] * size / row["cpu ms alone"]})
    for work, group in {"divided": Group(), "over sockets": sockets}.items():
        small, used = torch.zeros(64), time.process_time()
        for _ in range(100):
            group.all_gather(small)
        cost = 10 * (time.process_time() - used)
        rows.append({"loss": "an all-gather of 64 numbers", "work": work, "processes": size, "cpu ms": cost})
    return rows


def _worst(numbers: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    largest = max(float(tensor.norm()) for tensor in expected[1:])
    return max(float((a - b).norm() / max(float(b.norm()), 1e-3 * largest)) for a, b in zip(numbers, expected, strict=True))


def rank(number: int, size: int, folder: Path) -> None:
    """What each process runs. The first writes the rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    keep_freed_memory()  # as `dmlcore train` does
    counted, rows, small = _Counted(), [], (SAMPLES, WIDTH)
    for name in dmlcore.losses.names():
        if name == "python_loss" or "/" in name:
            continue
        row: Row = {"loss": name, "processes": size, "samples": SAMPLES, "width": WIDTH}
        for column, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            with inside():
                expected = _run(2, (name,), 0, 1, None, small, dtype).numbers()
            for work in ("whole", "divided"):
                counted.bytes = 0
                run = _run(4, (name,), number, size, work, small, dtype)
                if column == "float32":
                    row[f"bytes {work}"], row[f"ms {work}"] = counted.bytes // 4, run.milliseconds
                row[f"{column} {work}"] = _worst(run.numbers(), expected)
        for half in HALVES:  # beside the numbers in float32
            counted.bytes = 0
            run = _run(4, (name,), number, size, "whole", small, torch.float32, half)
            row[f"bytes {half}"] = counted.bytes // 4
            row[f"off by {half}"] = _worst(run.numbers(), expected)
        rows.append(row)
    rows += _ensembles(number, size, counted)
    if number == 0:
        (folder / "0.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def main(sizes: tuple[int, ...] = RANKS) -> list[Row]:
    """Measure, print and keep the table. Rows of other numbers of processes stay in it."""
    rows: list[Row] = []
    earlier = [row for row in read(RESULTS) if int(row["processes"]) not in sizes]
    for size in sizes:
        rows += told_by_ranks("distributed", size)[0]
    for row in rows:
        worst = max(value for key, value in row.items() if key.startswith("float64")) if "float64 whole" in row else None
        text = f"{row['loss']:32s} {row['processes']} processes"
        text += f"  float64 {worst:.1e}" if worst is not None else ""
        text += "".join(f"  {key} {row[key]:.3g}" for key in row if key.startswith(("ms", "cpu", "over", "off")))
        print(text)
    kept = environment()
    write(earlier + [{"benchmark": "distributed", **row, **kept} for row in rows], RESULTS)
    return rows
