"""The table of cases: every fused loss with its options and its counterpart in pytorch-metric-learning, and the batches that
every loss must survive. A new loss adds a row to LOSSES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.losses import unit

CLASSES, WIDTH = 7, 11


@dataclass(frozen=True)
class Case:
    """One row: a loss with options, and how to compute it with pytorch-metric-learning.

    `peer` gets the module `pytorch_metric_learning`, the loss object, embeddings and labels, and returns the value.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    peer: Callable[[Any, Any, Tensor, Tensor], Tensor] | None = None
    fused: bool = True
    scale_free: bool = True
    """Whether scaling all embeddings changes nothing."""
    cuda: bool = True
    """Whether the fused form has CUDA kernels too."""

    @property
    def id(self) -> str:
        return self.name + "".join(f"-{key}={value}" for key, value in self.options.items())

    @property
    def mines_beyond(self) -> bool:
        """Whether it takes negatives beyond a positive: the definition jumps where the two are equally far."""
        return "semihard" in self.options.get("mining", "") or (self.name, self.options.get("variant")) == ("triplet", "wedl")

    @property
    def jumps_at_itself(self) -> bool:
        """Whether a positive at distance 0 counts or not by the rounding of that 0, which differs between instruction sets."""
        return self.name == "snr_contrastive"

    @property
    def takes_nearest(self) -> bool:
        """Whether the gradient reaches only a nearest or farthest point, which among coincident ones the last bit decides."""
        return self.options.get("mining", "all") not in ("all", "semihard")

    @property
    def takes_first(self) -> bool:
        """Whether it takes the first samples of a class, so that the order of a class's samples matters."""
        return "pairs" in self.options

    @property
    def counts_pairs(self) -> bool:
        """Whether it is averaged over pairs that its kernel does not count."""
        return self.name == "triplet" and self.options.get("average") == "all" and "mining" not in self.options

    def create(self, dtype: torch.dtype = torch.float64, classes: int = CLASSES, width: int = WIDTH, seed: int = 3) -> Any:
        torch.manual_seed(seed)
        return dmlcore.losses.create(self.name, num_classes=classes, embedding_dim=width, **self.options).to(dtype)


def _mined(loss: str, miner: str | None = None, miner_options: dict[str, Any] | None = None, **options: Any):
    def peer(pml: Any, _: Any, x: Tensor, y: Tensor) -> Tensor:
        distance = options.get("distance")
        if distance is not None:  # PML's inverted distances take their margins as similarities
            distances = {
                "squared": pml.distances.LpDistance(power=2),
                "cosine": pml.distances.CosineSimilarity(),
                "dot": pml.distances.DotProductSimilarity(normalize_embeddings=False),
            }
            return getattr(pml.losses, loss)(**{**options, "distance": distances[distance]})(x, y)
        pairs = getattr(pml.miners, miner)(**(miner_options or {}))(x, y) if miner else None
        return getattr(pml.losses, loss)(**options)(x, y, pairs)

    return peer


def _normalised(loss: str, **options: Any):
    def peer(pml: Any, _: Any, x: Tensor, y: Tensor) -> Tensor:
        return getattr(pml.losses, loss)(**options)(unit(x), y)

    return peer


def _proxies(loss: str, attribute: str = "proxies", transpose: bool = False, **options: Any):
    def peer(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
        theirs = getattr(pml.losses, loss)(num_classes=ours.num_classes, embedding_size=ours.proxies.shape[1], **options)
        del theirs._parameters[attribute]  # a tensor, not a parameter: the gradient reaches our proxies
        setattr(theirs, attribute, ours.proxies.T if transpose else ours.proxies)
        theirs.cast_types = lambda dtype, device: None
        return theirs(x, y)

    return peer


def _margin(**options: Any):
    def peer(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
        theirs = pml.losses.MarginLoss(num_classes=len(ours.beta) if ours.options.per_class else None, **options)
        theirs._parameters.pop("beta", None)  # a tensor, not a parameter: the gradient reaches our beta
        theirs.__dict__["beta"] = ours.beta
        return theirs(x, y)

    return peer


def _nca(**options: Any):
    def peer(pml: Any, _: Any, x: Tensor, y: Tensor) -> Tensor:
        if y.unique().numel() == y.numel():  # where no class has two samples it takes the mean of nothing
            return x.sum() * 0
        return pml.losses.NCALoss(**options)(x, y)

    return peer


def _squares(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
    return ours.options.weight * pml.regularizers.LpRegularizer(p=2, power=2)(x)


def _linear(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
    seen = x if ours.layer is None else torch.nn.functional.linear(x, ours.layer.weight, ours.layer.bias).relu()
    logits = torch.nn.functional.linear(seen, ours.proxies, ours.bias)
    return torch.nn.functional.cross_entropy(logits, y, label_smoothing=ours.options.label_smoothing)


def _smoothed(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
    normal = torch.nn.functional.normalize
    logits = normal(x) @ normal(ours.proxies).T / ours.options.temperature
    return torch.nn.functional.cross_entropy(logits, y, label_smoothing=ours.options.label_smoothing)


def _regularised_triples(pml: Any, ours: Any, x: Tensor, y: Tensor) -> Tensor:
    o = ours.options
    regulariser = pml.regularizers.SparseCentersRegularizer(ours.num_classes, o.centers_per_class)
    theirs = _proxies("SoftTripleLoss", "fc", transpose=True, centers_per_class=o.centers_per_class)
    return theirs(pml, ours, x, y) + o.tau * regulariser(ours.proxies)


LOSSES = [
    Case("ms", {}, _mined("MultiSimilarityLoss", "MultiSimilarityMiner", {"epsilon": 0.1})),
    Case("ms", {"epsilon": "none"}, _mined("MultiSimilarityLoss")),
    Case(
        "ms",
        {"alpha": 18.0, "beta": 200.0, "base": 0.2, "epsilon": 0.3},
        _mined("MultiSimilarityLoss", "MultiSimilarityMiner", {"epsilon": 0.3}, alpha=18, beta=200, base=0.2),
    ),
    Case("contrastive", {}, _mined("ContrastiveLoss")),
    Case("contrastive", {"pos_margin": 0.5, "neg_margin": 1.4}, _mined("ContrastiveLoss", pos_margin=0.5, neg_margin=1.4)),
    Case(
        "contrastive",
        {"distance": "squared_euclidean", "pos_margin": 0.2, "neg_margin": 2.4},
        _mined("ContrastiveLoss", pos_margin=0.2, neg_margin=2.4, distance="squared"),
    ),
    Case(
        "contrastive",
        {"distance": "cosine", "pos_margin": 0.1, "neg_margin": 0.7},
        _mined("ContrastiveLoss", pos_margin=0.9, neg_margin=0.3, distance="cosine"),
    ),
    Case(
        "contrastive",
        {"distance": "dot", "pos_margin": -3.0, "neg_margin": 1.0},
        _mined("ContrastiveLoss", pos_margin=3.0, neg_margin=-1.0, distance="dot"),
        scale_free=False,
    ),
    Case("triplet", {}, _mined("TripletMarginLoss")),
    Case("triplet", {"margin": 0.3}, _mined("TripletMarginLoss", margin=0.3)),
    Case(
        "triplet",
        {"margin": 0.2, "mining": "semihard"},
        _mined("TripletMarginLoss", "TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}, margin=0.2),
    ),
    Case("triplet", {"margin": 0.2, "mining": "hard"}, _mined("TripletMarginLoss", "BatchHardMiner", {}, margin=0.2)),
    Case(
        "triplet",
        {"margin": 0.4, "mining": "easy_positive_semihard"},
        _mined("TripletMarginLoss", "BatchEasyHardMiner", {"pos_strategy": "easy", "neg_strategy": "semihard"}, margin=0.4),
    ),
    Case("triplet", {"margin": 0.3, "mining": "semihard_hardest"}),
    Case("triplet", {"smooth": True}, _mined("TripletMarginLoss", smooth_loss=True)),
    Case(
        "triplet",
        {"margin": 0.2, "mining": "semihard", "smooth": True},
        _mined(
            "TripletMarginLoss",
            "TripletMarginMiner",
            {"margin": 0.2, "type_of_triplets": "semihard"},
            margin=0.2,
            smooth_loss=True,
        ),
    ),
    Case("triplet", {"margin": 0.3, "mining": "semihard_hardest", "smooth": True}),
    Case(
        "triplet",
        {"margin": 0.2, "mining": "hard", "smooth": True},
        _mined("TripletMarginLoss", "BatchHardMiner", {}, margin=0.2, smooth_loss=True),
    ),
    Case("triplet", {"margin": 0.3, "mining": "easy_positive_semihard", "smooth": True}),
    Case("triplet", {"variant": "wedl"}),
    Case("triplet", {"swap": True}, _mined("TripletMarginLoss", swap=True), False),
    Case("triplet", {"distance": "squared_euclidean", "margin": 1.0, "average": "all"}),
    Case("triplet", {"distance": "squared_euclidean", "margin": 0.3, "mining": "semihard"}),
    Case("triplet", {"distance": "squared_euclidean", "margin": 0.2, "mining": "semihard_else_farthest", "average": "all"}),
    Case("triplet", {"margin": 0.2, "mining": "semihard_else_farthest"}),
    Case("sup_con", {}, _mined("SupConLoss")),
    Case("sup_con", {"temperature": 0.01}, _mined("SupConLoss", temperature=0.01)),
    Case("circle", {}, _mined("CircleLoss")),
    Case("circle", {"m": 0.25, "gamma": 256.0}, _mined("CircleLoss", m=0.25, gamma=256)),
    Case("smooth_ap", {}),
    Case("smooth_ap", {"temperature": 0.1}),
    Case("fast_ap", {}, _mined("FastAPLoss")),
    Case("fast_ap", {"num_bins": 7}, _mined("FastAPLoss", num_bins=7), False),
    Case("angular", {}, _normalised("AngularLoss")),
    Case("angular", {"alpha": 25.0}, _normalised("AngularLoss", alpha=25)),
    Case("angular", {"alpha": 75.0}, _normalised("AngularLoss", alpha=75)),
    Case("nt_xent", {}, _mined("NTXentLoss")),
    Case("nt_xent", {"temperature": 0.01}, _mined("NTXentLoss", temperature=0.01)),
    Case("generalized_lifted_structure", {}, _mined("GeneralizedLiftedStructureLoss")),
    Case(
        "generalized_lifted_structure",
        {"neg_margin": 1.5, "pos_margin": 0.3},
        _mined("GeneralizedLiftedStructureLoss", neg_margin=1.5, pos_margin=0.3),
    ),
    Case("binomial_deviance"),
    Case("binomial_deviance", {"variant": "wedl"}),
    Case("nca", {}, _nca()),
    Case("nca", {"softmax_scale": 20.0}, _nca(softmax_scale=20)),
    Case("tuplet_margin", {}, _mined("TupletMarginLoss")),
    Case("tuplet_margin", {"margin": 20.0, "scale": 90.0}, _mined("TupletMarginLoss", margin=20, scale=90)),
    Case("n_pair", scale_free=False),
    Case("nt_xent", {"temperature": 0.04, "pairs": "one_per_class"}),
    Case("lifted_structure", {}, _mined("LiftedStructureLoss")),
    Case(
        "lifted_structure",
        {"neg_margin": 0.6, "pos_margin": 2.5},
        _mined("LiftedStructureLoss", neg_margin=0.6, pos_margin=2.5),
    ),
    Case("margin", {}, _margin()),
    Case(
        "margin",
        {"margin": 0.1, "beta": 1.0, "learn_beta": True, "nu": 0.3},
        _margin(margin=0.1, beta=1.0, learn_beta=True, nu=0.3),
    ),
    Case("margin", {"learn_beta": True, "per_class": True, "nu": 0.05}, _margin(learn_beta=True, nu=0.05)),
    Case("margin", {"sampling": "distance_weighted", "learn_beta": True}, None, False),
    Case("intra_pair_variance", {}, _mined("IntraPairVarianceLoss")),
    Case(
        "intra_pair_variance",
        {"pos_eps": 0.3, "neg_eps": 0.2},
        _mined("IntraPairVarianceLoss", pos_eps=0.3, neg_eps=0.2),
    ),
    Case("ranked_list", {}, _mined("RankedListLoss", margin=0.4, Tn=10)),
    Case(
        "ranked_list",
        {"margin": 0.7, "Tn": 4.0, "imbalance": 0.3, "alpha": 1.5, "Tp": 5.0},
        _mined("RankedListLoss", margin=0.7, Tn=4, imbalance=0.3, alpha=1.5, Tp=5),
    ),
    Case("snr_contrastive", {}, _mined("SignalToNoiseRatioContrastiveLoss")),
    Case(
        "snr_contrastive",
        {"pos_margin": 0.3, "neg_margin": 1.8},
        _mined("SignalToNoiseRatioContrastiveLoss", pos_margin=0.3, neg_margin=1.8),
    ),
    Case("histogram", {}, _mined("HistogramLoss")),
    Case("histogram", {"n_bins": 13}, _mined("HistogramLoss", n_bins=13)),
    Case("proxy_anchor", {}, _proxies("ProxyAnchorLoss")),
    Case("proxy_anchor", {"margin": 0.2, "alpha": 150.0}, _proxies("ProxyAnchorLoss", margin=0.2, alpha=150)),
    Case("proxy_nca", {}, _proxies("ProxyNCALoss")),
    Case("proxy_nca", {"softmax_scale": 24.0}, _proxies("ProxyNCALoss", softmax_scale=24)),
    Case("proxy_nca", {"variant": "wedl"}),
    Case("norm_softmax", {}, _proxies("NormalizedSoftmaxLoss", "W", transpose=True)),
    Case("norm_softmax", {"temperature": 0.01}, _proxies("NormalizedSoftmaxLoss", "W", transpose=True, temperature=0.01)),
    Case("norm_softmax", {"temperature": 0.1, "label_smoothing": 0.2}, _smoothed),
    Case("cosface", {}, _proxies("CosFaceLoss", "W", transpose=True)),
    Case("cosface", {"margin": 0.1, "scale": 100.0}, _proxies("CosFaceLoss", "W", transpose=True, margin=0.1, scale=100)),
    Case("arcface", {}, _proxies("ArcFaceLoss", "W", transpose=True)),
    Case("arcface", {"margin": 70.0, "scale": 150.0}, _proxies("ArcFaceLoss", "W", transpose=True, margin=70, scale=150)),
    Case("sphereface", {}, _proxies("SphereFaceLoss", "W", transpose=True), scale_free=False),
    Case(
        "sphereface",
        {"margin": 3, "scale": 2.0},
        _proxies("SphereFaceLoss", "W", transpose=True, margin=3, scale=2),
        scale_free=False,
    ),
    Case("cross_entropy", {}, _linear, scale_free=False),
    Case("cross_entropy", {"bias": True, "label_smoothing": 0.1}, _linear, scale_free=False),
    Case("cross_entropy", {"hidden": 7}, _linear, scale_free=False),
    Case("subcenter_arcface", {}, _proxies("SubCenterArcFaceLoss", "W", transpose=True)),
    Case(
        "subcenter_arcface",
        {"sub_centers": 1},
        _proxies("SubCenterArcFaceLoss", "W", transpose=True, sub_centers=1),
    ),
    Case("soft_triple", {}, _proxies("SoftTripleLoss", "fc", transpose=True)),
    Case("soft_triple", {"centers_per_class": 3, "tau": 0.2}, _regularised_triples),
    Case("uniform_prior", {}, None, False),
    Case("class_shared", {"learn_beta": True}, None, False),
    Case("intra_class", {}, None, False),
    Case("intra_class", {"replacement": True}, None, False),
    Case("sample_specific", {}, None, False),
    Case("prototypical", {}, None, False, scale_free=False),
    Case("sec", {}, None, False, scale_free=False),
    Case("sec", {"rho": 0.2, "weight": 0.5}, None, False, scale_free=False),
    Case("l2_norm", {}, _squares, False, scale_free=False),
]
PROXIES = [case for case in LOSSES if case.create().needs_classes]
FUSED = [case for case in LOSSES if case.fused]
ON_CUDA = [case for case in FUSED if case.cuda]
NOT_OF_PAIRS = ("prototypical", "sec", "l2_norm", "class_shared", "intra_class", "sample_specific")
"""Means of classes, norms, drawn triplets and keys: no miner chooses among them."""
PAIRS = [case for case in LOSSES if case not in PROXIES and case.name not in NOT_OF_PAIRS and not case.takes_first]


def embeddings_of(
    labels: Tensor, width: int = WIDTH, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 0.9
) -> Tensor:
    """Points around one centre per class, far from unit norm: `[B, width]`."""
    generator = torch.Generator().manual_seed(seed)
    _, dense = torch.unique(labels, return_inverse=True)
    centres = torch.randn(int(dense.max()) + 1 if len(dense) else 1, width, generator=generator, dtype=torch.float64)
    points = centres[dense] + spread * torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return (points * torch.rand(len(labels), 1, generator=generator, dtype=torch.float64).mul(3).add(0.2)).to(dtype)


def _random(count: int, seed: int) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def batches() -> dict[str, tuple[Tensor, Tensor]]:
    """Name to (embeddings `[B, 11]` float64, labels `[B]`). Labels lie in 0..6, so that proxy losses take them too."""
    by_name: dict[str, tuple[Tensor, Tensor]] = {}
    for name, labels in {
        "odd": _random(37, 1),
        "sorted": _random(64, 2).sort().values,
        "large": _random(263, 3),
        "unbalanced": torch.tensor([0] * 70 + [1] * 3 + [2] + [3] * 17 + [4, 4]),
        "one sample": torch.tensor([3]),
        "two of a class": torch.tensor([3, 3]),
        "two classes": torch.tensor([1, 5]),
        "one class": torch.full((19,), 2),
        "all different": torch.arange(CLASSES),
    }.items():
        by_name[name] = (embeddings_of(labels), labels)
    x, y = by_name["odd"]
    by_name["duplicates"] = (torch.cat([x[:9], x[:9], x[9:12]]), torch.cat([y[:9], y[:9], y[9:12]]))
    by_name["duplicates of other classes"] = (torch.cat([x[:9], x[:9]]), torch.cat([y[:9], (y[:9] + 1) % CLASSES]))
    by_name["collapsed"] = (x[:1].repeat(15, 1), y[:15])
    by_name["zero vectors"] = (torch.cat([x[:10], torch.zeros(3, WIDTH, dtype=x.dtype)]), y[:13])
    by_name["opposite"] = (torch.cat([x[:10], -x[:10]]), torch.cat([y[:10], y[:10]]))
    by_name["tiny and huge norms"] = (x * torch.logspace(-8, 8, len(x), dtype=x.dtype)[:, None], y)
    by_name["non-contiguous"] = (torch.stack([x, x], 2)[:, :, 0], torch.stack([y, y], 1)[:, 0])
    return by_name


BATCHES = batches()


def call_on(loss: Any, x: Tensor, y: Tensor) -> Any:
    """The functor of a fused loss, with what it is given beside its options."""
    comparison = dmlcore.losses.Comparison(x, y)
    return replace(loss.functor_call(), given=given_to(loss, loss.reshaped(comparison) if loss.reshapes else comparison))


def given_to(loss: Any, comparison: Any) -> Tensor | None:
    """The numbers per anchor that a loss's functor takes."""
    call = loss.functor_call()
    return call.given(comparison) if callable(call.given) else None


def hold_draws(*losses: Any) -> None:
    """From here on these losses use the random numbers that the first of them draws next. A loss that draws by the bits of its
    embeddings (`margin` with sampling) draws anew beside every point, and in every precision."""
    held: list[Tensor] = []
    for loss in losses:
        if hasattr(loss, "draws"):

            def draws(*arguments: Any, draw: Callable[..., Tensor] = loss.draws) -> Tensor:
                if not held:
                    held.append(draw(*arguments))
                return held[0]

            loss.draws = draws


def value_and_gradients(
    loss: Any, x: Tensor, y: Tensor, compute: Callable[..., Tensor], **keywords: Any
) -> tuple[Tensor, list[Tensor]]:
    """The value, and the gradients of embeddings and of the loss's own parameters."""
    leaf = x.detach().clone().requires_grad_() if x.is_contiguous() else x.detach().requires_grad_()
    inputs = [leaf, *[p for p in loss.parameters()]]
    value = compute(leaf, y, **keywords)
    if not value.requires_grad:
        return value, [torch.zeros_like(p) for p in inputs]
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    return value.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, gradients, strict=True)]


def assert_close(
    result: tuple[Tensor, list[Tensor]],
    other: tuple[Tensor, list[Tensor]],
    tolerance: float,
    by_row: bool = True,
    floor: Tensor | float = 0.0,
) -> None:
    """Value and gradients agree; gradients relative to the largest component of their row, since norms may differ by 10^16.

    In float32 a row whose parts cancel has no digits of its own: `by_row = False` compares with the whole gradient. `floor` is
    what the gradient of the batch may differ by besides.
    """
    torch.testing.assert_close(result[0].double(), other[0].double(), rtol=tolerance, atol=tolerance)
    for number, (a, b) in enumerate(zip(result[1], other[1], strict=True)):
        if a.numel():
            scale = b.double().abs().amax(-1, keepdim=True) if by_row else b.double().abs().max()
            error = (a.double() - b.double()).abs()
            assert bool((error <= 10 * tolerance * scale + 1e-4 * tolerance + (0.0 if number else floor)).all()), (
                f"gradients differ by {error.max()}"
            )
