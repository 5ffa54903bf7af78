"""What is run one after the other. Each stage goes by the results of those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.outside import plan, racing, rises, rule
from benchmarks.outside.plan import DATA, PLAIN, RATED, SEEDS, TODAY, Cell
from benchmarks.outside.stored import Rows, rate_of


def rated(rows: Rows) -> Iterator[Cell]:
    """The other seeds of the plain loops, at the rates that validation chose."""
    for seed in SEEDS:
        for data in DATA:
            for loss in PLAIN:
                if seed not in RATED and (rate := rate_of(rows, data, loss)) is not None:
                    yield Cell("compare", data, loss, seed, rate)


def beyond_search(rows: Rows, size: int) -> Iterator[Cell]:
    """Twice the highest rate of the search, where its rule takes that."""
    means = rule.searched(rows, size)
    if means and (point := rule.beyond(rule.takes(means, means), max(plan.SEARCHED_RATES))):
        yield from (rule.search_cell(data, seed, point) for seed in plan.SEARCH_SEEDS for data in DATA)


def beyond_rises(rows: Rows) -> Iterator[Cell]:
    """Twice the highest rate of question 4, where its rule takes that."""
    if (option := rises.candidate(rows)) and (further := rule.beyond(option, rises.HIGHEST)):
        yield from (plan.rise_cell(data, seed, further) for seed in plan.RISE_SEEDS for data in DATA)


def new_seeds(rows: Rows) -> Iterator[Cell]:
    """Today's default, the best plain loop, and what may take the default's place."""
    options = (TODAY, None, *rises.confirmed(rows))
    for seed in plan.NEW_SEEDS:
        for data in DATA:
            yield from (cell for option in options if (cell := rises.new_cell(rows, data, seed, option)))


def long_rating(rows: Rows) -> Iterator[Cell]:
    """Longer runs of plain loops, whose validation classes choose among them."""
    for data in DATA:
        for loss in PLAIN:
            yield from (Cell("long", data, loss, seed, rate) for seed in RATED for rate in rises.long_rates(rows, data, loss))


def long_compared(rows: Rows) -> Iterator[Cell]:
    """Longer runs of the default, the best plain loop, what may take the default's place, and what else is compared."""
    options = dict.fromkeys(("default", rule.BEST, *rises.confirmed(rows), *plan.LONG_PRODUCTS))
    for option in options:
        for seed in plan.LONG_SEEDS:
            yield from (cell for data in DATA if (cell := rises.long_cell(rows, data, seed, option)))


def raced(rows: Rows) -> Iterator[Cell]:
    """The racers of question 6, with new seeds and in longer runs."""
    for part in racing.PARTS:
        for seed in racing.seeds_of(part):
            for data in DATA:
                yield from racing.cells(rows, data, seed, part)


def stages(rows: Rows) -> list[Callable[[], Iterator[Cell]]]:
    """The most needed first. What was asked first comes first, as far as it decided what was asked later."""
    default_size, first = (plan.DEFAULT_SIZE,), plan.SEARCH_SEEDS[:1]
    return [
        plan.products,
        plan.rating,
        partial(rated, rows),
        plan.explaining,
        partial(plan.searching, default_size, first),
        partial(plan.mending, plan.MEND_SEEDS[:1]),
        partial(plan.searching, seeds=first),
        partial(plan.rising, plan.RISE_SEEDS[:2]),
        partial(plan.searching, default_size),
        partial(beyond_search, rows, plan.DEFAULT_SIZE),
        partial(new_seeds, rows),
        partial(long_rating, rows),
        partial(long_compared, rows),
        partial(raced, rows),
        plan.mending,
        plan.rising,
        partial(beyond_rises, rows),
        plan.searching,
        *(partial(beyond_search, rows, size) for size in plan.SHAPES),
    ]
