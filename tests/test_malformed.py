"""A few hundred malformed inputs for every reader: one line each, no row lost, no hang. `malformed` has the generators."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from malformed_readers import READERS, attempt

from dmlcore import plugins

COUNTS = {"npz": 200, "csv": 120, "images": 60, "toml": 300, "splits": 300, "pickles": 300}
COUNTS |= {"npy": 200, "tar": 100, "parquet": 120, "arrow": 120}
LONGEST = 5.0  # seconds


@pytest.mark.parametrize("kind", READERS)
def test_malformed_inputs_give_one_line_and_lose_nothing(tmp_path, kind):
    plugins.registry("data")  # the time to import it is no reader's
    outcomes = Counter()
    for name, content in READERS[kind][0](7, COUNTS[kind]):
        start = time.perf_counter()
        try:
            outcomes["refused" if attempt(kind, name, content, tmp_path) else "read"] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        assert time.perf_counter() - start < LONGEST, name
    assert sum(outcomes.values()) == COUNTS[kind]
    assert outcomes["read"] and (outcomes["refused"] or kind == "images"), outcomes  # images are skipped one by one


@pytest.mark.parametrize("kind", READERS)
def test_a_seed_gives_the_same_inputs(kind):
    generate = READERS[kind][0]
    first = [content for name, content in generate(3, 40)]
    assert len(first) == 40 and first == [content for name, content in generate(3, 40)]
    assert first != [content for name, content in generate(4, 40)]
