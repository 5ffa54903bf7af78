"""Miners: the pairs they choose, against pytorch-metric-learning and nested loops; how losses use them, fused or in parts."""

from __future__ import annotations

import copy
import importlib
import math
from dataclasses import dataclass

import pytest
import torch
from cases import BATCHES, CLASSES, PAIRS, WIDTH, Case, assert_close, embeddings_of, value_and_gradients
from dmlcore_plugins.losses.class_shared import TripletPerAnchorLoss

import dmlcore
from dmlcore import plugins
from dmlcore.errors import ConfigError
from dmlcore.kernels import plan_options
from dmlcore.losses import Comparison, Miner, PairLoss, PairOptions, Rows, WindowMiner, build_miner, create
from dmlcore.losses.mining import Compared, Mining, extremes_of
from dmlcore.losses.path import RowMeasure
from dmlcore.losses.streaming import stream_budget

PEERS = {
    "batch_hard": ("BatchHardMiner", {}),
    "easy_positive": ("BatchEasyHardMiner", {"pos_strategy": "easy", "neg_strategy": "semihard"}),
    "easy_positive(negatives=hard)": ("BatchEasyHardMiner", {"pos_strategy": "easy", "neg_strategy": "hard"}),
    "multi_similarity": ("MultiSimilarityMiner", {"epsilon": 0.1}),
    "multi_similarity(epsilon=0.4)": ("MultiSimilarityMiner", {"epsilon": 0.4}),
    "multi_similarity(epsilon=-0.2)": ("MultiSimilarityMiner", {"epsilon": -0.2}),
    "pair_margin": ("PairMarginMiner", {}),
    "pair_margin(pos_margin=0.9, neg_margin=1.3)": ("PairMarginMiner", {"pos_margin": 0.9, "neg_margin": 1.3}),
    "semihard": ("TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}),
    "semihard(margin=0.05)": ("TripletMarginMiner", {"margin": 0.05, "type_of_triplets": "semihard"}),
    "angular": ("AngularMiner", {"angle": 20}),
    "angular(angle=35)": ("AngularMiner", {"angle": 35}),
}
TEXTS = [*PEERS, "distance_weighted(nonzero_loss_cutoff=1.6, seed=5)"]
FUSED = [text for text in TEXTS if isinstance(build_miner(text), WindowMiner) or build_miner(text).semihard_margin is not None]


def comparison_of(text: str, x, y, references=None, reference_labels=None, own=None, first: int = 0) -> Comparison:
    miner = build_miner(text)
    mining = Mining(miner, miner.next_draw(advance=False), x, x if references is None else references, first)
    return Comparison(x, y, references, reference_labels, own, None, mining)


def masks_of(text: str, *arguments, **keywords) -> tuple[torch.Tensor, torch.Tensor]:
    return comparison_of(text, *arguments, **keywords).masks()


def pairs_of_peer(text: str, x, y, references=None, reference_labels=None) -> tuple[torch.Tensor, torch.Tensor]:
    miners = pytest.importorskip("pytorch_metric_learning.miners", reason="the test extra is not installed")
    name, options = PEERS[text]
    against = () if references is None else (references, reference_labels)
    indices = getattr(miners, name)(**options)(x, y, *against)
    if len(indices) == 3:
        indices = (indices[0], indices[1], indices[0], indices[2])
    shape = (len(y), len(y) if references is None else len(references))
    positive, negative = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    positive[indices[0], indices[1]] = True
    negative[indices[2], indices[3]] = True
    return positive, negative


@pytest.mark.parametrize("text", PEERS)
@pytest.mark.parametrize("batch", ["odd", "sorted", "large", "unbalanced", "one class", "all different", "two of a class"])
def test_pairs_are_those_of_pytorch_metric_learning(text: str, batch: str) -> None:
    x, y = BATCHES[batch]
    for mask, other in zip(masks_of(text, x, y), pairs_of_peer(text, torch.nn.functional.normalize(x), y), strict=True):
        assert torch.equal(mask, other)


@pytest.mark.parametrize("text", PEERS)
def test_pairs_against_references(text: str) -> None:
    x, y = BATCHES["odd"]
    labels = torch.tensor([0, 1, 1, 1, 9, 3, 0, 0, 5, 5, 6, 8] * 4)
    references = embeddings_of(labels, seed=8)
    unit = torch.nn.functional.normalize
    peer = pairs_of_peer(text, unit(x), y, unit(references), labels)
    for mask, other in zip(masks_of(text, x, y, references, labels), peer, strict=True):
        assert torch.equal(mask, other)


def test_hardness_by_loops() -> None:
    x, y = BATCHES["odd"]
    unit = x / x.norm(dim=1, keepdim=True)
    d = (unit[:, None] - unit[None]).norm(dim=2)
    hard, easy, band = (masks_of(text, x, y) for text in ("batch_hard", "easy_positive", "semihard(margin=0.3)"))
    for a in range(len(y)):
        positives = [p for p in range(len(y)) if p != a and y[p] == y[a]]
        negatives = [n for n in range(len(y)) if y[n] != y[a]]
        if not positives:
            assert not any(mask[a].any() for pair in (hard, easy, band) for mask in pair)
            continue
        assert hard[0][a].nonzero().flatten().tolist() == [max(positives, key=lambda p: d[a, p])]
        assert hard[1][a].nonzero().flatten().tolist() == [min(negatives, key=lambda n: d[a, n])]
        nearest = min(positives, key=lambda p: d[a, p])
        beyond = [n for n in negatives if d[a, n] > d[a, nearest]]
        assert easy[0][a].nonzero().flatten().tolist() == ([nearest] if beyond else [])
        assert easy[1][a].nonzero().flatten().tolist() == ([min(beyond, key=lambda n: d[a, n])] if beyond else [])
        triplets = [(p, n) for p in positives for n in negatives if d[a, p] < d[a, n] <= d[a, p] + 0.3]
        assert set(band[0][a].nonzero().flatten().tolist()) == {p for p, _ in triplets}
        assert set(band[1][a].nonzero().flatten().tolist()) == {n for _, n in triplets}


def test_ties_count_together() -> None:
    x, y = BATCHES["odd"]
    twice = torch.cat([x, x])
    positive, negative = masks_of("batch_hard", twice, torch.cat([y, y]))
    single, other = masks_of("batch_hard", x, y)
    # beside a copy every anchor has its own copy as nearest positive; the farthest are two where there was one
    farther = single.any(1)
    assert torch.equal(negative[:37][farther], torch.cat([other, other], 1)[farther])
    assert torch.equal(positive[:37][farther], torch.cat([single, single], 1)[farther])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_choices_are_subsets_and_rows_stand_alone(text: str, batch: str) -> None:
    x, y = BATCHES[batch]
    all_pairs = Comparison(x, y).masks()
    mined = masks_of(text, x, y)
    for whole, part in zip(all_pairs, mined, strict=True):
        assert not (part & ~whole).any()
    own = torch.arange(len(y))
    for start in range(0, len(y), 5):
        if "duplicates" in batch or batch in ("collapsed", "opposite"):
            break  # which of coincident points is nearer is decided by the last bit of a product
        some = masks_of(text, x[start : start + 5], y[start : start + 5], x, y, own[start : start + 5], first=start)
        for whole, part in zip(mined, some, strict=True):
            assert torch.equal(whole[start : start + 5], part)


@pytest.mark.parametrize("text", TEXTS)
def test_no_references_and_no_anchors(text: str) -> None:
    x, y = BATCHES["odd"]
    assert [mask.shape for mask in masks_of(text, x, y, x[:0], y[:0])] == [(37, 0)] * 2
    assert [mask.shape for mask in masks_of(text, x[:0], y[:0])] == [(0, 0)] * 2


NEED_ALL_PAIRS = ("lifted_structure", "intra_pair_variance", "angular")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)
def test_every_pair_loss_mines(text: str, case: Case) -> None:
    """Fused, in parts and at once: one value and gradient."""
    x, y = BATCHES["odd"]
    loss = create(case.name, num_classes=CLASSES, embedding_dim=WIDTH, **case.options, miner=text).double()
    assert loss.options.miner == text and loss.miner.text == build_miner(text).text
    if text not in FUSED:
        assert not loss.is_fused
    elif case.fused and loss.normalise == (True, True) and case.name not in NEED_ALL_PAIRS:
        assert loss.is_fused, loss.why_not_fused
    whole = value_and_gradients(loss, x, y, loss.reference)
    loss.eval()  # a miner that draws repeats itself
    assert_close(value_and_gradients(loss, x, y, loss), whole, 1e-9)
    with pytest.MonkeyPatch.context() as patch, stream_budget(20_000):
        patch.setenv("DML_FUSED", "0")
        assert_close(value_and_gradients(loss, x, y, loss), whole, 1e-9)
    labels = torch.tensor([0, 1, 1, 1, 9, 3, 0, 0, 5, 5, 6, 8] * 3 + [0])
    references, own = embeddings_of(labels, seed=8), torch.where(y == labels, torch.arange(37), -1)
    keywords = {"references": references, "reference_labels": labels, "own": own}
    assert_close(
        value_and_gradients(loss, x, y, loss, **keywords), value_and_gradients(loss, x, y, loss.reference, **keywords), 1e-9
    )


@pytest.mark.parametrize("text", ["batch_hard", "multi_similarity", "pair_margin(pos_margin=0.9, neg_margin=1.3)"])
@pytest.mark.parametrize(
    "name, peer, options",
    [("contrastive", "ContrastiveLoss", {}), ("ms", "MultiSimilarityLoss", {"epsilon": "none"}), ("circle", "CircleLoss", {})],
)
def test_mined_losses_equal_pytorch_metric_learning(text: str, name: str, peer: str, options: dict) -> None:
    miners = pytest.importorskip("pytorch_metric_learning.miners", reason="the test extra is not installed")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x, y = BATCHES["large"]
    miner, miner_options = PEERS[text]

    def theirs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return getattr(losses, peer)()(a, b, getattr(miners, miner)(**miner_options)(a, b))

    loss = create(name, miner=text, **options)
    assert_close(value_and_gradients(loss, x, y, loss.reference), value_and_gradients(loss, x, y, theirs), 1e-7)


@pytest.mark.parametrize("batch", ["odd", "large", "unbalanced", "one class", "all different", "one sample"])
@pytest.mark.parametrize("plan", [{}, {"workspace": 0, "tile_rows": 8}, {"threads": 2, "triangle": 0, "tile_columns": 16}])
def test_extremes_of_rows_by_the_kernels(batch: str, plan: dict) -> None:
    x, y = BATCHES[batch]
    unit = torch.nn.functional.normalize(x)
    masks = Comparison(x, y).masks()
    measure = RowMeasure(Comparison(x, y))
    generator = torch.Generator().manual_seed(0)
    low, high = torch.rand(2, 2, len(y), generator=generator, dtype=torch.float64).sub(0.5).sort(0).values
    windows = torch.stack([low[0], high[0], low[1], high[1]])
    with plan_options(**plan):
        for bounds in (None, windows):
            s = unit @ unit.T
            narrowed = masks
            if bounds is not None:
                narrowed = tuple(
                    mask & (s >= bounds[2 * k][:, None]) & (s <= bounds[2 * k + 1][:, None]) for k, mask in enumerate(masks)
                )
            for extremes, other in zip(measure(bounds), extremes_of(s, *narrowed), strict=True):
                torch.testing.assert_close(extremes, other, rtol=1e-12, atol=1e-12)


def test_members_of_an_ensemble_mine_each_for_itself() -> None:
    x, y = BATCHES["large"]
    texts = ["batch_hard", None, "multi_similarity", "semihard", "easy_positive"]
    members = [
        create(name, miner=text)
        for name, text in zip(["ms", "sup_con", "contrastive", "ms", "contrastive"], texts, strict=True)
    ]
    ensemble = dmlcore.LossEnsemble(members)
    assert [item["fused"] for item in ensemble.describe()] == [True] * 5
    leaf = x.clone().requires_grad_()
    total = ensemble(leaf, y)
    gradient = torch.autograd.grad(total, leaf)[0]
    expected = sum(member.reference(leaf, y) for member in members)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-9, atol=1e-11)


def test_distance_weighted_draws_by_its_weights() -> None:
    width, classes = 4, 60
    y = torch.arange(classes).repeat(2)
    x = torch.nn.functional.normalize(torch.randn(2 * classes, width, generator=torch.Generator().manual_seed(1)).double())
    miner = build_miner("distance_weighted(cutoff=0.6, nonzero_loss_cutoff=1.5)")
    positive, negative = Comparison(x, y).masks()
    d = (x[:1] - x).norm(dim=1)
    q = d.clamp_min(0.6)
    weights = 1 / (q ** (width - 2) * (1 - q**2 / 4) ** ((width - 3) / 2)) * negative[0] * (q < 1.5)
    draws, counts = 4000, torch.zeros(2 * classes, dtype=torch.float64)
    for draw in range(draws):
        compared = Compared(x[:1], x, torch.zeros(1, dtype=torch.int64), torch.tensor(draw))
        p, n = miner.masks((x @ x.T)[:1], positive[:1], negative[:1], compared)
        assert torch.equal(p, positive[:1]) and n.sum() == 1  # one positive, so one negative
        counts += n[0]
    expected = draws * weights / weights.sum()
    assert bool((counts[expected == 0] == 0).all())
    drawn = expected > 0
    chi = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    freedom = int(drawn.sum()) - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_are_new_in_training_and_kept_in_the_state() -> None:
    x, y = BATCHES["large"]
    loss = create("contrastive", miner="distance_weighted(seed=3)")
    first, second = loss(x, y), loss(x, y)
    assert first != second
    torch.testing.assert_close(loss.reference(x, y), second)  # the definition repeats the last draw
    state = copy.deepcopy(loss.state_dict())
    assert state["miner.draws"] == 2
    third = loss(x, y)
    other = create("contrastive", miner="distance_weighted(seed=3)")
    other.load_state_dict(state)
    assert torch.equal(other(x, y), third)
    loss.eval()
    assert torch.equal(loss(x, y), third) and torch.equal(loss(x, y), third)
    assert create("contrastive", miner="distance_weighted(seed=4)")(x, y) != first
    # what backward computes again uses the draw of its own forward pass
    loss.train()
    leaf = x.clone().requires_grad_()
    with stream_budget(10_000):
        value = loss(leaf, y)
        expected = torch.autograd.grad(loss.reference(leaf, y), leaf)[0]
        loss(x, y)
        torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], expected, rtol=1e-9, atol=1e-12)


def test_a_miner_of_ones_own() -> None:
    class Nearby(Miner):
        """Pairs with a cosine above a bound."""

        name = "nearby"

        @dataclass(frozen=True, kw_only=True)
        class Options:
            """Options of `nearby`."""

            least: float = 0.0
            """Lowest cosine that counts."""

        def masks(self, similarities, positive, negative, compared):
            near = similarities >= self.options.least
            return positive & near, negative & near

    x, y = BATCHES["odd"]
    loss = create("contrastive", miner=Nearby(least=0.2))
    assert loss.options.miner == "nearby(least=0.2)" and "nearby" in loss.why_not_fused
    unit = torch.nn.functional.normalize(x)
    s = unit @ unit.T
    positive, negative = Comparison(x, y).masks()
    expected = Case("contrastive").create().row_values(s, positive & (s >= 0.2), negative & (s >= 0.2))
    torch.testing.assert_close(loss(x, y), (expected.values.sum(1) / expected.counts.sum(1)).sum())
    with pytest.raises(ConfigError, match="takes no miner"):
        create("norm_softmax", num_classes=3, embedding_dim=2, miner=Nearby())


def test_every_pair_loss_takes_a_miner() -> None:
    without = [
        entry.name
        for entry in plugins.registry("loss").values()
        if issubclass(entry.component, PairLoss)
        and not issubclass(entry.component, TripletPerAnchorLoss)  # draws by itself: a miner has nothing to choose
        and not issubclass(entry.component.Options, PairOptions)
    ]
    assert not without, f"Options of {without} must derive from PairOptions"


def test_mistakes_name_the_nearest() -> None:
    for text, words in {
        "batch_hrad": "no miner 'batch_hrad'. Did you mean 'batch_hard'",
        "semihard(margn=1)": "no option 'margn'. Did you mean 'margin'",
        "semihard(margin=5)": "margin is 5.0, but must be >= 0 and <= 2",
        "semihard(0.2)": "not of the form option=value",
        "semihard(margin=0.1, margin=0.2)": "given twice",
        "semi hard(": "must be a name",
        "easy_positive(negatives=al)": "must be one of semihard, hard",
    }.items():
        with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
            create("contrastive", miner=text)
    with pytest.raises(ConfigError, match="has no option 'miner'"):
        create("proxy_nca", num_classes=3, embedding_dim=2, miner="batch_hard")

    class Old(PairLoss):
        """A loss whose options know no miner."""

        name = "old"
        Options = dmlcore.losses.LossOptions

        def row_values(self, similarities, positive, negative) -> Rows:
            values = (similarities * negative).sum(1)[None]
            return Rows(values, torch.ones_like(values))

    assert Old().miner is None
    with pytest.raises(ConfigError, match="must derive from PairOptions"):
        Old().use_miner("batch_hard")


def test_raw_vectors_are_mined_by_cosines_in_plain_pytorch() -> None:
    x, y = BATCHES["odd"]
    loss = create("contrastive", distance="dot", pos_margin=-2.0, miner="batch_hard")
    assert "raw vectors" in loss.why_not_fused
    positive, negative = masks_of("batch_hard", x, y)
    rows = create("contrastive", distance="dot", pos_margin=-2.0).row_values(x @ x.T, positive, negative)
    torch.testing.assert_close(loss(x, y), (rows.values.sum(1) / rows.counts.sum(1).clamp_min(1)).sum())


@pytest.mark.parametrize("per_class", [1, 2, 5, 40])
def test_both_ways_of_semihard_mining_choose_the_same(per_class: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dmlcore_plugins.miners.semihard")
    x, y = torch.randn(80, 6, generator=torch.Generator().manual_seed(per_class)), torch.arange(80) // per_class
    x[3], x[9] = x[70], x[8]  # equal distances
    both = []
    for most in (0, 64):
        monkeypatch.setattr(module, "MOST_COMPARED", most)
        both.append(masks_of("semihard(margin=0.1)", x, y))
    for by_sorting, by_comparing in zip(*both, strict=True):
        assert torch.equal(by_sorting, by_comparing)
    assert per_class == 1 or (both[0][0].any() and both[0][1].any())


@pytest.mark.parametrize("miner", sorted(plugins.registry("miner")))
def test_no_anchors_choose_nothing(miner: str) -> None:
    """As a rank without samples has it: there are references, and nobody compares them."""
    references, labels = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = create("contrastive", miner=miner)
    for function in (loss, loss.reference):
        x = torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
        value = function(x, labels[:0], references=references, reference_labels=labels)
        assert value == 0
