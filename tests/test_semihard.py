"""Semi-hard pairs that the kernels of the CPU choose inside the pass, against the masks of the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import BATCHES, assert_close, embeddings_of, value_and_gradients
from dmlcore_plugins.miners.semihard import Semihard

from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall, Pass, cuda, plan_options
from dmlcore.kernels.encoding import decoded, encoded
from dmlcore.losses import create

PLANS = {
    "planned": {},
    "small tiles recomputed": {"workspace": 0, "tile_rows": 7, "tile_columns": 16},
    "two threads": {"threads": 2, "thread_work": 1, "tile_rows": 8},
    "chunks": {"slot_bytes": 1, "tile_rows": 8, "threads": 2, "thread_work": 1},
}


def crowded(per_class: int, count: int = 130, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, of which some samples are the same."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(per_class), dtype=torch.float64)
    x[3], x[9], x[50], x[51] = x[70], x[8], x[2], x[2]
    y = torch.arange(count) // per_class
    return x, y[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("margin", [0.0, 0.003, 0.05, 0.2, 2.0])
@pytest.mark.parametrize(
    "name, options",
    [
        ("contrastive", {}),
        ("ms", {"epsilon": "none"}),
        ("triplet", {"mining": "semihard"}),
        ("triplet", {}),
        ("fast_ap", {}),
        ("histogram", {}),
    ],
)
def test_pairs_are_those_of_the_masks(name: str, options: dict, margin: float, plan: str) -> None:
    loss = create(name, **options, miner=f"semihard(margin={margin})").double()
    assert loss.is_fused
    for batch in (*(BATCHES[key] for key in ("odd", "one class", "all different")), crowded(2), crowded(40)):
        expected = value_and_gradients(loss, *batch, loss.reference)
        with plan_options(**PLANS[plan]):
            assert_close(value_and_gradients(loss, *batch, loss), expected, 1e-9)


@pytest.mark.parametrize("plan", PLANS)
def test_against_references_and_with_listed_positives(plan: str) -> None:
    x, y = crowded(6)
    labels = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(6))]
    references, own = embeddings_of(labels, seed=9, width=x.shape[1]), torch.where(labels == y, torch.arange(len(y)), -1)
    matrix = torch.nn.functional.one_hot(torch.stack([y, y.roll(1)]), int(y.max()) + 1).sum(0).clamp_max(1)
    loss = create("contrastive", miner="semihard(margin=0.1)").double()
    keywords = {"references": references, "reference_labels": labels, "own": own}
    for target, against in ((y, keywords), (matrix, {})):
        expected = value_and_gradients(loss, x, target, loss.reference, **against)
        with plan_options(**PLANS[plan]):
            assert_close(value_and_gradients(loss, x, target, loss, **against), expected, 1e-9)


def test_float32_and_several_margins_in_one_pass() -> None:
    import dmlcore

    x, y = torch.randn(700, 24, generator=torch.Generator().manual_seed(0)), torch.arange(700) % 70
    members = [create(name, miner=f"semihard(margin={margin})") for name, margin in (("ms", 0.1), ("contrastive", 0.02))]
    members.append(create("contrastive", miner="semihard(margin=0.1)"))
    ensemble = dmlcore.LossEnsemble(members, weighting="fixed")
    leaf = x.clone().requires_grad_()
    total = ensemble(leaf, y)
    gradient = torch.autograd.grad(total, leaf)[0]
    exact = x.double().requires_grad_()
    expected = sum(member.reference(exact, y) for member in members)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=0)  # a pair at the end of its span may differ
    other = torch.autograd.grad(expected, exact)[0]
    assert (gradient - other).norm() < 0.01 * other.norm()
    again = torch.autograd.grad(ensemble(leaf, y), leaf)[0]
    assert torch.equal(gradient, again)


def test_numbers_that_are_not_finite_and_few_samples() -> None:
    loss = create("contrastive", miner="semihard")
    x, y = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) // 4
    x[5, 2] = torch.nan
    rows = loss.rows(x, y)
    assert bool(rows.values[:, 5].isnan().all()) and bool(rows.values[:, :4].isfinite().any())
    for count in (0, 1):
        leaf = torch.ones(count, 3, requires_grad=True)
        loss(leaf, torch.zeros(count, dtype=torch.int64)).backward()
        assert leaf.grad is not None and not leaf.grad.any()


def test_a_class_that_chooses_otherwise_is_not_fused() -> None:
    class Softer(Semihard):
        """Leaves out nothing."""

        name = "softer"

        def masks(self, similarities, positive, negative, compared):
            return positive, negative

    x, y = BATCHES["odd"]
    loss = create("contrastive", miner=Softer())
    assert not loss.is_fused and "softer" in loss.why_not_fused
    torch.testing.assert_close(loss(x, y), create("contrastive")(x, y))


def test_margins_are_encoded_and_refused_on_cuda() -> None:
    x, y = BATCHES["odd"]
    calls = (FunctorCall("contrastive", (0.0, 1.0), semihard=0.2), FunctorCall("contrastive", (0.0, 1.0)))
    pass_ = Pass(x, y, None, None, calls)
    constants, functors, options, layout = encoded([pass_], [((0, 0), (-1, 0))])
    assert decoded([x], constants, functors, options, layout)[0][0].calls == calls
    with pytest.raises(ConfigError, match="only the kernels of the CPU"):
        cuda.CudaPass(pass_._replace(calls=(replace(calls[0]),)), module=torch)
