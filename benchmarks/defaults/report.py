"""Fills docs/reports/defaults.md from the stored results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.defaults.candidates import (
    EXPLAINED,
    EXPLANATIONS,
    RATE,
    RATES,
    SEEDS,
    STEPS,
    TRICKED,
    TRICKS,
    Candidate,
    candidates,
    tricked,
)
from benchmarks.defaults.outside import plain_loops
from benchmarks.defaults.rule import (
    Rows,
    against,
    changes,
    complete_sets,
    decide,
    left_out,
    mean,
    rated,
    regrets,
    seeds_of,
    today,
)
from benchmarks.defaults.sets import DataSet
from benchmarks.markdown import fill, table
from dmlcore.reports import pictures
from dmlcore.reports.intervals import mean_and_half

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reports" / "defaults.md"
RULES = {"alike": False, "by kind": True}


def _interval(values: Sequence[float]) -> str:
    average, half = mean_and_half(values)
    return f"{average:+.2f} ± {half:.2f}" if len(values) > 1 else f"{average:+.2f}"


def data_sets(rows: Rows) -> str:
    """What they are, and how much they were run."""
    lines = []
    for data in complete_sets(rows):
        raw = next((rows[data.name, candidates(data.kind)[0].name, seed]["raw"] for seed in seeds_of(rows, data)), None)
        steps = f"{STEPS.get(data.kind, 'the default')}"
        lines.append(
            [data.name, data.kind, data.about, steps, str(len(seeds_of(rows, data))), f"{raw['MAP@R']:.1f}" if raw else ""]
        )
    return table(["data set", "kind", "what it is", "steps", "seeds", "raw MAP@R"], lines)


def choices(rows: Rows) -> str:
    """Test MAP@R of every candidate at its best rate of validation over its kind, and how much it lacks to the best."""
    sets = complete_sets(rows)
    names = list(dict.fromkeys(c.choice for c in candidates("features")))
    lines, lacking = [], {}
    for choice in names:
        own = [_rated(rows, sets, choice, data) for data in sets]
        figures = [mean(rows, data, candidate, "test") for data, candidate in zip(sets, own, strict=True)]
        lacking[choice] = [regrets(rows, data, "test")[c] for data, c in zip(sets, own, strict=True)]
        lines.append([choice, *(f"{value:.1f}" for value in figures)])
    best = [max(float(line[column + 1]) for line in lines) for column in range(len(sets))]
    for line in lines:
        line[1:] = [f"**{entry}**" if float(entry) == top else entry for entry, top in zip(line[1:], best, strict=True)]
        line += [f"{statistics.fmean(lacking[line[0]]):.2f}", f"{max(lacking[line[0]]):.1f}"]
    return table(["losses", *(data.name for data in sets), "lacks, mean", "lacks, most"], lines)


def _rated(rows: Rows, sets: Sequence[DataSet], choice: str, data: DataSet) -> Candidate:
    """The losses at the rate of least regret on validation classes of the data sets of a kind."""
    lacks = {other.name: regrets(rows, other, "validation") for other in sets if other.kind == data.kind}
    return rated(choice, data.kind, lacks, sets)


def singles(rows: Rows) -> str:
    """What the rule takes minus single losses of equal width, test MAP@R: each, and the best of them on validation classes."""
    sets = complete_sets(rows)
    taken = decide(rows, sets, by_kind=False)
    names = [c.choice for c in candidates("features") if len(c.losses) == 1]
    own = {(name, data.name): _rated(rows, sets, name, data) for name in names for data in sets}
    lines = []
    for name in (*names, "best of validation"):
        values = []
        for data in sets:
            rivals = [own[single, data.name] for single in names if name in (single, "best of validation")]
            rival = max(rivals, key=lambda c, data=data: mean(rows, data, c, "validation"))
            values.append(mean(rows, data, taken.of(data), "test") - mean(rows, data, rival, "test"))
        pictured = [value for value, data in zip(values, sets, strict=True) if data.kind == "images"]
        lines.append([name, *(f"{value:+.1f}" for value in values), _interval(values), _interval(pictured)])
    return table(["minus", *(data.name for data in sets), "mean", "mean of pictures"], lines)


def rates(rows: Rows) -> str:
    """Test MAP@R at twice the rate of today minus that at today's, means over the candidates."""
    lines = []
    for data in complete_sets(rows):
        for rate in RATES[data.kind][1:]:
            pairs = [(c, Candidate(c.losses, c.weighting, rate)) for c in candidates(data.kind) if c.rate == 1]
            for part in ("validation", "test"):
                values = [mean(rows, data, higher, part) - mean(rows, data, lower, part) for lower, higher in pairs]
                lines.append([data.name, f"{rate * RATE[data.kind]:g} - {RATE[data.kind]:g}", part, _interval(values)])
    return table(["data set", "rates", "classes", "difference"], lines)


def judged(rows: Rows) -> str:
    """What the rules take from all other data sets, and what that lacks."""
    sets = complete_sets(rows)
    by_rule = {name: left_out(rows, sets, by_kind) for name, by_kind in RULES.items()}
    lines = []
    for data in sets:
        entries = [data.name, f"{regrets(rows, data, 'test')[today().of(data)]:.1f}"]
        for name in RULES:
            candidate, lack = by_rule[name][data.name]
            entries += [candidate.name, f"{lack:.1f}"]
        lines.append(entries)
    means = [statistics.fmean(regrets(rows, data, "test")[today().of(data)] for data in sets)]
    means += [statistics.fmean(lack for _, lack in by_rule[name].values()) for name in RULES]
    lines.append(["mean", f"{means[0]:.2f}", "", f"{means[1]:.2f}", "", f"{means[2]:.2f}"])
    return table(["left out", "default before", "`alike` takes", "lacks", "`by kind` takes", "lacks"], lines)


def decision(rows: Rows) -> str:
    """What the rules take from all data sets, and whether it replaces the default."""
    sets = complete_sets(rows)
    lines = []
    for name, by_kind in RULES.items():
        taken = decide(rows, sets, by_kind)
        differences = against(rows, sets, taken, today())
        worst = min(differences, key=lambda key: differences[key])
        verdict = "replaces it" if changes(differences) else "stays"
        per_kind = "<br>".join(f"{kind}: {candidate.name}" for kind, candidate in taken.by_kind.items())
        lines.append(
            [f"`{name}`", per_kind, _interval(list(differences.values())), f"{differences[worst]:+.1f} ({worst})", verdict]
        )
    return table(["rule", "takes", "minus the default before, test", "worst", "default"], lines)


def _tricked_sets(rows: Rows) -> list[DataSet]:
    """Data sets of which every trick has a run of the first seed."""
    every = tricked(picture_rate(rows))
    return [
        data for data in complete_sets(rows) if data.kind == "images" and all((data.name, c.name, 0) in rows for c in every)
    ]


def _gains(rows: Rows, one: Candidate, other: Candidate) -> list[float]:
    """Test MAP@R of one candidate minus that of another, by data set of the tricks, over seeds that all have."""
    every, gains = tricked(picture_rate(rows)), []
    for data in _tricked_sets(rows):
        seeds = [seed for seed in range(SEEDS["images"]) if all((data.name, c.name, seed) in rows for c in every)]
        pairs = [(rows[data.name, one.name, seed], rows[data.name, other.name, seed]) for seed in seeds]
        gains.append(statistics.fmean(row["test"]["MAP@R"] - rival["test"]["MAP@R"] for row, rival in pairs))
    return gains


def tricks(rows: Rows) -> str:
    """Gain of each trick in test MAP@R, by loss and data set, and of the ensemble beside the single losses with it."""
    there = _tricked_sets(rows)
    if not there:
        return "Not run."
    rate = picture_rate(rows)
    with_trick = {(c, t): Candidate(c.losses, c.weighting, rate, t) for c in TRICKED for t in TRICKS}
    lines = []

    def line(label: str, one: Candidate, other: Candidate) -> list[str]:
        values = _gains(rows, one, other)
        return [label, *(f"{value:+.1f}" for value in values), _interval(values)]

    for trick in list(TRICKS)[1:]:
        for losses in TRICKED:
            lines.append(line(f"{losses.choice}, {trick}, minus without", with_trick[losses, trick], with_trick[losses, ""]))
    for trick in TRICKS:
        for single in TRICKED[1:]:
            ensemble = with_trick[TRICKED[0], trick]
            label = f"three losses minus {single.choice}, both with {trick or 'no trick'}"
            lines.append(line(label, ensemble, with_trick[single, trick]))
    return table(["difference in test MAP@R", *(data.name for data in there), "mean"], lines)


def outside(rows: Rows) -> str:
    """Test MAP@R of the default before, of the one that the rule takes, and of plain loops, each at its better rate."""
    sets = [data for data in complete_sets(rows) if data.kind == "images"]
    there = [data for data in sets if all((data.name, loop.name, 0) in rows for loop in plain_loops())]
    if not there:
        return "Not run."
    taken = decide(rows, complete_sets(rows), by_kind=False)

    def figures(data: DataSet, name: str) -> list[float]:
        own = [s for s in seeds_of(rows, data) if all((data.name, loop.name, s) in rows for loop in plain_loops())]
        return [rows[data.name, name, seed]["test"]["MAP@R"] for seed in own]

    def rated(loss: str) -> str:
        """Validation over all data sets chooses the rate, as for candidates."""
        own = [loop for loop in plain_loops() if loop.loss == loss]
        return max(own, key=lambda loop: sum(rows[d.name, loop.name, 0]["validation"]["MAP@R"] for d in there)).name

    best_of_today = _rated(rows, sets, today().of(there[0]).choice, there[0]).name
    names = {best_of_today: f"default before: {best_of_today}", taken.of(there[0]).name: f"rule: {taken.of(there[0]).name}"}
    names |= {name: name for name in (rated("MultiSimilarityLoss"), rated("SupConLoss"))}
    lines = [[label, *(f"{statistics.fmean(figures(data, name)):.1f}" for data in there)] for name, label in names.items()]
    return table(["test MAP@R", *(data.name for data in there)], lines)


def explanations(rows: Rows) -> str:
    """Test MAP@R of a loss with proxies and of one without, first seed."""
    lines = []
    for name in EXPLAINED:
        for why in ("", *EXPLANATIONS):
            entries = [rows.get((name, Candidate((loss,), trick=why).name, 0)) for loss in ("proxy_anchor", "ms")]
            if all(entries):
                figures = [f"{e['test']['MAP@R']:.1f}, step {e['chosen_step']}" for e in entries if e]
                lines.append([name, why or "as in the comparison", *figures])
    return table(["data set", "changed", "proxy_anchor", "ms"], lines)


def picture_rate(rows: Rows) -> float:
    """The rate over today's that serves today's losses best on pictures, on validation classes."""
    sets = complete_sets(rows)
    images = next(data for data in sets if data.kind == "images")
    return _rated(rows, sets, today().of(images).choice, images).rate


BLOCKS: dict[str, Callable[[Rows], str]] = {
    f.__name__: f for f in (data_sets, choices, singles, rates, judged, decision, tricks, outside, explanations)
}


def write(rows: Rows, page: Path = PAGE) -> str:
    """Fill the markers `<!-- table: NAME -->` to `<!-- end -->` of the page, and return its text."""
    return fill(page, lambda name, _: BLOCKS[name](rows))


def draw(rows: Rows, file: Path) -> Path:
    """What each candidate lacks to the best on test classes, a point for each data set."""
    pyplot = pictures.pyplot()
    sets = complete_sets(rows)
    names = list(dict.fromkeys(c.choice for c in candidates("features")))
    figure, axis = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1.2))
    colours = {kind: f"C{number}" for number, kind in enumerate(RATES)}
    for row, choice in enumerate(names):
        for data in sets:
            lack = regrets(rows, data, "test")[_rated(rows, sets, choice, data)]
            axis.plot(lack, row, "o", color=colours[data.kind], alpha=0.6, markersize=5)
    for kind, colour in colours.items():
        axis.plot([], [], "o", color=colour, label=kind)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("points of test MAP@R behind the best candidate; a point is a data set")
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    return file


def draw_tricks(rows: Rows, file: Path) -> Path:
    """The gain of each trick for each of the losses, a point for each data set."""
    pyplot = pictures.pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 3))
    rate, labels = picture_rate(rows), []
    for trick in list(TRICKS)[1:]:
        for colour, losses in enumerate(TRICKED):
            own, without = (Candidate(losses.losses, losses.weighting, rate, name) for name in (trick, ""))
            gains = _gains(rows, own, without)
            axis.plot(gains, [len(labels)] * len(gains), "o", color=f"C{colour}", alpha=0.7, markersize=5)
            labels.append(f"{'three losses' if len(losses.losses) > 1 else losses.choice}, {trick}")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("points of test MAP@R gained by a trick; a point is a data set of pictures")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
