"""What is compared, and how it is decided. This was written before any test figure was read, apart from
what says that it was added later.

**Question 1.** Is `dmlcore train` on pictures, as it is without flags, ever below a plain loop of the same network?

**Systems.** All train the network `conv` with its default channels and a linear embedding of `WIDTH` numbers, for `STEPS` steps
of 32 x 4 pictures, on the same splits, with the same sampler, and with the random changes that the data brings.

- `default`, `ms`, `sup_con`: `dmlcore train` with its default losses, or with one loss. Nothing else is said, so that the rate
  is 4e-3.
- `MultiSimilarityLoss` with `MultiSimilarityMiner`, `SupConLoss`: pytorch-metric-learning with its default options, in a loop
  that a careful user writes. AdamW with the defaults of torch, the cosine schedule, no warm-up, no clipping.

The rate of a plain loop is one of its `RATES`, for each loss and data set the one with the best mean validation MAP@R of the
seeds `RATED`. A run of dmlcore has one rate, so that the search is an advantage of the plain loop.

In all systems the checkpoint is the best one of validation MAP@R, compressed, among `STEPS / EVAL_EVERY`. dmlcore also has the
untrained network among them.

**Added** when validation figures were there, and before any test figure was read: the lowest rate was the best one for SupCon,
so 1e-3 was added to three rates. And plain loops fell behind on validation classes, so each is also run with a rise of the rate
over the first fifth of the steps, which dmlcore has (`, warm-up`): what they then lack is not that.

**Figures.** Test MAP@R in points, of classes never trained on, by dmlcore's evaluator: of `LENGTH` numbers that PCA of the
training part gives, and of all `WIDTH`. Both sides have both. The verdicts go by the compressed ones, which are served.

**Rule 1.** Differences are paired by seed (split, weights and batches), with a 95 % t-interval over `SEEDS` on each data set. A
system of dmlcore is `below` a plain loop on a data set if the interval is below zero, without any correction, which would
be lenient. It is `ahead` if the mean is above zero and the t-test survives Holm's correction over the data sets. Otherwise they
are `level`. `best plain` is the plain loop of better mean validation MAP@R over all seeds on a data set.

**Question 2.** Does the default lose anything by its learning rate or its P x K?

**Search.** The default losses with every rate of `SEARCHED_RATES` and every shape of a batch of `SHAPES`. All see the same
number of pictures, `SEEN`: fewer steps of larger batches. A data set with fewer classes than P has batches of all its classes.

**Rule 2**, for each size of a batch. The regret of a cell on a data set is the validation MAP@R of the best cell there minus
its own, as means over those of `SEARCH_SEEDS` that time allows. The rule takes the cell of least mean regret. Each data set in
turn is left out, the rule runs on the others, and what it takes is judged on the test classes of the one left out, against
today's cell: P x 4 at the rate 4e-3.

**Decision.** For the default size, 128, the default changes to what the rule takes from all data sets if the differences of the
left-out data sets are above zero by their 95 % t-interval, at least `LEAST_GAIN` on average, and nowhere below -`MOST_LOSS`.
For the other sizes the same says whether the documentation recommends another cell.

**Question 3**, only if the default is below a plain loop somewhere: is it the losses, and would others mend it? `MENDS` are run
like `default`, with the seeds `MEND_SEEDS`. The rule takes the losses of least mean regret on validation classes, each data set
is left out in turn, and the default changes as in question 2, but nowhere by less than -`MOST_LOSS_MENDED`: what is mended on
one data set must not harm others. Whether the loop is the reason is said by `COUNTERPARTS`, which have the same loss on both
sides.

**Widened** after the figures of one seed of the search and of `MENDS` had been read, and before any further one was: both have
three seeds. The rules stay. Where a rule takes the highest rate of its grid, twice that rate is added for that shape of a
batch, with the same seeds, and the rule is applied again.

**Question 4**, registered after the figures of the questions before had been read: the default is below the best plain loop on
`fonts`, because of the rise of the rate. Would another rise be as good elsewhere, and not below there? The rise is over
`MOST_RISE` steps at most, and over a share of all steps at most: a fifth today. So a run of 250 steps or more does not depend
on that share, and the default one of 700 steps rises over 7 % of them. Options are every share of `RISES`, rate of
`RISE_RATES` and losses of `RISE_LOSSES`, with `RISE_SEEDS`. The test figures known before are those of today's default (seeds
0 to 4), of it without a rise, and of `ms, sup_con` (seed 0).

**Rule 4.** As rule 2, but the regret is in percent of the best option's MAP@R on validation classes. Data sets reach from 4 to
70 points, and a regret in points would not see `fonts`. The option of least mean regret is the candidate. If it has the
highest rate, twice that is added for its losses and share. The candidate replaces the default if all of this holds:

- on data sets left out, what the rule takes gains `LEAST_GAIN_RISE` on average over today's, and nowhere less than
  -`MOST_LOSS_RISE`, on test classes of `RISE_SEEDS`;
- with `NEW_SEEDS`, which decided nothing, the candidate is not `below` the best plain loop on `fonts`, and is below it on no
  data set where today's default is not;
- in runs of `LONG_STEPS` it gains `LEAST_GAIN_RISE` on average over today's, and on no data set is the interval below zero.

On new seeds the best plain loop of a data set and its rate are those with the best mean validation MAP@R over `SEEDS`. Test
figures of new seeds are compared as rule 1 says.

**Changed** when two seeds of question 4 were there: its rule fails on data sets left out, so that its candidate is not run with
new seeds nor in longer runs. The search of question 2 comes before the third seed of question 4. If rule 2 takes another rate,
this is run with `NEW_SEEDS` and in runs of `LONG_STEPS` too. That informs, and decides nothing.

**Question 5**, registered with question 4: is the default ever below a plain loop in longer runs? `default`, `ms` and plain
loops train for `LONG_STEPS`, with a checkpoint every `LONG_EVERY` and `LONG_SEEDS`. Each plain loop, with and without a rise
of the rate, has the two rates that were best on validation classes in short runs, seed 0. The best plain loop of a data set is
the loop and rate with the best validation MAP@R of seed 0 in long runs. It alone is run with all seeds. Its rise is over
`MOST_RISE` steps at most, as in dmlcore. Rule 1 judges.

**Question 6**, registered when the figures of seeds 0 to 2 of all options of question 4 had been read, and before
`ms, sup_con` and the rate 8e-3 were run with `NEW_SEEDS` or in longer runs. No single setting is best on all data sets.
`RACERS` race: each trains for all of the steps, and the one with the best validation MAP@R of its run is kept, as
`--start race` does. This costs as many runs as there are racers, and less than a plain loop whose rate and loss are searched.
On seeds 0 to 2 the race gained on four sets and lost on none, but these seeds have suggested the racers.

**Rule 6.** With `NEW_SEEDS`, and in runs of `LONG_STEPS` with `LONG_SEEDS`, the race is compared with the best plain loop and
with today's default, as rule 1 says. The pages recommend it to those who have the time if it is `below` the best plain loop
on no data set in either, and gains `LEAST_GAIN` on average over today's default in both. The default stays without a race,
which costs three times as much.

**What was known before.** `docs/reports/defaults.md` has earlier runs on these data sets with a smaller network on larger
pictures, where plain loops were behind the default on all sets but `fonts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DATA = ("glyphs", "scripts", "fonts", "emoji pictures", "photographs")
"""Of `benchmarks.defaults.sets`, made smaller by `benchmarks.arms.data`: 16 x 16 pixels, at most 100 classes to validate and to
test."""
SEEDS = (0, 1, 2, 3, 4)
STEPS, EVAL_EVERY = 100, 50
CLASSES, SAMPLES = 32, 4  # of a batch
WIDTH, LENGTH = 256, 64  # numbers of the embedding, trained and served
PRODUCTS: dict[str, tuple[str, ...]] = {"default": (), "ms": ("ms",), "sup_con": ("sup_con",)}
WARMED = ", warm-up"
RATES = {
    "MultiSimilarityLoss": (1e-3, 2e-3, 4e-3, 8e-3),
    "SupConLoss": (1e-3, 2e-3, 4e-3, 8e-3),
    f"MultiSimilarityLoss{WARMED}": (2e-3, 4e-3, 8e-3),
    f"SupConLoss{WARMED}": (2e-3, 4e-3, 8e-3),
}
PLAIN = tuple(RATES)
COUNTERPARTS = (  # the same loss on both sides
    ("ms", PLAIN[0]),
    ("sup_con", PLAIN[1]),
    ("ms", PLAIN[2]),
    ("sup_con", PLAIN[3]),
)
RATED = (0,)  # seeds whose validation classes choose the rate of a plain loop

TODAY_RATE = 4e-3
SEARCHED_RATES = (2e-3, 4e-3, 8e-3)
SHAPES = {64: ((16, 4), (32, 2), (8, 8)), 128: ((32, 4), (64, 2), (16, 8)), 256: ((64, 4), (32, 8), (16, 16))}
"""Classes and samples of each by the size of a batch, today's first."""
SEEN = 12800  # pictures
SEARCH_SEEDS = (0, 1, 2)
DEFAULT_SIZE = 128
LEAST_GAIN, MOST_LOSS = 0.5, 1.5

MENDS: dict[str, tuple[str, ...]] = {
    "binomial_deviance, sup_con": ("binomial_deviance", "sup_con"),
    "circle, sup_con": ("circle", "sup_con"),
    "ms, sup_con": ("ms", "sup_con"),
}
"""Beside `default` and `sup_con`: the losses are those of the default, with fewer or another beside `sup_con`."""
EXPLAINING: dict[str, dict[str, Any]] = {"default, no warm-up": {"warmup": 0}}
"""Added after the test figures of question 1 were read: on `fonts`, plain loops are better without a rise of the rate."""
EXPLAINED = ("fonts",)
MEND_SEEDS = (0, 1, 2)
MOST_LOSS_MENDED = 0.5

Rise = tuple[str, float, float]  # losses, the largest share of the steps over which the rate rises, rate
TODAY: Rise = ("default", 0.2, TODAY_RATE)
MOST_RISE = 50  # steps
RISES, RISE_RATES, RISE_LOSSES = (0.0, 0.05, 0.1, 0.2), (4e-3, 8e-3), ("default", "ms, sup_con")
RISE_SEEDS, NEW_SEEDS = (0, 1, 2), (5, 6, 7, 8, 9)
LEAST_GAIN_RISE, MOST_LOSS_RISE = 0.0, 0.5
RACERS: tuple[Rise, ...] = (TODAY, ("ms, sup_con", 0.2, TODAY_RATE), ("default", 0.2, 2 * TODAY_RATE))
LONG_STEPS, LONG_EVERY = 400, 100
LONG_SEEDS = (0, 1, 2)
LONG_PRODUCTS = ("default", "ms")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        part: `compare`, `search` or `long`.
        data: name of the data set.
        system: of `PRODUCTS`, `PLAIN`, `MENDS` or `EXPLAINING`.
        seed: of split, weights and batches.
        rate: learning rate; None: dmlcore's own.
        classes: of a batch.
        samples: of a class in a batch.
        share: of the steps, over which the rate rises at most; None: dmlcore's own.
    """

    part: str
    data: str
    system: str
    seed: int
    rate: float | None = None
    classes: int = CLASSES
    samples: int = SAMPLES
    share: float | None = None

    @property
    def steps(self) -> int:
        lengths = {"compare": STEPS, "long": LONG_STEPS}
        return lengths[self.part] if self.part in lengths else SEEN // (self.classes * self.samples)

    @property
    def eval_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return {"compare": EVAL_EVERY, "long": LONG_EVERY}.get(self.part, self.steps)

    @property
    def settings(self) -> dict[str, Any]:
        """For `dmlcore.train`: nothing that the default says itself."""
        settings: dict[str, Any] = {"steps": self.steps, "eval_every": self.eval_every, "log_every": self.steps}
        settings |= EXPLAINING.get(self.system, {})
        if self.share is not None:
            settings["warmup"] = min(MOST_RISE, round(self.share * self.steps))
        if losses := (PRODUCTS | MENDS).get(self.system):
            settings["plugins"] = losses
        if self.rate is not None:
            settings["learning_rate"] = self.rate
        if (self.classes, self.samples) != (CLASSES, SAMPLES):
            settings |= {"classes_per_batch": self.classes, "samples_per_class": self.samples}
        return settings


def products() -> Iterator[Cell]:
    """The runs of dmlcore that are compared."""
    for seed in SEEDS:
        for data in DATA:
            for system in PRODUCTS:
                yield Cell("compare", data, system, seed)


def rating() -> Iterator[Cell]:
    """The plain loops whose validation classes choose their rates."""
    for seed in RATED:
        for data in DATA:
            for loss in PLAIN:
                for rate in RATES[loss]:
                    yield Cell("compare", data, loss, seed, rate)


def searching(sizes: Sequence[int] = tuple(SHAPES), seeds: Sequence[int] = SEARCH_SEEDS) -> Iterator[Cell]:
    """The default losses with every rate and every shape of a batch, a seed of everything at a time."""
    for seed in seeds:
        for data in DATA:
            for size in sizes:
                for classes, samples in SHAPES[size]:
                    for rate in SEARCHED_RATES:
                        yield Cell("search", data, "default", seed, rate, classes, samples)


def mending(seeds: Sequence[int] = MEND_SEEDS) -> Iterator[Cell]:
    """Other losses in the place of the default's."""
    for seed in seeds:
        for data in DATA:
            for system in MENDS:
                yield Cell("compare", data, system, seed)


def explaining() -> Iterator[Cell]:
    """The default with what may be the reason that it is below, changed alone: there with all seeds, elsewhere with one."""
    for data in sorted(DATA, key=lambda data: data not in EXPLAINED):
        for seed in SEEDS if data in EXPLAINED else SEEDS[:1]:
            for system in EXPLAINING:
                yield Cell("compare", data, system, seed)


def rises() -> list[Rise]:
    """All options of question 4."""
    return [(losses, share, rate) for losses in RISE_LOSSES for share in RISES for rate in RISE_RATES]


def rise_cell(data: str, seed: int, rise: Rise, part: str = "compare") -> Cell:
    """The run of an option. What an earlier question has run is that run."""
    losses, share, rate = rise
    own_rate = None if rate == TODAY_RATE else rate
    if part == "compare" and (losses, share, own_rate) == ("default", 0.0, None):
        return Cell(part, data, "default, no warm-up", seed)
    return Cell(part, data, losses, seed, own_rate, share=None if share == TODAY[1] else share)


def rising(seeds: Sequence[int] = RISE_SEEDS) -> Iterator[Cell]:
    """The options of question 4."""
    for seed in seeds:
        for data in DATA:
            for rise in rises():
                yield rise_cell(data, seed, rise)


def long_products() -> Iterator[Cell]:
    """The runs of dmlcore of question 5."""
    for seed in LONG_SEEDS:
        for data in DATA:
            for system in LONG_PRODUCTS:
                yield Cell("long", data, system, seed)
