"""The contracts of miners and weightings as checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlcore.losses import Compared, Miner, SeededMiner, WindowMiner, create, unit
from dmlcore.testing.batches import batches, near
from dmlcore.testing.report import NotApplicable, Report


def check_miner(component: type[Miner], options: dict[str, Any], report: Report) -> None:
    """Subsets of the pairs, rows on their own, degenerate batches, windows = masks, losses with it."""
    inputs = batches()

    def masks(miner: Miner, x: Tensor, y: Tensor, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        u = unit(x)
        index = torch.arange(len(x))
        positive = (y[:, None] == y) & (index[:, None] != index)
        negative = y[:, None] != y
        compared = Compared(u[rows], u, index[rows], miner.next_draw(advance=False))
        selected = miner.masks(u[rows] @ u.T, positive[rows], negative[rows], compared)
        return (*selected, positive[rows], negative[rows])

    def subsets(x: Tensor, y: Tensor) -> str | None:
        kept_positive, kept_negative, positive, negative = masks(component(**options), x, y)
        for mask, all_of, noun in ((kept_positive, positive, "positives"), (kept_negative, negative, "negatives")):
            if mask.dtype != torch.bool or mask.shape != all_of.shape:
                return f"the {noun} it keeps are {mask.dtype} {list(mask.shape)}, but must be bool {list(all_of.shape)}"
            if bool((mask & ~all_of).any()):
                return f"it keeps {noun} that were none"
        return None

    for name, (x, y) in inputs.items():
        report.check(f"subsets of the pairs: {name}", lambda x=x, y=y: subsets(x, y))

    x, y = inputs["random"]

    def rows_on_their_own() -> str | None:
        miner = component(**options)
        whole, part = masks(miner, x, y), masks(miner, x, y, slice(3, 8))
        same = all(torch.equal(a[3:8], b) for a, b in zip(whole, part, strict=True))
        return None if same else "what a row keeps depends on which other rows are there, so it cannot run in parts"

    def order() -> str | None:
        miner = component(**options)
        if isinstance(miner, SeededMiner):
            raise NotApplicable("it draws, and its draws belong to the places in the batch")
        shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        in_order, shuffled = masks(miner, x, y), masks(miner, x[shuffle], y[shuffle])
        same = all(torch.equal(a[shuffle][:, shuffle], b) for a, b in zip(in_order, shuffled, strict=True))
        return None if same else "what it keeps depends on the order of the batch"

    def with_a_loss() -> str | None:
        loss = create("contrastive", miner=component(**options)).double()
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y)
        plain = loss.reference(leaf, y)
        if not near(value.detach(), plain.detach()):
            return f"contrastive with it gives {value.item()}, its definition {plain.item()}"
        if isinstance(loss.miner, WindowMiner) and not loss.is_fused:
            raise NotApplicable(f"equal, but nothing is fused here: {loss.why_not_fused}")
        return ": fused" if loss.is_fused else f": plain, {loss.why_not_fused}"

    def state() -> str | None:
        miner, other = component(**options), component(**options)
        miner.next_draw(advance=True)
        other.load_state_dict(miner.state_dict())
        same = all(torch.equal(a, b) for a, b in zip(masks(miner, x, y), masks(other, x, y), strict=True))
        return None if same else "state_dict does not restore the miner"

    report.check("rows on their own", rows_on_their_own)
    report.check("order of the batch", order)
    report.check("with a loss: forward = definition", with_a_loss)
    report.check("state round trip", state)


def check_weighting(component: type, options: dict[str, Any], report: Report) -> None:
    """Weights of ordinary and extreme terms, weights = derivative, learning, evaluation mode, state."""
    count = 3

    def create_one(size: int = count) -> Any:
        torch.manual_seed(0)
        return component(torch.ones(size), **options)

    def call(weighting: Any, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and its derivative by the terms; in the order an ensemble calls."""
        leaf = terms.clone().requires_grad_()
        if weighting.training and component.looks_ahead and weighting.due():  # type: ignore[attr-defined]
            weighting.learn(torch.linspace(-0.5, 0.5, len(terms)))
        if weighting.training and component.reads_gradients:  # type: ignore[attr-defined]
            gram = torch.eye(len(terms)) + 0.1
            weighting.observe(gram * terms[:, None] * terms, terms)
        value = weighting(leaf)
        return value, torch.autograd.grad(value, leaf, retain_graph=True)[0]

    def gives_a_number(terms: Tensor) -> str | None:
        weighting = create_one(len(terms))
        value, slope = call(weighting, terms)
        if value.ndim:
            return f"forward must return a scalar, got {list(value.shape)}"
        weights, importances = weighting.weights, weighting.importances
        for numbers, noun in ((value, "value"), (slope, "derivative"), (weights, "weights"), (importances, "importances")):
            if not bool(torch.isfinite(numbers).all()):
                return f"the {noun} is not finite: {numbers.tolist()}"
        if weights.shape != terms.shape or weights.requires_grad:
            return f"weights must be [{len(terms)}] and detached"
        if bool((importances < 0).any()) or not near(importances.sum(), torch.ones(()), 1e-5):
            return f"importances must be >= 0 with sum 1, got {importances.tolist()}"
        return None

    ordinary = torch.tensor([0.5, 2.0, 1.0])
    cases = {
        "three losses": ordinary,
        "one loss": ordinary[:1],
        "one is 0": torch.tensor([0.0, 2.0, 1.0]),
        "one is 1000 times larger": torch.tensor([0.5, 2000.0, 1.0]),
    }
    for name, terms in cases.items():
        report.check(f"finite value and weights: {name}", lambda terms=terms: gives_a_number(terms))

    def derivative() -> str | None:
        weighting = create_one()
        _, slope = call(weighting, ordinary)
        return (
            None if near(slope, weighting.weights, 1e-4) else f"weights are {weighting.weights.tolist()}, not {slope.tolist()}"
        )

    def learning() -> str | None:
        weighting = create_one()
        parameters = list(weighting.parameters())
        optimiser = torch.optim.Adam(parameters, lr=0.01) if parameters else None
        for step in range(20):
            value, _ = call(weighting, ordinary * (1 - 0.03 * step))
            if optimiser is not None and value.requires_grad:
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
        call(weighting, ordinary)
        weights = weighting.weights
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            return f"after 20 steps the weights are {weights.tolist()}"
        return f": {', '.join(f'{w:.3f}' for w in weights.tolist())} after 20 steps"

    def evaluation() -> str | None:
        weighting = create_one()
        call(weighting, ordinary)
        weighting.eval()
        before = {key: value.clone() for key, value in weighting.state_dict().items()}
        call(weighting, 3 * ordinary)
        same = all(torch.equal(value, before[key]) for key, value in weighting.state_dict().items())
        return None if same else "its state moves in evaluation mode"

    def state() -> str | None:
        weighting, other = create_one(), create_one()
        for _ in range(3):
            call(weighting, ordinary)
        other.load_state_dict(weighting.state_dict())
        same = near(call(other, 2 * ordinary)[0].detach(), call(weighting, 2 * ordinary)[0].detach(), 1e-6)
        return None if same else "state_dict does not restore the weighting"

    def in_an_ensemble() -> str | None:
        from dmlcore.ensemble import LossEnsemble

        ensemble = LossEnsemble(["contrastive", "ms"])
        ensemble.weighting = create_one(2)
        x, y = batches()["random"]
        leaf = x.float().requires_grad_()
        total = ensemble(leaf, y)
        total.backward()
        return None if leaf.grad is not None and bool(torch.isfinite(leaf.grad).all()) else "no finite gradient through it"

    report.check("weights = derivative of the value by the terms", derivative)
    report.check("learning", learning)
    report.check("evaluation mode leaves it alone", evaluation)
    report.check("state round trip", state)
    report.check("inside an ensemble", in_an_ensemble)
