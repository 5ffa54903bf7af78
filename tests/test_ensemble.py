"""Ensembles: the weighted sum, one pass for all. Weightings are tested in `test_weightings.py`."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import BATCHES, CLASSES, LOSSES, WIDTH
from torch import Tensor

from dmlcore import LossEnsemble
from dmlcore.errors import ConfigError, PluginError
from dmlcore.kernels import recorded_passes
from dmlcore.losses import Loss, create

X, Y = BATCHES["odd"]
SIZES = {"num_classes": CLASSES, "embedding_dim": WIDTH}


def test_is_the_weighted_sum_of_its_members() -> None:
    members = [case.create() for case in LOSSES]
    weights = torch.linspace(0, 3, len(members))
    ensemble = LossEnsemble(members, weights=weights)
    leaf = X.clone().requires_grad_()
    total = ensemble(leaf, Y)
    other = X.clone().requires_grad_()
    expected = sum(float(w) * member(other, Y) for w, member in zip(weights, members, strict=True))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], torch.autograd.grad(expected, other)[0])
    assert list(ensemble.terms) == ensemble.names and len(set(ensemble.names)) == len(members)
    assert ensemble.names[:2] == ["ms", "ms_2"]
    assert all(not term.requires_grad for term in ensemble.terms.values())
    assert torch.equal(ensemble.weights, weights)


def test_references_reach_the_members_that_use_them() -> None:
    ensemble = LossEnsemble(["ms", "proxy_anchor"], **SIZES).double()
    with torch.no_grad():
        total = ensemble(X, Y, references=X[:9] + 1, reference_labels=Y[:9])
    pair, proxy = ensemble.losses
    expected = pair(X, Y, references=X[:9] + 1, reference_labels=Y[:9]) + proxy(X, Y)
    torch.testing.assert_close(total, expected.detach())


def test_fused_members_share_one_pass() -> None:
    ensemble = LossEnsemble(["ms", "contrastive", "proxy_anchor", "sup_con", "circle", "triplet"], **SIZES)
    with recorded_passes() as passes:
        ensemble(X.float(), Y)
    assert sorted(len(pass_.calls) for pass_ in passes) == [1, 5]


def test_mixes_fused_plain_and_foreign_members() -> None:
    class Mean(Loss):
        """The mean square."""

        name = "mean_square"

        def forward(self, embeddings: Tensor, labels: Tensor, *, references=None, reference_labels=None) -> Tensor:
            return embeddings.square().mean()

    ensemble = LossEnsemble(["ms", create("triplet", swap=True), Mean()], weights=[1, 1, 2])
    total = ensemble(X, Y)
    torch.testing.assert_close(total, create("ms")(X, Y) + create("triplet", swap=True)(X, Y) + 2 * X.square().mean())
    assert math.isnan(ensemble.active["mean_square"]) and 0 < ensemble.active["ms"] <= 1
    described = {entry["name"]: entry for entry in ensemble.describe()}
    assert (
        described["ms"]["fused"]
        and not described["triplet"]["fused"]
        and "no fused form" in described["mean_square"]["why_not_fused"]
    )


def test_a_member_that_returns_no_scalar_is_named() -> None:
    class Wrong(Loss):
        """Returns a vector."""

        name = "wrong"

        def forward(self, embeddings: Tensor, labels: Tensor, *, references=None, reference_labels=None) -> Tensor:
            return embeddings.sum(1)

    with pytest.raises(PluginError, match=r"'wrong' must return a scalar tensor, got \[37\]"):
        LossEnsemble(["ms", Wrong()])(X, Y)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="at least one loss"):
        LossEnsemble([])
    with pytest.raises(ConfigError, match="2 numbers for 1 losses"):
        LossEnsemble(["ms"], weights=[1, 2])
    with pytest.raises(ConfigError, match="finite, >= 0 and not all 0"):
        LossEnsemble(["ms"], weights=[-1])
    with pytest.raises(ConfigError, match="weights must be 1 numbers, got 'abc'"):
        LossEnsemble(["ms"], weights="abc")
    with pytest.raises(ConfigError, match="no weighting 'fixd'. Did you mean 'fixed'"):
        LossEnsemble(["ms"], weighting="fixd")
    with pytest.raises(ConfigError, match="uncertainty has no option 'bond'. Did you mean 'bound'"):
        LossEnsemble(["ms"], weighting="uncertainty", weighting_options={"bond": 1})
    with pytest.raises(ConfigError, match="reduction 'none'"):
        LossEnsemble([create("ms", reduction="none")])
    with pytest.raises(ConfigError, match="dmlcore losses or their names"):
        LossEnsemble([torch.nn.MSELoss()])


def test_non_finite_rows_are_found() -> None:
    x = X.clone()
    x[4, 0] = torch.nan
    assert LossEnsemble(["ms", "triplet"]).non_finite_rows(x, Y) == {"ms": [4], "triplet": [4]}
    assert LossEnsemble(["ms"]).non_finite_rows(X, Y) == {}


def test_parameters_have_roles() -> None:
    ensemble = LossEnsemble(["ms", "proxy_anchor", "norm_softmax"], weighting="uncertainty", **SIZES)
    roles = ensemble.parameter_roles()
    assert {role: len(parameters) for role, parameters in roles.items()} == {"proxies": 2, "scalars": 0, "weights": 1}
    assert {id(p) for parameters in roles.values() for p in parameters} == {id(p) for p in ensemble.parameters()}
    twice = create("proxy_anchor", **SIZES)
    assert len(LossEnsemble([twice, twice]).parameter_roles()["proxies"]) == 1


def test_a_members_own_forward_and_reduce_are_used() -> None:
    base = type(create("ms"))
    doubled = type("Doubled", (base,), {"by_rows": False, "forward": lambda self, *a, **k: 2 * base.forward(self, *a, **k)})
    tripled = type("Tripled", (base,), {"reduces": True, "reduce": lambda self, rows: 3 * base.reduce(self, rows)})
    with pytest.raises(PluginError, match="Careless writes `reduce`, so it must say .* `reduces`"):
        type("Careless", (base,), {"reduce": lambda self, rows: 3 * base.reduce(self, rows)})
    expected = 5 * create("ms")(X, Y)
    torch.testing.assert_close(LossEnsemble([doubled(), tripled()])(X, Y), expected)


def test_a_forward_that_nobody_would_call_is_refused() -> None:
    base = type(create("ms"))
    with pytest.raises(PluginError, match="Ignored writes `forward`, which nobody calls while `by_rows` is True"):
        type("Ignored", (base,), {"by_rows": True, "forward": lambda self, *a, **k: base.forward(self, *a, **k)})


def test_a_new_definition_needs_a_kernel_of_its_own() -> None:
    base = type(create("ms"))
    with pytest.raises(PluginError, match="Changed defines `row_values` anew, but its kernel is that of MultiSimilarity"):
        type("Changed", (base,), {"row_values": lambda self, *a: base.row_values(self, *a)})
    plain = type("Plain", (base,), {"row_values": base.row_values, "functor_call": lambda self: "it is another formula"})
    assert plain().why_not_fused == "it is another formula"
    torch.testing.assert_close(plain()(X, Y), create("ms").reference(X, Y))


def test_a_replica_asks_for_its_own_kernel() -> None:
    loss = create("margin")
    loss(X, Y)
    replica = copy.copy(loss)  # as data parallelism makes one: another module with the same dictionaries
    replica.__dict__ = {**loss.__dict__, "_parameters": {"beta": torch.nn.Parameter(torch.full((1,), 0.4))}}
    torch.testing.assert_close(replica(X, Y), replica.reference(X, Y))
