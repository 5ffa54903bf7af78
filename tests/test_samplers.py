"""The class-balanced sampler: rounds, resuming, errors."""

from __future__ import annotations

import numpy as np
import pytest
from dmlcore_plugins.samplers.class_balanced import ClassBalancedSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlcore.data import create_sampler
from dmlcore.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 11), min_size=2, max_size=12),
    per_class=st.integers(1, 5),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_sampler_properties(counts, per_class, seed, data):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 10**9, counts))
    classes = data.draw(st.integers(2, len(counts)))
    steps = 3 * len(counts)
    sampler = ClassBalancedSampler(labels, classes, per_class, seed, steps)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == steps
    in_order: list[int] = []
    of_class: dict[int, list[int]] = {}
    for batch in drawn:
        groups = np.array(batch).reshape(classes, per_class)
        ids = labels[groups]
        assert (ids == ids[:, :1]).all() and len(set(ids[:, 0])) == classes
        for group in groups:
            assert len(set(group)) == min(per_class, counts[labels[group[0]] // 10**9])
            of_class.setdefault(labels[group[0]] // 10**9, []).extend(group.tolist())
        in_order += ids[:, 0].tolist()
    for start in range(0, len(in_order) - len(counts) + 1, len(counts)):  # every round has every class once
        assert len(set(in_order[start : start + len(counts)])) == len(counts)
    for label, rows in of_class.items():
        if counts[label] >= per_class:  # and every round of a class every sample once
            for start in range(0, len(rows) - counts[label] + 1, counts[label]):
                assert len(set(rows[start : start + counts[label]])) == counts[label]


@pytest.mark.parametrize("before", [0, 1, 7, 50])
def test_sampler_resumes_exactly(before):
    labels = np.repeat(np.arange(13), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    whole = list(ClassBalancedSampler(labels, 5, 4, seed=9, steps=80))
    first = ClassBalancedSampler(labels, 5, 4, seed=9, steps=80)
    stream = iter(first)
    assert [next(stream) for _ in range(before)] == whole[:before]
    state = first.state_dict()
    next(stream)
    second = ClassBalancedSampler(labels, 5, 4, seed=1, steps=80)
    second.load_state_dict(state)
    assert list(second) == whole[before:]


def test_sampler_errors():
    with pytest.raises(ConfigError, match=r"only 2 training classes. Lower it to 2"):
        ClassBalancedSampler(np.array([0, 0, 1]), 3, 2, seed=0)
    with pytest.raises(ConfigError, match=r"samples_per_class"):
        ClassBalancedSampler(np.array([0, 0, 1]), 2, 0, seed=0)
    sampler = ClassBalancedSampler(np.array([0, 0, 1]), 2, 2, seed=0)
    with pytest.raises(ConfigError, match=r"5 training classes, but the data has 2"):
        sampler.load_state_dict({"seed": 0, "step": 0, "round": 0, "position": 0, "order": np.arange(5)})


@pytest.mark.parametrize("name", ["class_balanced", "shuffled"])
def test_every_epoch_has_its_steps_and_goes_on_where_the_last_ended(name):
    labels = np.repeat(np.arange(6), 5)
    sampler = create_sampler(name, labels, 3, 2, seed=4, steps=5)
    stream = iter(create_sampler(name, labels, 3, 2, seed=4))
    for _ in range(3):
        assert list(sampler) == [next(stream) for _ in range(5)]
    for _ in sampler:  # an epoch that is left early is ended by the next iteration
        next(stream)
        break
    assert list(sampler) == [next(stream) for _ in range(4)]
