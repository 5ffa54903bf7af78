"""The planner of the CPU passes, a pure function of labels, functors and limits, asked without any vector. Also: what editing a
header of a loss compiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dmlcore.kernels import extension

CSRC = Path(__file__).parents[1] / "csrc"
MS = ("ms", [2.0, 50.0, 0.5, 0.1])
TRIPLET = ("triplet_all", [0.2])
pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")


def plan(
    anchors: list[int], references: list[int] | None, *functors: tuple[str, list[float]], **options: int
) -> dict[str, int]:
    module = extension.cpu()
    assert module is not None
    return module.plan(False, anchors, references, 128, list(functors), **options)


def classes(rows: int, samples: int = 4) -> list[int]:
    return [row // samples for row in range(rows)]


def test_a_small_batch_is_a_triangle_that_is_kept() -> None:
    small = plan(classes(128), None, MS)
    assert (small["threads"], small["triangle"], small["chunks"], small["searches"]) == (1, 1, 1, 0)
    assert (small["tile_rows"], small["tile_columns"], small["tiles"]) == (64, 128, 2)
    assert small["cells"] == 64 * 128 + 64 * 64 and small["stored_bytes"] == 4 * 128 * 128  # one matrix, as its slopes are
    assert small["slot_bytes"] == 0 < small["forward_bytes"] < small["backward_bytes"]


def test_a_large_batch_computes_its_tiles_again() -> None:
    large = plan(classes(8192), None, MS)
    assert (large["tile_rows"], large["tile_columns"]) == (128, 512) and large["stored_bytes"] == 0
    assert large["kept_bytes"] < 10 << 20  # no matrix of 8192 x 8192 numbers, which are 256 MB
    assert plan(classes(8192), None, MS, workspace=1 << 30)["stored_bytes"] == 4 * large["cells"]


def test_threads_follow_the_work() -> None:
    assert plan(classes(128), None, MS, threads=8)["threads"] == 1
    assert plan(classes(2048), None, MS, threads=8)["threads"] == 8
    assert plan(classes(128), None, MS, threads=2, thread_work=1)["threads"] == 2


def test_slots_of_large_classes_are_searched_and_cut_into_chunks() -> None:
    few, many = plan(classes(512, 4), None, TRIPLET), plan(classes(512, 64), None, TRIPLET)
    assert (few["searches"], few["triangle"], few["chunks"]) == (0, 1, 1) and few["slot_bytes"] > 0
    assert (many["searches"], many["triangle"]) == (1, 0)
    tight = plan(classes(512, 64), None, TRIPLET, slot_bytes=100_000)
    assert tight["chunks"] > 1 and tight["slot_bytes"] < many["slot_bytes"]
    assert plan(classes(512, 64), None, TRIPLET, search=0)["searches"] == 0


def test_references_take_wide_tiles() -> None:
    alone = plan(classes(512), list(range(1000)), MS)
    assert (alone["triangle"], alone["tile_rows"], alone["tile_columns"]) == (0, 256, 1008)
    assert plan(classes(512), list(range(1000)), MS, TRIPLET)["tile_columns"] == 512


def test_nothing_to_compare_has_a_plan() -> None:
    for anchors, references in (([], None), ([], [1, 2]), ([1, 2], [])):
        empty = plan(anchors, references, MS, TRIPLET)
        assert empty["chunks"] == 1 and empty["tiles"] == 0 and empty["stored_bytes"] == 0


def test_bad_functors_are_refused() -> None:
    with pytest.raises(ValueError, match="no functor 'nobody'"):
        plan(classes(8), None, ("nobody", []))
    with pytest.raises(ValueError, match="takes the options 'margin', got 2"):
        plan(classes(8), None, ("triplet_all", [0.1, 0.2]))


@pytest.mark.skipif(not CSRC.exists(), reason="the sources are not here")
def test_a_loss_includes_no_other_loss() -> None:
    """So that editing its header compiles the units of one loss. What several share is in `csrc/dml`."""
    for header in sorted((CSRC / "losses").glob("*.h")):
        included = re.findall(r'#include "([^"]+)"', header.read_text())
        assert included and all(name.startswith("dml/") for name in included), header.name
