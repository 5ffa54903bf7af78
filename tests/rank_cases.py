"""What `test_distributed.py` runs on several ranks and on one process, whose numbers must be the same: a program that each rank
runs, and the cases."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from cases import CLASSES, LOSSES, WIDTH, embeddings_of
from launched import as_rank
from torch import Tensor, distributed, nn

import dmlcore
from dmlcore.ensemble.divided_again import DividedAgain
from dmlcore.kernels import plan_options
from dmlcore.losses import CrossBatchMemory, Loss, create
from dmlcore.ranks import Group, operators

SAMPLES = 26
SPLITS = ("even", "uneven", "empty", "classes")
"""How the samples are divided: as many each, the last rank with few, one rank with none, whole classes."""
MINERS = ("batch_hard", "easy_positive", "multi_similarity", "pair_margin", "semihard", "angular", "distance_weighted")
Numbers = dict[str, Tensor]


class Part:
    """One rank's part in a case, or the whole of it in one process.

    Args:
        rank, size: of this process; (0, 1) is the one process.
        split: one of `SPLITS`.
        work: divided among the ranks, or done whole by each.
    """

    def __init__(self, rank: int, size: int, split: str = "even", work: Literal["divided", "whole"] = "whole") -> None:
        self.work: Literal["divided", "whole"] = work
        self.rank, self.size, self.split = rank, size, split

    def rows(self, labels: Tensor) -> Tensor:
        """Which rows of the batch are this rank's. Batches are ordered so that ranks' rows follow one another."""
        count, size = len(labels), self.size
        if size == 1:
            return torch.arange(count)
        if self.split == "classes":
            bounds = [int((labels < CLASSES * rank // size).sum()) for rank in range(size + 1)]
        elif self.split == "even":
            bounds = [count * rank // size for rank in range(size + 1)]
        else:
            bounds = [0, *(count - 3 * (size - rank) for rank in range(1, size)), count]
            if self.split == "empty":
                bounds[-2] = count
        return torch.arange(bounds[self.rank], bounds[self.rank + 1])

    def joined(self, loss: Any, **options: Any) -> Any:
        """A loss as the ranks call it."""
        return loss if self.size == 1 else dmlcore.distributed(loss, work=self.work, **options)

    def averaged(self, network: nn.Module) -> None:
        """What an engine does after backward."""
        if self.size > 1:
            for parameter in network.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size


def batch(seed: int = 0, samples: int = SAMPLES, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs `[N, D]` and labels, ordered by class so that ranks can hold whole classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=generator).sort().values
    return embeddings_of(labels, seed=seed).to(dtype), labels


def network(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(WIDTH, WIDTH, dtype=dtype)


def one_step(part: Part, loss: Any, x: Tensor, y: Tensor, net: nn.Module | None = None, **keywords: Any) -> Numbers:
    """A step without an optimiser: the value, and the gradients of the network and of the loss."""
    net = net or network(x.dtype)
    net.zero_grad()
    loss.zero_grad()
    rows = part.rows(y if y.ndim == 1 else y[:, 0])
    value = loss(net(x[rows]), y[rows], **keywords)
    if value.requires_grad:
        value.backward()
    part.averaged(net)
    numbers = {"value": value.detach()}
    numbers |= {f"network.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    named = {name.removeprefix("losses.0."): p for name, p in loss.named_parameters()}
    return numbers | {f"loss.{name}": p.grad.clone() for name, p in named.items() if p.grad is not None}


def of_a_loss(index: int) -> Callable[[Part], Numbers]:
    def run(part: Part) -> Numbers:
        case = LOSSES[index]
        x, y = batch(index)
        return one_step(part, part.joined(case.create()), x, y)

    return run


def of_a_reduction(name: str, reduction: str) -> Callable[[Part], Numbers]:
    def run(part: Part) -> Numbers:
        torch.manual_seed(3)
        loss = create(name, num_classes=CLASSES, embedding_dim=WIDTH, reduction=reduction).double()
        return one_step(part, part.joined(loss), *batch(4))

    return run


def of_a_miner(miner: str) -> Callable[[Part], Numbers]:
    def run(part: Part) -> Numbers:
        loss = part.joined(create("contrastive", miner=miner))
        steps = [one_step(part, loss, *batch(step)) for step in range(3)]
        return {f"{step}.{name}": tensor for step, numbers in enumerate(steps) for name, tensor in numbers.items()}

    return run


def of_a_memory(loss: Callable[[], Any]) -> Callable[[Part], Numbers]:
    def run(part: Part) -> Numbers:
        torch.manual_seed(3)
        memory = part.joined(CrossBatchMemory(loss().double(), 60, WIDTH, warmup=1, dtype=torch.float64))
        steps = [one_step(part, memory, *batch(step)) for step in range(5)]
        numbers = {f"{step}.{name}": tensor for step, numbers in enumerate(steps) for name, tensor in numbers.items()}
        return {name.replace("loss.loss.", "loss."): tensor for name, tensor in numbers.items()} | memory.memory_state()

    return run


MEMBERS = ["ms", "triplet", "proxy_anchor", "norm_softmax", "histogram", "sec"]


def ensemble(weighting: str = "fixed", dtype: torch.dtype = torch.float64, **keywords: Any) -> dmlcore.LossEnsemble:
    torch.manual_seed(7)
    losses = dmlcore.LossEnsemble(MEMBERS, weighting, num_classes=CLASSES, embedding_dim=WIDTH, **keywords)
    return losses.to(dtype)


def of_a_weighting(weighting: str, dtype: torch.dtype = torch.float64, steps: int = 8) -> Callable[[Part], Numbers]:
    """Steps of plain descent, whose error would show: Adam does not see scales."""

    def run(part: Part) -> Numbers:
        options = {"every": 2} if weighting == "held_out" else {}
        loss, net = part.joined(ensemble(weighting, dtype, weighting_options=options)), network(dtype)
        loss.measures_gradients = True
        groups: list[Any] = [{"params": [*net.parameters(), *loss.losses.parameters()], "lr": 0.05}]
        optimiser = torch.optim.SGD([*groups, {"params": list(loss.weighting.parameters()), "lr": 1e-5}])
        numbers: Numbers = {}
        for step in range(steps):
            torch.manual_seed(step)  # some weightings draw
            numbers |= {f"{step}.{key}": n for key, n in one_step(part, loss, *batch(step, dtype=dtype), net=net).items()}
            optimiser.step()
        numbers |= {f"weight of {name}": w for name, w in zip(loss.names, loss.weights, strict=True)}
        numbers |= {f"norm of {name}": n for name, n in loss.gradient_norms.items()}
        return numbers | {f"active {name}": share for name, share in loss.active.items()}

    return run


def of_heads(part: Part) -> Numbers:
    torch.manual_seed(7)
    spans = [(0, 5), (5, 10), (0, 5), None]
    losses = ["ms", "contrastive", "norm_softmax", "sec"]
    loss = dmlcore.LossEnsemble(losses, columns=spans, num_classes=CLASSES, embedding_dim=5).double()
    return one_step(part, part.joined(loss), *batch(2))


def of_tiles(dtype: torch.dtype) -> Callable[[Part], Numbers]:
    """Losses whose pairs are divided, over many tiles, with a weighting that differentiates each of them."""

    def run(part: Part) -> Numbers:
        losses = ["ms", "contrastive", "circle", "binomial_deviance", "sup_con", "fast_ap", "lifted_structure", "n_pair"]
        loss = part.joined(dmlcore.LossEnsemble(losses, "equal_gradient_norms").to(dtype))
        with plan_options(tile_rows=16, tile_columns=32):
            numbers = one_step(part, loss, *batch(8, samples=150, dtype=dtype))
        return numbers | {f"active {name}": share for name, share in loss.active.items()}

    return run


def of_steps_again(part: Part) -> Numbers:
    """Steps of losses whose pairs are divided, of which all but the first go the short way, with other batches each time."""
    raw = create("nca")
    raw.normalise = (False, False)  # a pass of its own
    losses = ["ms", create("circle", reduction="sum"), create("contrastive", reduction="mean"), "lifted_structure", raw]
    loss, numbers = part.joined(dmlcore.LossEnsemble(losses, "uncertainty").double()), {}
    with mock.patch.object(DividedAgain, "terms", autospec=True, side_effect=DividedAgain.terms) as terms:
        for step, samples in enumerate((40, SAMPLES, 150, 33)):
            if step == 3 and part.size > 1 and part.rank == 0:
                loss._last.again = None  # then all go the long way
            again = one_step(part, loss, *batch(step, samples))
            numbers |= {f"{step}.{name}": tensor for name, tensor in again.items()}
        x, y = batch(8)
        rows = part.rows(y)
        own = x[rows].requires_grad_()
        value = loss(own, y[rows])
        gradients = [torch.autograd.grad(value, own, retain_graph=True)[0] / part.size for _ in range(2)]
    assert torch.equal(*gradients) and terms.call_count == (3 if part.size > 1 and part.work == "divided" else 0)
    numbers |= {f"active {name}": share for name, share in loss.active.items()}
    with torch.no_grad():
        numbers["after"] = loss.eval()(x[rows], y[rows])
    return numbers | {"rows": gathered_rows(part, gradients[0]), "terms": torch.stack(list(loss.terms.values()))}


def of_matrices(part: Part) -> Numbers:
    x, y = batch(3)
    matrix = torch.stack([y, y % 2, y % 3 == 0], 1).clamp_max(1)
    return one_step(part, part.joined(dmlcore.LossEnsemble(["ms", "triplet", "smooth_ap"])), x, matrix)


def same_parity(labels: Tensor, others: Tensor) -> Tensor:
    return (labels[:, None] + others[None]) % 2 == 0


def of_a_relation(part: Part) -> Numbers:
    loss = part.joined(dmlcore.LossEnsemble(["ms", "contrastive", "intra_pair_variance"]))
    return one_step(part, loss, *batch(3), relation=same_parity)


def of_references(part: Part) -> Numbers:
    """Each rank gives its part of the references, in which its samples stand."""
    (x, y), loss = batch(3), part.joined(dmlcore.LossEnsemble(["ms", "triplet", "lifted_structure"]))
    rows = part.rows(y)
    references = (x[rows] * 1.1 + 0.1).requires_grad_()
    own = torch.arange(len(rows))
    numbers = one_step(part, loss, x, y, references=references, reference_labels=y[rows], own=own)
    assert references.grad is not None
    return numbers | {"rows of references": gathered_rows(part, references.grad / part.size)}


def of_keys(part: Part) -> Numbers:
    """Each rank gives the keys of its samples. The memory of the second step holds those of all."""
    names = ["ms", "sample_specific", "class_shared", "intra_class"]
    loss, numbers = part.joined(dmlcore.LossEnsemble(names).double()), {}
    for seed in (3, 4):
        x, y = batch(seed)
        numbers = one_step(part, loss, x, y, keys=(1.1 * x + 0.1)[part.rows(y)])
    return numbers | {"entries": loss.members[1].entries.clone()}


def gathered_rows(part: Part, rows: Tensor) -> Tensor:
    if part.size == 1:
        return rows
    lists: list[Any] = [None] * part.size
    distributed.all_gather_object(lists, rows)
    return torch.cat(lists)


def of_wrapped(part: Part) -> Numbers:
    """`DistributedDataParallel` around the network and around the losses."""
    loss, net = part.joined(ensemble()), network()
    x, y = batch(5)
    if part.size == 1:
        return one_step(part, loss, x, y, net)
    rows = part.rows(y)
    wrapped = nn.parallel.DistributedDataParallel(net)
    nn.parallel.DistributedDataParallel(loss)(wrapped(x[rows]), y[rows]).backward()
    numbers: Numbers = {f"network.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    numbers |= {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return numbers | {"value": sum(loss.terms.values(), start=torch.zeros((), dtype=torch.float64))}


def of_sharded(part: Part) -> Numbers:
    """`fully_shard` around the network."""
    loss, net = part.joined(ensemble()), network()
    x, y = batch(5)
    if part.size == 1:
        return one_step(part, loss, x, y, net)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rows, sharded = part.rows(y), fully_shard(net, mesh=init_device_mesh("cpu", (part.size,)))
    value = loss(sharded(x[rows]), y[rows])
    value.backward()
    gradients: dict[str, Any] = {f"network.{name}": p.grad for name, p in net.named_parameters()}
    numbers: Numbers = {name: gradient.full_tensor() for name, gradient in gradients.items()}
    numbers |= {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return numbers | {"value": value.detach()}


def of_accelerate(part: Part) -> Numbers:
    """accelerate around everything."""
    loss, net = part.joined(ensemble()), network()
    x, y = batch(5)
    if part.size == 1:
        return one_step(part, loss, x, y, net)
    from accelerate import Accelerator

    launched = {"RANK": str(part.rank), "WORLD_SIZE": str(part.size), "LOCAL_RANK": str(part.rank)}
    launched |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # nobody connects: there is a group already
    with mock.patch.dict(os.environ, launched):
        accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == part.size
    rows = part.rows(y)
    prepared, prepared_loss = accelerator.prepare(net, loss)
    value = prepared_loss(prepared(x[rows]), y[rows])
    accelerator.backward(value)
    numbers: Numbers = {f"network.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    numbers |= {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return numbers | {"value": value.detach()}


def of_a_sum(part: Part) -> Numbers:
    """An engine that adds gradients up."""
    loss, net = part.joined(ensemble(), gradients="sum"), network()
    numbers = one_step(part, loss, *batch(6), net=net)
    return {name: n * (part.size if name.startswith("network") else 1) for name, n in numbers.items()}


def of_transport(transport: str, dtype: torch.dtype) -> Callable[[Part], Numbers]:
    """What is sent in half precision is what a loss of rounded embeddings is."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            return values.to(dtype).to(values.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    def run(part: Part) -> Numbers:
        loss = part.joined(ensemble(), **({} if part.size == 1 else {"transport": transport}))
        x, y = batch(6)
        if part.size > 1:
            return one_step(part, loss, x, y)
        net = network()
        value = loss(Rounded.apply(net(x)), y)
        value.backward()
        numbers: Numbers = {"value": value.detach()}
        numbers |= {f"network.{name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        return numbers | {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}

    return run


class Sideways(Loss):
    """A loss of a third party that knows nothing of ranks."""

    name = "sideways"
    takes_references = False

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return (embeddings.std(0) * labels.double().std()).sum()


CASES: dict[str, Callable[[Part], Numbers]] = {
    **{f"loss {case.id}": of_a_loss(index) for index, case in enumerate(LOSSES)},
    **{f"{r} of {name}": of_a_reduction(name, r) for name in ("ms", "triplet", "arcface", "l2_norm") for r in ("mean", "sum")},
    **{f"miner {name}": of_a_miner(name) for name in MINERS},
    "memory of a loss": of_a_memory(lambda: create("contrastive")),
    "memory of an ensemble": of_a_memory(ensemble),
    "loss again": of_steps_again,
    "heads": of_heads,
    "tiles": of_tiles(torch.float64),
    "float32 tiles": of_tiles(torch.float32),
    "label matrices": of_matrices,
    "relation": of_a_relation,
    "references": of_references,
    "keys": of_keys,
    "wrapped": of_wrapped,
    "sharded": of_sharded,
    "sum": of_a_sum,
    "rounded by bf16": of_transport("bf16", torch.bfloat16),
    "rounded by fp16": of_transport("fp16", torch.float16),
    "third party": lambda part: one_step(part, part.joined(Sideways()), *batch(1)),
    "float32": of_a_weighting("equal_gradient_norms", torch.float32, steps=1),
}


if find_spec("accelerate"):
    CASES["accelerate"] = of_accelerate


@contextmanager
def fault(name: str) -> Iterator[None]:
    """Something that is planted to be noticed."""
    if name == "no factor":
        with mock.patch.object(Group, "factor", 1.0):
            yield
    elif name == "local batch":
        with mock.patch.object(Group, "size", 1):
            yield
    else:
        assert name == "wrong rows"
        with mock.patch.object(operators.Layout, "own", property(lambda self: slice(0, self.count))):
            yield


WHOLE = ("heads", "tiles", "label matrices", "relation", "memory of an ensemble", "wrapped", "weighting equal_gradient_norms")
"""Cases that are also run with all work done by every rank. Elsewhere what can be divided is."""
FAULTS = ("no factor", "local batch", "wrong rows")


def traffic(rank: int) -> dict[str, list[tuple[str, int]]]:
    """What crosses in a step and the bytes that this rank gives, in its order, by how the work is done; the last rank
    has no samples."""
    sent: dict[str, list[tuple[str, int]]] = {}
    x, y = batch(1)
    for work in ("whole", "divided"):
        calls = sent.setdefault(work, [])

        def noting(name: str, call: Any, calls: list[tuple[str, int]] = calls) -> Any:
            def note(*arguments: Any, **named: Any) -> Any:
                given = [part for sent in arguments[1:] for part in (sent if isinstance(sent, list | tuple) else [sent])]
                calls.append((name, sum(part.nbytes for part in given if isinstance(part, Tensor))))
                return call(*arguments, **named)

            return note

        loss = dmlcore.distributed(ensemble(), work=work)  # type: ignore[arg-type]
        part = Part(rank, distributed.get_world_size(), "empty")
        one_step(part, loss, x, y)  # the first call also compares the losses
        names = ("meet", "all_gather", "gather", "reduce_scatter", "add_up")
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(Group, name, noting(name, getattr(Group, name))))
            rows, net = part.rows(y), network()
            loss(net(x[rows]), y[rows]).backward()
    return sent


def refused(act: Callable[[], Any]) -> str:
    try:
        act()
    except dmlcore.errors.DmlcoreError as error:
        return str(error)
    return "nothing was refused"


def refusals(rank: int) -> dict[str, str]:
    """What every rank says where something cannot be right."""
    (x, y), net = batch(1), network()
    part = Part(rank, distributed.get_world_size())
    rows = part.rows(y)
    x, y = net(x[rows]), y[rows]
    joined = dmlcore.distributed(create("ms"))
    group = Group()
    stepped = dmlcore.LossEnsemble(["ms"], group=group)

    def at_another_step() -> None:
        group.step = rank
        stepped(x, y)

    def in_manner(**manner: Any) -> None:
        dmlcore.LossEnsemble(["ms"], group=Group(**manner))(x, y)

    class Drawing(Sideways):
        name = "drawing"

        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return embeddings.sum() * torch.rand(())

    torch.manual_seed(rank)
    return {
        "ensemble alone": refused(lambda: dmlcore.LossEnsemble(["ms"])(x, y)),
        "loss alone": refused(lambda: create("ms")(x, y)),
        "memory alone": refused(lambda: CrossBatchMemory(create("ms"), 60, WIDTH)(x, y)),
        "meant": refused(lambda: dmlcore.distributed(create("ms"), "local")(x, y)),
        "evaluation": refused(lambda: dmlcore.LossEnsemble(["ms"]).eval()(x, y)),
        "a bad batch": refused(lambda: joined(x, y.double() if rank == 1 else y)),
        "other widths": refused(lambda: joined(x[:, : WIDTH - rank], y)),
        "other losses": refused(lambda: dmlcore.distributed(create("ms", alpha=2.0 + rank))(x, y)),
        "other steps": refused(at_another_step),
        "other work": refused(lambda: in_manner(work="divided" if rank else "auto")),
        "other transport": refused(lambda: in_manner(transport="bf16" if rank else "full")),
        "other gradients": refused(lambda: in_manner(gradients="sum" if rank else "mean")),
        "draws": refused(lambda: dmlcore.distributed(Drawing())(x, y)),
        "no reduction": refused(lambda: dmlcore.distributed(create("ms", reduction="none"))),
    }


def main(rank: int, size: int, folder: Path, splits: list[str]) -> None:
    """What each rank runs: all cases, the faults, and what is refused; results go to files."""
    with as_rank(rank, size, folder) as outcome:
        cases = CASES | {f"weighting {name}": of_a_weighting(name) for name in weightings()}
        results: dict[str, Any] = {}
        for name, run in cases.items():
            for split in splits if name.startswith("loss") else splits[:1]:
                results[f"{name}, {split}"] = run(Part(rank, size, split, "divided"))
            if name in WHOLE:
                results[f"{name}, whole"] = run(Part(rank, size, splits[0], "whole"))
        planted = {name: of_fault(name, Part(rank, size)) for name in FAULTS}
        outcome |= {"results": results, "planted": planted, "traffic": traffic(rank), "refusals": refusals(rank)}


def of_fault(name: str, part: Part) -> Numbers:
    with fault(name):
        return one_step(part, part.joined(ensemble()), *batch(5))


def weightings() -> list[str]:
    from dmlcore.plugins import registry

    return list(registry("weighting"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","))
