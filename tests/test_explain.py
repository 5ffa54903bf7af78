"""What `dmlcore.ensemble.explain` says of a step: the planner's choices, memory against what is allocated, every name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CLASSES, FUSED, LOSSES, Case

import dmlcore
from dmlcore.ensemble import explain
from dmlcore.errors import ConfigError
from dmlcore.kernels import extension, plan_options

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")


def allocated(
    loss: Any,
    batch: int,
    width: int,
    references: int | None = None,
    threads: int = 1,
    per_class: int = 4,
    classes: int = 0,
) -> int:
    """The most bytes the kernels' buffers hold at a time in a step of these sizes."""
    module = extension.cpu()
    y, against = torch.arange(batch) // per_class, {}
    y = y % classes if classes else y
    if references is not None:
        against = {"references": torch.randn(references, width, requires_grad=True)}
        against["reference_labels"] = torch.arange(references) // per_class
    module.release_workspaces()
    module.highest_workspace()
    with plan_options(threads=threads):
        loss(torch.randn(batch, width, requires_grad=True), y, **against).backward()
    return module.highest_workspace()


def ensemble(*names: str) -> Any:
    return dmlcore.LossEnsemble(list(names), num_classes=50, embedding_dim=32)


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_memory_of_every_loss(case: Case) -> None:
    loss = case.create(torch.float32, classes=CLASSES, width=24)
    has_classes = loss.needs_classes or "per_class" in case.options
    said = explain(loss, 720, 24, threads=1)
    assert case.name in str(said) and not said.plain
    if case.options.get("pairs") == "one_per_class":
        return  # it compares so few samples that choosing them takes more memory than comparing them
    assert 0.5 < said.bytes / allocated(loss, 720, 24, classes=CLASSES if has_classes else 0) < 2


@pytest.mark.parametrize(
    ("names", "batch", "width", "references", "threads", "per_class"),
    [
        (("ms", "contrastive", "triplet"), 3000, 32, None, 1, 4),
        (("ms", "contrastive", "triplet"), 3000, 32, None, 2, 4),
        (("ms", "sup_con"), 200, 32, 9000, 2, 4),
        (("ms", "sup_con"), 9000, 32, 200, 2, 4),
        (("triplet",), 2000, 32, None, 1, 500),
        (("norm_softmax",), 4000, 32, None, 2, 80),
        (("histogram", "circle"), 5000, 32, None, 2, 4),
    ],
)
def test_memory_of_many_shapes(
    names: tuple[str, ...], batch: int, width: int, references: int | None, threads: int, per_class: int
) -> None:
    said = explain(ensemble(*names), batch, width, references, threads, samples_per_class=per_class)
    assert said.passes[0].losses == names and len(said.passes) == 1
    classes = 50 if any(loss.needs_classes for loss in ensemble(*names).members) else 0
    measured = allocated(ensemble(*names), batch, width, references, threads, per_class, classes)
    assert 0.5 < said.bytes / measured < 2, (said.bytes, measured)


def test_the_text_names_every_loss_and_what_is_chosen() -> None:
    swap = dmlcore.losses.create("triplet", swap=True)
    said = explain(["ms", "contrastive", "ms", "proxy_anchor", "norm_softmax", swap, "l2_norm"], 1024, 64, threads=2)
    text = str(said)
    for name in ("ms", "contrastive", "ms_2", "proxy_anchor", "norm_softmax", "triplet", "l2_norm"):
        assert name in text
    assert [planned.losses for planned in said.passes] == [("ms", "contrastive", "ms_2"), ("proxy_anchor",), ("norm_softmax",)]
    assert [planned.name for planned in said.plain] == ["triplet", "l2_norm"] and "swap" in said.plain[0].reason
    together, anchors, samples = said.passes
    assert (together.anchors, together.references) == (1024, None) and together.plan["triangle"] == 1
    assert (anchors.anchors, anchors.references) == (1000, 1024)  # every proxy looks at the batch
    assert (samples.anchors, samples.references) == (1024, 1000)
    assert "stored from forward to backward" in text and "threads: 2" in text and "predicted" in text
    assert all(seconds >= 0 for planned in said.passes for seconds in planned.loss_seconds) and said.seconds > 0
    assert said.plain[0].bytes > said.plain[1].bytes > 0  # the distances of all pairs, and one norm per sample


def test_choices_follow_the_sizes() -> None:
    small, large = explain("ms", 512, 128, threads=1), explain("ms", 8192, 128, threads=1)
    assert small.passes[0].plan["stored_bytes"] > 0 and large.passes[0].plan["stored_bytes"] == 0
    assert "computed again" in str(large)
    assert small.passes[0].plan["tile_rows"] < large.passes[0].plan["tile_rows"]
    assert small.seconds < large.seconds and small.bytes < large.bytes
    pair = explain("ms", 512, 128, references=3000)
    assert pair.passes[0].references == 3000 and not pair.passes[0].plan["triangle"]
    with plan_options(workspace=0):
        assert "computed again" in str(explain("ms", 512, 128))


def test_every_row_of_the_table_can_be_explained() -> None:
    losses = [case.create(torch.float32, classes=20, width=16) for case in LOSSES]
    said = explain(losses, 256, 16)
    names = [name for planned in said.passes for name in planned.losses] + [planned.name for planned in said.plain]
    assert len(names) == len(set(names)) == len(losses)
    assert {case.name for case in LOSSES} <= set(names)


def test_a_loss_is_left_as_it_is() -> None:
    loss = dmlcore.losses.create("proxy_anchor", num_classes=12, embedding_dim=16)
    before = loss.proxies.detach().clone()
    explain(dmlcore.LossEnsemble([loss, "ms"]), 100, 16)
    assert torch.equal(loss.proxies, before) and loss.proxies.grad is None


def test_what_cannot_be_explained() -> None:
    for arguments, words in (
        (("ms", 0, 8), "batch must be at least 1"),
        (("ms", 8, 8, 0), "references must be at least 1"),
        (([], 8, 8), "no losses to explain"),
        (([3], 8, 8), "names or losses, got int"),
        (("mss", 8, 8), "Did you mean 'ms'"),
    ):
        with pytest.raises(ConfigError, match=words):
            explain(*arguments)
