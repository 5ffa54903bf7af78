"""Few-shot transfer: which classes and samples are drawn, and how they are dealt out in batches and episodes."""

from __future__ import annotations

import numpy as np
import pytest
from fewshot_samples import samples_of

from dmlcore.errors import ConfigError
from dmlcore.protocols.fewshot import batches
from dmlcore.protocols.fewshot.classes import Sides, choose_sides, read_selection
from dmlcore.protocols.fewshot.tasks import Part, draw_task


def test_selections_name_classes_ranges_and_groups() -> None:
    table = samples_of(groups=True).table
    assert read_selection(table, "c3", "--x") == [3]
    assert read_selection(table, "c2-c4, c0", "--x") == [0, 2, 3, 4]
    assert read_selection(table, "@low,c11", "--x") == [0, 1, 2, 3, 4, 5, 11]
    assert read_selection(table, "@high high", "--x") == [6, 7, 8, 9, 10, 11]
    table.class_names[0] = "c1-c2"  # a name that looks like a range is a name
    assert read_selection(table, "c1-c2", "--x") == [0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c99", "no class 'c99'. Did you mean"),
        ("c4-c2", "runs backwards"),
        ("@lo", "no group 'lo'. Did you mean 'low'"),
        (" , ", "chooses no class"),
    ],
)
def test_wrong_selections_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_selection(samples_of(groups=True).table, text, "--x")


def test_groups_that_are_not_there_say_so() -> None:
    with pytest.raises(ConfigError, match="no groups of classes"):
        read_selection(samples_of().table, "@low", "--x")


def test_sides_are_disjoint_and_large_enough() -> None:
    samples = samples_of()
    sides = choose_sides(samples.table, samples.sizes, "c0-c3", None, 11)
    assert sides.source == [0, 1, 2, 3] and sides.target == list(range(4, 12))
    with pytest.raises(ConfigError, match="2 classes are on both sides, source and target: 'c2', 'c3'"):
        choose_sides(samples.table, samples.sizes, "c0-c3", "c2-c5", 3)
    with pytest.raises(ConfigError, match=r"class 'c4' of the target classes has 12 samples .* but k = 12"):
        choose_sides(samples.table, samples.sizes, "c0-c3", None, 12)
    with pytest.raises(ConfigError, match="cannot be given"):
        choose_sides(samples.table, samples.sizes, "random", "c1", 3)
    small = choose_sides(samples.table, [12] * 10 + [3, 4], "random", None, 3)
    assert small.target == [*range(10), 11] and "1 classes with fewer than 4" in small.notes[0]


def test_a_task_is_disjoint_nested_and_repeats() -> None:
    labels = samples_of().labels
    sides = Sides([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    task = draw_task(labels, sides, 3, 4, seed=1, replication=2)
    assert len(set(task.source_classes)) == 4 and set(task.source_classes) <= set(sides.source)
    assert len(set(task.target_classes)) == 3 and set(task.target_classes) <= set(sides.target)
    assert not set(task.source_train.rows) & set(task.source_validation.rows)
    assert len(task.source_validation) == 4 * 3 and len(task.source_train) == 4 * 9
    for k in (1, 4, 11):
        support, test = task.support(k), task.test(k)
        assert len(support) == 3 * k and not set(support.rows) & set(test.rows)
        assert set(support.rows) | set(test.rows) == set(task.target.rows)
        assert [task.target_classes[label] for label in test.labels] == labels[test.rows].tolist()
        assert set(task.support(1).rows) <= set(support.rows)
    again = draw_task(labels, sides, 3, 4, seed=1, replication=2)
    assert np.array_equal(again.target.rows, task.target.rows) and again.source_classes == task.source_classes
    other = draw_task(labels, sides, 3, 4, seed=1, replication=3)
    assert not np.array_equal(other.target.rows, task.target.rows)


def test_a_random_task_never_has_a_class_on_both_sides() -> None:
    labels = samples_of().labels
    for replication in range(30):
        task = draw_task(labels, Sides([], list(range(12))), 5, None, seed=0, replication=replication)
        assert not set(task.source_classes) & set(task.target_classes) and len(task.source_classes) == 7
    with pytest.raises(ConfigError, match="8 source classes are needed, but there are 7 beside 5"):
        draw_task(labels, Sides([], list(range(12))), 5, 8, seed=0, replication=0)
    with pytest.raises(ConfigError, match="n is 13, but there are 12"):
        draw_task(labels, Sides([], list(range(12))), 13, None, seed=0, replication=0)


def test_samples_can_be_limited() -> None:
    task = draw_task(samples_of().labels, Sides([0, 1], [2, 3]), 2, 2, seed=0, replication=0, source_most=6, test_most=2)
    assert len(task.source_train) + len(task.source_validation) == 12
    assert np.bincount(task.test(3).labels).tolist() == [2, 2] and not set(task.test(3).rows) & set(task.support(3).rows)


def test_batches_by_class_use_each_sample_once() -> None:
    part = Part.of([np.arange(7), np.arange(10, 20), np.arange(30, 34)])
    dealt = list(batches.by_class(part, 10, np.random.default_rng(0)))
    assert np.bincount(part.labels[dealt[0]]).tolist() == [3, 3, 3]
    used = np.concatenate(dealt)
    assert len(set(used)) == len(used) and set(part.rows[used]) <= set(part.rows)
    assert len(used) >= 21 - 3  # what is left of one class alone is no batch
    pairs = list(batches.by_class(part, 2, np.random.default_rng(0)))
    assert np.bincount(part.labels[pairs[0]]).tolist() == [2, 2, 2]


def test_shuffled_batches_are_an_epoch() -> None:
    dealt = list(batches.shuffled(Part.of([np.arange(7), np.arange(10, 14)]), 4, np.random.default_rng(0)))
    assert [len(batch) for batch in dealt] == [4, 4, 3] and sorted(np.concatenate(dealt)) == list(range(11))


def test_episodes_keep_support_and_queries_apart() -> None:
    part = Part.of([np.arange(7), np.arange(10, 20)])
    for most, queries, expected in ((3, 2, ([3, 3], [2, 2])), (3, 0, ([3, 3], [4, 7])), (20, 5, ([6, 9], [1, 1]))):
        support, queried = batches.episode(part, most, queries, np.random.default_rng(1))
        assert not set(support) & set(queried)
        counts = tuple(np.bincount(part.labels[positions]).tolist() for positions in (support, queried))
        assert counts == expected
