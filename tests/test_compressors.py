"""Compressors: the contract of all of them, PCA against its definition, the published objective by hand."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlcore.ensemble import Compressor, distance_matching, principal_axes
from dmlcore.ensemble import principal as principal_module
from dmlcore.errors import ConfigError
from dmlcore.losses import unit
from dmlcore.plugins import registry

WIDTH, OUT = 12, 5
NAMES = list(registry("compressor"))
QUICK = {"linear": {"steps": 60, "batch": 32}, "lin_tanh_lin": {"online": False, "steps": 300, "batch": 32}}


def embeddings(count: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99)) * torch.linspace(2, 0.05, WIDTH)[:, None]
    return torch.randn(count, WIDTH, generator=generator) @ mixing + 0.3


def labels(count: int) -> Tensor:
    return torch.arange(count) // 4


def create(name: str, out: int = OUT, **options: Any) -> Compressor:
    return registry("compressor")[name].component(WIDTH, out, **{**QUICK.get(name, {}), **options})


def fitted(name: str, z: Tensor, seed: int = 0, out: int = OUT, **options: Any) -> Compressor:
    compressor = create(name, out, **options)
    compressor.fit(z, labels(len(z)), seed=seed)
    return compressor


def mismatch(compressor: Compressor, z: Tensor) -> float:
    with torch.no_grad():
        return float(distance_matching(compressor(z), z))


def test_the_built_in_ones_are_there() -> None:
    assert NAMES == ["lin_tanh_lin", "linear", "pca", "pca_or_wccn", "wccn", "whitened_pca"]


@pytest.mark.parametrize("name", NAMES)
def test_is_documented_and_checks_its_sizes(name: str) -> None:
    component = registry("compressor")[name].component
    assert "Source:" in inspect.getdoc(component)
    for width, out in ((4, 5), (4, 0)):
        with pytest.raises(ConfigError, match=f"{name}: cannot compress 4 dimensions to {out}"):
            component(width, out)
    with pytest.raises(ConfigError, match=f"{name} has no option 'stepps'"):
        component(4, 2, stepps=3)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_bad_embeddings_and_use_before_fit(name: str) -> None:
    compressor, z = create(name), embeddings(20)
    with pytest.raises(ConfigError, match="is not fitted"):
        compressor(z)
    with pytest.raises(ConfigError, match=r"matrix \[N, 12\], got \[20, 11\]"):
        compressor.fit(z[:, 1:], labels(20))
    with pytest.raises(ConfigError, match="a label for each"):
        compressor.fit(z, labels(19))
    with pytest.raises(ConfigError, match="not finite"):
        compressor.fit(z.index_fill(0, torch.tensor([3]), torch.nan), labels(20))
    assert not bool(compressor.is_fitted)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_and_global_random_state_is_left_alone(name: str) -> None:
    z = embeddings()
    torch.manual_seed(1)
    compressor, other = create(name), create(name)
    state = torch.get_rng_state()
    compressor.fit(z, labels(len(z)), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other.fit(z, labels(len(z)), seed=4)
    assert torch.equal(compressor(z), other(z))
    if name == "lin_tanh_lin":
        assert not torch.equal(fitted(name, z, seed=5)(z), compressor(z))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_restores_it(name: str) -> None:
    z = embeddings()
    compressor, other = fitted(name, z), create(name)
    shapes = {key: tensor.shape for key, tensor in other.state_dict().items()}
    other.load_state_dict(compressor.state_dict())
    assert torch.equal(compressor(z), other(z)) and compressor(z).shape == (200, OUT)
    assert {key: tensor.shape for key, tensor in compressor.state_dict().items()} == shapes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["one", "fewer_than_out", "fewer_than_width", "duplicates", "zeros", "half"])
def test_degenerate_embeddings_give_finite_maps(name: str, kind: str) -> None:
    z = {
        "one": embeddings(1),
        "fewer_than_out": embeddings(3),
        "fewer_than_width": embeddings(9),
        "duplicates": embeddings(1).expand(40, WIDTH),
        "zeros": torch.zeros(8, WIDTH),
        "half": embeddings().half(),
    }[kind]
    compressor = fitted(name, z)
    new = compressor(embeddings(30, seed=7))
    assert torch.isfinite(new).all() and torch.isfinite(compressor(z)).all()
    assert new.std(0).max() > 0  # other embeddings stay apart


@pytest.mark.parametrize("name", NAMES)
def test_learns_under_inference_mode(name: str) -> None:
    compressor = create(name)
    with torch.inference_mode():
        z = embeddings()
        compressor.fit(z, labels(len(z)), seed=4)
    assert torch.equal(compressor(embeddings()), fitted(name, embeddings(), seed=4)(embeddings()))


@pytest.mark.parametrize("name", ["pca", "whitened_pca", "wccn", "linear"])
@pytest.mark.parametrize("factor", [1e-6, 0.03, 1000.0])
def test_rescaling_changes_no_similarity(name: str, factor: float) -> None:
    z = embeddings()
    first, second = (unit(fitted(name, scaled)(scaled)) for scaled in (z, factor * z))
    torch.testing.assert_close(first @ first.T, second @ second.T, rtol=0, atol=1e-5)  # a few hundred roundings of float32


@pytest.mark.parametrize("factor", [1e-25, 0.03, 1e15])
def test_rescaling_changes_no_target(factor: float) -> None:
    z, g = embeddings(40), embeddings(40, seed=3)[:, :OUT]
    expected = distance_matching(g, z)
    torch.testing.assert_close(distance_matching(g, factor * z), expected)
    torch.testing.assert_close(distance_matching(factor * g, z), expected)


def test_objective_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])  # squared distances 1, 4, 5; sum over both halves 20
    g = torch.tensor([[0.0], [1.0], [3.0]])  # 1, 9, 4; 28
    difference = [1 / 20 - 1 / 28, 4 / 20 - 9 / 28, 5 / 20 - 4 / 28]
    expected = 9 * (2 * sum(d * d for d in difference)) ** 0.5
    assert float(distance_matching(g, z)) == pytest.approx(expected, rel=1e-6)
    assert float(distance_matching(3 * z, z)) == pytest.approx(0, abs=1e-6)


def test_objective_is_differentiable_and_finite_at_coincident_points() -> None:
    z, g = embeddings(7).double(), embeddings(7, seed=2)[:, :3].double().requires_grad_()
    g.data[1] = g.data[4]
    assert torch.autograd.gradcheck(lambda g: distance_matching(g, z), (g,))
    for same in (torch.zeros(6, 3), embeddings(1)[:, :3].expand(6, 3).clone()):
        same.requires_grad_()
        value = distance_matching(same, z[:6])
        assert torch.isfinite(value) and torch.autograd.grad(value, same)[0].abs().max() == 0
    assert float(distance_matching(torch.zeros(6, 3), torch.ones(6, 9))) == 0


def test_only_what_is_compressed_gets_a_gradient() -> None:
    z = embeddings(10).requires_grad_()
    compressor = create("lin_tanh_lin", online=True)
    compressor.online_loss(z).backward()
    assert z.grad is None and all(parameter.grad is not None for parameter in compressor.parameters())


def test_axes_are_those_of_the_covariance_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    z = embeddings(500)
    principal = principal_axes(z)
    _, size, directions = torch.linalg.svd(z.double() - z.double().mean(0), full_matrices=False)
    torch.testing.assert_close(principal.variances, size.square() / 500)
    torch.testing.assert_close((principal.axes * directions).sum(1).abs(), torch.ones(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(principal.axes @ principal.axes.T, torch.eye(WIDTH, dtype=torch.float64))
    monkeypatch.setattr(principal_module, "PIECE_ROWS", 37)
    torch.testing.assert_close(principal_axes(z).axes, principal.axes)


def test_small_spread_beside_a_large_mean_keeps_its_axes() -> None:
    z = embeddings(500).double()
    torch.testing.assert_close(principal_axes(z + 1e4).axes, principal_axes(z).axes, rtol=0, atol=1e-6)


def test_pca_at_full_width_keeps_distances_and_without_centre_cosines() -> None:
    z = embeddings(50)
    full = fitted("pca", z, out=WIDTH)
    torch.testing.assert_close(torch.pdist(full(z)), torch.pdist(z), rtol=1e-5, atol=1e-5)
    through_origin = unit(fitted("pca", z, out=WIDTH, centre=False)(z))
    torch.testing.assert_close(through_origin @ through_origin.T, unit(z) @ unit(z).T)


def test_whitening_gives_equal_variances_and_shrinkage_bounds_them() -> None:
    z = embeddings(400)
    white = fitted("whitened_pca", z, out=WIDTH, shrinkage=0.0)(z)
    torch.testing.assert_close(white.T @ white / 400, white.var(0, correction=0).mean() * torch.eye(WIDTH), rtol=0, atol=1e-3)
    plain, shrunk = fitted("pca", z)(z), fitted("whitened_pca", z, shrinkage=1.0)(z)
    torch.testing.assert_close(unit(plain), unit(shrunk))
    flat = z.clone()
    flat[:, 0] = flat[:, 1:].sum(1) * 1e-4  # a direction that hardly varies
    compressor = fitted("whitened_pca", flat, out=WIDTH, shrinkage=0.1)
    norms = compressor.axes.norm(dim=1)
    assert norms.max() / norms.min() < ((0.9 * WIDTH + 0.1) / 0.1) ** 0.5 + 1e-3


def test_whitening_leaves_out_directions_without_variance() -> None:
    z = embeddings(300)
    z[:, 7:] = 0
    compressor = fitted("whitened_pca", z, out=10, shrinkage=0.0)
    assert (compressor.axes.norm(dim=1) > 0).tolist() == [True] * 7 + [False] * 3


def test_whitening_within_classes_gives_their_covariance_one_length() -> None:
    z, own = embeddings(400), labels(400)
    z = z + 3 * embeddings(100, seed=8)[own]
    white = fitted("wccn", z, out=WIDTH, shrinkage=1e-9)(z).double()
    within = torch.stack([torch.cov(white[own == label].T, correction=0) for label in own.unique()]).mean(0)
    torch.testing.assert_close(
        within, within.trace() / WIDTH * torch.eye(WIDTH).double(), rtol=0, atol=1e-3 * float(within.trace())
    )
    total = torch.cov(white.T)
    assert (total - total.diagonal().diag()).abs().max() < 1e-4 * total.max()  # principal axes of what is whitened
    assert (total.diagonal().diff() <= 0).all()
    plain = unit(fitted("pca", z)(z))
    torch.testing.assert_close(unit(fitted("wccn", z, shrinkage=1.0)(z)), plain, rtol=0, atol=1e-5)
    alone = registry("compressor")["wccn"].component(WIDTH, OUT)
    alone.fit(z, torch.arange(400))  # a sample a class: nothing varies within
    torch.testing.assert_close(unit(alone(z)), plain, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="shrinkage"):
        create("wccn", shrinkage=0.0)


def test_training_lowers_the_mismatch() -> None:
    z, new = embeddings(), embeddings(60, seed=5)
    start, trained = fitted("linear", z, steps=0), fitted("linear", z, steps=300)
    assert torch.equal(start(z), fitted("pca", z)(z))
    assert mismatch(trained, z) < 0.95 * mismatch(start, z)
    untrained, tanh = (fitted("lin_tanh_lin", z, steps=steps, learning_rate=0.01) for steps in (0, 300))
    assert mismatch(tanh, new) < 0.5 * mismatch(untrained, new)


def test_published_shape_and_online_training() -> None:
    compressor = create("lin_tanh_lin", online=True)
    assert compressor.is_online and not create("lin_tanh_lin").is_online and not create("pca").is_online
    assert [tuple(p.shape) for p in compressor.parameters()] == [(2 * OUT, WIDTH), (2 * OUT,), (OUT, 2 * OUT), (OUT,)]
    assert create("lin_tanh_lin", hidden=3).layers[0].weight.shape == (3, WIDTH)
    z = embeddings(64)
    before = [parameter.clone() for parameter in compressor.parameters()]
    compressor.fit(z, labels(64))
    assert all(torch.equal(*pair) for pair in zip(before, compressor.parameters(), strict=True))
    optimiser = torch.optim.Adam(compressor.parameters(), lr=1e-2)
    start = compressor.online_loss(z).item()
    for _ in range(100):
        optimiser.zero_grad()
        compressor.online_loss(z).backward()
        optimiser.step()
    assert compressor.online_loss(z).item() < 0.5 * start
    assert compressor(z).shape == (64, OUT)
    first, second = compressor.layers[0], compressor.layers[2]
    by_hand = torch.tanh(z @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(compressor(z), by_hand)


@pytest.mark.parametrize("name", NAMES)
def test_many_embeddings_need_no_matrix_of_all_pairs(name: str) -> None:
    z = embeddings(150_000)  # all pairs would be 84 GB
    compressor = fitted(name, z, **({"steps": 5} if "steps" in QUICK.get(name, {}) else {}))
    assert torch.isfinite(compressor(z[:100])).all()


def test_autocast_does_not_reach_the_objective() -> None:
    z, g = embeddings(30), embeddings(30, seed=1)[:, :OUT]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matching = distance_matching(g, z)
    assert matching.dtype == torch.float32 and torch.equal(matching, distance_matching(g, z))


def test_the_online_optimiser_is_the_published_one() -> None:
    """One step of Adam with L2 decay, by the formulas of Kingma and Ba, 2015, algorithm 1."""
    rate, eps, decay = 3e-3, 0.01, 0.1
    compressor = create("lin_tanh_lin", online=True, learning_rate=rate, eps=eps, weight_decay=decay).double()
    optimiser = compressor.online_optimiser()
    z = torch.randn(12, compressor.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    compressor.online_loss(z).backward()
    expected = []
    for p in compressor.parameters():
        assert p.grad is not None
        gradient = p.grad + decay * p.detach()
        expected.append(p.detach() - rate * gradient / (gradient.abs() + eps))  # both means are the gradient itself at first
    optimiser.step()
    for p, value in zip(compressor.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-9, atol=1e-12)
    plain = create("lin_tanh_lin", online=True).online_optimiser().param_groups[0]
    assert (plain["lr"], plain["eps"], plain["weight_decay"], plain["betas"]) == (1e-3, 1e-8, 0, (0.9, 0.999))  # as before
    for options in ({"eps": 0}, {"weight_decay": -1}, {"online": False, "eps": 0.1}):
        with pytest.raises(ConfigError, match="eps|weight_decay"):
            create("lin_tanh_lin", **options)


@pytest.mark.parametrize("better", ["pca", "wccn"])
def test_the_map_with_the_higher_score_is_kept(better: str) -> None:
    """Whatever was there before: both maps are learnt anew, and the kept one is named first."""
    z, compressor = embeddings(), fitted("pca_or_wccn", embeddings(50, seed=7))
    maps = {"pca": fitted("pca", z), "wccn": fitted("wccn", z, shrinkage=0.3)}
    for _ in range(2):
        scores = compressor.refine(z, labels(len(z)), lambda: float(torch.equal(compressor(z), maps[better](z))))
        assert list(scores.items()) == [(better, 1.0), ({"pca": "wccn", "wccn": "pca"}[better], 0.0)]
        assert torch.equal(compressor(z), maps[better](z))
    assert compressor.refine(z, labels(len(z)), lambda: 0.5) == {"pca": 0.5, "wccn": 0.5}
    assert torch.equal(compressor(z), maps["pca"](z))  # where neither is better, it is the simpler one


def test_most_have_one_map() -> None:
    compressor = fitted("pca", embeddings())
    assert compressor.refine(embeddings(), labels(200), lambda: pytest.fail("nothing is to be measured")) == {}
