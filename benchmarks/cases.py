"""What is measured: losses and ensembles by name with their counterparts in pytorch-metric-learning, and all measurements of a
run. Losses that are not installed are left out. How one is done is in `child.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

RIVALS = ("fused", "plain", "compiled", "pml")


@dataclass(frozen=True)
class Member:
    """A loss with its options, and the loss and miner of pytorch-metric-learning that compute the same.

    Attributes:
        loss, options: as `dmlcore.losses.create` takes them.
        peer, peer_options: class in `pytorch_metric_learning.losses`, or an empty string.
        miner, miner_options: class in `pytorch_metric_learning.miners`, or an empty string.
        proxies: whether it compares samples with proxies.
    """

    loss: str
    options: dict[str, Any] = field(default_factory=dict)
    peer: str = ""
    peer_options: dict[str, Any] = field(default_factory=dict)
    miner: str = ""
    miner_options: dict[str, Any] = field(default_factory=dict)
    proxies: bool = False


def _triplet(mining: str, miner: str, **miner_options: Any) -> Member:
    options = {"margin": 0.2, **({"mining": mining} if mining else {})}
    return Member("triplet", options, "TripletMarginLoss", {"margin": 0.2}, miner, miner_options)


def _proxy(loss: str, peer: str = "", options: dict[str, Any] | None = None) -> Member:
    return Member(loss, options or {}, peer, options or {}, proxies=True)


PAIRS: dict[str, Member] = {
    "ms": Member("ms", {}, "MultiSimilarityLoss", {}, "MultiSimilarityMiner", {"epsilon": 0.1}),
    "contrastive": Member("contrastive", {}, "ContrastiveLoss"),
    "sup_con": Member("sup_con", {}, "SupConLoss"),
    "circle": Member("circle", {}, "CircleLoss"),
    "triplet all": _triplet("", ""),
    "triplet semihard": _triplet("semihard", "TripletMarginMiner", margin=0.2, type_of_triplets="semihard"),
    "triplet hard": _triplet("hard", "BatchHardMiner"),
    "nt_xent": Member("nt_xent", {}, "NTXentLoss"),
    "lifted_structure": Member("lifted_structure", {}, "LiftedStructureLoss"),
    "generalized_lifted_structure": Member("generalized_lifted_structure", {}, "GeneralizedLiftedStructureLoss"),
    "n_pair": Member("n_pair", {}, "NPairsLoss"),
    "margin": Member("margin", {}, "MarginLoss"),
    "binomial_deviance": Member("binomial_deviance"),
    "nca": Member("nca", {}, "NCALoss"),
    "tuplet_margin": Member("tuplet_margin", {}, "TupletMarginLoss"),
    "ranked_list": Member("ranked_list", {}, "RankedListLoss"),
    "intra_pair_variance": Member("intra_pair_variance", {}, "IntraPairVarianceLoss"),
    "histogram": Member("histogram", {}, "HistogramLoss"),
    "fast_ap": Member("fast_ap", {}, "FastAPLoss"),
    "smooth_ap": Member("smooth_ap", {}, "SmoothAPLoss"),
    "angular": Member("angular", {}, "AngularLoss"),
    "snr_contrastive": Member("snr_contrastive", {}, "SignalToNoiseRatioContrastiveLoss"),
}
PROXIES: dict[str, Member] = {
    "proxy_anchor": _proxy("proxy_anchor", "ProxyAnchorLoss"),
    "proxy_nca": _proxy("proxy_nca", "ProxyNCALoss", {"softmax_scale": 8.0}),
    "norm_softmax": _proxy("norm_softmax", "NormalizedSoftmaxLoss"),
    "arcface": _proxy("arcface", "ArcFaceLoss"),
    "cosface": _proxy("cosface", "CosFaceLoss"),
    "sphereface": _proxy("sphereface", "SphereFaceLoss"),
    "subcenter_arcface": _proxy("subcenter_arcface", "SubCenterArcFaceLoss"),
    "soft_triple": _proxy("soft_triple", "SoftTripleLoss"),
    "cross_entropy": _proxy("cross_entropy"),
}
SOFTMAX = [name for name in PROXIES if name != "proxy_anchor"]
MEMBERS = PAIRS | PROXIES
ENSEMBLES: dict[str, tuple[str, ...]] = {
    "five": ("ms", "contrastive", "sup_con", "circle", "triplet hard"),
    "eight": ("ms", "contrastive", "sup_con", "circle", "triplet hard", "nt_xent", "histogram", "triplet all"),
    "ms + proxy_anchor + triplet": ("ms", "proxy_anchor", "triplet all"),
}
SCALING = ("nt_xent", "lifted_structure", "smooth_ap", "histogram", "triplet all")  # what others cannot run at N = 32768


def members(case: str) -> tuple[Member, ...]:
    """A case's members that are installed; empty when a single loss is not."""
    from dmlcore.losses import names

    installed = set(names())
    return tuple(MEMBERS[name] for name in ENSEMBLES.get(case, (case,)) if MEMBERS[name].loss in installed)


def has_proxies(case: str) -> bool:
    return any(member.proxies for member in members(case))


def has_pairs(case: str) -> bool:
    return any(not member.proxies for member in members(case))


@dataclass(frozen=True)
class Measurement:
    """One child process: a rival on one case and size, interleaved with the bare products and with the fused loss.

    Attributes:
        case: a key of `MEMBERS` or `ENSEMBLES`.
        rival: one of `RIVALS` (`fused`: what users call, fused where it can be), or `threads`: the same on `threads` threads
            against one, by wall time.
        n, d: `[n, d]` embeddings, four samples per class.
        classes: number of proxies; 0 for cases without.
        threads: of torch and of the kernels.
        malloc: `default`, or `keep`: glibc never gives memory back to the system.
    """

    case: str
    rival: str
    n: int
    d: int
    classes: int = 0
    threads: int = 1
    malloc: str = "default"

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies its row of the CSV."""
        return tuple(str(value) for value in asdict(self).values())


def measurement(
    case: str, rival: str, n: int, d: int, classes: int = 1000, threads: int = 1, malloc: str = "default"
) -> Measurement:
    """A measurement; `classes` only where the case has proxies."""
    return Measurement(case, rival, n, d, classes if has_proxies(case) else 0, threads, malloc)


def _installed(measurements: Iterator[Measurement]) -> list[Measurement]:
    def runs(measurement: Measurement) -> bool:
        return measurement.rival != "pml" or all(member.peer for member in members(measurement.case))

    return list(dict.fromkeys(measurement for measurement in measurements if members(measurement.case) and runs(measurement)))


def grid(
    sizes: list[int] | None = None, widths: tuple[int, ...] = (128, 512), rivals: tuple[str, ...] = RIVALS
) -> list[Measurement]:
    """Everything: all cases, N = 128 to 8192 with all rivals, 32768 fused only; compiled at two sizes; two threads.

    Args:
        sizes: other numbers of samples, multiples of four.
        widths: dimensions.
        rivals: only these.
    """

    def measurements() -> Iterator[Measurement]:
        for case in [*MEMBERS, *ENSEMBLES]:
            for d in widths:
                for n in sizes or [128, 512, 2048, 4096, 8192]:
                    for rival in rivals:
                        if rival != "threads" and (rival != "compiled" or n in (512, 2048)):  # threads are two, below
                            yield measurement(case, rival, n, d)
                    if case in ("five", "ms") and n >= 2048:
                        yield measurement(case, "threads", n, d, threads=2)
                        yield from (
                            measurement(case, rival, n, d, malloc="keep") for rival in ("plain", "pml") if rival in rivals
                        )
            if sizes is None:
                yield measurement(case, "fused", 32768, 128)
                if case in PROXIES:
                    yield from (
                        measurement(case, rival, n, 128, 11318) for n in (512, 2048) for rival in rivals if rival != "compiled"
                    )

    return _installed(measurements())


def selection() -> list[Measurement]:
    """What the table of goals needs, the dearest last: about a quarter of an hour on two quiet cores."""

    def measurements() -> Iterator[Measurement]:
        for n, d in ((2048, 128), (4096, 128), (8192, 128), (2048, 512)):
            for case in ("ms", "five", "eight"):
                yield measurement(case, "fused", n, d)
        for case in ("ms", "eight"):
            for n in (128, 512):
                yield measurement(case, "fused", n, 128)
        for case in PAIRS:
            for d in (128, 512):
                yield measurement(case, "fused", 2048, d)
        for n, d, classes in ((2048, 128, 1000), (512, 128, 1000), (2048, 512, 1000), (512, 128, 11318), (2048, 128, 11318)):
            yield measurement("proxy_anchor", "fused", n, d, classes)
        for case in SOFTMAX:
            yield measurement(case, "fused", 2048, 128)
        yield measurement("norm_softmax", "fused", 2048, 512)
        for case in ("ms", "five"):
            for n in (2048, 8192):
                yield measurement(case, "threads", n, 128, threads=2)
        for d in (128, 512):
            yield measurement("five", "pml", 2048, d)
            yield measurement("five", "compiled", 2048, d)
        for case in ("ms", "eight", *SCALING):
            yield measurement(case, "fused", 32768, 128)
        for case in ("proxy_anchor", "norm_softmax"):
            yield measurement(case, "pml", 2048, 128)
            yield measurement(case, "compiled", 2048, 128)
        for n in (128, 512, 2048, 4096):  # the picture
            for case in ("ms", "five"):
                for rival in ("plain", "pml"):
                    yield measurement(case, rival, n, 128)
        yield from (measurement("five", rival, 4096, 128, malloc="keep") for rival in ("plain", "pml"))
        for case in ("ms", "five"):
            yield measurement(case, "fused", 512, 128)
            yield measurement(case, "fused", 128, 128)
            yield measurement(case, "plain", 8192, 128)
        yield measurement("ms", "pml", 8192, 128)

    return _installed(measurements())


def peer(member: Member, classes: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The same loss from pytorch-metric-learning."""
    import pytorch_metric_learning.losses as peers
    import pytorch_metric_learning.miners as miners

    sizes = {"num_classes": classes, "embedding_size": width} if member.proxies else {}
    function = getattr(peers, member.peer)(**sizes, **member.peer_options)
    miner = getattr(miners, member.miner)(**member.miner_options) if member.miner else None
    return lambda x, y: function(x, y, miner(x, y)) if miner else function(x, y)
