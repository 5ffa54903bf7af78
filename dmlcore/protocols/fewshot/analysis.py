"""What the errors of a grid say: means, paired differences, the reduction by adaptation, the paper's orderings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dmlcore.protocols.fewshot.arms import ADAPTED
from dmlcore.reports.intervals import mean_and_error, mean_and_half

CLASSIFIERS = ("baseline", "weight_transfer")
HYBRIDS = ("adap_hist_loss", "adap_proto_net")
UNADAPTED = ("baseline", "weight_transfer", "hist_loss", "proto_net")
SMALL = 5  # samples of a class up to which the paper calls k small

Place = tuple[int, int]
"""n and k."""


@dataclass(frozen=True)
class Errors:
    """Test errors of all arms.

    Attributes:
        values: by arm, by (n, k), by replication.
    """

    values: dict[str, dict[Place, dict[int, float]]]

    @classmethod
    def read(cls, results: Iterable[tuple[int, int, dict[str, Any]]]) -> Errors:
        """From n, replication and result of each cell."""
        values: dict[str, dict[Place, dict[int, float]]] = {}
        for n, replication, result in results:
            for arm, shots in result["arms"].items():
                of_arm = values.setdefault(arm, {})
                for k, measured in shots.items():
                    of_arm.setdefault((n, int(k)), {})[replication] = measured["error"]
        return cls(values)

    @property
    def arms(self) -> list[str]:
        """In the order of the results."""
        return list(self.values)

    @property
    def places(self) -> list[Place]:
        """All (n, k), ascending."""
        return sorted({place for of_arm in self.values.values() for place in of_arm})

    def of(self, arm: str, place: Place) -> list[float]:
        """By replication; empty where the arm is not defined."""
        return [error for _, error in sorted(self.values.get(arm, {}).get(place, {}).items())]

    def mean(self, arm: str, place: Place) -> float:
        """NaN where there is none."""
        errors = self.of(arm, place)
        return statistics.fmean(errors) if errors else math.nan

    def differences(self, arm: str, other: str, place: Place) -> list[float]:
        """`other - arm` of each replication that has both: above 0 where `arm` errs less."""
        own, theirs = (self.values.get(name, {}).get(place, {}) for name in (arm, other))
        return [theirs[r] - own[r] for r in sorted(own) if r in theirs]

    def best(self, arms: Sequence[str], place: Place) -> str | None:
        """The arm of the smallest mean error."""
        there = [arm for arm in arms if self.of(arm, place)]
        return min(there, key=lambda arm: self.mean(arm, place)) if there else None


def means(errors: Errors) -> list[dict[str, Any]]:
    """Mean and standard error of every arm, n and k."""
    rows = []
    for place in errors.places:
        for arm in errors.arms:
            if values := errors.of(arm, place):
                mean, error = mean_and_error(values)
                rows.append(
                    {"n": place[0], "k": place[1], "arm": arm, "error": mean, "standard_error": error, "count": len(values)}
                )
    return rows


def paired(errors: Errors) -> list[dict[str, Any]]:
    """Differences of each adapted arm to its form without adaptation, to weight transfer and to the baseline."""
    rows = []
    for arm in (arm for arm in errors.arms if arm.startswith(ADAPTED)):
        for other in (arm.removeprefix(ADAPTED), "weight_transfer", "baseline"):
            for place in errors.places:
                if values := errors.differences(arm, other, place):
                    mean, half = mean_and_half(values)
                    row = {"arm": arm, "against": other, "n": place[0], "k": place[1]}
                    rows.append({**row, "difference": mean, "half": half, "verdict": verdict(mean, half)})
    return rows


def verdict(mean: float, half: float) -> str:
    """`better` or `worse` where the interval leaves 0 out, else `noise`; with a single replication always `noise`."""
    if math.isnan(half) or abs(mean) <= half:
        return "noise"
    return "better" if mean > 0 else "worse"


def reduction(errors: Errors, arms: Sequence[str] = HYBRIDS, rivals: Sequence[str] = UNADAPTED) -> dict[str, Any] | None:
    """Mean over all (n, k) of `1 - error of adapted arms / error of the best arm without adaptation`.

    The best is that of the smallest mean error at (n, k), which favours it a little; where that is 0 there is no ratio. The
    t-interval is over replications, with the mean errors of the best as denominators; different n are different tasks, and may
    have different numbers of replications.

    Returns:
        `mean`, `half`, `places` (how many), `left_out`, and `by_arm`; None where no adapted arm is defined.
    """
    places = [p for p in errors.places if any(errors.of(arm, p) for arm in arms)]
    used = [p for p in places if (best := errors.best(rivals, p)) is not None and errors.mean(best, p) > 0]
    if not used:
        return None

    def of(adapted: Sequence[str]) -> tuple[float, float]:
        tasks: dict[int, dict[int, list[float]]] = {}  # by n and replication: the k of one share their task
        for place in used:
            best = errors.best(rivals, place)
            assert best is not None
            theirs, base = errors.values[best][place], errors.mean(best, place)
            for arm in adapted:
                for r, error in errors.values.get(arm, {}).get(place, {}).items():
                    if r in theirs:
                        tasks.setdefault(place[0], {}).setdefault(r, []).append((theirs[r] - error) / base)
        weights = {n: sum(place[0] == n for place in used) / len(used) for n in tasks}
        return _combined([([statistics.fmean(values) for values in tasks[n].values()], weights[n]) for n in tasks])

    mean, half = of(arms)
    by_arm = {arm: dict(zip(("mean", "half"), of([arm]), strict=True)) for arm in arms if arm in errors.values}
    return {"mean": mean, "half": half, "places": len(used), "left_out": len(places) - len(used), "by_arm": by_arm}


def reductions_of_losses(errors: Errors) -> dict[str, dict[str, Any]]:
    """The reduction by every other adapted arm, over the best of all arms without adaptation, its own form among them."""
    rivals = [arm for arm in errors.arms if not arm.startswith(ADAPTED)]
    adapted = [arm for arm in errors.arms if arm.startswith(ADAPTED) and arm not in HYBRIDS]
    return {arm: result for arm in adapted if (result := reduction(errors, [arm], rivals)) is not None}


def _combined(groups: Sequence[tuple[list[float], float]], level: float = 0.95) -> tuple[float, float]:
    """A weighted sum of means of independent groups, and half of its t-interval with Welch's degrees of freedom.

    Source: Welch, "The Generalization of Student's Problem when Several Different Population Variances are Involved",
    Biometrika 1947.
    """
    from scipy import stats

    moments = [(weight, len(values), *mean_and_error(values)) for values, weight in groups]
    mean = sum(weight * centre for weight, _, centre, _ in moments)
    parts = [((weight * error) ** 2, count) for weight, count, _, error in moments]
    variance = sum(part for part, _ in parts)
    if not variance > 0:  # also where a group has a single replication
        return mean, variance
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
    return mean, float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)


def regrets(errors: Errors, arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """How far each arm is behind the best of them, mean and worst over all (n, k) where all of them are defined."""
    places = [place for place in errors.places if all(errors.of(arm, place) for arm in arms)]
    results = {}
    for arm in arms:
        behind = [errors.mean(arm, p) - min(errors.mean(other, p) for other in arms) for p in places]
        if behind:
            results[arm] = {"mean": statistics.fmean(behind), "worst": max(behind)}
    return results


def orderings(errors: Errors) -> list[dict[str, Any]]:
    """The paper's claims, each counted over all (n, k) it speaks of.

    Returns:
        For each its `claim`, how many places it `holds` in by means, how many of `places`, in how many the paired interval is
        `clear`ly for and `against` it, and a `verdict`: `holds` (everywhere by means, nowhere clearly against), `mostly` (in
        more than half, and clearly for it more often than against), `does not hold` (clearly against it somewhere, and at
        least as often as for it or in more than half), `undecided`.
    """
    rows = []

    def count(claim: str, pairs: Iterable[tuple[str | None, str | None, Place]]) -> None:
        differences = [errors.differences(a, b, place) for a, b, place in pairs if a and b]
        judged = [mean_and_half(values) for values in differences if values]
        if not judged:
            return
        holds = sum(mean > 0 for mean, _ in judged)
        verdicts = [verdict(mean, half) for mean, half in judged]
        clear, against = verdicts.count("better"), verdicts.count("worse")
        row = {"claim": claim, "holds": holds, "places": len(judged), "clear": clear, "against": against}
        rows.append({**row, "verdict": _judge(holds, len(judged), clear, against)})

    places = errors.places
    adapted = [place for place in places if any(errors.of(arm, place) for arm in HYBRIDS)]
    unadapted = {place: errors.best(UNADAPTED, place) for place in places}
    count("the better hybrid errs less than every other method", ((errors.best(HYBRIDS, p), unadapted[p], p) for p in adapted))
    for hybrid in HYBRIDS:
        count(f"{hybrid} errs less than every other method", ((hybrid, unadapted[p], p) for p in adapted))
        count(
            f"{hybrid} errs less than {hybrid.removeprefix(ADAPTED)}",
            ((hybrid, hybrid.removeprefix(ADAPTED), p) for p in adapted),
        )
    embeddings = ("hist_loss", "proto_net")
    count("weight transfer errs less than the baseline", (("weight_transfer", "baseline", p) for p in places))
    small = [place for place in places if place[1] <= SMALL]
    best_classifier = {place: errors.best(CLASSIFIERS, place) for place in places}
    count(
        f"embeddings without adaptation err less than classifiers at k <= {SMALL}",
        ((errors.best(embeddings, p), best_classifier[p], p) for p in small),
    )
    large = [place for place in places if place[1] > SMALL]
    count(
        f"classifiers err less than embeddings without adaptation at k > {SMALL}",
        ((best_classifier[p], errors.best(embeddings, p), p) for p in large),
    )
    count("hist_loss errs less than proto_net", (("hist_loss", "proto_net", p) for p in places))
    count("adap_hist_loss errs less than adap_proto_net", ((*HYBRIDS, p) for p in adapted))
    return rows


def _judge(holds: int, places: int, clear: int, against: int) -> str:
    if holds == places and not against and clear:
        return "holds"
    if 2 * holds > places and clear > against:
        return "mostly"
    if against and (2 * holds < places or against >= clear):
        return "does not hold"
    return "undecided"
