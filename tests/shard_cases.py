"""What `test_shards.py` runs on several ranks and on one process: losses whose classes the ranks divide. It is the program of
each rank."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import CLASSES, LOSSES, WIDTH
from launched import as_rank
from rank_cases import MEMBERS, Numbers, Part, batch, network, one_step
from torch import Tensor, distributed, nn

import dmlcore
from dmlcore.errors import DmlcoreError
from dmlcore.losses import CrossBatchMemory, Loss, ProxyLoss, Rows, create
from dmlcore.losses.parting import parts_of
from dmlcore.ranks import Group, sharding

OF_CLASSES = [case for case in LOSSES if isinstance(case.create(), ProxyLoss) and not case.create().why_not_divided]


def divided(part: Part, loss: Any, **options: Any) -> Any:
    return part.joined(loss, shard_proxies=True, **options) if part.size > 1 else loss


def joined_parts(part: Part, loss: nn.Module, numbers: Numbers) -> Numbers:
    """With the gradients of divided parameters of all ranks, one behind the other."""
    for name in parts_of(loss) if part.size > 1 else ():
        key = f"loss.{name.removeprefix('losses.0.')}"
        tables: list[Any] = [None] * part.size
        distributed.all_gather_object(tables, numbers[key])
        numbers[key] = torch.cat(tables)
    return numbers


def of_a_loss(create_loss: Callable[[], Any], dtype: torch.dtype, part: Part) -> Numbers:
    loss = divided(part, create_loss().to(dtype))
    return joined_parts(part, loss, one_step(part, loss, *batch(1, dtype=dtype), net=network(dtype)))


def of_a_reduction(name: str, reduction: str) -> Any:
    torch.manual_seed(3)
    return create(name, num_classes=CLASSES, embedding_dim=WIDTH, reduction=reduction)


def ensemble(weighting: str = "fixed") -> dmlcore.LossEnsemble:
    torch.manual_seed(7)
    names = [*MEMBERS, "arcface", "soft_triple"]
    return dmlcore.LossEnsemble(names, weighting, num_classes=CLASSES, embedding_dim=WIDTH).double()


def of_steps(weighting: str, part: Part) -> Numbers:
    """Steps of plain descent, in which each rank steps its own classes."""
    loss, net = divided(part, ensemble(weighting)), network()
    loss.measures_gradients = True
    optimiser = torch.optim.SGD([*net.parameters(), *loss.losses.parameters()], lr=0.05)
    numbers: Numbers = {}
    for step in range(6):
        of_step = joined_parts(part, loss, one_step(part, loss, *batch(step), net=net))
        numbers |= {f"{step}.{name}": number for name, number in of_step.items()}
        optimiser.step()
    numbers |= {f"norm of {name}": n for name, n in loss.gradient_norms.items()}
    numbers |= {f"weight of {name}": w for name, w in zip(loss.names, loss.weights, strict=True)}
    return numbers | {f"active {name}": share for name, share in loss.active.items()}


def of_a_sample(name: str, part: Part, **options: Any) -> Numbers:
    """A part of many classes, which is the same part for any number of ranks."""
    torch.manual_seed(3)
    loss = create(name, num_classes=50, embedding_dim=WIDTH, **options).double()
    loss.sample_classes(0.3, seed=5)  # type: ignore[operator]
    joined = divided(part, loss)
    return joined_parts(part, joined, one_step(part, joined, *batch(1)))


def of_heads(part: Part) -> Numbers:
    torch.manual_seed(7)
    losses = ["ms", "norm_softmax", "proxy_anchor", "cosface"]
    columns = [(0, 5), (5, 10), (0, 5), (5, 10)]
    loss = divided(part, dmlcore.LossEnsemble(losses, columns=columns, num_classes=CLASSES, embedding_dim=5).double())
    return joined_parts(part, loss, one_step(part, loss, *batch(2)))


def of_a_memory(part: Part) -> Numbers:
    memory = divided(part, CrossBatchMemory(ensemble(), 60, WIDTH, dtype=torch.float64))
    steps = [joined_parts(part, memory, one_step(part, memory, *batch(step))) for step in range(3)]
    return {f"{step}.{name}": number for step, numbers in enumerate(steps) for name, number in numbers.items()}


def of_wrapped(part: Part) -> Numbers:
    """An engine around the losses leaves the divided classes alone."""
    loss, net = divided(part, ensemble("uncertainty")), network()  # whose parameters are averaged
    if part.size == 1:
        return one_step(part, loss, *batch(5), net=net)
    x, y = batch(5)
    rows = part.rows(y)
    wrapped, wrapped_loss = (nn.parallel.DistributedDataParallel(module) for module in (net, loss))
    value = wrapped_loss(wrapped(x[rows]), y[rows])
    value.backward()
    numbers = {f"network.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    numbers |= {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return joined_parts(part, loss, numbers | {"value": value.detach()})


def of_start(part: Part) -> Numbers:
    """Proxies that are drawn in parts are those of one process, to the bit."""
    numbers: Numbers = {}
    for count, width in ((1000, 3), (7, 5), (2, 4), (4099, 33)):
        torch.manual_seed(11)
        with sharding(Group() if part.size > 1 else None), mock.patch("dmlcore.losses.proxy.DRAWN", 3000):
            proxies = create("arcface", num_classes=count, embedding_dim=width).proxies
        tables: list[Any] = [proxies.detach()]
        if part.size > 1:
            tables *= part.size
            distributed.all_gather_object(tables, proxies.detach())
        numbers |= {f"{count} x {width}": torch.cat(tables), f"behind {count}": torch.rand(3)}
    return numbers


CASES: dict[str, Callable[[Part], Numbers]] = {
    **{f"loss {case.id}": partial(of_a_loss, case.create, torch.float64) for case in OF_CLASSES},
    **{f"float32 {case.id}": partial(of_a_loss, case.create, torch.float32) for case in OF_CLASSES},
    **{
        f"{reduction} of {name}": partial(of_a_loss, partial(of_a_reduction, name, reduction), torch.float64)
        for name in ("arcface", "proxy_anchor")
        for reduction in ("mean", "sum")
    },
    **{f"sample of {name}": partial(of_a_sample, name) for name in ("arcface", "proxy_anchor", "soft_triple")},
    "sample with bias": partial(of_a_sample, "cross_entropy", bias=True),
    "mean of a sample": partial(of_a_sample, "proxy_anchor", reduction="mean"),
    "steps": partial(of_steps, "fixed"),
    "steps of equal norms": partial(of_steps, "equal_gradient_norms"),
    "heads": of_heads,
    "memory": of_a_memory,
    "wrapped": of_wrapped,
    "start": of_start,
}
SPLITS = ("uneven", "empty", "classes")


class Both(nn.Module):
    def __init__(self, net: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.net(x), y)


class Halved(type(create("arcface", num_classes=1, embedding_dim=1))):
    """Other values than those of the class it is derived from."""

    name = "halved"
    streams = True

    def dense_rows(self, comparison: Any) -> Rows:
        values, counts = super().dense_rows(comparison)
        return Rows(values / 2, counts)


class Sideways(Loss):
    """A loss with vectors of classes that is no `ProxyLoss`."""

    name = "sideways"
    needs_classes = True

    def value_of(self, comparison: Any) -> Tensor:
        return comparison.anchors.sum()


def refusals(part: Part) -> dict[str, str]:
    """What is said of what cannot be divided."""

    def both() -> None:  # as many classes on each rank, or PyTorch itself would notice
        x, y = batch(5)
        loss = create("arcface", num_classes=4, embedding_dim=WIDTH)
        nn.parallel.DistributedDataParallel(Both(network(), divided(part, loss)))(x, y % 4)

    calls: dict[str, Callable[[], Any]] = {
        "alone": lambda: divided(part, ensemble()).members[2](*batch(1)),
        "no proxies": lambda: divided(part, create("ms")),
        "hidden": lambda: divided(part, create("cross_entropy", num_classes=4, embedding_dim=4, hidden=3)),
        "other values": lambda: divided(part, Halved(num_classes=4, embedding_dim=4)),
        "third party": lambda: divided(part, Sideways()),
        "ahead": lambda: divided(part, ensemble("held_out")),
        "engine": both,
    }
    texts = {}
    for name, call in calls.items():
        try:
            call()
            texts[name] = ""
        except DmlcoreError as error:
            texts[name] = str(error)
    return texts


def main(rank: int, size: int, folder: Path, splits: list[str]) -> None:
    with as_rank(rank, size, folder) as outcome:
        results = outcome["results"] = {}
        for name, run in CASES.items():
            for split in splits if name.startswith("loss") else splits[:1]:
                results[f"{name}, {split}"] = run(Part(rank, size, split, "divided"))
        outcome["refusals"] = refusals(Part(rank, size, "uneven"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","))
