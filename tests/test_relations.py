"""Positives that equal labels do not say: label matrices, functions of labels, in blocks, with references, in ensembles."""

from __future__ import annotations

import pytest
import torch
from cases import BATCHES, CLASSES, PAIRS, Case, assert_close, embeddings_of, value_and_gradients

import dmlcore
from dmlcore import CrossBatchMemory, LossEnsemble
from dmlcore.errors import ConfigError
from dmlcore.evaluation import retrieval_metrics
from dmlcore.losses import Comparison, compare, create, relations
from dmlcore.losses.path import reduced
from dmlcore.losses.relations import most_positives, related, share_a_label
from dmlcore.losses.streaming import stream_budget

pairs = pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)


def several(count: int, seed: int = 0, labels: int = 9) -> torch.Tensor:
    """`[count, 9]` bool: none to four labels for each sample, unlike any partition into classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, labels, generator=generator) < 0.2


def expected(case: Case, positive: torch.Tensor, x: torch.Tensor, references: torch.Tensor | None = None):
    """The definition on masks given outright: value and gradients of both sides."""
    loss = case.create()
    leaf = x.clone().requires_grad_()
    other = None if references is None else references.clone().requires_grad_()
    nothing = torch.zeros(10**4, dtype=torch.int64)
    comparison = Comparison(leaf, nothing[: len(x)], other, None if other is None else nothing[: len(other)])
    if loss.reshapes:
        comparison = loss.reshaped(comparison)
    negative = ~positive
    if other is None:
        here = torch.eye(len(x), dtype=torch.bool)
        positive, negative = positive & ~here, negative & ~here
    value = reduced(loss.row_values(loss.similarities(comparison), positive, negative), loss.options.reduction)
    inputs = [leaf, *loss.parameters()] if other is None else [leaf, other]
    return value.detach(), list(torch.autograd.grad(value, inputs))


def _by_row(case: Case) -> bool:
    """Whether similarities and masks are all that the definition takes."""
    own = case.name in ("smooth_ap", "angular")  # see which anchors take part, and the references among themselves
    return not (own or case.options.get("swap") or case.options.get("per_class") or case.options.get("sampling"))


plain_rows = pytest.mark.parametrize("case", [case for case in PAIRS if _by_row(case)], ids=lambda case: case.id)


@pytest.mark.parametrize("case", [case for case in PAIRS if not case.options.get("per_class")], ids=lambda case: case.id)
@pytest.mark.parametrize("with_references", [False, True])
def test_fused_and_in_parts_is_the_definition(case: Case, with_references: bool) -> None:
    x, matrix = BATCHES["odd"][0], several(37)
    against = {"references": embeddings_of(torch.arange(50) % 7, seed=8), "reference_labels": several(50, 1)}
    against = against if with_references else {}
    loss = case.create()
    whole = value_and_gradients(loss, x, matrix, loss.reference, **against)
    assert_close(value_and_gradients(loss, x, matrix, loss, **against), whole, 1e-9)
    with pytest.MonkeyPatch.context() as patch, stream_budget(20_000):
        patch.setenv("DML_FUSED", "0")
        assert_close(value_and_gradients(loss, x, matrix, loss, **against), whole, 1e-9)


@plain_rows
@pytest.mark.parametrize("how", ["labels", "relation", "function"])
def test_label_matrices(case: Case, how: str) -> None:
    x, matrix = BATCHES["odd"][0], several(37)
    positive = (matrix[:, None] & matrix[None]).any(2)
    loss = case.create()

    def compute(leaf: torch.Tensor, _: torch.Tensor, **keywords) -> torch.Tensor:
        if how == "labels":
            return loss(leaf, matrix.long(), **keywords)
        if how == "relation":
            return loss(leaf, torch.arange(37), relation=matrix.float(), **keywords)
        return loss(leaf, matrix.double(), relation=lambda a, b: (a[:, None] * b[None]).sum(2) > 0, **keywords)

    assert_close(value_and_gradients(loss, x, matrix, compute), expected(case, positive, x), 1e-9)


@pytest.mark.parametrize(
    "case", [case for case in PAIRS if _by_row(case) and case.name != "lifted_structure"], ids=lambda case: case.id
)
def test_label_matrices_with_references(case: Case) -> None:
    x, matrix = BATCHES["odd"][0], several(37)
    other_matrix = several(50, 1)
    references = embeddings_of(torch.arange(50) % 7, seed=8)
    positive = (matrix[:, None] & other_matrix[None]).any(2)
    loss, results = case.create(), []
    for compute in (loss, loss.reference):
        leaf, other = x.clone().requires_grad_(), references.clone().requires_grad_()
        value = compute(leaf, matrix, references=other, reference_labels=other_matrix)
        results.append((value.detach(), list(torch.autograd.grad(value, [leaf, other]))))
    for result in results:
        assert_close(result, expected(case, positive, x, references), 1e-9)


@pairs
def test_a_function_of_equal_labels_changes_nothing(case: Case) -> None:
    x, y = BATCHES["odd"]
    loss = case.create()
    result = value_and_gradients(loss, x, y, loss, relation=lambda a, b: a[:, None] == b[None])
    assert_close(result, value_and_gradients(loss, x, y, loss.reference), 1e-9)


@pytest.mark.parametrize("name", ["ms", "triplet", "circle"])
def test_a_relation_of_one_direction_only(name: str) -> None:
    x, y = BATCHES["odd"]
    loss = create(name)

    def compute(leaf: torch.Tensor, labels: torch.Tensor, **keywords) -> torch.Tensor:
        return loss(leaf, labels, relation=lambda a, b: a[:, None] <= b[None], **keywords)

    def definition(leaf: torch.Tensor, labels: torch.Tensor, **keywords) -> torch.Tensor:
        return loss.reference(leaf, labels, relation=lambda a, b: a[:, None] <= b[None], **keywords)

    assert_close(value_and_gradients(loss, x, y, compute), value_and_gradients(loss, x, y, definition), 1e-9)


def test_any_labels_with_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that are points in space, positives within a radius, evaluated in blocks of any size."""
    monkeypatch.setattr(relations, "BLOCK", (7, 11))
    x = BATCHES["odd"][0]
    places = torch.rand(37, 2, generator=torch.Generator().manual_seed(2))
    seen = []

    def near(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((len(a), len(b)))
        return torch.cdist(a, b) < 0.3

    positive = torch.cdist(places, places) < 0.3
    for case in (Case("contrastive"), Case("ms"), Case("triplet", {"margin": 0.3})):
        assert_close(
            value_and_gradients(case.create(), x, places, lambda a, b, case=case: case.create()(a, b, relation=near)),
            expected(case, positive, x),
            1e-9,
        )
    assert max(a for a, _ in seen) == 7 and max(b for _, b in seen) == 11


@pytest.mark.parametrize("few", [0, 10**9])  # listed label by label, and by products of blocks
@pytest.mark.parametrize("block", [(5, 8), (5, 64)])
def test_lists_of_positives(monkeypatch: pytest.MonkeyPatch, few: int, block: tuple[int, int]) -> None:
    monkeypatch.setattr(relations, "FEW_PAIRS", few)
    monkeypatch.setattr(relations, "BLOCK", block)
    matrix, other = several(37), several(50, 1)
    x, references = torch.zeros(37, 2), torch.zeros(50, 2)
    own = torch.arange(37) - 1  # the first has none
    cases = [
        (Comparison(x, matrix, relation=share_a_label), (matrix[:, None] & matrix[None]).any(2), torch.arange(37)),
        (Comparison(x, matrix, references, other, own, share_a_label), (matrix[:, None] & other[None]).any(2), own),
        (Comparison(x, matrix, references, other, None, share_a_label), (matrix[:, None] & other[None]).any(2), None),
    ]
    for comparison, positive, without in cases:
        assert most_positives(share_a_label, comparison.labels, comparison.other_labels) == positive.sum(1).max()
        if without is not None:
            positive = positive & (torch.arange(positive.shape[1])[None] != without[:, None])
        start, index = comparison.with_positives().positives
        for i in range(37):
            assert index[start[i] : start[i + 1]].tolist() == positive[i].nonzero().flatten().tolist()
    positives = Comparison(x[:0], matrix[:0], relation=share_a_label).with_positives().positives
    assert positives.start.tolist() == [0] and positives.index.tolist() == []
    positives = Comparison(x, matrix, references[:0], other[:0], None, share_a_label).with_positives().positives
    assert positives.start.tolist() == [0] * 38 and positives.index.tolist() == []
    assert related(share_a_label, matrix, other[:0]).shape == (37, 0)
    assert related(share_a_label, matrix[:0], other).shape == (0, 50)
    assert most_positives(None, torch.arange(37) // 5, torch.arange(37) // 5) == 5


@pytest.mark.parametrize("name", ["contrastive", "ms", "sup_con"])
def test_samples_without_labels_and_with_all(name: str) -> None:
    x = BATCHES["odd"][0]
    loss = create(name)
    for matrix in (torch.zeros(37, 3, dtype=torch.bool), torch.ones(37, 3, dtype=torch.bool), several(37)[:, :0]):
        result = value_and_gradients(loss, x, matrix, loss)
        positive = (matrix[:, None] & matrix[None]).any(2)
        assert_close(result, expected(Case(name), positive, x), 1e-9)


def test_in_an_ensemble_with_proxies() -> None:
    x, y = BATCHES["odd"]
    proxy = create("norm_softmax", num_classes=CLASSES, embedding_dim=x.shape[1]).double()
    members = [create("ms"), proxy, create("contrastive"), create("contrastive", miner="semihard")]
    ensemble = dmlcore.LossEnsemble(members)
    pairs_of_classes = torch.tensor([0, 0, 1, 1, 2, 2, 3])

    def same_kind(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return pairs_of_classes[a][:, None] == pairs_of_classes[b][None]

    leaf = x.clone().requires_grad_()
    total = ensemble(leaf, y, relation=same_kind)
    result = torch.autograd.grad(total, leaf)[0]
    apart = [m.reference(leaf, y) if m is proxy else m.reference(leaf, pairs_of_classes[y]) for m in members]
    torch.testing.assert_close(total, sum(apart))
    torch.testing.assert_close(result, torch.autograd.grad(sum(apart), leaf)[0], rtol=1e-9, atol=1e-11)
    with pytest.raises(ConfigError, match="takes no label matrix"):
        ensemble(x, several(37))


def test_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_FUSED", "0")
    x, matrix = BATCHES["odd"][0], several(37)
    for case in (Case("ms"), Case("triplet", {"margin": 0.3})):
        loss = case.create()
        with stream_budget(0):
            result = value_and_gradients(loss, x, matrix, loss)
        assert_close(result, expected(case, (matrix[:, None] & matrix[None]).any(2), x), 1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_column_of_numbers_is_refused(dtype: torch.dtype) -> None:
    """It would be a matrix of one label, which all classes but 0 share."""
    y = torch.arange(8) // 2
    x = embeddings_of(y, 5)
    column = (y % 2)[:, None].to(dtype)  # 0 and 1, so that the numbers do not give it away
    loss, ensemble, memory = create("ms"), LossEnsemble(["ms", "contrastive"]), CrossBatchMemory(create("ms"), 8, 5)
    for call in (
        lambda: loss(x, column),
        lambda: loss.reference(x, column),
        lambda: loss(x, y, relation=column),
        lambda: loss(x, torch.eye(8)[:, :1].bool(), references=x, reference_labels=column),
        lambda: ensemble(x, column),
        lambda: memory(x, column),
        lambda: memory(x, y, relation=column),
    ):
        with pytest.raises(ConfigError, match=r"a column \[8, 1\] of .*labels\[:, 0\]"):
            call()
    with pytest.raises(ConfigError, match="shape"):
        retrieval_metrics(x, column)
    has = y < 2
    expected = loss(x, torch.stack([has, torch.zeros_like(has)], 1))  # a second label that nobody has
    torch.testing.assert_close(loss(x, has[:, None]), expected)


def test_mistakes() -> None:
    x, y = BATCHES["odd"]
    matrix = several(37)
    loss = create("ms")
    for labels, keywords, words in (
        (matrix.long() * 2, {}, "must hold 0 and 1 only"),
        (matrix[:5], {}, r"must have the shape \[37, L\], got \[5, 9\]"),
        (matrix, {"references": x, "reference_labels": y}, r"shape \[37, L\], got \[37\]"),
        (matrix, {"references": x, "reference_labels": matrix[:, :4]}, "4 columns, but those of embeddings of 9"),
        (y, {"relation": y}, "must be a label matrix"),
        (y, {"relation": lambda a, b: a}, r"must return a bool matrix \[37, 37\] for such blocks, got \[37\]"),
        (y, {"relation": lambda a, b: True}, "got bool"),
        (y[:3], {"relation": lambda a, b: a[:, None] == b}, r"must have the shape \[37, ...\], got \[3\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            loss(x, labels, **keywords)
    proxy = create("proxy_anchor", num_classes=CLASSES, embedding_dim=x.shape[1]).double()
    with pytest.raises(ConfigError, match="takes no label matrix"):
        proxy(x, matrix)
    with pytest.raises(ConfigError, match="compares samples with its own proxies"):
        proxy(x, y, relation=lambda a, b: a[:, None] == b)
    comparison = compare(x, y.int())
    assert comparison.labels.dtype == torch.int64 and comparison.references is None and comparison.relation is None
