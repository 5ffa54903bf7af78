"""The plain definitions: against hand-computed numbers, nested loops and pytorch-metric-learning (value, gradient)."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import BATCHES, LOSSES, Case, assert_close, embeddings_of, value_and_gradients

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.losses import RowLoss, create, softmax

# Three points on the unit circle at 0, 60 and 90 degrees; the first two are of one class.
DISTANCES = importlib.import_module("dmlcore.losses.distances")  # the package has a function of this name
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

    mean = (row([C01], [C02]) + row([C01], [C12]) + row([], [C02, C12])) / 3
    assert create("ms", beta=10.0, epsilon=None).reference(POINTS, IDS).item() == pytest.approx(mean, abs=1e-12)
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


def sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def test_smooth_ap_by_nested_loops() -> None:
    x, y = BATCHES["odd"]
    unit = x / x.norm(dim=1, keepdim=True)
    s, temperature, losses = (unit @ unit.T).tolist(), 0.05, []
    for a in range(len(y)):
        positives = [p for p in range(len(y)) if y[p] == y[a]]  # with the anchor itself
        if len(positives) < 2:
            continue
        precision = 0.0
        for p in positives:
            steps = {q: sigmoid((s[a][q] - s[a][p]) / temperature) for q in range(len(y)) if q != p}
            precision += (1 + sum(v for q, v in steps.items() if y[q] == y[a])) / (1 + sum(steps.values()))
        losses.append(1 - precision / len(positives))
    value = create("smooth_ap", temperature=temperature).reference(x, y)
    assert value.item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)


def test_smooth_ap_among_references_by_hand() -> None:
    references = torch.tensor([[0.5, math.sqrt(0.75)], [0.0, 1.0]], dtype=torch.float64)  # cosines 0.5 and 0 with the anchor
    loss, ids = create("smooth_ap", temperature=0.5), torch.tensor([0, 1])
    step = sigmoid((0 - 0.5) / 0.5)
    value = loss.reference(POINTS[:1], IDS[:1], references=references, reference_labels=ids)
    assert value.item() == pytest.approx(1 - 1 / (1 + step), abs=1e-12)
    with_itself = torch.cat([references, POINTS[:1]])  # rank 1 among positives, the other one has it above
    own = torch.tensor([2])
    first = 1 / (1 + sigmoid((0 - 1) / 0.5) / (1 + sigmoid((0.5 - 1) / 0.5)))
    second = (1 + sigmoid((1 - 0.5) / 0.5)) / (1 + sigmoid((1 - 0.5) / 0.5) + step)
    for compute in (loss, loss.reference):
        value = compute(POINTS[:1], IDS[:1], references=with_itself, reference_labels=torch.tensor([0, 1, 0]), own=own)
        assert value.item() == pytest.approx(1 - (first + second) / 2, abs=1e-12)


@pytest.mark.slow
def test_smooth_ap_equals_pytorch_metric_learning_where_that_is_right() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the test extra is not installed")
    y = torch.arange(6).repeat_interleave(6)
    x, loss = embeddings_of(y, seed=3), create("smooth_ap")
    peer = value_and_gradients(loss, x, y, losses.SmoothAPLoss())
    assert_close(value_and_gradients(loss, x, y, loss.reference), peer, 1e-8)


@pytest.mark.parametrize("bins", [10, 4])
def test_fast_ap_by_nested_loops(bins: int) -> None:
    x, y = BATCHES["odd"]
    unit = x / x.norm(dim=1, keepdim=True)
    squares, width, losses = (unit[:, None] - unit[None]).square().sum(2).tolist(), 4 / bins, []
    for a in range(len(y)):
        counts = [[0.0] * (bins + 1), [0.0] * (bins + 1)]
        for b in range(len(y)):
            if a != b:
                for c in range(bins + 1):
                    counts[int(y[a] != y[b])][c] += max(0.0, 1 - abs(squares[a][b] - c * width) / width)
        if sum(counts[0]) > 0.5:
            cumulative = [(sum(counts[0][: c + 1]), sum(counts[1][: c + 1])) for c in range(bins + 1)]
            terms = [h * p / (p + n) for h, (p, n) in zip(counts[0], cumulative, strict=True) if p + n > 0]
            losses.append(1 - sum(terms) / sum(counts[0]))
    assert create("fast_ap", num_bins=bins).reference(x, y).item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)


@pytest.mark.parametrize("references", [False, True])
def test_angular_by_nested_loops(references: bool) -> None:
    x, y = BATCHES["odd"]
    r, other = (embeddings_of(y[:20], seed=6), y[:20]) if references else (x, y)
    unit, other_unit = x / x.norm(dim=1, keepdim=True), r / r.norm(dim=1, keepdim=True)
    t, losses = math.tan(math.radians(35)) ** 2, []
    for a in range(len(y)):
        for p in range(len(other)):
            if y[a] != other[p] or (a == p and not references):
                continue
            pull = 2 * (1 + t) * float(unit[a] @ other_unit[p])
            terms = [4 * t * float((unit[a] + other_unit[p]) @ other_unit[n]) for n in range(len(other)) if other[n] != y[a]]
            losses.append(math.log(1 + sum(math.exp(term - pull) for term in terms)))
    against = {"references": r, "reference_labels": other} if references else {}
    value = create("angular", alpha=35.0).reference(x, y, **against)
    assert value.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


PIECEMEAL = [
    case
    for case in LOSSES
    if case.name in ("smooth_ap", "fast_ap", "angular")
    or (case.name == "triplet" and case.options.get("mining", "all") in ("all", "semihard", "semihard_hardest"))
]


@pytest.mark.parametrize("case", PIECEMEAL, ids=lambda case: case.id)
def test_pieces_do_not_change_a_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, (x, y) = case.create(), BATCHES["odd"]
    results, second = [], []
    for cells in (DISTANCES.PIECE_CELLS, 5000):  # everything at once; a few rows at a time
        monkeypatch.setattr(DISTANCES, "PIECE_CELLS", cells)
        results.append(value_and_gradients(loss, x, y, loss.reference))
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(loss.reference(leaf, y), leaf, create_graph=True)[0]
        second.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert_close(results[1], results[0], 1e-12)
    torch.testing.assert_close(second[1], second[0])


PEERS = [case for case in LOSSES if case.peer is not None]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: case.id)
@pytest.mark.parametrize(
    "batch", ["odd", "sorted", "large", "unbalanced", "one class", "all different", "two of a class", "two classes"]
)
def test_equals_pytorch_metric_learning(case: Case, batch: str) -> None:
    pml = pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    import pytorch_metric_learning.distances
    import pytorch_metric_learning.losses
    import pytorch_metric_learning.miners
    import pytorch_metric_learning.regularizers  # noqa: F401

    loss, (x, y) = case.create(), BATCHES[batch]
    if case.name in ("nt_xent", "tuplet_margin", "lifted_structure"):
        x, y = x[:90], y[:90]  # the peer builds positive pairs x negative pairs: 5 GB a tensor for the large batch
    peer = value_and_gradients(loss, x, y, lambda a, b: case.peer(pml, loss, a, b))
    if case.name == "histogram":  # the peer rounds its node distance to float32, so its shares are off by 1e-8 times the node
        assert_close(value_and_gradients(loss, x, y, loss.reference), peer, 1e-5)
        return
    assert_close(value_and_gradients(loss, x, y, loss.reference), peer, 1e-7)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
@pytest.mark.parametrize("batch", BATCHES)
def test_value_and_gradient_are_finite(case: Case, batch: str) -> None:
    loss, (x, y) = case.create(torch.float32), BATCHES[batch]
    for compute in (loss, loss.reference):
        value, gradients = value_and_gradients(loss, x.float(), y, compute)
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in gradients)


def replaced(case: Case, reduction: str) -> dmlcore.losses.Loss:
    return Case(case.name, {**case.options, "reduction": reduction}).create()


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_reductions(case: Case) -> None:
    x, y = BATCHES["odd"]
    if case.name == "histogram":
        with pytest.raises(ConfigError, match="one value per batch"):
            replaced(case, "mean")
        return
    loss = case.create()
    # a regulariser of norms has no rows; its values are what it does not reduce
    values = loss.rows(x, y).values if isinstance(loss, RowLoss) else replaced(case, "none")(x, y)[None]
    for reduction, expected in (("sum", values.sum()), ("mean", values.sum() / values.shape[1])):
        loss = replaced(case, reduction)
        torch.testing.assert_close(loss(x, y), expected)
        torch.testing.assert_close(loss.reference(x, y), expected)
    if case.name == "proxy_anchor" or case.takes_first:
        with pytest.raises(ConfigError, match="rows of proxy_anchor are proxies|a value per class"):
            replaced(case, "none")
    else:
        torch.testing.assert_close(replaced(case, "none")(x, y), values.sum(0))


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
    with pytest.raises(ConfigError, match="num_classes >= 1, got '5'"):
        create("proxy_anchor", num_classes="5", embedding_dim=4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a loss is named by text, got int"):
        create(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="miner must be a Miner, its name or None, got int"):
        create("contrastive").use_miner(5)  # type: ignore[operator]


def test_wrong_sides_are_refused() -> None:
    x, y = BATCHES["odd"]
    against = {"references": x, "reference_labels": y}
    wrong = {
        "own must be a tensor, got list": {**against, "own": y.tolist()},
        "own must be -1 or the index of one of 37 references, got 5..41": {**against, "own": torch.arange(37) + 5},
        "relation must be a label matrix .* or a function, got str": {"relation": "same"},
    }
    for words, arguments in wrong.items():
        for call in (create("ms"), create("ms").reference):
            with pytest.raises(ConfigError, match=words):
                call(x, y, **arguments)


def test_proxies_have_their_name_and_shape() -> None:
    for name in {case.name for case in LOSSES if case.create().needs_classes}:
        loss = create(name, num_classes=5, embedding_dim=3)
        assert loss.proxies.shape == (5 * {"subcenter_arcface": 3, "soft_triple": 10}.get(name, 1), 3)
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
    assert "norms alone" in create("sec").why_not_fused


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


def test_margins_by_hand() -> None:
    cosines = [[1.0, 0.0, -1.0], [0.5, math.sqrt(0.75), -0.5], [0.0, 1.0, 0.0]]  # sample x proxy
    targets = [0, 0, 2]  # the third sample is at 90 degrees from its proxy

    def cross_entropy(change) -> float:
        total = 0.0
        for row, y in zip(cosines, targets, strict=True):
            logits = [4 * (change(c) if k == y else c) for k, c in enumerate(row)]
            total += math.log(sum(math.exp(x) for x in logits)) - logits[y]
        return total / 3

    y = torch.tensor(targets)

    def widened(degrees: float):
        def change(cosine: float) -> float:
            angle, margin = math.degrees(math.acos(cosine)), math.radians(degrees)
            return cosine - margin * math.sin(margin) if angle > 180 - degrees else math.cos(math.radians(angle + degrees))

        return change

    for name, options, change in (
        ("cosface", {"margin": 0.3}, lambda c: c - 0.3),
        ("arcface", {"margin": 20.0}, widened(20)),
        ("arcface", {"margin": 100.0}, widened(100)),  # 90 degrees and 100 are beyond 180
    ):
        for compute in (loss := proxies_on_the_axes(name, scale=4.0, **options), loss.reference):
            assert compute(POINTS, y).item() == pytest.approx(cross_entropy(change), abs=1e-12), (name, options)

    def multiplied(norm: float, cosine: float) -> float:  # margin 2: cos 2a down to 90 degrees, then -cos 2a - 2
        return norm * (2 * cosine**2 - 1 if cosine > 0 else -(2 * cosine**2 - 1) - 2)

    norms, total = [0.5, 2.0, 3.0], 0.0
    for row, norm, t in zip(cosines, norms, targets, strict=True):
        logits = [4 * (multiplied(norm, c) if k == t else norm * c) for k, c in enumerate(row)]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[t]
    loss = proxies_on_the_axes("sphereface", scale=4.0, margin=2)
    for compute in (loss, loss.reference):
        assert compute(torch.tensor(norms)[:, None] * POINTS, y).item() == pytest.approx(total / 3, abs=1e-6)


def test_linear_classifier_by_hand() -> None:
    loss = proxies_on_the_axes("cross_entropy", bias=True, label_smoothing=0.3)
    with torch.no_grad():
        loss.bias.copy_(torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))
    total = 0.0
    for (a, b), y in zip(POINTS.tolist(), [0, 0, 1], strict=True):
        logits = [2 * a + 0.1, 3 * b - 0.2, -a + 0.3]
        total += math.log(sum(math.exp(x) for x in logits)) - 0.7 * logits[y] - 0.1 * sum(logits)
    for compute in (loss, loss.reference):
        assert compute(POINTS, IDS).item() == pytest.approx(total / 3, abs=1e-12)
    assert [p.shape for p in loss.parameter_roles()["proxies"]] == [(3, 2), (3,)]


@pytest.mark.parametrize("name", ["arcface", "cosface", "subcenter_arcface", "sphereface"])
def test_margins_have_finite_gradients_at_their_proxies(name: str) -> None:
    loss = proxies_on_the_axes(name, **({"sub_centers": 1} if name == "subcenter_arcface" else {}))
    for points in (loss.proxies.detach()[::3].clone(), -loss.proxies.detach()[::3]):
        for compute in (loss, loss.reference):
            value, gradients = value_and_gradients(loss, points, torch.zeros(len(points), dtype=torch.int64), compute)
            assert torch.isfinite(value)
            assert all(torch.isfinite(g).all() for g in gradients)


def test_several_centres_by_nested_loops() -> None:
    x, y = BATCHES["odd"]
    near = create("subcenter_arcface", num_classes=7, embedding_dim=11, sub_centers=3, margin=40.0, scale=8.0).double()
    soft = create("soft_triple", num_classes=7, embedding_dim=11, centers_per_class=3, tau=0.3).double()
    for loss in (near, soft):
        centres = loss.proxies.detach().reshape(7, 3, 11)
        total = 0.0
        for sample, label in zip(x, y.tolist(), strict=True):
            logits = []
            for c in range(7):
                s = [float(sample @ centre / sample.norm() / centre.norm()) for centre in centres[c]]
                if loss is near:
                    angle = math.acos(max(s)) + (math.radians(40) if c == label else 0)
                    beyond = c == label and angle > math.pi
                    logits.append(8 * (max(s) - math.radians(40) * math.sin(math.radians(40)) if beyond else math.cos(angle)))
                else:
                    weights = [math.exp(v / 0.1) for v in s]
                    mean = sum(w * v for w, v in zip(weights, s, strict=True)) / sum(weights)
                    logits.append(20 * (mean - (0.01 if c == label else 0)))
            total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
        expected = total / len(y)
        if loss is soft:
            unit = centres / centres.norm(dim=2, keepdim=True)
            apart = [float((unit[c, i] - unit[c, j]).norm()) for c in range(7) for i in range(3) for j in range(i)]
            expected += 0.3 * sum(apart) / (7 * 3 * 2)
        assert loss.reference(x, y).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["subcenter_arcface", "soft_triple"])
def test_chunks_of_classes_equal_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, (x, y) = Case(name).create(), BATCHES["odd"]
    whole = value_and_gradients(loss, x, y, loss.reference)
    monkeypatch.setattr(softmax, "CHUNK", 37 * loss.centres * 2)  # two of the seven classes at a time
    assert_close(value_and_gradients(loss, x, y, loss.reference), whole, 1e-12)
    leaf = x.clone().requires_grad_()
    second = []
    for chunk in (37 * loss.centres * 2, 10**9):
        monkeypatch.setattr(softmax, "CHUNK", chunk)
        gradient = torch.autograd.grad(loss.reference(leaf, y), [leaf, loss.proxies], create_graph=True)
        second.append(torch.autograd.grad(sum(g.sin().sum() for g in gradient), [leaf, loss.proxies]))
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-11)


def test_outliers_equal_pytorch_metric_learning() -> None:
    pml = pytest.importorskip("pytorch_metric_learning", reason="the test extra is not installed")
    import pytorch_metric_learning.losses  # noqa: F401

    x, y = BATCHES["odd"]
    y = torch.where(y == 4, 5, y)  # a class without samples
    loss = create("subcenter_arcface", num_classes=7, embedding_dim=11).double()
    peer = pml.losses.SubCenterArcFaceLoss(num_classes=7, embedding_size=11)
    peer.W.data = loss.proxies.data.T.clone()
    for threshold in (60.0, 75.0, 90.0):
        outliers, centres = loss.get_outliers(x, y, threshold)
        theirs, their_centres = peer.get_outliers(x, y, threshold)
        assert outliers.tolist() == sorted(theirs.tolist())
        assert 0 < len(outliers) < len(y)
        present = [0, 1, 2, 3, 5, 6]
        torch.testing.assert_close(centres[present], their_centres.T[present])
        assert not centres[4].any()
        assert torch.equal(loss.get_outliers(x, y, threshold, return_dominant_centers=False), outliers)


def test_regularisers_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # norms 5, 1, 0: mean 2
    value, (gradient,) = value_and_gradients(sec := create("sec", weight=0.5), x, IDS, sec)
    assert value.item() == pytest.approx(0.5 * (9 + 1 + 4) / 3)
    expected = [[2 * 0.5 / 3 * 3 * 0.6, 2 * 0.5 / 3 * 3 * 0.8], [0.0, 2 * 0.5 / 3 * -1], [0.0, 0.0]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))
    value, (gradient,) = value_and_gradients(l2 := create("l2_norm", weight=2.0), x, IDS, l2)
    assert value.item() == pytest.approx(2 * 26 / 3)
    torch.testing.assert_close(gradient, 2 * 2 / 3 * x)


def test_running_mean_of_norms() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)  # mean norm 3
    y = IDS[:2]
    sec = create("sec", rho=0.25).double()
    assert sec.reference(x, y).item() == 4  # the batch's own mean before the first batch
    assert sec.eval()(x, y).item() == 4 and torch.isnan(sec.mu)  # evaluation moves nothing
    assert sec.train()(x, y).item() == 4 and sec.mu == 3
    assert sec(3 * x, y).item() == pytest.approx(((15 - 4.5) ** 2 + (3 - 4.5) ** 2) / 2)  # 3 + 0.25 * (9 - 3)
    assert sec.reference(3 * x, y).item() == pytest.approx(((15 - 4.5) ** 2 + (3 - 4.5) ** 2) / 2)
    value, (gradient,) = value_and_gradients(sec.eval(), x, y, sec)
    torch.testing.assert_close(gradient[1], torch.tensor([0.0, 1 - 4.5], dtype=torch.float64))  # mu is a constant
    sec.train()(x * torch.nan, y)
    sec(x[:0], y[:0])
    assert sec.mu == 4.5
    other = create("sec", rho=0.25).double()
    other.load_state_dict(sec.state_dict())
    assert other.eval()(x, y) == value
    assert not create("sec").state_dict()


def test_regularisers_join_an_ensemble() -> None:
    x, y = BATCHES["zero vectors"]
    members = ["ms", "sec", "norm_softmax", "l2_norm"]
    ensemble = dmlcore.LossEnsemble(members, weights=[1, 2, 3, 4], num_classes=7, embedding_dim=11).double()
    value, gradients = value_and_gradients(ensemble, x, y, ensemble)
    expected = sum(w * loss(x, y) for w, loss in zip([1, 2, 3, 4], ensemble.members, strict=True))
    torch.testing.assert_close(value, expected.detach())
    assert list(ensemble.terms) == members
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", ["sec", "l2_norm", "cross_entropy", "sphereface", "arcface", "soft_triple"])
def test_conformance(name: str) -> None:
    from dmlcore.plugins import find
    from dmlcore.testing import check_loss

    assert all(check.passed for check in check_loss(find("loss", name).component))


OF_MANY_CLASSES = {
    "norm_softmax": {},
    "arcface": {},
    "cross_entropy": {},
    "subcenter_arcface": {},
    "soft_triple": {"centers_per_class": 3},
}


MEASURING = Path(__file__).parent.parent / "benchmarks" / "measuring.py"


@pytest.mark.parametrize(
    ("name", "plain"), [*((name, False) for name in OF_MANY_CLASSES), ("subcenter_arcface", True), ("soft_triple", True)]
)
def test_many_classes_take_little_memory(name: str, plain: bool, tmp_path: Path) -> None:
    code = f"""
import importlib.util, torch, dmlcore
# by its path: beside it lies a dmlcore that need not be the installed one
spec = importlib.util.spec_from_file_location("measuring", {str(MEASURING)!r})
measuring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measuring)
loss = dmlcore.losses.create("{name}", num_classes=50_000, embedding_dim=4, **{OF_MANY_CLASSES[name]})
batch = 1024 // loss.centres  # logits, or the similarities they are made of, of 195 MB
x, y = torch.randn(batch, 4, requires_grad=True), torch.arange(batch) * 48
compute = loss.reference if {plain} else loss
compute(x[:2], y[:2]).backward()
loss.zero_grad(set_to_none=True)
print(loss.is_fused, measuring.peak_of(lambda: compute(x, y).backward()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fused, peak = done.stdout.split()
    assert fused == "True"
    # beside 64 MB of stored tiles, or the parts of a chunk: proxies in unit norm, their gradients, accumulators
    assert float(peak) < 64 + 36, peak


@pytest.mark.parametrize("name", OF_MANY_CLASSES)
@pytest.mark.parametrize("workspace", [0, 200_000, -1])
def test_many_classes_equal_the_definition(name: str, workspace: int) -> None:
    loss = create(name, num_classes=50_000, embedding_dim=4, **OF_MANY_CLASSES[name]).double()
    x, y = embeddings_of(torch.arange(8), 4), torch.arange(8) * 6000
    with dmlcore.kernels.plan_options(workspace=workspace):
        result = value_and_gradients(loss, x, y, loss)
    assert_close(result, value_and_gradients(loss, x, y, loss.reference), 1e-9)


def test_too_many_centres_say_why() -> None:
    loss = create("soft_triple", num_classes=7, embedding_dim=11, centers_per_class=65)
    assert not loss.is_fused and "at most 64" in loss.why_not_fused


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
def test_classes_of_other_sizes_are_refused(labels: list[int]) -> None:
    from dmlcore.kernels import FunctorCall, fused_rows

    x = torch.randn(len(labels), 3)
    with pytest.raises(ValueError, match="same number of references in every class"):
        call = FunctorCall("soft_triple", (2.0, 0.1, 20.0, 0.01))
        fused_rows(x, torch.zeros(len(labels), dtype=torch.int64), x, torch.tensor(labels), (call,))


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_gives_nan(case: Case, bad: float) -> None:
    """Of the fused form and of the definition; in the batch, and among references."""
    x, y = (tensor.clone() for tensor in BATCHES["odd"])
    loss = case.create()
    spoilt = x.clone()
    spoilt[5, 3] = bad
    for compute in (loss, loss.reference):
        assert not torch.isfinite(compute(spoilt, y))
        if loss.takes_references and isinstance(loss, RowLoss):
            assert torch.isnan(compute(x, y, references=spoilt, reference_labels=y))
    if isinstance(loss, RowLoss):
        for plain in (False, True):
            assert torch.isnan(loss.rows(spoilt, y, plain=plain).values[:, 5]).all()
