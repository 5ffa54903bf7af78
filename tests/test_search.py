"""The search for members: equal trials, the choice, what is reported."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dmlcore.ensemble.search import Trial, candidates, choose, left_out, report, search
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.losses import create
from dmlcore.plugins import registry

BENCH = [
    "ms",
    "proxy_anchor",
    "triplet",
    "contrastive",
    "sup_con",
    "circle",
    "norm_softmax",
    "proxy_nca",
    "binomial_deviance",
]


@pytest.mark.parametrize("name", BENCH)
def test_searched_values_start_at_the_default_and_are_allowed(name: str) -> None:
    component = registry("loss")[name].component
    defaults = {field.name: field.default for field in dataclasses.fields(component.Options)}
    assert component.searched
    for option, values in component.searched.items():
        assert len(values) == len(set(values)) == 4 and values[0] == defaults[option]
        for value in values:
            loss = create(name, num_classes=3, embedding_dim=2, **{option: value})
            assert getattr(loss.options, option) == value


def test_every_loss_gets_equal_trials() -> None:
    tried = candidates(["triplet", "ms", "sec", "triplet"], 3)
    assert tried[:3] == [("triplet", {"margin": value}) for value in (0.05, 0.1, 0.2)]
    assert [loss for loss, _ in tried] == ["triplet"] * 3 + ["ms"] * 3
    assert left_out(["triplet", "ms", "sec"]) == ["sec"]
    all_tried = candidates(None, 4)
    assert sorted({loss for loss, _ in all_tried}) == sorted(BENCH) and len(all_tried) == 4 * len(BENCH)
    assert set(left_out()) == set(registry("loss")) - set(BENCH)


def test_several_options_are_tried_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    component = registry("loss")["ms"].component
    monkeypatch.setattr(component, "searched", {"beta": (50.0, 10.0), "base": (0.5, 0.3)})
    assert [options for _, options in candidates(["ms"], 3)] == [{"beta": 50.0}, {"beta": 10.0}, {"base": 0.3}]


def test_impossible_searches_are_refused() -> None:
    with pytest.raises(ConfigError, match="trials is 5, but 'ms' has 4 values"):
        candidates(["ms", "triplet"], 5)
    with pytest.raises(ConfigError, match="no loss to search: sec declare no 'searched'"):
        candidates(["sec"], 1)
    with pytest.raises(ConfigError, match="there is no loss 'tripplet'.*'triplet'"):
        candidates(["tripplet"], 1)
    with pytest.raises(ConfigError, match="trials is 0"):
        candidates(["ms"], 0)


def trial(loss: str, score: float, **options: float) -> Trial:
    return Trial(loss, options, score, 1.5)


def test_choice_takes_each_losses_best_within_the_margin() -> None:
    trials = [trial("a", 0.30), trial("b", 0.29, t=1), trial("b", 0.31, t=2), trial("c", 0.28), trial("d", math.nan)]
    assert [(t.loss, t.score) for t in choose(trials, within=0.015)] == [("b", 0.31), ("a", 0.30)]
    assert [t.loss for t in choose(trials, within=0.05)] == ["b", "a", "c"]
    assert [t.loss for t in choose(trials, within=0.05, most=2)] == ["b", "a"]
    assert [t.loss for t in choose(trials, within=0)] == ["b"]
    ties = [trial("z", 0.5, t=1), trial("y", 0.5), trial("z", 0.5, t=2)]
    assert choose(ties) == [ties[0], ties[1]]


def test_choice_without_scores_says_why() -> None:
    with pytest.raises(ConfigError, match="no trial has a finite score to choose by: there are none"):
        choose([])
    with pytest.raises(ConfigError, match="the loss is not finite"):
        choose([Trial("a", {}, math.nan, 1.0, "the loss is not finite")])
    with pytest.raises(ConfigError, match="most is 0"):
        choose([trial("a", 1.0)], most=0)


def test_search_runs_all_and_one_failure_fails_one() -> None:
    asked = []

    def run(loss: str, options: dict[str, float]) -> float:
        asked.append((loss, options))
        if options.get("t") == 2:
            raise TrainingError("the loss is not\n finite")
        return 0.25

    tried = [("a", {"t": 1}), ("a", {"t": 2}), ("b", {})]
    trials = search(tried, run)
    assert asked == tried == [(t.loss, t.options) for t in trials]
    assert [t.score for t in trials if not t.failure] == [0.25, 0.25] and math.isnan(trials[1].score)
    assert trials[1].failure == "the loss is not finite" and all(t.seconds >= 0 for t in trials)
    with pytest.raises(ZeroDivisionError):  # a mistake in the program is not a failed trial
        search(tried, lambda loss, options: 1 / 0)


def test_report_is_a_table_of_all_trials() -> None:
    trials = [trial("a", 0.30, t=1), Trial("a", {"t": 2}, math.nan, 0.2, "a | b"), trial("b", 0.31), trial("a", 0.2, t=3)]
    lines = report(trials, choose(trials), ["sec"]).splitlines()
    assert lines[0] == "| loss | options | MAP@R | seconds | chosen |"
    assert lines[2:] == [
        "| b | defaults | 0.3100 | 1.5 | yes |",
        "| a | t=1 | 0.3000 | 1.5 | yes |",
        "| a | t=3 | 0.2000 | 1.5 |  |",
        "| a | t=2 | failed: a \\| b | 0.2 |  |",
        "",
        "Not searched, since they declare no values to try: sec.",
    ]
