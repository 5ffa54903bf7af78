"""The plain definitions: against hand-computed numbers, nested loops and pytorch-metric-learning (value, gradient)."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BATCHES, LOSSES, Case, assert_close, embeddings_of, value_and_gradients

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.losses import create

# Three points on the unit circle at 0, 60 and 90 degrees; the first two are of one class.
POINTS = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 1.0]], dtype=torch.float64)
IDS = torch.tensor([0, 0, 1])
C01, C02, C12 = 0.5, 0.0, math.cos(math.pi / 6)  # cosines of the three pairs


def distance(cosine: float) -> float:
    return math.sqrt(2 - 2 * cosine)


def test_contrastive_by_hand() -> None:
    positives = [distance(C01)] * 2  # both directions
    negatives = [1.2 - distance(C12)] * 2  # d02 = 1.41 is beyond the margin
    loss = create("contrastive", pos_margin=0.3, neg_margin=1.2)
    expected = sum(d - 0.3 for d in positives) / 2 + sum(negatives) / 2
    assert loss.reference(POINTS, IDS).item() == pytest.approx(expected, abs=1e-12)


def test_triplet_by_hand() -> None:
    violations = [distance(C01) - distance(C02) + 0.5, distance(C01) - distance(C12) + 0.5]  # anchors 0 and 1
    assert create("triplet", margin=0.5).reference(POINTS, IDS).item() == pytest.approx(sum(violations) / 2, abs=1e-12)
    # only anchor 0 has a negative farther than its positive, by 0.414 < 0.5
    assert create("triplet", margin=0.5, mining="semihard").reference(POINTS, IDS).item() == pytest.approx(
        violations[0], abs=1e-12
    )
    softened = sum(math.log1p(math.exp(v)) for v in violations) / 2
    assert create("triplet", margin=0.5, smooth=True).reference(POINTS, IDS).item() == pytest.approx(softened, abs=1e-12)
    nearer = distance(C01) - distance(C12) + 0.5  # swap: the negative is nearer to the other positive
    assert create("triplet", margin=0.5, swap=True).reference(POINTS, IDS).item() == pytest.approx(nearer, abs=1e-12)


def test_ms_by_hand() -> None:
    def row(positives: list[float], negatives: list[float]) -> float:
        pull = math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in positives)) / 2
        return pull + math.log(1 + sum(math.exp(10 * (s - 0.5)) for s in negatives)) / 10

    everything = (row([C01], [C02]) + row([C01], [C12]) + row([], [C02, C12])) / 3
    assert create("ms", beta=10.0, epsilon=None).reference(POINTS, IDS).item() == pytest.approx(everything, abs=1e-12)
    mined = row([C01], [C12]) / 3  # anchor 0: 0.5 - 0.1 > 0 on both sides; anchor 2 has no positive
    assert create("ms", beta=10.0).reference(POINTS, IDS).item() == pytest.approx(mined, abs=1e-12)


def test_sup_con_by_hand() -> None:
    def row(positive: float, negative: float) -> float:
        return math.log(math.exp(positive / 0.2) + math.exp(negative / 0.2)) - positive / 0.2

    expected = (row(C01, C02) + row(C01, C12)) / 2  # the third anchor has no positive and does not count
    assert create("sup_con", temperature=0.2).reference(POINTS, IDS).item() == pytest.approx(expected, abs=1e-12)


def test_circle_by_hand() -> None:
    def row(p: float, n: float, m: float = 0.25, gamma: float = 8.0) -> float:
        return math.log1p(math.exp(gamma * max(n + m, 0) * (n - m) - gamma * max(1 + m - p, 0) * (p - 1 + m)))

    expected = (row(C01, C02) + row(C01, C12)) / 2
    assert create("circle", m=0.25, gamma=8.0).reference(POINTS, IDS).item() == pytest.approx(expected, abs=1e-12)


def proxies_on_the_axes(name: str, **options: object) -> dmlcore.losses.Loss:
    loss = create(name, num_classes=3, embedding_dim=2, **options).double()
    with torch.no_grad():
        loss.proxies.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    return loss


def test_proxy_losses_by_hand() -> None:
    cosines = [[1.0, 0.0, -1.0], [0.5, math.sqrt(0.75), -0.5], [0.0, 1.0, 0.0]]  # sample x proxy

    def cross_entropy(scale: float) -> float:
        rows = zip(cosines, [0, 0, 1], strict=True)
        return sum(math.log(sum(math.exp(scale * c) for c in row)) - scale * row[y] for row, y in rows) / 3

    assert proxies_on_the_axes("norm_softmax", temperature=0.5).reference(POINTS, IDS).item() == pytest.approx(
        cross_entropy(2), abs=1e-12
    )
    assert proxies_on_the_axes("proxy_nca", softmax_scale=3.0).reference(POINTS, IDS).item() == pytest.approx(
        cross_entropy(6), abs=1e-12
    )
    smooth = cross_entropy(6) + 0.1 * sum(6 * (row[y] - sum(row) / 3) for row, y in zip(cosines, [0, 0, 1], strict=True)) / 3
    assert proxies_on_the_axes("proxy_nca", variant="wedl").reference(POINTS, IDS).item() == pytest.approx(smooth, abs=1e-12)

    def pull(values: list[float]) -> float:
        return math.log(1 + sum(math.exp(-4 * (c - 0.1)) for c in values))

    def push(values: list[float]) -> float:
        return math.log(1 + sum(math.exp(4 * (c + 0.1)) for c in values))

    expected = (pull([1.0, 0.5]) + pull([1.0])) / 2  # proxies 0 and 1 have samples
    expected += (push([0.0]) + push([0.0, math.sqrt(0.75)]) + push([-1.0, -0.5, 0.0])) / 3
    assert proxies_on_the_axes("proxy_anchor", alpha=4.0).reference(POINTS, IDS).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("mining", ["all", "semihard", "semihard_hardest", "hard", "easy_positive_semihard"])
def test_minings_by_nested_loops(mining: str, smooth: bool) -> None:
    x, y = BATCHES["odd"]
    unit = x / x.norm(dim=1, keepdim=True)
    d = (unit[:, None] - unit[None]).norm(dim=2).tolist()
    margin, hinges = 0.3, []
    for a in range(len(y)):
        positives = [d[a][p] for p in range(len(y)) if p != a and y[p] == y[a]]
        negatives = [d[a][n] for n in range(len(y)) if y[n] != y[a]]
        if not positives or not negatives:
            continue
        if mining == "hard":
            pairs = [(max(positives), min(negatives))]
        elif mining == "easy_positive_semihard":
            beyond = [n for n in negatives if n > min(positives)]
            pairs = [(min(positives), min(beyond))] if beyond else []
        else:
            pairs = []
            for p in positives:
                band = [n for n in negatives if mining == "all" or p < n <= p + margin]
                pairs += [(p, min(band))] if band and mining == "semihard_hardest" else [(p, n) for n in band]
        hinges += [p - n + margin for p, n in pairs if smooth or p - n + margin > 0]
    hinges = [math.log1p(math.exp(h)) for h in hinges] if smooth else hinges
    value = create("triplet", margin=margin, mining=mining, smooth=smooth).reference(x, y)
    assert value.item() == pytest.approx(sum(hinges) / len(hinges), abs=1e-9)


PEERS = [case for case in LOSSES if case.peer is not None]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: case.id)
@pytest.mark.parametrize(
    "batch", ["odd", "sorted", "large", "unbalanced", "one class", "all different", "two of a class", "two classes"]
)
def test_equals_pytorch_metric_learning(case: Case, batch: str) -> None:
    pml = pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    import pytorch_metric_learning.losses
    import pytorch_metric_learning.miners  # noqa: F401

    loss, (x, y) = case.create(), BATCHES[batch]
    peer = value_and_gradients(loss, x, y, lambda a, b: case.peer(pml, loss, a, b))
    assert_close(value_and_gradients(loss, x, y, loss.reference), peer, 1e-7)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
@pytest.mark.parametrize("batch", BATCHES)
def test_value_and_gradient_are_finite(case: Case, batch: str) -> None:
    loss, (x, y) = case.create(torch.float32), BATCHES[batch]
    for compute in (loss, loss.reference):
        value, gradients = value_and_gradients(loss, x.float(), y, compute)
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_reductions(case: Case) -> None:
    x, y = BATCHES["odd"]
    options = dict(case.options)
    rows = case.create().rows(x, y)
    for reduction, expected in (("sum", rows.values.sum()), ("mean", rows.values.sum() / rows.values.shape[1])):
        loss = Case(case.name, {**options, "reduction": reduction}).create()
        torch.testing.assert_close(loss(x, y), expected)
        torch.testing.assert_close(loss.reference(x, y), expected)
    if case.name == "proxy_anchor":
        with pytest.raises(ConfigError, match="rows of proxy_anchor are proxies"):
            Case(case.name, {**options, "reduction": "none"}).create()
    else:
        loss = Case(case.name, {**options, "reduction": "none"}).create()
        torch.testing.assert_close(loss(x, y), rows.values.sum(0))


def test_creation_errors_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no loss 'proxy_ancor'. Did you mean 'proxy_anchor'"):
        create("proxy_ancor")
    with pytest.raises(ConfigError, match=r"ms has no option 'bta'. Did you mean 'beta'"):
        create("ms", bta=3)
    with pytest.raises(ConfigError, match="ms: beta is -1.0, but must be > 0"):
        create("ms", beta=-1)
    with pytest.raises(ConfigError, match="ms.beta is 'x', but must be a number"):
        create("ms", beta="x")
    with pytest.raises(ConfigError, match=r"triplet.mining is 'semi_hard', but must be one of .* Did you mean 'semihard'"):
        create("triplet", mining="semi_hard")
    with pytest.raises(ConfigError, match="create it with num_classes= and embedding_dim="):
        create("proxy_anchor")
    with pytest.raises(ConfigError, match="num_classes >= 1, got 0"):
        create("proxy_anchor", num_classes=0, embedding_dim=4)


def test_proxies_have_their_name_and_shape() -> None:
    for name in ("proxy_anchor", "proxy_nca", "norm_softmax"):
        loss = create(name, num_classes=5, embedding_dim=3)
        assert loss.proxies.shape == (5, 3)
        assert loss.parameter_roles()["proxies"][0] is loss.proxies
        assert list(loss.state_dict()) == ["proxies"]


def test_plain_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_FUSED", "0")
    loss = create("ms")
    assert not loss.is_fused
    assert "DML_FUSED=0" in loss.why_not_fused
    x, y = BATCHES["odd"]
    assert torch.equal(loss(x, y), loss.reference(x, y))


def test_unfused_options_say_why() -> None:
    assert "swap" in create("triplet", swap=True).why_not_fused
    assert "wedl" in create("proxy_nca", variant="wedl", num_classes=2, embedding_dim=2).why_not_fused


def test_autocast_computes_in_float32() -> None:
    x, y = BATCHES["odd"]
    loss = create("proxy_anchor", num_classes=7, embedding_dim=11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x.to(torch.bfloat16).requires_grad_()
        value = loss(half, y)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    expected = loss.reference(half.detach().float(), y)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the plain form keeps its precision too
        torch.testing.assert_close(loss.reference(half.detach(), y), expected, rtol=1e-5, atol=1e-5)


def test_references_may_be_the_batch_itself() -> None:
    x, y = BATCHES["odd"]
    loss = create("triplet", mining="hard", margin=0.2)
    other = embeddings_of(y, seed=9)
    assert loss(x, y, references=other, reference_labels=y) != loss(x, y)
