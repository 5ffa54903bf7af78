"""What is compared. An arm is a name and the settings of `dmlcore train` that differ from the common ones.

Singles come first: every loss with the same number of trials of its temperature or margin, chosen on validation classes. The
best of them there is `b`; ensembles take their members with the options found: `T3` the three best of validation, `D3` the best
loss with proxies and the two best without, which differ more from each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dmlcore.training import recipes

BEFORE = "4503675"  # the last commit with the options of the arms that carry it
LENGTH = 64  # of a single embedding, of a head, and of what is compressed or taught
LOSSES = ("ms", "proxy_anchor", "triplet", "contrastive", "sup_con", "circle", "norm_softmax", "proxy_nca", "binomial_deviance")
PROXIES = ("proxy_anchor", "norm_softmax", "proxy_nca")
SETS = {
    "E3": ("ms", "proxy_anchor", "triplet"),
    "E4": ("norm_softmax", "triplet", "binomial_deviance", "proxy_nca"),
    "E6": ("ms", "proxy_anchor", "triplet", "sup_con", "circle", "proxy_nca"),
}
ROBUST = ("circle", "binomial_deviance", "sup_con")  # the losses without proxies that are nowhere far behind
MIXED = ("circle", "binomial_deviance", "norm_softmax")  # the same with a loss of the kind that is best on emoji
FEW_SEEDS = 3  # of the arms that compare the recipe of WEDL with its losses
PUBLISHED = ("cross_entropy", "triplet", "binomial_deviance", "proxy_nca")  # of the stored best run, with its prior
_SQUARED = {"distance": "squared_euclidean", "average": "all"}
SEC: dict[str, tuple[str, dict[str, Any]]] = {  # the losses that the paper of `sec` combines it with, as its code has them
    "ms 2 / 40": ("ms", {"beta": 40.0}),
    "triplets, squared": ("triplet", {"margin": 1.0, **_SQUARED}),
    "semi-hard, squared": ("triplet", {"margin": 0.2, "mining": "semihard_else_farthest", **_SQUARED}),
    "n-pair, one of a class": ("nt_xent", {"temperature": 0.04, "pairs": "one_per_class"}),
}
ETAS = (0.5, 1.0)  # weights of `sec`: 1 is the one that its authors' code documents
WEIGHTINGS = (
    "floor_square_penalty",
    "floor_simplex",
    "uncertainty",
    "log_barrier",
    "entropy",
    "equal_gradient_norms",
    "grad_norm",
    "dynamic_average",
    "pcgrad",
    "held_out",
)
LIN_TANH_LIN: dict[str, Any] = {"compressor": "lin_tanh_lin", "lin_tanh_lin": {"hidden": 2 * LENGTH}}  # the published width
PCA = {"compress": LENGTH, "compressor": "pca"}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: in the tables.
        losses: by name; `b` stands for the best single of validation, `T1` .. `T3` for its first three, `X1` for the best with
            proxies, `P1` and `P2` for the best between pairs of samples.
        settings: of `dmlcore train`, beside the common ones.
        few: part of the short list for data sets that take minutes a run.
        longer: how many times the common number of steps.
        central: among those on which the conclusions rest: every seed of the feature tables, as the short list has; else 5.
        seeds: the first so many only, of an arm whose runs are dear.
        nets: networks of their own, one per loss and each with other weights, whose embeddings are concatenated and compressed.
        tuned: the losses have the options found for them; else their defaults.
        pictures_only: needs samples that can be augmented.
        commit: of dmlcore, where its results come from when its options are no more; such an arm is reported, not run.
    """

    name: str
    losses: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    few: bool = False
    central: bool = False
    longer: int = 1
    seeds: int | None = None
    nets: bool = False
    tuned: bool = True
    pictures_only: bool = False
    commit: str = ""


BEST = ("T1", "T2", "T3")


def arms() -> list[Arm]:
    """Everything beside the singles, in the order of the tables."""
    return [*_controls(), *_sets(), *_published_and_heads(), *_late(), *_recipe(), *_with_constraint()]


def _controls() -> list[Arm]:
    """The best single with the cost of an ensemble."""
    return [
        Arm("b, other weights", ("b",), {"seed": 1000}, few=True),
        Arm("b, 3 x steps", ("b",), {}, longer=3),
        Arm("wide: b, 256", ("b",), {"embedding_dim": 4 * LENGTH, **PCA}, few=True),
        Arm("wide whitened: b, 256", ("b",), {"embedding_dim": 4 * LENGTH, "compress": LENGTH, "compressor": "whitened_pca"}),
        Arm("same: b x 4", ("b",) * 4, {"ensemble": "heads", **PCA}, central=True),
        Arm("same: b x 3", ("b",) * 3, {"ensemble": "heads", **PCA}, central=True),
        Arm("same: b x 4, student", ("b",) * 4, {"ensemble": "heads", "student": LENGTH}),
        Arm("same: b x 4, lin_tanh_lin", ("b",) * 4, {"ensemble": "heads", "compress": LENGTH, **LIN_TANH_LIN}),
    ]


def _sets() -> list[Arm]:
    """Every set of losses on one embedding and on heads, and every weighting."""
    shared_and_heads = []
    for name, losses in {**SETS, "T3": BEST}.items():
        shared_and_heads.append(Arm(f"{name} shared", losses, {}, central=True))
        shared_and_heads.append(Arm(f"{name} heads", losses, {"ensemble": "heads", **PCA}, central=True))
    return shared_and_heads + [Arm(f"T3 shared, {weighting}", BEST, {"weighting": weighting}) for weighting in WEIGHTINGS]


def _published_and_heads() -> list[Arm]:
    """The published ensembles, and changes of heads, widths and compressors."""
    published: dict[str, Any] = {
        "weights": (2.0, 1.0, 2.0, 3.0),
        "cross_entropy": {"label_smoothing": 0.15},
        "triplet": {"variant": "wedl"},
        "binomial_deviance": {"variant": "wedl"},
        "proxy_nca": {"variant": "wedl"},
    }
    return [
        Arm("WEL: E4", PUBLISHED, {"ensemble": "wel", **published}),
        Arm("WEDL: E4", PUBLISHED, {"ensemble": "wedl", **published, **PCA}, central=True),
        Arm("WEDL_C 64: E4", PUBLISHED, {"ensemble": "wedl", **published, "compress": 64, **LIN_TANH_LIN}),
        Arm("WEDL_C 128: E4", PUBLISHED, {"ensemble": "wedl", **published, "compress": 128, **LIN_TANH_LIN}),
        Arm("T3 heads, student", BEST, {"ensemble": "heads", "student": LENGTH}),
        Arm("T3 heads, held_out", BEST, {"ensemble": "heads", "weighting": "held_out", **PCA}),
        Arm("T3 heads, equal norms", BEST, {"ensemble": "heads", "weighting": "equal_gradient_norms", **PCA}),
        Arm("T3 heads, diversity",
            BEST, {"ensemble": "heads", "diversity": "similarity", "diversity_weight": 0.1, **PCA}, commit=BEFORE),
        Arm("T3 heads, dropout", BEST, {"ensemble": "heads", "head_dropout": 0.3, **PCA}, commit=BEFORE),
        Arm("same: b x 3, dropout", ("b",) * 3, {"ensemble": "heads", "head_dropout": 0.3, **PCA}, commit=BEFORE),
        Arm("T3 heads, classes", BEST, {"ensemble": "heads", "head_classes": 0.7, **PCA}, commit=BEFORE),
        Arm("same: b x 3, classes", ("b",) * 3, {"ensemble": "heads", "head_classes": 0.7, **PCA}, commit=BEFORE),
        Arm("T3 wide, equal norms",
            BEST, {"embedding_dim": 4 * LENGTH, "weighting": "equal_gradient_norms", **PCA}, central=True),
        Arm("T3 wide", BEST, {"embedding_dim": 4 * LENGTH, **PCA}),
        Arm("D3 shared", ("X1", "P1", "P2")),
        Arm("D3 heads", ("X1", "P1", "P2"), {"ensemble": "heads", **PCA}),
        Arm("D3 wide heads", ("X1", "P1", "P2"), {"ensemble": "heads", "embedding_dim": 4 * LENGTH, **PCA}),
        Arm("D3 wide, equal norms",
            ("X1", "P1", "P2"), {"embedding_dim": 4 * LENGTH, "weighting": "equal_gradient_norms", **PCA}),
        Arm("E3 wide", SETS["E3"], {"embedding_dim": 4 * LENGTH, **PCA}, few=True),
        Arm("wide linear: b, 256", ("b",), {"embedding_dim": 4 * LENGTH, "compress": LENGTH, "compressor": "linear"}, seeds=2),
        Arm("T3 heads linear", BEST, {"ensemble": "heads", "compress": LENGTH, "compressor": "linear"}, seeds=2),
        Arm("T3 wide heads", BEST, {"ensemble": "heads", "embedding_dim": 4 * LENGTH, **PCA}, few=True),
        Arm("same wide: b x 3, 256", ("b",) * 3, {"ensemble": "heads", "embedding_dim": 4 * LENGTH, **PCA}, few=True),
        Arm("T3 wide heads, equal norms",
            BEST, {"ensemble": "heads", "embedding_dim": 4 * LENGTH, "weighting": "equal_gradient_norms", **PCA}),
    ]  # fmt: skip


def _late() -> list[Arm]:
    """Networks of their own, losses chosen without the data, views."""
    robust: dict[str, Any] = {"embedding_dim": 4 * LENGTH, **PCA}
    views: dict[str, Any] = {"ensemble": "heads", "head_augment": True, **PCA}
    return [
        Arm("nets: b x 3", ("b",) * 3, {}, few=True, nets=True),
        Arm("nets: T3", BEST, {}, central=True, nets=True),
        Arm("R3 wide, untuned", ROBUST, robust, central=True, tuned=False),
        Arm("R3 wide, equal norms, untuned", ROBUST, {"weighting": "equal_gradient_norms", **robust}, few=True, tuned=False),
        Arm("M3 wide, equal norms, untuned", MIXED, {"weighting": "equal_gradient_norms", **robust}, few=True, tuned=False),
        Arm("R3 wide heads, untuned", ROBUST, {"ensemble": "heads", **robust}, few=True, tuned=False),
        Arm("E3 wide, equal norms", SETS["E3"], {"weighting": "equal_gradient_norms", **robust}, central=True),
        Arm("T3 heads, views", BEST, views, few=True, seeds=2, pictures_only=True, commit=BEFORE),
        Arm("same: b x 3, views", ("b",) * 3, views, few=True, seeds=2, pictures_only=True, commit=BEFORE),
    ]


def _recipe() -> list[Arm]:
    """The recipe `wedl` beside each of its four losses alone, in the form that the recipe has it. The losses, their prior, the
    learned weights and the diversity are the recipe's. Networks, rates and steps are those of all arms here.
    """
    values = recipes.find("wedl").values
    forms = {loss: values[loss] for loss in PUBLISHED}
    method = {"ensemble": "wedl", "weights": tuple(values["ensemble"]["weights"])}
    method["diversity_weight"] = values["ensemble"]["diversity_weight"]
    singles = [
        Arm(f"{loss} of WEDL", (loss,), {loss: form}, few=True, seeds=FEW_SEEDS, tuned=False) for loss, form in forms.items()
    ]
    return [
        *singles,
        Arm("recipe wedl", PUBLISHED, {**method, **forms, **PCA}, few=True, seeds=FEW_SEEDS, tuned=False),
        Arm(
            "recipe wedl_c",
            PUBLISHED,
            {**method, **forms, "compress": 128, **LIN_TANH_LIN},
            few=True,
            seeds=FEW_SEEDS,
            tuned=False,
        ),
    ]


def _with_constraint() -> list[Arm]:
    """The losses that the paper of `sec` combines it with, with and without it."""
    pairs = []
    for name, (loss, options) in SEC.items():
        pairs.append(Arm(name, (loss,), {loss: options}))
        for eta in ETAS:
            pairs.append(Arm(f"{name} + sec {eta}", (loss, "sec"), {"weights": (1.0, eta), loss: options}))
    return pairs


def members(arm: Arm, ranking: list[str]) -> tuple[str, ...]:
    """The losses of an arm by name, given the singles in the order of validation."""
    with_proxies = [loss for loss in ranking if loss in PROXIES]
    between_pairs = [loss for loss in ranking if loss not in PROXIES]
    stands_for = dict(zip(("T1", "T2", "T3"), ranking, strict=False)) | dict(zip(("P1", "P2"), between_pairs, strict=False))
    stands_for |= {"b": ranking[0], "X1": with_proxies[0]}
    return tuple(stands_for.get(loss, loss) for loss in arm.losses)


def order(arm: Arm) -> tuple[bool, bool]:
    """Sorts the arms that decide most first: when the time is up, they are there for every seed."""
    return not arm.few or arm.pictures_only, not arm.central
