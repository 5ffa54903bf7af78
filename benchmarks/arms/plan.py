"""What is compared, and how it is decided. This file was written before any of its test figures existed, and each
addition before its own.

**Systems.** All serve 64 numbers, compressed by PCA from 255 or 256.

- `default`: the losses of `dmlcore train` on one embedding of 256, gradients of equal norm.
- `heads`: the same losses in three heads of 85.
- `same`: the best single loss in three heads of 85.
- `wide`: the best single loss on one embedding of 256.

The best single loss of a data set, `b`, is the one of `SINGLES` with the best validation MAP@R as `wide`, a mean over the seeds
of `RANKED`.

**Arms.** Each arm of `ARMS` is a trick, and is given to the ensemble and to both controls as far as it applies. Where it cannot
apply to a control, as weights cannot to a single loss, the control is the plain one.

The order of runs is `ORDER`: every arm once, the cheaper ones first, then more seeds as far as time goes.

**Figures.** Test MAP@R in points, of classes never trained on, paired by seed: a seed draws the split (in the data's file), the
weights and the batches. Checkpoints are chosen by validation MAP@R.

**Rule 1, the aim.** An ensemble with a trick wins if it is ahead of `same` and of `wide`, each with the same trick, by at least
one point with a 95 % t-interval over seeds above zero, on at least `PICTURES_NEEDED` sets of pictures and `TABLES_NEEDED`
tables. And the t-test over data sets of its lead on the better control (by validation, on each data set) must survive Holm's
correction for all ensembles with tricks that are compared. An arm with fewer than three seeds on a data set has no interval
there and cannot win on it.

**Rule 2, the default.** A trick enters the default if its gain over today's default (`default`, plain), a mean for each data
set, is above zero by Holm's correction for all tricks, at least `LEAST_GAIN` on average, nowhere below -`MOST_LOSS`, and costs
at most `MOST_COST` times the CPU time. A trick for pictures alone is judged on pictures.

**After training.** Whitening within classes, and re-ranking, are applied to the plain runs. They have rows of their own.
Re-ranking sees the other test samples, so it is compared with nothing else.

**Additions.** An arm that is `added` was registered after the first table had been read, and before any figure of its own. Both
rules judge it, by Holm's correction over all arms, first and added ones. The first arms keep the correction among themselves.

- `layers`: the losses in three heads of 85, each of which sees another of three blocks: the first loss the deepest one. `same`
  has it too. `wide` cannot have it, and is that of `blocks`, whose one embedding sees all three blocks. Pictures, 3 seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.defaults.candidates import SMALL, WITHOUT_PROXIES

LENGTH = 64  # of what is served
WIDTH = 256  # of one embedding before compression
HEADS = 3
HEAD = WIDTH // HEADS  # numbers of each head
SEEDS = (0, 1, 2, 3, 4)  # as many as the time gives
ORDER = ((0, False), (0, True), (1, False), (2, False), (1, True), (2, True), (3, False), (4, False), (3, True), (4, True))
"""In which order seeds are run, and whether it is the turn of the late arms: every arm once, then the early ones again."""
RANKED = (0,)  # seeds whose validation classes choose the best single loss
PICTURES_NEEDED, TABLES_NEEDED = 3, 2
LEAST_GAIN, MOST_LOSS, MOST_COST = 1.0, 1.5, 1.5
TRIO = WITHOUT_PROXIES  # the losses of `dmlcore train`
SYSTEMS = ("default", "heads", "same", "wide")
ENSEMBLES = ("default", "heads")

DATA = ("glyphs", "scripts", "emoji pictures", "photographs", "emoji", "groceries", "intents")
"""Of `benchmarks.defaults.sets`: four sets of pictures, of which one are photographs, and three tables of features."""
STEPS = {"images": 120, "features": 160}
EVALUATIONS = {"images": 1, "features": 2}  # of a run
COMMON: dict[str, dict[str, Any]] = {
    "images": {**SMALL["images"], "classes_per_batch": 16},
    # heads begin at random: those that begin as the features would all begin alike
    "features": {"model": "mlp", "head_start": "random", "learning_rate": 1e-3},
}

SINGLES: dict[str, tuple[str, dict[str, Any]]] = {
    "sup_con": ("sup_con", {}),
    "ms": ("ms", {}),
    "circle": ("circle", {}),
    "binomial_deviance": ("binomial_deviance", {}),
    "proxy_nca++": ("proxy_nca", {"proxy_nca": {"softmax_scale": 9.0}, "head_norm": "layer"}),
}
"""Loss and settings by name. The last is the loss of ProxyNCA++ (Teh, DeVries, Taylor, ECCV 2020): unit vectors, the positive
in the denominator, temperature 1/9 of squared distances, and a LayerNorm before the embedding. Its pooling by the maximum is
beside the mean here, as in all arms."""


@dataclass(frozen=True)
class Arm:
    """A trick.

    Attributes:
        name: in the tables.
        about: what it is, for the report.
        systems: that are trained with it.
        settings: of `dmlcore train`, beside those of the system.
        controls: name of the arm whose `same` and `wide` it is compared with, where it has none of its own.
        pictures_only: needs pictures.
        late: is run after the others, since it costs more.
        added: after the first table was read.
    """

    name: str
    about: str
    systems: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    controls: str = "plain"
    pictures_only: bool = False
    late: bool = False
    added: bool = False


_BLOCKS: dict[str, Any] = {"conv": {"pooled_blocks": 3}}
_TURNS: dict[str, Any] = {"rotated_classes": True}
_TRIPLE = ("default", "same", "wide")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "nothing beside", SYSTEMS),
        Arm("blocks", "features of three blocks (`--conv.pooled-blocks 3`)", _TRIPLE, _BLOCKS, pictures_only=True),
        Arm("temperatures", "the heads have one loss, `b`, with three values of its main option", ("heads",)),
        Arm("taught", "S2SD: a wide head teaches (`--distill-heads 512`)", _TRIPLE, {"distill_heads": (512,)}),
        Arm("mixed", "norms bounded to a factor of 4 (`--equal-gradient-norms.spread 4`)",
            ("default",), {"weighting": "equal_gradient_norms", "equal_gradient_norms": {"spread": 4.0}}),
        Arm("held out", "weights by held-out classes (`--weighting held_out`)", ("default",), {"weighting": "held_out"}),
        Arm("turns", "quarter turns as further classes (`--rotated-classes`)", _TRIPLE, _TURNS, pictures_only=True, late=True),
        Arm("auto", "members chosen by short trials (`--plugins auto`, one trial each)", ("default",), late=True),
        Arm("soup", "from one half-trained start three members train on, and their weights are averaged",
            ("default", "same"), late=True),
        Arm("tasks", "DiVA: `b`, class-shared, intra-class and sample-specific heads, driven apart, and random changes",
            ("heads", "same"), late=True),
        Arm("average", "running average of the weights (`--average 0.99`)", ("default", "wide"), {"average": 0.99}, late=True),
        Arm("blocks, turns", "both", _TRIPLE, {**_BLOCKS, **_TURNS}, pictures_only=True, late=True),
        Arm("layers", "each head sees another of three blocks (`--heads-see blocks`)", ("heads", "same"),
            {**_BLOCKS, "heads_see": "blocks"}, controls="blocks", pictures_only=True, late=True, added=True),
    )
}  # fmt: skip
AFTER = {
    "whitened": "whitened within the training classes before PCA",
    "expanded": "re-ranked by alpha query expansion",
    "reciprocal": "re-ranked by k-reciprocal neighbours",
}
"""What is done to plain runs after training."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data: name of the data set.
        arm: of `ARMS`, or `single`.
        system: of `SYSTEMS`, or the name of the single loss.
        seed: of split, weights and batches.
        losses: by name, as `dmlcore train --plugins` has them.
        settings: of `dmlcore train`.
        members: losses of the networks that are averaged; empty: one network.
    """

    data: str
    arm: str
    system: str
    seed: int
    losses: tuple[str, ...]
    settings: dict[str, Any]
    members: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.data, self.arm, self.system, self.seed


def single(data: str, kind: str, name: str, seed: int) -> Cell:
    """A single loss as `wide`, a candidate for the best one."""
    loss, settings = SINGLES[name]
    return Cell(data, "single", name, seed, (loss,), {**_common(kind), **_one_embedding(), **settings})


def cell(data: str, kind: str, arm: Arm, system: str, best: str, seed: int) -> Cell:
    """The run of a system with a trick.

    Args:
        data: name of the data set.
        kind: `images` or `features`.
        arm: the trick.
        system: of `arm.systems`.
        best: name of the best single loss of the data set.
        seed: of the run.
    """
    loss, of_best = SINGLES[best]
    alone = system in ("same", "wide")
    settings = {**_common(kind), **(of_best if alone else {})}
    losses, members = (loss,) if alone else TRIO, ()
    if system in ("default", "wide"):
        settings |= _one_embedding()
    else:
        losses = losses * HEADS if alone else losses
        settings |= _heads(HEAD)
    if arm.name == "temperatures":
        losses, options = _temperatures(loss, of_best)
        settings |= {**of_best, **options}
    elif arm.name == "tasks":
        losses = (loss, "class_shared", "intra_class", "sample_specific") if system == "heads" else (loss,) * 4
        settings |= {**of_best, **_heads(LENGTH), "weighting": "fixed"}
        settings |= {"weights": (1.0, 0.3, 0.3, 0.3) if system == "heads" else (1.0,) * 4}
        settings |= {"diversity": "adversarial", "diversity_weight": 100.0, "transforms": CHANGES[kind]}
    elif arm.name == "auto":
        names = ",".join(name for name in SINGLES if name in TRIO or name == "ms")
        losses = ("auto",)
        settings |= {"auto_losses": names, "auto_trials": 1, "auto_steps": STEPS[kind] // 4, "auto_most": HEADS}
    elif arm.name == "soup":
        settings, losses = {**_common(kind), **_one_embedding(), **of_best}, (loss,)
        members = TRIO if system == "default" else (loss,) * HEADS
    changed = {**arm.settings, **({"conv": {**settings["conv"], **arm.settings["conv"]}} if "conv" in arm.settings else {})}
    repeated = {f"{name}_{n}": options for name, options in of_best.items() for n in range(2, 1 + losses.count(name))}
    return Cell(data, arm.name, system, seed, losses, {**repeated, **settings, **changed}, members)


CHANGES = {"images": "shift", "features": "noise"}  # of training samples, which the sample-specific task needs


def _common(kind: str) -> dict[str, Any]:
    steps = STEPS[kind]
    return {"steps": steps, "eval_every": steps // EVALUATIONS[kind], "log_every": steps, "compress": LENGTH, **COMMON[kind]}


def _one_embedding() -> dict[str, Any]:
    return {"embedding_dim": WIDTH}


def _heads(length: int) -> dict[str, Any]:
    return {"ensemble": "heads", "embedding_dim": length, "weighting": "equal_gradient_norms"}


def _temperatures(loss: str, settings: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The loss three times, each with another value of its main option."""
    from dmlcore.ensemble.search import candidates

    options = [values for _, values in candidates([loss], HEADS)]
    tables = (loss, f"{loss}_2", f"{loss}_3")
    return (loss,) * HEADS, {table: {**settings.get(loss, {}), **values} for table, values in zip(tables, options, strict=True)}


def applies(arm: Arm, kind: str) -> bool:
    """Whether a kind of data can have a trick."""
    return kind == "images" or not arm.pictures_only
