"""Fills docs/reports/outside.md from the stored results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.defaults.sets import SETS
from benchmarks.markdown import fill, table
from benchmarks.outside import plan, racing, rises, rule
from benchmarks.outside.plan import DATA, PLAIN, PRODUCTS, SHAPES, TODAY
from benchmarks.outside.stored import Rows, rate_of
from dmlcore.reports.intervals import mean_and_half

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "outside.md"


def _with_half(values: Sequence[float], form: str = "+.1f") -> str:
    mean, half = mean_and_half(list(values)) if values else (math.nan, math.nan)
    return "" if math.isnan(half) else f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def _name(option: Any) -> str:
    """Of losses, of a point of the search, or of an option of question 4."""
    if isinstance(option, str):
        return option
    first, second, rate = option
    return f"{first}, {second:.0%}, {rate:g}" if isinstance(first, str) else f"{first} x {second}, {rate:g}"


def _words(verdicts: dict[str, rule.Verdict]) -> str:
    """On which data sets a verdict is which."""
    names: dict[str, list[str]] = {
        word: [data for data, verdict in verdicts.items() if verdict.word == word] for word in ("ahead", "level", "below")
    }
    return ", ".join(f"{word} on {len(sets)} ({', '.join(sets)})" for word, sets in names.items() if sets)


def answer(rows: Rows, _: str) -> str:
    """The first sentences, for users."""
    size = plan.DEFAULT_SIZE
    means, now = rule.searched(rows, size), rule.today(size)
    if not means:
        return "Not run."
    told = _words(rule.verdicts(rows, "default", rule.BEST))
    anew, longer = _words(rises.new_verdicts(rows, TODAY, None)), _words(rises.long_verdicts(rows, "default", rule.BEST))
    short, long = (_words(racing.verdicts(rows, part, rule.BEST)) for part in racing.PARTS)
    race = f" With `--start race`, three times the work, it is {short}; after {plan.LONG_STEPS} steps {long}." if short else ""
    gains = [gain for _, gain in rule.left_out(means, now).values()]
    verdict = "changes the default" if rule.changes(gains) else "leaves the default as it is"
    return (
        f"Without any flag, `dmlcore train` beside the better plain loop, whose rate was searched, is {told}, in runs of"
        f" {plan.STEPS} steps.{f' With other seeds, which decided nothing, it is {anew}.' if anew else ''}"
        f"{f' After {plan.LONG_STEPS} steps it is {longer}.' if longer else ''}{race} The search of rate and P x K would take"
        f" {_name(rule.takes(means, means))}, where today's is {_name(now)}: on data sets left out"
        f" {_with_half(gains, '+.2f')} points, which {verdict}."
    )


def data_sets(rows: Rows, _: str) -> str:
    """What was run, and the rates of the plain loops."""
    lines = []
    for data in DATA:
        seeds = len(rule.figures_of(rows, data, "default"))
        rates = [f"{rate:g}" if (rate := rate_of(rows, data, loss)) else "" for loss in PLAIN]
        lines.append([data, SETS[data].about.replace(" at 32 x 32", ""), f"{seeds}", *rates])
    return table(["data set", "what it is", "seeds", *(f"rate of {loss}" for loss in PLAIN)], lines)


def figures(rows: Rows, part: str) -> str:
    """Test MAP@R of every system, and what a run cost. `part` is the embedding, `served` or `whole`."""
    lines = []
    for system in (*PRODUCTS, *PLAIN):
        own = [rule.figures_of(rows, data, system, part) for data in DATA]
        means = [f"{statistics.fmean(values.values()):.1f}" if values else "" for values in own]
        runs = [row["cpu_seconds"] for cell, row in rows.items() if (cell.part, cell.system) == ("compare", system)]
        name = f"dmlcore, {system}" if system in PRODUCTS else f"plain loop, {system}"
        lines.append([name, *means, f"{statistics.median(runs):.1f}" if runs else ""])
    return table(["test MAP@R", *DATA, "CPU seconds"], lines)


def differences(rows: Rows, part: str) -> str:
    """dmlcore minus plain loops, and the verdicts of rule 1."""
    lines = [_verdicts(f"{own} - {other}", rule.verdicts(rows, own, other, part)) for own, other in rule.COMPARED]
    return table(["dmlcore - plain loop", *DATA, "mean of data sets"], lines)


def _verdicts(what: str, verdicts: dict[str, rule.Verdict]) -> list[str]:
    """A line of differences."""
    entries, means = [], []
    for verdict in verdicts.values():
        mean, half = verdict.interval
        entries.append("" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f} {verdict.word}")
        means += [] if math.isnan(mean) else [mean]
    return [what, *entries, _with_half(means, "+.2f")]


def explanations(rows: Rows, _: str) -> str:
    """The default with one change, beside itself and beside the better plain loop; an interval where there are seeds enough."""
    lines = []
    for data in DATA:
        for system in plan.EXPLAINING:
            own, entries = rule.figures_of(rows, data, system), []
            for other in ("default", rule.BEST):
                mean, half = rule.verdicts(rows, system, other)[data].interval
                entries.append(f"{mean:+.1f}" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f}")
            if own:
                lines.append([data, system, f"{len(own)}", f"{statistics.fmean(own.values()):.1f}", *entries])
    return table(["data set", "system", "seeds", "test MAP@R", "minus default", f"minus {rule.BEST}"], lines)


def search(rows: Rows, part: str) -> str:
    """Of a size of a batch: regret on validation classes, and test MAP@R minus today's, means over data sets."""
    size = int(part)
    return _options(rule.searched(rows, size), rule.today(size), "P x K, rate")


def mending(rows: Rows, _: str) -> str:
    """The same of other losses in the place of the default's."""
    return _options(rule.mended(rows), "default", "losses")


def rise(rows: Rows, _: str) -> str:
    """The same of other rises of the rate; what they lack is in percent."""
    return _options(rises.means_of(rows), TODAY, "losses, share of the steps, rate", rule.in_percent)


def _options(means: rule.Means, now: Any, what: str, regret: rule.Regret = rule.regret) -> str:
    if not means:
        return "Not run."
    taken, lines = rule.takes(means, means, regret), []
    for option in next(iter(means.values())):
        lacks = statistics.fmean(regret(means, data, option) for data in means)
        gains = [rule.gain(means, data, option, now) for data in means]
        words = [_name(option), *(["today"] if option == now else []), *(["taken"] if option == taken else [])]
        lines.append([", ".join(words), f"{lacks:.2f}", *(f"{gain:+.1f}" for gain in gains), f"{statistics.fmean(gains):+.2f}"])
    lacking = "lacks on validation, %" if regret is rule.in_percent else "lacks on validation"
    return table([what, lacking, *(f"{data}, test" for data in means), "mean, test"], lines)


def judged(rows: Rows, _: str) -> str:
    """What the rules take without each data set, and what that gains there."""
    lines = []
    every = [(f"batch of {size}", rule.searched(rows, size), rule.today(size), plan.MOST_LOSS) for size in SHAPES]
    for what, means, now, most in (*every, ("losses", rule.mended(rows), "default", plan.MOST_LOSS_MENDED)):
        if out := rule.left_out(means, now):
            verdict = "changes" if rule.changes([gain for _, gain in out.values()], most) else "stays"
            lines.append([*_left_out(what, means, now, out), verdict])
    if out := rises.gains(rows):
        met = rises.conditions(rows)
        verdict = "changes" if met and all(met.values()) else "stays" if not met or False in met.values() else ""
        lines.append([*_left_out("rise of the rate", rises.means_of(rows), TODAY, out), verdict])
    return table(["", "seeds", "today", *DATA, "mean", "verdict"], lines)


def _left_out(what: str, means: rule.Means, now: Any, out: dict[str, tuple[Any, float]]) -> list[str]:
    entries = [f"{_name(out[data][0])}: {out[data][1]:+.1f}" if data in out else "" for data in DATA]
    seeds = {f"{of[now]['seeds']}" for of in means.values()}
    return [what, " to ".join(sorted(seeds)), _name(now), *entries, _with_half([gain for _, gain in out.values()], "+.2f")]


def conditions(rows: Rows, _: str) -> str:
    """What the rule asks of another rise, and whether it is met."""
    option, met = rises.candidate(rows), rises.conditions(rows)
    if option is None:
        return "Not run."
    if not met:
        return f"The candidate is {_name(option)}, which is today's default."
    words = {True: "met", False: "not met", None: "not run"}
    return f"The candidate is {_name(option)}.\n\n" + table(
        ["condition", ""], [[what, words[is_met]] for what, is_met in met.items()]
    )


def renewed(rows: Rows, part: str) -> str:
    """New seeds: today's default, and what may take its place, beside the best plain loop."""
    lines = [_verdicts("today's default - best plain", rises.new_verdicts(rows, TODAY, None, part))]
    for option in rises.confirmed(rows):
        name = _name(option)
        lines.append(_verdicts(f"{name} - best plain", rises.new_verdicts(rows, option, None, part)))
        lines.append(_verdicts(f"{name} - today's default", rises.new_verdicts(rows, option, TODAY, part)))
    plain = [rises.best_plain(rows, data) for data in DATA]
    lines.append(["best plain", *(f"{best[0]}, {best[1]:g}" if best else "" for best in plain), ""])
    return table(["", *DATA, "mean of data sets"], lines)


def longer(rows: Rows, part: str) -> str:
    """Longer runs: figures, then differences."""
    every = (*plan.LONG_PRODUCTS, *rises.confirmed(rows))
    own: list[Any] = [option for option in every if any(rises.long_figures(rows, data, option) for data in DATA)]
    lines = []
    for option in (*own, rule.BEST):
        of = [rises.long_figures(rows, data, option, part) for data in DATA]
        lines.append([_name(option), *(f"{statistics.fmean(values.values()):.1f}" if values else "" for values in of), ""])
    pairs = [(option, rule.BEST) for option in own] + [(option, "default") for option in own if option != "default"]
    lines += [_verdicts(f"{_name(a)} - {_name(b)}", rises.long_verdicts(rows, a, b, part)) for a, b in pairs]
    plain = [rises.long_plain(rows, data) for data in DATA]
    lines.append(["which plain loop, its rate", *(f"{best[0]}, {best[1]:g}" if best else "" for best in plain), ""])
    return table([f"after {plan.LONG_STEPS} steps", *DATA, "mean of data sets"], lines)


def raced(rows: Rows, part: str) -> str:
    """The race beside the best plain loop and the default, with new seeds and in longer runs."""
    lines = []
    for length, what in zip(racing.PARTS, ("new seeds", f"{plan.LONG_STEPS} steps"), strict=True):
        lines += [
            _verdicts(f"{what}: race - {other}", racing.verdicts(rows, length, other, part)) for other in (rule.BEST, "default")
        ]
        won = [_names_of(racing.places(rows, data, length)) for data in DATA]
        lines.append([f"{what}: winners", *won, ""])
    return table(["", *DATA, "mean of data sets"], lines)


def _names_of(places: Sequence[int]) -> str:
    """The racers that won, and how often."""
    counts = {_name(racer): list(places).count(place) for place, racer in enumerate(plan.RACERS)}
    return "; ".join(f"{name}: {count}" for name, count in counts.items() if count)


def race_conditions(rows: Rows, _: str) -> str:
    """What rule 6 asks of the race, and whether it is met."""
    words = {True: "met", False: "not met", None: "not run"}
    return table(["condition", ""], [[what, words[is_met]] for what, is_met in racing.conditions(rows).items()])


_FILLED = (
    answer,
    data_sets,
    figures,
    differences,
    explanations,
    search,
    mending,
    rise,
    judged,
    conditions,
    renewed,
    longer,
    raced,
    race_conditions,
)
BLOCKS: dict[str, Callable[[Rows, str], str]] = {block.__name__: block for block in _FILLED}


def write(rows: Rows, page: Path = PAGE) -> str:
    """Fill the markers `<!-- table: NAME -->` to `<!-- end -->` of the page, and return its text."""
    return fill(page, lambda name, part: BLOCKS[name](rows, part))
