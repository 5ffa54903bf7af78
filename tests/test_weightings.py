"""Weightings: what must hold for every one of them. Their equations are in `test_weighting_equations.py`."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import BATCHES
from torch import Tensor

from dmlcore import LossEnsemble
from dmlcore.ensemble import Weighting
from dmlcore.errors import ConfigError
from dmlcore.losses import create
from dmlcore.plugins import registry

NAMES = list(registry("weighting"))
PRIOR = [2.0, 1.0, 2.0, 3.0]


def make(name: str, initial: list[float], **options) -> Weighting:
    return registry("weighting")[name].component(torch.tensor(initial), **options)


@dataclass(frozen=True)
class Claim:
    """What a weighting promises.

    Attributes:
        floor: no share falls below this, as a function of the `[L]` initial shares.
        holds: what the floor is one of.
        share: least part of its initial share that a loss keeps in a long training on falling losses; 0.16 is the floor's,
            of the largest initial share.
        scale: what does not change when a loss is multiplied by a number: `importances`, and the `pull` `weights_i l_i`.
        zero: a loss with initial weight 0 is accepted and stays out.
    """

    floor: Callable[[Tensor], Tensor]
    share: float
    holds: str = "importances"
    scale: tuple[str, ...] = ()
    zero: bool = True


def quarter(p: Tensor) -> Tensor:
    return torch.full_like(p, 1 / (4 * len(p)))


CLAIMS = {
    "fixed": Claim(lambda p: p, 1, scale=("importances",)),
    "uniform": Claim(lambda p: p, 1, scale=("importances",), zero=False),
    "floor_square_penalty": Claim(quarter, 0.16, holds="shares", zero=False),
    "floor_simplex": Claim(quarter, 0.16, scale=("importances", "pull"), zero=False),
    "uncertainty": Claim(lambda p: 8 * p * math.exp(-3), 1, holds="weights", scale=("importances",)),
    "log_barrier": Claim(lambda p: p * math.exp(-6), 0.5, scale=("importances", "pull")),
    "entropy": Claim(lambda p: 0.05 * p, 0.5, scale=("importances", "pull")),
    "equal_gradient_norms": Claim(lambda p: p, 1, scale=("importances", "pull")),
    "grad_norm": Claim(lambda p: 0.01 * p, 1, holds="weights", scale=("importances",)),
    "dynamic_average": Claim(lambda p: p * math.exp(-2), 0.5, scale=("importances",)),
    "pcgrad": Claim(lambda p: p, 1, holds="weights", scale=("importances",)),
    "held_out": Claim(quarter, 0.16, scale=("importances", "pull"), zero=False),
}


def prior_of(name: str) -> list[float]:
    return [1.0] * 4 if name == "uniform" else PRIOR


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VECTORS = draw(0, 4, 3)  # in three dimensions, so that some of them oppose each other


class Training:
    """A weighting in a training of losses that fall at different speeds, with gradients of fixed directions."""

    def __init__(self, weighting: Weighting, scales: list[float] | None = None, rate: float = 0.01) -> None:
        self.weighting = weighting
        self.scales = torch.tensor(scales or [1.0] * 4)
        parameters = list(weighting.parameters())
        self.optimiser = torch.optim.Adam(parameters, lr=rate) if parameters else None
        self.steps = 0
        self.noise = 1 + 0.1 * draw(1, 64, 4).float()

    def terms(self) -> Tensor:
        speed = torch.tensor([0.002, 0.005, 0.0005, 0.01])
        falling = torch.tensor([1.0, 3.0, 0.5, 7.0]) * (0.1 + torch.exp(-speed * self.steps))
        return self.scales * falling * self.noise[self.steps % 64].clamp_min(0.1)

    def step(self, terms: Tensor | None = None, check: bool = True) -> Tensor:
        terms = self.terms() if terms is None else terms
        leaf = terms.clone().requires_grad_()
        if self.weighting.reads_gradients:
            vectors = (terms.double() * VECTORS.T).T
            self.weighting.observe((vectors @ vectors.T).float(), terms)
        if self.weighting.looks_ahead and self.weighting.due():
            self.weighting.learn(torch.tensor([0.5, 0.1, -0.3, 0.2]))
        if self.optimiser:
            self.optimiser.zero_grad()
        total = self.weighting(leaf)
        assert total.ndim == 0 and torch.isfinite(total)
        total.backward()
        if check:
            torch.testing.assert_close(leaf.grad, self.weighting.weights)
        if self.optimiser:
            self.optimiser.step()
        self.steps += 1
        return total.detach()

    def state(self) -> dict:
        return copy.deepcopy(
            {"weighting": self.weighting.state_dict(), "optimiser": self.optimiser and self.optimiser.state_dict()}
        )


def check_shares(weighting: Weighting, claim: Claim) -> None:
    weights, importances = weighting.weights, weighting.importances
    assert weights.shape == importances.shape == weighting.initial.shape
    assert torch.isfinite(weights).all() and (weights > 0).all()
    assert not weights.requires_grad and not importances.requires_grad
    assert (importances >= 0).all() and float(importances.sum()) == pytest.approx(1, abs=1e-5)
    assert (getattr(weighting, claim.holds) >= claim.floor(weighting.prior) - 1e-6).all()


def test_every_weighting_is_in_the_table() -> None:
    assert set(CLAIMS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestEveryWeighting:
    def test_starts_at_the_weights_asked_for(self, name: str) -> None:
        weighting = make(name, prior_of(name))
        prior = torch.tensor(prior_of(name))
        shares = prior if name in ("fixed", "uncertainty") else prior / prior.sum()
        torch.testing.assert_close(weighting.weights, shares)
        torch.testing.assert_close(weighting.importances, prior / prior.sum())
        weighting.eval()
        terms = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        torch.testing.assert_close(torch.autograd.grad(weighting(terms), terms)[0], shares)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_dtype_of_the_terms(self, name: str, dtype: torch.dtype) -> None:
        assert make(name, prior_of(name))(torch.ones(4, dtype=dtype)).dtype == dtype

    def test_survives_a_loss_at_zero_and_one_that_explodes(self, name: str) -> None:
        training = Training(make(name, prior_of(name)), rate=0.05)
        patterns = ([0.0, 1.0, 1000.0, 0.5], [0.0, 1.0, 1.0, 0.5], [0.3, 0.0, 1.0, 1000.0], [0.0] * 4, [1.0, 1e-6, 2.0, 0.1])
        for pattern in patterns:
            for _ in range(15):
                training.step(torch.tensor(pattern))
                check_shares(training.weighting, CLAIMS[name])

    def test_does_not_collapse(self, name: str) -> None:
        training = Training(make(name, prior_of(name)))
        for step in range(2000):
            training.step(check=step % 50 == 0)
            if step % 50 == 0:
                check_shares(training.weighting, CLAIMS[name])
        least = training.weighting.importances / training.weighting.prior
        assert float(least.min()) >= CLAIMS[name].share - 1e-4

    def test_scale_of_a_loss(self, name: str) -> None:
        scales = [1.0, 100.0, 0.01, 7.0]
        plain, scaled = Training(make(name, prior_of(name))), Training(make(name, prior_of(name)), scales)
        for _ in range(60):
            plain.step(), scaled.step()
        results = [(t.weighting.importances, t.weighting.weights * t.scales) for t in (plain, scaled)]
        (importances, pull), (scaled_importances, scaled_pull) = results
        assert torch.allclose(importances, scaled_importances, rtol=1e-3) == ("importances" in CLAIMS[name].scale)
        same_pull = torch.allclose(pull / pull.sum(), scaled_pull / scaled_pull.sum(), rtol=1e-3)
        assert same_pull == ("pull" in CLAIMS[name].scale)

    def test_a_restored_state_continues_the_same(self, name: str) -> None:
        first = Training(make(name, prior_of(name), **({"every": 3} if name == "held_out" else {})))
        for _ in range(7):
            first.step()
        second = Training(make(name, prior_of(name), **({"every": 3} if name == "held_out" else {})))
        state = first.state()
        second.weighting.load_state_dict(state["weighting"])
        if second.optimiser:
            second.optimiser.load_state_dict(state["optimiser"])
        second.steps = first.steps
        for _ in range(7):
            assert torch.equal(first.step(), second.step())
            assert torch.equal(first.weighting.weights, second.weighting.weights)

    def test_nothing_moves_in_evaluation(self, name: str) -> None:
        training = Training(make(name, prior_of(name)))
        training.step()
        weighting = training.weighting.eval()
        weighting(torch.ones(4))
        before = copy.deepcopy(weighting.state_dict())
        for _ in range(3):
            weighting.observe(torch.eye(4) * 9, torch.ones(4))
            weighting.learn(torch.tensor([1.0, 0.0, 0.0, -1.0]))
            weighting(torch.tensor([9.0, 1.0, 1.0, 1.0]))
        assert not weighting.due()
        assert all(torch.equal(value, before[key]) for key, value in weighting.state_dict().items())

    def test_a_zero_weight_stays_out_or_is_refused(self, name: str) -> None:
        if not CLAIMS[name].zero:
            with pytest.raises(ConfigError, match="weigh"):
                make(name, [2, 0, 1, 3])
            return
        training = Training(make(name, [2, 0, 1, 3]), rate=0.05)
        for _ in range(20):
            training.step()
            weights = training.weighting.weights
            assert weights[1] == 0 and training.weighting.importances[1] == 0
            assert torch.isfinite(weights).all() and (weights[[0, 2, 3]] > 0).all()

    def test_a_single_loss(self, name: str) -> None:
        weighting = make(name, [3.0])
        weighting.observe(torch.tensor([[4.0]]), torch.tensor([2.0]))
        weighting.learn(torch.tensor([0.7]))
        total = weighting(torch.tensor([2.0]))
        assert float(total.detach()) == pytest.approx(6.0 if name in ("fixed", "uncertainty") else 2.0)
        assert weighting.importances.tolist() == [1.0]

    def test_compiles_without_graph_breaks(self, name: str) -> None:
        torch.compiler.reset()
        eager, compiled = make(name, prior_of(name)), make(name, prior_of(name))
        call = torch.compile(lambda terms: compiled(terms), fullgraph=True, backend="eager")
        for terms in (torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 0.5, 4.0])):
            torch.testing.assert_close(call(terms), eager(terms))
            torch.testing.assert_close(compiled.weights, eager.weights)

    def test_works_in_an_ensemble(self, name: str) -> None:
        x, y = BATCHES["odd"]
        ensemble = LossEnsemble(["ms", "triplet"], weighting=name)
        leaf = x.clone().requires_grad_()
        ensemble(leaf, y).backward()
        assert torch.isfinite(leaf.grad).all() and bool((leaf.grad != 0).any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("before", [0, 20])
def test_a_batch_that_is_not_finite_leaves_no_trace(name: str, bad: float, before: int) -> None:
    weighting = make(name, prior_of(name))
    training = Training(weighting)
    for _ in range(before):
        training.step()
    buffers, weights = copy.deepcopy(dict(weighting.named_buffers())), weighting.weights
    terms = torch.tensor([1.0, bad, 2.0, 0.5])
    for _ in range(2):
        vectors = (terms.double() * VECTORS.T).T
        weighting.observe((vectors @ vectors.T).float(), terms)
        weighting.learn(torch.full((4,), math.nan))
        weighting.learn(torch.zeros(4))
        weighting(terms.requires_grad_(False))
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in weighting.named_buffers())
    torch.testing.assert_close(weighting.weights, weights)  # parameters are put back into their bounds by every call
    training.step()
    assert torch.isfinite(weighting.weights).all()


def test_the_default_weighting_survives_a_batch_that_a_gradient_scaler_skips() -> None:
    x, y = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat_interleave(3)
    ensemble, spoilt = (LossEnsemble(["ms", "triplet", "contrastive"], weighting="floor_square_penalty") for _ in range(2))
    for step in range(6):
        batch = x + 0.1 * step
        if step == 2:
            with_inf = batch.clone()
            with_inf[3] = math.inf
            spoilt(with_inf.requires_grad_(), y)
        ensemble(batch.clone().requires_grad_(), y)
        spoilt(batch.clone().requires_grad_(), y)
    assert torch.equal(ensemble.weights, spoilt.weights) and torch.isfinite(spoilt.weights).all()


@pytest.mark.parametrize("name", NAMES)
def test_another_call_may_come_before_backward(name: str) -> None:
    """As when several threads share an ensemble: what a backward pass keeps is not changed by other calls."""
    ensemble = LossEnsemble(["ms", "triplet", "contrastive"], weighting=name)
    y = torch.arange(4).repeat_interleave(3)
    leaves = [draw(seed, 12, 8).float().requires_grad_() for seed in (1, 2)]
    values = [ensemble(leaf, y) for leaf in leaves]
    for value, leaf in zip(values, leaves, strict=True):
        value.backward()
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


def test_a_zero_weight_leaves_the_gradient_of_the_others() -> None:
    x, y = BATCHES["odd"]
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    LossEnsemble(["ms", "contrastive"], weighting="uncertainty", weights=[1, 0])(leaf, y).backward()
    create("ms")(other, y).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_uniform_refuses_unequal_weights() -> None:
    with pytest.raises(ConfigError, match=r"uniform weighs all losses alike, got weights \[1.0, 2.0\]; 'fixed'"):
        make("uniform", [1.0, 2.0])
    assert make("uniform", [5.0, 5.0]).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("floor_square_penalty", "penalty", -1),
        ("floor_simplex", "floor", 1),
        ("log_barrier", "tau", 0),
        ("entropy", "window", 0),
        ("equal_gradient_norms", "floor", 2),
        ("grad_norm", "floor", 0),
        ("dynamic_average", "largest", 0.5),
        ("pcgrad", "order", "sorted"),
        ("held_out", "classes", 1),
    ],
)
def test_options_out_of_range_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        make(name, [1.0, 1.0], **{option: value})


@pytest.mark.parametrize("name", ["equal_gradient_norms", "grad_norm", "pcgrad", "dynamic_average", "held_out"])
def test_several_threads_share_a_weighting(name: str) -> None:
    """What autograd keeps must not be what another thread writes to."""
    ensemble, errors = LossEnsemble(["circle", "binomial_deviance", "ms"], name), []

    def work(seed: int) -> None:
        generator, labels = torch.Generator().manual_seed(seed), torch.arange(16) // 2
        try:
            for _ in range(40):
                ensemble(torch.randn(16, 8, generator=generator).requires_grad_(), labels).backward()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
