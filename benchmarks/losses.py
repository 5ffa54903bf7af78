"""Forward and backward of losses and ensembles: fused, the plain definition, the same compiled, pytorch-metric-learning, and
the bare matrix products any implementation needs. Values are checked against the definition before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import dmlcore
from benchmarks.measuring import Row, interleaved, peak_megabytes, quantiles

PROXIES = 1000
PER_CLASS = 4
LARGEST_PLAIN = 8192  # the N x N matrices of the plain form and of rivals take gigabytes beyond
LARGEST_MIXED = 2048  # with at most 1000 classes all triplets of 8192 samples would be [N, P, N] of 3 GB a copy


@dataclass(frozen=True)
class Case:
    """One row of the table: member losses with options, and their counterparts in pytorch-metric-learning."""

    name: str
    members: tuple[tuple[str, dict[str, Any]], ...]
    peers: tuple[Callable[[Any], Callable[[Tensor, Tensor], Tensor]], ...] = ()
    products: tuple[str, ...] = field(default=("pairs",))


def _peer(loss: str, miner: str | None = None, miner_options: dict[str, Any] | None = None, **options: Any):
    def make(pml: Any) -> Callable[[Tensor, Tensor], Tensor]:
        function = getattr(pml.losses, loss)(**options)
        mine = getattr(pml.miners, miner)(**(miner_options or {})) if miner else None
        return lambda x, y: function(x, y, mine(x, y) if mine else None)

    return make


def _proxy_peer(loss: str, **options: Any):
    def make(pml: Any) -> Callable[[Tensor, Tensor], Tensor]:
        sizes = {"num_classes": PROXIES, **options}
        made: dict[int, Any] = {}
        return lambda x, y: made.setdefault(x.shape[1], getattr(pml.losses, loss)(embedding_size=x.shape[1], **sizes))(
            x, y % PROXIES
        )

    return make


MS = (("ms", {}), _peer("MultiSimilarityLoss", "MultiSimilarityMiner", {"epsilon": 0.1}))
CONTRASTIVE = (("contrastive", {}), _peer("ContrastiveLoss"))
SUP_CON = (("sup_con", {}), _peer("SupConLoss"))
CIRCLE = (("circle", {}), _peer("CircleLoss"))
ALL = (("triplet", {"margin": 0.2}), _peer("TripletMarginLoss", margin=0.2))
SEMIHARD = (
    ("triplet", {"margin": 0.2, "mining": "semihard"}),
    _peer("TripletMarginLoss", "TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}, margin=0.2),
)
HARD = (("triplet", {"margin": 0.2, "mining": "hard"}), _peer("TripletMarginLoss", "BatchHardMiner", {}, margin=0.2))
ANCHOR = (("proxy_anchor", {}), _proxy_peer("ProxyAnchorLoss"))
NCA = (("proxy_nca", {"softmax_scale": 8.0}), _proxy_peer("ProxyNCALoss", softmax_scale=8))
SOFTMAX = (("norm_softmax", {}), _proxy_peer("NormalizedSoftmaxLoss"))


def _case(name: str, *members: Any, products: tuple[str, ...] = ("pairs",)) -> Case:
    return Case(name, tuple(m[0] for m in members), tuple(m[1] for m in members), products)


CASES = [
    _case("ms", MS),
    _case("contrastive", CONTRASTIVE),
    _case("sup_con", SUP_CON),
    _case("circle", CIRCLE),
    _case("triplet all", ALL),
    _case("triplet semihard", SEMIHARD),
    _case("triplet hard", HARD),
    _case("proxy_anchor", ANCHOR, products=("proxies",)),
    _case("proxy_nca", NCA, products=("proxies",)),
    _case("norm_softmax", SOFTMAX, products=("proxies",)),
    _case("ms + proxy_anchor + triplet", MS, ANCHOR, ALL, products=("pairs", "proxies")),
    _case("five: ms contrastive sup_con circle triplet", MS, CONTRASTIVE, SUP_CON, CIRCLE, ALL),
    _case("five with triplet hard", MS, CONTRASTIVE, SUP_CON, CIRCLE, HARD),
]


def largest(case: Case) -> int:
    """The largest N at which the plain form and the rivals are run."""
    return LARGEST_MIXED if len(case.products) > 1 else LARGEST_PLAIN


def data(count: int, width: int) -> tuple[Tensor, Tensor]:
    """A batch of `count` points, four per class in random order, of unit norm: `[N, D]`, `[N]`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) // PER_CLASS
    labels = labels[torch.randperm(count, generator=generator)]
    centres = torch.randn(count // PER_CLASS, width, generator=generator)
    return functional.normalize(centres[labels] + 0.7 * torch.randn(count, width, generator=generator)), labels


def build(case: Case, width: int) -> Any:
    """The case's losses as one module: an ensemble, or the loss alone."""
    torch.manual_seed(0)
    made = [dmlcore.losses.create(name, num_classes=PROXIES, embedding_dim=width, **options) for name, options in case.members]
    return made[0] if len(made) == 1 else dmlcore.LossEnsemble(made)


def products(case: Case, x: Tensor) -> Callable[[], object]:
    """The bare matrix products of forward and backward, into memory that is there already."""
    n, d = x.shape
    s, g = torch.empty(n, n), torch.empty(n, d)
    p = functional.normalize(torch.randn(PROXIES, d))
    sp, gp, gx = torch.empty(PROXIES, n), torch.empty(PROXIES, d), torch.empty(n, d)

    def run() -> None:
        if "pairs" in case.products:
            torch.mm(x, x.T, out=s)
            torch.mm(s, x, out=g)
        if "proxies" in case.products:
            torch.mm(p, x.T, out=sp)
            torch.mm(sp, x, out=gp)
            torch.mm(sp.T, p, out=gx)

    return run


def step(module: Any, compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """One forward and backward pass; gradients are thrown away afterwards."""
    leaf = x.clone().requires_grad_()

    def run() -> Tensor:
        value = compute(leaf, y)
        value.backward()
        leaf.grad = None
        module.zero_grad(set_to_none=True)
        return value.detach()

    return run


def arms(case: Case, n: int, d: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """Everything that is timed for a case, checked against the definition first."""
    x, labels = data(n, d)
    y = labels % PROXIES if "proxies" in case.products else labels  # above 4000 samples classes are then larger than four
    module = build(case, d)
    plain = (lambda a, b: sum(m.reference(a, b) for m in module.losses)) if len(case.members) > 1 else module.reference
    found: dict[str, Callable[[], object]] = {"products": products(case, x), "fused": step(module, module, x, y)}
    if n <= largest(case):
        found["plain"] = step(module, plain, x, y)
    if compiled and (n == 2048 or (n == 512 and d == 128)):
        found["compiled"] = step(module, torch.compile(plain), x, y)
    try:
        import pytorch_metric_learning as pml
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners

        peers = [make(pml) for make in case.peers]
        if n <= largest(case):
            found["pml"] = step(module, lambda a, b: sum(peer(a, b) for peer in peers), x, y)
    except ImportError:
        pass
    checked = found["fused"]()
    if "plain" in found:
        expected = found["plain"]()
        assert isinstance(checked, Tensor) and isinstance(expected, Tensor)
        if not math.isclose(checked.item(), expected.item(), rel_tol=2e-4):
            raise AssertionError(f"{case.name}: fused gives {checked.item()}, the definition {expected.item()}")
    return found


def memory(case: Case, rival: str, n: int, d: int) -> float:
    """Peak MB of one step over inputs and gradients."""

    def prepare() -> Callable[[], object]:
        small = arms(case, 64, d, False)  # libraries load and warm up on something small
        for run in small.values():
            run()
        return arms_without_check(case, rival, n, d)

    own = 4 * n * d / 2**20 + (4 * PROXIES * d / 2**20 if "proxies" in case.products else 0)
    return max(peak_megabytes(prepare) - own, 0.0)


def arms_without_check(case: Case, rival: str, n: int, d: int) -> Callable[[], object]:
    """One arm, not yet run."""
    x, y = data(n, d)
    y = y % PROXIES if "proxies" in case.products else y
    module = build(case, d)
    if rival == "fused":
        return step(module, module, x, y)
    if rival == "plain":
        return step(
            module,
            (lambda a, b: sum(m.reference(a, b) for m in module.losses)) if len(case.members) > 1 else module.reference,
            x,
            y,
        )
    import pytorch_metric_learning as pml
    import pytorch_metric_learning.losses
    import pytorch_metric_learning.miners

    peers = [make(pml) for make in case.peers]
    return step(module, lambda a, b: sum(peer(a, b) for peer in peers), x, y)


def run(
    quick: bool,
    only: str | None = None,
    compiled: bool = True,
    sizes: list[int] | None = None,
    keep: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """All rows; prints a line per case and size.

    Args:
        quick: only N = 128, 512, 2048 at d = 128, without torch.compile and memory.
        only: part of a case's name.
        compiled: time torch.compile of the plain form too.
        sizes: other numbers of samples, multiples of four.
        keep: gets all rows so far after every case and size, so that an interrupted run loses nothing.
    """
    torch.set_num_threads(1)
    counts = sizes or ([128, 512, 2048] if quick else [128, 512, 2048, 8192])
    shapes = [(n, d) for d in ([128] if quick else [128, 512]) for n in counts]
    rows: list[Row] = []
    for case in CASES:
        if only and only not in case.name:
            continue
        for n, d in shapes:
            torch.compiler.reset()
            found = arms(case, n, d, compiled and not quick)
            if n >= 8192:  # one step of a slow rival is enough to know; the fast arms are repeated below
                slow = interleaved({k: v for k, v in found.items() if k in ("plain", "pml")}, budget=0, least=1, most=1)
                times = interleaved({k: v for k, v in found.items() if k not in slow}, budget=20, least=5, most=15) | slow
            else:
                for arm in found.values():
                    arm()
                times = interleaved(found, budget=15 if not quick else 5, least=3, most=40)
            base = quantiles(times["products"])[0]
            for rival, seconds in times.items():
                middle, low, high = quantiles(seconds)
                rows.append(
                    {
                        "case": case.name,
                        "rival": rival,
                        "N": n,
                        "d": d,
                        "cpu_seconds": middle,
                        "low": low,
                        "high": high,
                        "repeats": len(seconds),
                        "ratio_to_products": middle / base,
                        "peak_mb": memory(case, rival, n, d)
                        if rival in ("fused", "plain", "pml") and n >= 2048 and d == 128 and not quick
                        else math.nan,
                    }
                )
            line = "  ".join(f"{row['rival']} {row['ratio_to_products']:.2f}" for row in rows[-len(times) :])
            print(f"{case.name:45} N={n:5} d={d:3}  {line}")
            keep(rows)
    return rows
