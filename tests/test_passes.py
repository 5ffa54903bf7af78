"""All passes of a step in one call: the same numbers as one by one, whatever the heads, the plan and the threads."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from cases import BATCHES, CLASSES, FUSED, WIDTH, Case, assert_close, value_and_gradients
from torch import Tensor

from dmlcore import LossEnsemble
from dmlcore.errors import ConfigError, PluginError
from dmlcore.kernels import FunctorCall, Pass, extension, fused_passes, fused_rows, gram, plan_options, recorded_passes
from dmlcore.kernels.cpu import CpuPasses, weighted_sum
from dmlcore.losses import create

pytestmark = pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built")
X, Y = BATCHES["odd"]
WIDE = torch.cat([X, X.flip(0) + 0.3 * X, X[:, :7]], dim=1)  # three heads, the last one narrower: [37, 29]
HEADS = ((0, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 2 * WIDTH + 7))
MS, CONTRASTIVE, SUP_CON = (
    FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),
    FunctorCall("contrastive", (0.0, 1.0)),
    FunctorCall("sup_con", (0.1,)),
)
PLANS: dict[str, dict[str, int]] = {
    "planned": {},
    "recomputed in small tiles": {"tile_rows": 5, "tile_columns": 32, "workspace": 0},
    "spread over two threads": {"threads": 2, "thread_work": 20_000},
    "two threads for each": {"threads": 2, "thread_work": 1, "tile_rows": 8, "tile_columns": 16},
    "two threads in chunks": {"threads": 2, "thread_work": 1, "slot_bytes": 4000},
}


def heads_of(case: Case, dtype: torch.dtype) -> list[Any]:
    return [case.create(dtype, width=last - first, seed=first) for first, last in HEADS]


def apart(losses: list[Any], weights: Tensor, x: Tensor, y: Tensor, columns: Any, **keywords: Any) -> Tensor:
    """The weighted sum, each loss called alone on its columns."""
    references = keywords.pop("references", None)
    parts = []
    for loss, weight, (first, last) in zip(losses, weights.unbind(), columns, strict=True):
        own_keywords = {} if loss.needs_classes else dict(keywords)
        if references is not None and not loss.needs_classes:
            own_keywords["references"] = references[:, first:last]
        parts.append(weight * loss(x[:, first:last], y, **own_keywords))
    return torch.stack(parts).sum()


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_heads_equal_losses_called_alone(case: Case) -> None:
    losses, weights = heads_of(case, torch.float64), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    ensemble = LossEnsemble(losses, weights=weights, columns=HEADS).double()
    expected = value_and_gradients(ensemble.losses, WIDE, Y, lambda x, y: apart(losses, weights, x, y, HEADS))
    for plan in PLANS.values():
        with plan_options(**plan):
            assert_close(value_and_gradients(ensemble.losses, WIDE, Y, ensemble), expected, 1e-9)


MIXED: dict[str, list[Any]] = {
    "pairs and proxies": [("ms", {}), ("proxy_anchor", {}), ("norm_softmax", {}), ("triplet", {}), ("proxy_nca", {})],
    "given and tables": [("margin", {"learn_beta": True}), ("histogram", {}), ("smooth_ap", {}), ("ms", {})],
    "windows": [("contrastive", {"miner": "multi_similarity"}), ("ms", {}), ("sup_con", {"miner": "batch_hard"})],
    "completed": [("triplet", {"variant": "wedl"}), ("norm_softmax", {"label_smoothing": 0.2}), ("sphereface", {})],
    "plain beside fused": [("ms", {}), ("triplet", {"swap": True}), ("sec", {}), ("contrastive", {}), ("angular", {})],
    "reductions": [("ms", {"reduction": "mean"}), ("contrastive", {"reduction": "sum"}), ("ms", {})],
}


@pytest.mark.parametrize("members", MIXED)
@pytest.mark.parametrize("heads", [False, True])
def test_mixed_members_equal_losses_called_alone(members: str, heads: bool) -> None:
    torch.manual_seed(0)
    losses = [create(name, **options, num_classes=CLASSES, embedding_dim=WIDTH).double() for name, options in MIXED[members]]
    columns = [HEADS[k % 2] for k in range(len(losses))] if heads else [(0, WIDTH)] * len(losses)
    x = WIDE if heads else X
    weights = torch.linspace(0.5, 2, len(losses), dtype=torch.float64)
    ensemble = LossEnsemble(losses, weights=weights, columns=columns if heads else None).double()
    ensemble.eval()  # regularisers move their means in training
    expected = value_and_gradients(ensemble.losses, x, Y, lambda a, y: apart(losses, weights, a, y, columns))
    for plan in PLANS.values():
        with plan_options(**plan):
            assert_close(value_and_gradients(ensemble.losses, x, Y, ensemble), expected, 1e-9)


@pytest.mark.parametrize("members", MIXED)
@pytest.mark.parametrize("heads", [False, True])
def test_gradients_of_single_terms_add_up_to_that_of_the_sum(members: str, heads: bool) -> None:
    torch.manual_seed(0)
    losses = [create(name, **options, num_classes=CLASSES, embedding_dim=WIDTH).double() for name, options in MIXED[members]]
    columns = [HEADS[k % 2] for k in range(len(losses))] if heads else [(0, WIDTH)] * len(losses)
    x = WIDE if heads else X
    weights = torch.linspace(0.5, 2, len(losses), dtype=torch.float64)
    weights[1] = 0
    ensemble = LossEnsemble(losses, weights=weights, columns=columns if heads else None).double()
    ensemble.eval()
    ensemble.training = ensemble.measures_gradients = True  # but no member moves its means
    expected = value_and_gradients(ensemble.losses, x, Y, lambda a, y: apart(losses, weights, a, y, columns))
    assert_close(value_and_gradients(ensemble.losses, x, Y, ensemble), expected, 1e-9)
    for k, norm in enumerate(ensemble.gradient_norms.values()):
        leaf = x.clone().requires_grad_()
        apart(losses[k : k + 1], torch.ones(1), leaf, Y, columns[k : k + 1]).backward()
        assert norm.item() == pytest.approx(leaf.grad.norm().item(), rel=1e-9, abs=1e-12)


def test_terms_that_see_what_comes_from_the_embeddings_are_left_to_autograd() -> None:
    ensemble = LossEnsemble([create("ms"), create("sup_con")], weights=[1.0, 2.0]).double()
    ensemble.measures_gradients = True
    leaf = X.clone().requires_grad_()
    ensemble(leaf, Y, references=leaf * 2 + leaf.flip(0), reference_labels=Y).backward()
    for k, (loss, norm) in enumerate(zip(ensemble.members, ensemble.gradient_norms.values(), strict=True)):
        alone = X.clone().requires_grad_()
        loss.reference(alone, Y, references=alone * 2 + alone.flip(0), reference_labels=Y).backward()
        assert norm.item() == pytest.approx(alone.grad.norm().item(), rel=1e-9)
        leaf.grad -= (k + 1) * alone.grad
    assert leaf.grad.abs().max() < 1e-9


@pytest.mark.parametrize("size", [1, 31, 32, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_are_the_same_bits_on_every_instruction_set(size: int, dtype: torch.dtype) -> None:
    rows = torch.randn(3, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    products = []
    for level in extension.CPU.levels():
        extension.CPU.use_level(level)
        products.append(gram(rows))
    assert all(torch.equal(product, products[0]) for product in products)
    torch.testing.assert_close(products[0], rows.double() @ rows.double().T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 31, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_sums(size: int, dtype: torch.dtype) -> None:
    rows = torch.randn(4, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows[1] = torch.nan
    for level in extension.CPU.levels():
        extension.CPU.use_level(level)
        total = weighted_sum(rows, [0.5, 0.0, -2.0, 1 / 3])
        torch.testing.assert_close(total, 0.5 * rows[0] - 2 * rows[2] + rows[3] / 3)
        assert weighted_sum(rows, [0.0] * 4).count_nonzero() == 0


@pytest.mark.parametrize("relation", ["references", "own", "matrix", "function"])
def test_heads_with_references_and_relations(relation: str) -> None:
    losses = [create("ms"), create("triplet"), create("sup_con")]
    weights = torch.ones(3, dtype=torch.float64)
    labels, keywords = Y, {}
    if relation in ("references", "own"):
        order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(1))
        keywords = {"references": WIDE[order].clone().requires_grad_(), "reference_labels": Y[order]}
        if relation == "own":
            keywords["own"] = torch.argsort(order)
    elif relation == "matrix":
        labels = torch.nn.functional.one_hot(torch.stack([Y, Y.roll(1)]), CLASSES).amax(0)
    else:
        keywords = {"relation": lambda a, b: a[:, None] % 3 == b[None] % 3}
    ensemble = LossEnsemble(losses, columns=HEADS).double()
    results = []
    for compute in (lambda x: apart(losses, weights, x, labels, HEADS, **keywords), lambda x: ensemble(x, labels, **keywords)):
        leaf = WIDE.clone().requires_grad_()
        inputs = [leaf, *([keywords["references"]] if "references" in keywords else [])]
        value = compute(leaf)
        results.append((value.detach(), list(torch.autograd.grad(value, inputs))))
    assert_close(results[1], results[0], 1e-9)


def head_passes(x: Tensor) -> list[Pass]:
    calls = ((MS, CONTRASTIVE), (SUP_CON,), (MS,))
    return [
        Pass(x[:, a:b], Y, None, None, functors, anchors_in=(x, a), owners=tuple(range(1 + 2 * (k == 0))))
        for k, ((a, b), functors) in enumerate(zip(HEADS, calls, strict=True))
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_those_of_single_passes(threads: int) -> None:
    x = WIDE.float()
    for plan in ({}, {"tile_rows": 8, "tile_columns": 16}, {"workspace": 0}):
        with plan_options(threads=threads, thread_work=20_000, **plan):
            leaf = x.clone().requires_grad_()
            passed = fused_passes(head_passes(leaf), 3)
            cotangents = [torch.randn(values.shape) for values, _, _ in map(passed.of, range(3))]
            total = torch.stack([(passed.of(k)[0] * cotangent).sum() for k, cotangent in enumerate(cotangents)]).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
            for k, (pass_, cotangent) in enumerate(zip(head_passes(x), cotangents, strict=True)):
                alone = pass_.anchors.clone().requires_grad_()
                values, counts = fused_rows(alone, Y, None, None, pass_.calls)
                assert torch.equal(values, passed.of(k)[0]) and torch.equal(counts, passed.of(k)[1])
                (single,) = torch.autograd.grad((values * cotangent).sum(), alone)
                assert torch.equal(single, gradient[:, slice(*HEADS[k])])


def test_small_passes_are_spread_over_threads() -> None:
    passes = [pass_._replace(owners=None) for pass_ in head_passes(WIDE.contiguous())]
    with plan_options(threads=2, thread_work=20_000):
        assert CpuPasses(passes).passes.team == 2 and CpuPasses(passes[:1]).passes.team == 0
    with plan_options(threads=2, thread_work=1):
        assert CpuPasses(passes).passes.team == 0 and CpuPasses(passes).plan(2)["threads"] == 2
    with plan_options(threads=1):
        assert CpuPasses(passes).passes.team == 0


def test_columns_that_overlap_or_are_left_out() -> None:
    columns = [(0, 8), (4, 12), (4, 12), (13, 20)]
    losses = [create("ms"), create("contrastive"), create("norm_softmax", num_classes=CLASSES, embedding_dim=8).double()]
    losses.append(create("triplet"))
    weights = torch.ones(4, dtype=torch.float64)
    ensemble = LossEnsemble(losses, columns=columns).double()
    result = value_and_gradients(ensemble, WIDE, Y, ensemble)
    assert_close(result, value_and_gradients(ensemble, WIDE, Y, lambda x, y: apart(losses, weights, x, y, columns)), 1e-9)
    assert not result[1][0][:, 12].any() and not result[1][0][:, 20:].any()


def test_a_term_reaches_its_own_head_only() -> None:
    """What measuring each loss's gradient relies on: other heads take no part, not even where they hold NaN."""
    leaf = WIDE.clone()
    leaf[3, HEADS[1][0]] = torch.nan
    ensemble = LossEnsemble(["ms", "triplet", "sup_con"], columns=HEADS).double()
    ensemble.measures_gradients = True
    leaf.requires_grad_()
    total = ensemble(leaf, Y)
    assert torch.isnan(total) and torch.isnan(ensemble.terms["triplet"])
    norms = list(ensemble.gradient_norms.values())
    for k in (0, 2):
        other = WIDE[:, slice(*HEADS[k])].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ensemble.members[k](other, Y), other)
        torch.testing.assert_close(norms[k], gradient.norm())
    (gradient,) = torch.autograd.grad(total, leaf)
    assert torch.isnan(gradient[:, slice(*HEADS[1])]).any() and torch.isfinite(gradient[:, : HEADS[0][1]]).all()


def test_an_anchor_that_is_not_finite_is_nan_in_its_head() -> None:
    x = WIDE.clone()
    x[5, 0] = torch.inf
    passed = fused_passes(head_passes(x), 3)
    for k, broken in enumerate((True, False, False)):
        values = passed.of(k)[0]
        assert bool(torch.isnan(values[:, 5]).all()) == broken and bool(torch.isfinite(values[:, 6]).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    low, ensemble = WIDE.to(dtype), LossEnsemble(["ms", "triplet", "sup_con"], columns=HEADS)
    half, single = low.clone().requires_grad_(), low.float().requires_grad_()
    value, exact = ensemble(half, Y), ensemble(single, Y)
    assert value.dtype == torch.float32 and torch.equal(value, exact)
    (gradient,), (expected,) = torch.autograd.grad(value, half), torch.autograd.grad(exact, single)
    assert gradient.dtype == dtype and torch.equal(gradient, expected.to(dtype))


def test_derivatives_are_taken_once_and_state_is_freed() -> None:
    leaf = WIDE.clone().requires_grad_()
    terms = fused_passes(head_passes(leaf), 3).terms
    (first,) = torch.autograd.grad(terms.sum(), leaf, retain_graph=True)
    (again,) = torch.autograd.grad(terms.sum(), leaf, retain_graph=True)
    assert torch.equal(first, again)
    with pytest.raises(ConfigError, match="differentiable once"):
        torch.autograd.grad(terms.sum(), leaf, create_graph=True)
    node: Any = terms.grad_fn
    state = weakref.ref(node.passes)
    terms.sum().backward()
    gc.collect()
    assert state() is None and terms.requires_grad  # the value lives, the tiles do not
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        terms.sum().backward()


def test_one_node_serves_all_heads_and_proxies() -> None:
    ensemble = LossEnsemble(["ms", create("proxy_anchor", num_classes=CLASSES, embedding_dim=WIDTH), "sup_con"], columns=HEADS)
    with recorded_passes() as passes:
        total = ensemble(WIDE.float().requires_grad_(), Y)
    assert len(passes) == 3
    seen, nodes = [total.grad_fn], []
    while seen:
        node = seen.pop()
        nodes.append(node.name())
        seen += [child for child, _ in node.next_functions if child is not None]
    assert nodes.count("_FusedPassesBackward") == 1 and not [name for name in nodes if "Slice" in name or "Narrow" in name]


def test_tensors_on_another_device_are_refused() -> None:
    with pytest.raises(ConfigError, match="are on meta and cpu; move them to one"):
        fused_rows(X, Y, X.to("meta"), Y.to("meta"), (MS,))


def test_a_subclass_may_complete_what_its_base_does_not() -> None:
    base = type(create("triplet"))

    def complete(self: Any, rows: Any, comparison: Any, context: Any) -> Any:
        return rows._replace(values=3 * rows.values)

    tripled = type("Tripled", (base,), {"completes": True, "complete": complete})
    expected = 3 * create("triplet")(X, Y)
    torch.testing.assert_close(tripled()(X, Y), expected)
    torch.testing.assert_close(LossEnsemble([tripled(), "ms"])(X, Y), expected + create("ms")(X, Y))


@pytest.mark.parametrize(
    ("method", "attribute"),
    [
        ("complete", "completes"),
        ("dense_rows", "streams"),
        ("reduce", "reduces"),
        ("reshaped", "reshapes"),
        ("forward", "by_rows"),
        ("value_of", "by_rows"),
    ],
)
@pytest.mark.parametrize("is_mixed_in", [False, True])
def test_a_method_says_what_it_means(method: str, attribute: str, is_mixed_in: bool) -> None:
    base = type(create("ms"))
    body: dict[str, Any] = {method: lambda *_, **__: torch.tensor(0.0)}
    bases: tuple[type, ...] = (base,)
    if is_mixed_in:
        bases, body = (type("Mixin", (), body), base), {}
    with pytest.raises(PluginError, match=f"writes `{method}`, so it must say what that means by the attribute `{attribute}`"):
        type("Silent", bases, body)
    outspoken = type("Outspoken", bases, {**body, attribute: False})
    type("Heir", (outspoken,), {})


def test_owners_are_checked() -> None:
    with pytest.raises(ValueError, match="owners must be one per value"):
        fused_passes([Pass(X, Y, None, None, (CONTRASTIVE,), owners=(0,))], 1)
    with pytest.raises(ValueError, match="owners must be terms"):
        fused_passes([Pass(X, Y, None, None, (MS,), owners=(1,))], 1)


def test_single_precision_is_the_same_every_time_and_on_any_team() -> None:
    ensemble = LossEnsemble(["ms", "triplet", "sup_con"], columns=HEADS)
    runs = []
    for threads in (1, 2, 2):
        with plan_options(threads=threads, thread_work=20_000):
            runs.append(value_and_gradients(ensemble, WIDE.float(), Y, ensemble))
    for value, gradients in runs[1:]:
        assert torch.equal(value, runs[0][0]) and torch.equal(gradients[0], runs[0][1][0])


def test_compiled_heads_equal_eager_ones() -> None:
    torch.compiler.reset()
    proxies = create("proxy_anchor", num_classes=CLASSES, embedding_dim=WIDTH)
    ensemble = LossEnsemble(["ms", proxies, "contrastive"], columns=HEADS)
    results = []
    for compute in (ensemble, torch.compile(lambda a, b: ensemble(a, b), fullgraph=True, backend="aot_eager")):
        leaf = WIDE.float().requires_grad_()
        value = compute(leaf, Y)
        results.append([value.detach(), *torch.autograd.grad(value, [leaf, *ensemble.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)
