"""What `test_divided_memory.py` runs on several ranks and on one process: a memory whose entries the ranks divide. It is the
program of each rank."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import CLASSES, LOSSES, WIDTH
from launched import as_rank
from rank_cases import Numbers, Part, batch, network, one_step, refused, same_parity
from torch import distributed

import dmlcore
from dmlcore.losses import CrossBatchMemory, Loss, create
from dmlcore.losses.divided_memory import looks_at_memory, why_not_compared
from dmlcore.losses.streaming import stream_budget
from dmlcore.ranks import Group

SIZE = 61
"""No multiple of a number of ranks or of a batch, so that entries are replaced in several ranks at once."""
COMPARED = [case for case in LOSSES if looks_at_memory(case.create()) and not why_not_compared(case.create())]
MINED = ("batch_hard", "multi_similarity")


def memory_of(loss: Any, part: Part, dtype: torch.dtype = torch.float64, warmup: int = 1) -> CrossBatchMemory:
    memory = CrossBatchMemory(loss.to(dtype), SIZE, WIDTH, warmup=warmup, dtype=dtype)
    return memory if part.size == 1 else dmlcore.distributed(memory, work=part.work, shard_memory=True)


def whole_queue(memory: CrossBatchMemory) -> torch.Tensor:
    if memory.shard is None:
        return memory.queue.clone()
    queues: list[Any] = [None] * memory.shard.group.size
    distributed.all_gather_object(queues, memory.queue)
    return torch.cat(queues)


def steps_of(memory: CrossBatchMemory, part: Part, steps: int, dtype: torch.dtype, **keywords: Any) -> Numbers:
    numbers: Numbers = {}
    for step in range(steps):
        of_step = one_step(part, memory, *batch(step, dtype=dtype), net=network(dtype), **keywords)
        numbers |= {f"{step}.{name.replace('losses.0.', '')}": number for name, number in of_step.items()}
    return numbers | {"queue": whole_queue(memory), "labels": memory.labels.clone(), "pointer": torch.tensor(memory.pointer)}


def of_a_loss(create_loss: Callable[[], Any], part: Part, dtype: torch.dtype = torch.float64, **keywords: Any) -> Numbers:
    return steps_of(memory_of(create_loss(), part, dtype), part, 4, dtype, **keywords)


def ensemble(weighting: str = "fixed", **options: Any) -> dmlcore.LossEnsemble:
    torch.manual_seed(7)
    names = ["ms", "circle", "proxy_anchor", "triplet", "sec", "norm_softmax"]
    return dmlcore.LossEnsemble(names, weighting, num_classes=CLASSES, embedding_dim=WIDTH, **options)


def of_an_ensemble(weighting: str, part: Part) -> Numbers:
    loss = ensemble(weighting).double()
    loss.measures_gradients = True
    numbers = steps_of(memory_of(loss, part), part, 5, torch.float64)
    numbers |= {f"norm of {name}": n for name, n in loss.gradient_norms.items()}
    numbers |= {f"weight of {name}": w for name, w in zip(loss.names, loss.weights, strict=True)}
    return numbers | {f"active {name}": share for name, share in loss.active.items()}


def of_heads(part: Part) -> Numbers:
    torch.manual_seed(7)
    losses, columns = ["ms", "contrastive", "sup_con", "arcface"], [(0, 5), (5, 10), (0, 5), (5, 10)]
    loss = dmlcore.LossEnsemble(losses, columns=columns, num_classes=CLASSES, embedding_dim=5)
    return of_a_loss(lambda: loss, part)


def of_blocks(part: Part) -> Numbers:
    """One sample at a time."""
    with stream_budget(0):
        return of_an_ensemble("equal_gradient_norms", part)


def of_not_finite(part: Part) -> Numbers:
    """An embedding that is not finite leaves the entry of its place."""
    memory = memory_of(dmlcore.LossEnsemble(["ms"]), part, warmup=0)
    numbers: Numbers = {}
    for step in range(4):
        x, y = batch(step)
        x[5 * step] = torch.nan if step in (0, 3) else x[5 * step]
        rows = part.rows(y)
        with torch.no_grad():
            memory(x[rows], y[rows])
        numbers |= {f"queue {step}": whole_queue(memory), f"filled {step}": torch.tensor(memory.filled)}
    return numbers


def of_evaluation(part: Part) -> Numbers:
    memory = memory_of(ensemble(), part, warmup=0)
    numbers = steps_of(memory, part, 3, torch.float64)
    memory.eval()
    (x, y), net = batch(9), network()
    rows = part.rows(y)
    return numbers | {"evaluated": memory(net(x[rows]), y[rows]).detach()}


def of_a_state(part: Part) -> Numbers:
    """A rank takes its part of a whole queue, and gives its own back."""
    memory = memory_of(dmlcore.LossEnsemble(["ms"]), part, warmup=0)
    state = memory.memory_state()
    state |= {"queue": torch.arange(SIZE * WIDTH).double().view(SIZE, WIDTH), "filled": torch.tensor(SIZE)}
    memory.load_memory_state(state)
    before = whole_queue(memory)
    memory.load_state_dict(memory.state_dict())
    assert torch.equal(before, whole_queue(memory))
    return steps_of(memory, part, 1, torch.float64)


CASES: dict[str, Callable[[Part], Numbers]] = {
    **{f"loss {case.id}": partial(of_a_loss, case.create) for case in COMPARED},
    **{f"mined by {name}": partial(of_a_loss, partial(create, "contrastive", miner=name)) for name in MINED},
    "float32": partial(of_a_loss, lambda: create("ms"), dtype=torch.float32),
    "relation": partial(of_a_loss, lambda: dmlcore.LossEnsemble(["ms", "contrastive"]), relation=same_parity),
    "mean": partial(of_a_loss, lambda: create("triplet", reduction="mean")),
    "ensemble": partial(of_an_ensemble, "fixed"),
    "equal norms": partial(of_an_ensemble, "equal_gradient_norms"),
    "heads": of_heads,
    "blocks": of_blocks,
    "not finite": of_not_finite,
    "evaluation": of_evaluation,
    "state": of_a_state,
}


class Sideways(Loss):
    """A loss of a third party with a `forward` of its own."""

    name = "sideways"

    def value_of(self, comparison: Any) -> torch.Tensor:
        return comparison.anchors.sum()


def refusals() -> dict[str, str]:
    def divided(*losses: Any) -> Callable[[], Any]:
        return lambda: memory_of(dmlcore.LossEnsemble(list(losses)), Part(0, 2))

    return {
        "no memory": refused(lambda: dmlcore.distributed(create("ms"), shard_memory=True)),
        "third party": refused(divided(Sideways())),
        "batch": refused(divided("histogram")),
        "vectors": refused(divided("angular")),
        "pairs": refused(divided("prototypical")),
        "miner": refused(divided(create("contrastive", miner="angular"))),
    }


def main(rank: int, size: int, folder: Path, splits: list[str]) -> None:
    with as_rank(rank, size, folder) as outcome:
        results = outcome["results"] = {}
        for name, run in CASES.items():
            for split in splits[:1] if name.startswith("loss") else splits:
                results[f"{name}, {split}"] = run(Part(rank, size, split))
        rows = len(memory_of(dmlcore.LossEnsemble(["ms"]), Part(rank, size)).queue)
        assert Group().size == size and rows <= -(-SIZE // size), rows  # nobody has more than its part
        outcome["refusals"] = refusals()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","))
