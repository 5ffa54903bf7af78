"""Weightings: their equations against hand-computed steps, and the projection and running means they share."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser, RunningMeans, project_simplex
from dmlcore.errors import ConfigError
from dmlcore.plugins import registry

PRIOR = [2.0, 1.0, 2.0, 3.0]


def make(name: str, initial: list[float], **options) -> Weighting:
    return registry("weighting")[name].component(torch.tensor(initial), **options)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestEqualisation:
    def test_by_hand(self) -> None:
        equaliser = Equaliser(2)
        assert equaliser.factors.tolist() == [1, 1]
        equaliser.update(torch.tensor([1.0, 3.0]))  # lbar_i = 1, 3; lbar = 2
        torch.testing.assert_close(equaliser.factors, torch.tensor([2, 2 / 3]))
        equaliser.update(torch.tensor([1.0, 1.0]))  # lbar_i = 1, 2; lbar = 1.5
        torch.testing.assert_close(equaliser.factors, torch.tensor([1.5, 0.75]))
        torch.testing.assert_close(equaliser.relative(torch.tensor([3.0, 3.0])), torch.tensor([3.0, 1.5]))

    def test_a_loss_that_was_always_zero_keeps_its_factor(self) -> None:
        equaliser = Equaliser(3)
        equaliser.update(torch.tensor([0.0, 1.0, 3.0]))
        torch.testing.assert_close(equaliser.factors, torch.tensor([1.0, 4 / 3, 4 / 9]))
        equaliser.update(torch.tensor([0.2, 1.0, 3.0]))
        assert float(equaliser.factors[0]) == pytest.approx((0.1 + 1 + 3) / 3 / 0.1)

    def test_horizon(self) -> None:
        means = RunningMeans(1, horizon=2)
        seen = []
        for value in (4.0, 2.0, 1.0, 0.0):
            means.update(torch.tensor([value]))
            seen.append(float(means.mean))
        assert seen == [4.0, 3.0, 2.0, 1.0]  # the mean of two, then halfway to each new one


def nearest_by_enumeration(values: list[float], floor: list[float]) -> list[float]:
    """The projection by trying every set of coordinates that lie at the floor."""
    best, least = [], math.inf
    for free in itertools.product([False, True], repeat=len(values)):
        if not any(free):
            continue
        room = 1 - sum(f for f, is_free in zip(floor, free, strict=True) if not is_free)
        shift = (sum(v for v, is_free in zip(values, free, strict=True) if is_free) - room) / sum(free)
        point = [v - shift if is_free else f for v, f, is_free in zip(values, floor, free, strict=True)]
        distance = sum((a - b) ** 2 for a, b in zip(point, values, strict=True))
        if distance < least and all(p >= f - 1e-12 for p, f in zip(point, floor, strict=True)):
            best, least = point, distance
    return best


@pytest.mark.parametrize("seed", range(20))
def test_projection_is_the_nearest_point(seed: int) -> None:
    count = 1 + seed % 5
    values = draw(seed, count) * (0.2 if seed % 2 else 3)
    for floor in ([0.0] * count, [1 / (4 * count)] * count, (draw(seed + 50, count).abs() / (9 * count)).tolist()):
        projected = project_simplex(values, torch.tensor(floor, dtype=torch.float64))
        torch.testing.assert_close(projected, torch.tensor(nearest_by_enumeration(values.tolist(), floor), dtype=torch.float64))
        torch.testing.assert_close(project_simplex(projected, torch.tensor(floor)), projected)
    torch.testing.assert_close(project_simplex(torch.tensor([0.5, 0.5])), torch.tensor([0.5, 0.5]))


class TestFloorSquarePenalty:
    def test_first_steps_by_hand(self) -> None:
        weighting = make("floor_square_penalty", [1.0, 1.0])
        root = math.sqrt(0.5 - 1 / 8)  # w = 1/2, floor 1 / (4 * 2)
        torch.testing.assert_close(weighting.roots.detach(), torch.tensor([root, root]))
        total = weighting(torch.tensor([1.0, 3.0]))  # lhat = 2, 2
        assert float(total.detach()) == pytest.approx(2.0)
        torch.testing.assert_close(torch.autograd.grad(total, weighting.roots)[0], torch.tensor([4 * root, 4 * root]))
        assert float(weighting(torch.tensor([1.0, 1.0])).detach()) == pytest.approx(0.5 * 1.5 + 0.5 * 0.75)  # lhat = 1.5, 0.75

    @pytest.mark.parametrize("penalty", [1e4, 2.0])
    def test_several_steps_against_the_published_equations(self, penalty: float) -> None:
        weighting = make("floor_square_penalty", PRIOR, penalty=penalty).double()
        rate = 0.1 / (penalty + 10)
        optimiser = torch.optim.SGD(weighting.parameters(), lr=rate)
        prior = [2 / 8, 1 / 8, 2 / 8, 3 / 8]
        roots = [math.sqrt(p - 1 / 16) for p in prior]
        sums = [0.0] * 4
        for step in range(1, 9):
            losses = [1 / step, 3 + step % 3, 0.5, 100 / step**2]
            sums = [s + loss for s, loss in zip(sums, losses, strict=True)]
            means = [s / step for s in sums]
            scaled = [sum(means) / 4 / mean * loss for mean, loss in zip(means, losses, strict=True)]
            shares = [c * c + 1 / 16 for c in roots]
            excess = sum(shares) - 1
            expected = sum(w * x for w, x in zip(shares, scaled, strict=True)) + penalty * excess**2
            slopes = [2 * c * (x + 2 * penalty * excess) for c, x in zip(roots, scaled, strict=True)]
            optimiser.zero_grad()
            total = weighting(torch.tensor(losses, dtype=torch.float64))
            total.backward()
            assert float(total.detach()) == pytest.approx(expected, rel=1e-6)
            # the prior and so the roots are set up in float32
            assert weighting.roots.grad.tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-3)
            optimiser.step()
            roots = [c - rate * slope for c, slope in zip(roots, slopes, strict=True)]
            assert weighting.shares.tolist() == pytest.approx([c * c + 1 / 16 for c in roots], rel=1e-5)

    @pytest.mark.parametrize("name", ["floor_square_penalty", "floor_simplex", "held_out"])
    def test_an_initial_weight_at_the_floor_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="weight 2 of 3 is a share of 0.08 of .* above the floor 0.0833"):
            make(name, [0.46, 0.08, 0.46])
        assert make(name, [0.46, 0.08, 0.46], floor=0.01).weights[1] == pytest.approx(0.08)


def test_floor_simplex_descends_and_projects() -> None:
    weighting = make("floor_simplex", [1.0, 1.0, 2.0], floor=0.05).double()
    optimiser = torch.optim.SGD(weighting.parameters(), lr=0.3)
    expected, sums = [0.25, 0.25, 0.5], [0.0] * 3
    for step, losses in enumerate(([1.0, 2.0, 3.0], [0.5, 2.0, 3.0], [0.1, 4.0, 1.0], [0.1, 9.0, 1.0]), 1):
        sums = [s + loss for s, loss in zip(sums, losses, strict=True)]
        relative = [loss * step / s for loss, s in zip(losses, sums, strict=True)]
        optimiser.zero_grad()
        total = weighting(torch.tensor(losses, dtype=torch.float64))
        level = sum(sums) / step / 3
        assert float(total.detach()) == pytest.approx(sum(w * r * level for w, r in zip(expected, relative, strict=True)))
        total.backward()
        optimiser.step()
        expected = nearest_by_enumeration([w - 0.3 * r for w, r in zip(expected, relative, strict=True)], [0.05] * 3)
        assert weighting.importances.tolist() == pytest.approx(expected)
    assert min(expected) == pytest.approx(0.05)  # one has met the floor


def test_log_barrier_reaches_its_stationary_point() -> None:
    weighting = make("log_barrier", [1.0, 2.0, 1.0], tau=0.4).eval()
    weighting.equaliser.update(torch.tensor([1.0, 10.0, 2.0]))
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        weighting(torch.tensor([0.2, 10.0, 1.0])).backward()  # r = 0.2, 1, 0.5
        optimiser.step()
    nu = 0.4 * torch.tensor([0.25, 0.5, 0.25]) / weighting.importances - torch.tensor([0.2, 1.0, 0.5])
    torch.testing.assert_close(nu, nu.mean().expand(3), rtol=1e-3, atol=1e-3)


def test_log_barrier_gradient_is_that_of_its_objective() -> None:
    weighting = make("log_barrier", [1.0, 3.0])
    with torch.no_grad():
        weighting.logits.copy_(torch.tensor([0.5, -0.5]))
    weighting(torch.tensor([1.0, 3.0])).backward()  # r = 1, 1, so only the barrier pulls: tau (w - p)
    w = 1 / (1 + 3 * math.exp(-1))
    assert weighting.logits.grad.tolist() == pytest.approx([w - 0.25, 0.25 - w], rel=1e-5)


def test_entropy_by_hand() -> None:
    weighting = make("entropy", [1.0, 3.0], tau=0.5, window=1, floor=0.1)
    weighting(torch.tensor([2.0, 5.0]))
    assert weighting.importances.tolist() == pytest.approx([0.25, 0.75])
    weighting(torch.tensor([1.0, 5.0]))  # means 1.5 and 5, r = 2/3 and 1
    odds = [math.exp(-4 / 3), 3 * math.exp(-2)]
    shares = [0.9 * odd / sum(odds) + 0.1 * p for odd, p in zip(odds, [0.25, 0.75], strict=True)]
    assert weighting.importances.tolist() == pytest.approx(shares)
    assert weighting.weights.tolist() == pytest.approx([shares[0] * 3.25 / 1.5, shares[1] * 3.25 / 5])
    assert not list(weighting.parameters())


class TestEqualGradientNorms:
    def test_combined_gradient(self) -> None:
        gradients = draw(5, 3, 6) * torch.tensor([[1.0], [100.0], [0.01]])
        weighting = make("equal_gradient_norms", [1.0, 1.0, 2.0]).double()
        weighting.observe(gradients @ gradients.T, torch.ones(3))
        prior, norms = torch.tensor([0.25, 0.25, 0.5]), gradients.norm(dim=1)
        expected = (prior * norms).sum() * (prior / norms) @ gradients
        torch.testing.assert_close(weighting.weights @ gradients, expected)

    @pytest.mark.parametrize("count", [1, 3, 7])
    @pytest.mark.parametrize("spread", [1.0, 2.5])
    def test_numpy_gives_the_bits_of_pytorch(self, count: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
        weightings = [make("equal_gradient_norms", [1.0 + k for k in range(count)], spread=spread) for _ in range(2)]
        for step in range(40):
            gradients = draw(step, count, 6).double()
            gradients[0] *= {3: 0.0, 5: math.nan, 7: math.inf}.get(step, 1.0)
            gram = torch.zeros_like(gradients @ gradients.T) if step == 9 else gradients @ gradients.T
            for weighting, is_compiling in zip(weightings, (False, True), strict=True):  # graphs have no NumPy
                monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=is_compiling: answer)
                weighting.observe(gram, torch.ones(count))
        states = [weighting.state_dict() for weighting in weightings]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_gradients_within_the_spread_keep_their_length(self) -> None:
        gradients = torch.diag(torch.tensor([1.0, 2.0, 30.0, 0.1], dtype=torch.float64))
        weighting = make("equal_gradient_norms", [1.0, 1.0, 1.0, 1.0], spread=5.0).double()
        weighting.observe(gradients @ gradients.T, torch.ones(4))
        mean = 33.1 / 4  # 8.275: lengths between 1.655 and 41.375 stay
        lengths = [mean / 5, 2.0, 30.0, mean / 5]
        torch.testing.assert_close(weighting.weights @ gradients, torch.tensor(lengths, dtype=torch.float64) / 4)

    def test_a_gradient_that_nearly_vanishes_is_not_blown_up(self) -> None:
        weighting = make("equal_gradient_norms", [1.0, 1.0], floor=0.1, horizon=1000)
        for _ in range(99):
            weighting.observe(torch.eye(2), torch.ones(2))
        weighting.observe(torch.diag(torch.tensor([1e-12, 1.0])), torch.ones(2))
        smallest = 0.1 * (99 + 1e-6) / 100  # counts as a tenth of the mean of 100 norms
        assert weighting.weights.tolist() == pytest.approx([0.5 * 0.5 * (smallest + 1) / n for n in (smallest, 1)], rel=1e-4)
        weighting.observe(torch.diag(torch.tensor([0.0, 1.0])), torch.ones(2))
        assert weighting.weights[0] < 4
        exact = make("equal_gradient_norms", [1.0, 1.0], floor=0)
        exact.observe(torch.diag(torch.tensor([1e-12, 1.0])), torch.ones(2))
        assert float(exact.weights[0]) == pytest.approx(0.25e6, rel=1e-3)


def test_grad_norm_against_autograd() -> None:
    alpha = 0.7
    weighting = make("grad_norm", [1.0, 1.0, 1.0], alpha=alpha).double()
    embedding = draw(7, 5).requires_grad_()
    targets = draw(8, 3, 5)

    def losses(at: Tensor) -> Tensor:
        return torch.tensor([1.0, 5.0, 0.3]) * (at - targets).square().sum(1)

    optimiser = torch.optim.SGD([weighting.shares], lr=1e-3)
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    first = losses(embedding).detach()
    for step in range(5):
        at = (embedding.detach() * (1 - 0.15 * step)).requires_grad_()
        terms = losses(at)
        gradients = torch.stack([torch.autograd.grad(term, at, retain_graph=True)[0] for term in terms])
        weighting.observe(gradients @ gradients.T, terms.detach())
        optimiser.zero_grad()
        total = weighting(terms)
        total.backward()
        w = w.detach().requires_grad_()  # the paper's algorithm, through the graph of the gradients
        again = losses(at)
        norms = torch.stack([torch.autograd.grad(w[i] * again[i], at, create_graph=True)[0].norm() for i in range(3)])
        ratios = (again / first).detach()
        target_norms = (norms.mean() * (ratios / ratios.mean()) ** alpha).detach()
        (slope,) = torch.autograd.grad((norms - target_norms).abs().sum(), w)
        # the buffers of first values and the prior are set up in float32
        torch.testing.assert_close(weighting.shares.grad, slope, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(total, (w * terms).sum())
        optimiser.step()
        w = w.detach() - 1e-3 * slope
        w = w / w.sum()
        torch.testing.assert_close(weighting.weights, w, rtol=1e-6, atol=1e-6)


def test_grad_norm_balances_the_norms() -> None:
    weighting = make("grad_norm", [1.0, 1.0], alpha=0)
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.003)
    for _ in range(400):
        optimiser.zero_grad()
        weighting.observe(torch.diag(torch.tensor([1.0, 16.0])), torch.ones(2))
        weighting(torch.ones(2)).backward()
        optimiser.step()
    torch.testing.assert_close(weighting.weights, torch.tensor([0.8, 0.2]), rtol=0.05, atol=0)


def test_dynamic_average_by_hand() -> None:
    weighting = make("dynamic_average", [1.0, 1.0, 2.0], window=2, temperature=2.0, largest=4.0)
    windows = [([4, 1, 0], [2, 1, 0]), ([2, 3, 0], [1, 1, 0]), ([0, 900, 1], [0, 900, 1]), ([0, 1, 1], [0, 1, 1])]
    ratios = [[1, 1, 1], [1, 1, 1], [0.5, 2, 1], [0, 4, 4]]  # 3 -> 1.5, 1 -> 2, still 0; then 0, cut, back from 0
    for window, ratio in zip(windows, ratios, strict=True):
        odds = [p * math.exp(r / 2) for p, r in zip([1, 1, 2], ratio, strict=True)]
        for terms in window:
            weighting(torch.tensor(terms, dtype=torch.float32))
            assert weighting.weights.tolist() == pytest.approx([odd / sum(odds) for odd in odds])


def surgery_on_vectors(gradients: Tensor, prior: Tensor, order: list[list[int]]) -> Tensor:
    """Algorithm 1 of the paper, on the vectors themselves."""
    total = torch.zeros_like(gradients[0])
    for i, sequence in enumerate(order):
        projected = gradients[i].clone()
        for j in sequence:
            dot = projected @ gradients[j]
            if dot < 0:
                projected -= dot / gradients[j].square().sum() * gradients[j]
        total += prior[i] * projected
    return total


class TestPCGrad:
    @pytest.mark.parametrize("seed", range(5))
    def test_factors_give_the_projected_vectors(self, seed: int) -> None:
        gradients = draw(seed, 4, 3) * torch.tensor([[1.0], [30.0], [0.1], [1.0]])
        weighting = make("pcgrad", PRIOR, order="given").double()
        weighting.observe(gradients @ gradients.T, torch.ones(4))
        order = [[j for j in range(4) if j != i] for i in range(4)]
        expected = surgery_on_vectors(gradients, weighting.prior, order)
        torch.testing.assert_close(weighting.weights @ gradients, expected)
        assert not torch.allclose(weighting.weights, weighting.prior)  # four vectors in three dimensions: some oppose

    def test_random_orders_are_drawn_anew_and_each_is_one_of_the_papers(self) -> None:
        gradients = torch.tensor([[1.0, 0.2], [-1.0, 0.5], [0.1, -1.0]], dtype=torch.float64)
        weighting = make("pcgrad", [1.0, 1.0, 1.0]).double()
        orders = itertools.product(*(itertools.permutations([j for j in range(3) if j != i]) for i in range(3)))
        possible = [surgery_on_vectors(gradients, weighting.prior, [list(o) for o in order]) for order in orders]
        seen = set()
        for _ in range(30):
            weighting.observe(gradients @ gradients.T, torch.ones(3))
            combined = weighting.weights @ gradients
            matches = [k for k, vector in enumerate(possible) if torch.allclose(combined, vector)]
            assert matches
            seen.add(matches[0])
        assert len(seen) > 1
        other = make("pcgrad", [1.0, 1.0, 1.0], seed=1)
        assert not torch.equal(other.state, make("pcgrad", [1.0, 1.0, 1.0]).state)

    def test_nothing_changes_without_conflict(self) -> None:
        weighting = make("pcgrad", PRIOR)
        weighting.observe(torch.ones(4, 4), torch.ones(4))
        assert torch.equal(weighting.weights, weighting.prior)


class TestHeldOut:
    def test_exponentiated_gradient_by_hand(self) -> None:
        weighting = make("held_out", [1.0, 3.0], rate=0.5)
        weighting.learn(torch.tensor([0.6, -0.2]))
        odds = [0.25 * math.exp(0.3), 0.75 * math.exp(-0.1)]
        assert weighting.importances.tolist() == pytest.approx([odd / sum(odds) for odd in odds])
        before = weighting.importances
        weighting.learn(torch.tensor([0.4, 0.4]))
        torch.testing.assert_close(weighting.importances, before)
        for _ in range(50):
            weighting.learn(torch.tensor([-1.0, 1.0]))
        assert weighting.importances.tolist() == pytest.approx([1 / 8, 7 / 8])
        for _ in range(5):
            weighting.learn(torch.tensor([1.0, -1.0]))
        assert weighting.importances[0] > 0.9 * 7 / 8  # it leaves the floor at once

    def test_is_due_every_so_often_but_not_at_the_start(self) -> None:
        weighting = make("held_out", [1.0, 1.0], every=3)
        seen = []
        for _ in range(8):
            seen.append(weighting.due())
            weighting(torch.ones(2))
        assert seen == [False, False, False, True, False, False, True, False]

    def test_terms_are_equalised(self) -> None:
        weighting = make("held_out", [1.0, 3.0])
        assert float(weighting(torch.tensor([1.0, 7.0]))) == pytest.approx(4.0)
        torch.testing.assert_close(weighting.weights, torch.tensor([0.25 * 4, 0.75 * 4 / 7]))


def test_uncertainty_finds_the_inverse_of_the_terms_and_recovers() -> None:
    weighting = make("uncertainty", [1.0, 1.0, 1.0])
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.05)

    def run(terms: list[float], steps: int) -> Tensor:
        for _ in range(steps):
            optimiser.zero_grad()
            weighting(torch.tensor(terms)).backward()
            optimiser.step()
        return weighting.weights

    torch.testing.assert_close(run([0.5, 2.0, 4.0], 1000), torch.tensor([2.0, 0.5, 0.25]), rtol=1e-2, atol=1e-3)
    assert run([0.0, 2.0, 4.0], 1000)[0] <= weighting.largest + 1e-4  # a satisfied hinge stays within the bound
    assert run([0.5, 2.0, 4.0], 300)[0] == pytest.approx(2.0, rel=0.1)  # and comes back soon
