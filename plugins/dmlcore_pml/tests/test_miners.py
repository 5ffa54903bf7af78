"""Every miner: the library's own pairs inside the library's losses, the same pairs as masks inside dmlcore's."""

from __future__ import annotations

import pytest
import torch
from dmlcore_pml import catalogue, miners
from pytorch_metric_learning import losses as library_losses
from pytorch_metric_learning import miners as library
from torch import Tensor

import dmlcore
from dmlcore.errors import ConfigError
from dmlcore.losses import build_miner
from dmlcore.losses.streaming import stream_budget

OFFERED = {name: miner for name, miner in miners.classes().items() if name not in catalogue.UNAVAILABLE}
SINGLE = [name for name in OFFERED if name not in catalogue.DRAWS]
WIDTH = 5


def batch(seed: int = 0, count: int = 18) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64), labels


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x)


def test_every_miner_is_offered_or_says_why_not() -> None:
    exported = {name for name in vars(library) if name[0].isupper() and name not in catalogue.ABSTRACT}
    assert set(miners.classes()) == exported
    for name in set(exported) - set(OFFERED):
        with pytest.raises(ConfigError, match="is not offered: it "):
            build_miner(miners.classes()[name].name)
    for name, miner in OFFERED.items():
        assert miner.__doc__ is not None and ("known defects" in miner.__doc__) == (name in catalogue.DEFECTS)
        own = catalogue.OWN.get(name)
        assert own is None or build_miner(own) is not None


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("loss", ["ContrastiveLoss", "TripletMarginLoss", "NormalizedSoftmaxLoss"])
def test_inside_the_librarys_losses(name: str, loss: str) -> None:
    x, labels = batch()
    filled = {"num_classes": 5, "embedding_dim": WIDTH}
    torch.manual_seed(1)
    called = f"pml/{miners.parts.snake(loss)}"
    ours = dmlcore.losses.create(called, **filled, miner=OFFERED[name].name).double()
    torch.manual_seed(1)
    classes = {"num_classes": 5, "embedding_size": WIDTH} if loss == "NormalizedSoftmaxLoss" else {}
    original = getattr(library_losses, loss)(**classes).double()
    torch.testing.assert_close(ours(x, labels), original(x, labels, getattr(library, name)()(x, labels)))
    if classes:
        return
    references, other_labels = batch(4, 11)
    pairs = getattr(library, name)()(x, labels, references, other_labels)
    torch.testing.assert_close(
        ours(x, labels, references=references, reference_labels=other_labels),
        original(x, labels, pairs, references, other_labels),
    )


def mask_of(name: str, x: Tensor, labels: Tensor, *references: Tensor) -> tuple[Tensor, Tensor]:
    """What the library's miner chooses, as masks."""
    indices = getattr(library, name)()(x, labels, *references)
    a1, p, a2, n = indices if len(indices) == 4 else (indices[0], indices[1], indices[0], indices[2])
    width = len(references[0]) if references else len(x)
    positive, negative = (torch.zeros(len(x), width, dtype=torch.bool) for _ in range(2))
    positive[a1, p], negative[a2, n] = True, True
    return positive, negative


class Pairs(dmlcore.losses.PairLoss):
    """Numbers of pairs that count, positives and negatives apart by their size."""

    name = "pairs"

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> dmlcore.losses.Rows:
        seen.append((positive, negative))
        values = (similarities * positive).sum(1) + 10 * (similarities * negative).sum(1)
        return dmlcore.losses.Rows(values[None], torch.ones_like(values)[None])


seen: list[tuple[Tensor, Tensor]] = []


@pytest.mark.parametrize("name", SINGLE)
def test_inside_dmlcores_losses(name: str) -> None:
    (x, labels), (references, other_labels) = batch(), batch(4, 11)
    loss = Pairs(miner=OFFERED[name].name)
    seen.clear()
    value = loss(x, labels)
    assert all(torch.equal(*both) for both in zip(seen[-1], mask_of(name, unit(x), labels), strict=True))
    seen.clear()
    with stream_budget(0):
        torch.testing.assert_close(loss(x, labels), value)
    assert len(seen) == (len(x) if OFFERED[name].by_row else 1)
    seen.clear()
    loss(x, labels, references=references, reference_labels=other_labels)
    expected = mask_of(name, unit(x), labels, unit(references), other_labels)
    assert all(torch.equal(*both) for both in zip(seen[-1], expected, strict=True))
    for own in (torch.arange(len(x)), torch.arange(len(x)) + 11):  # a memory, of the batch alone and of more
        entries = torch.cat([references, x]) if own[0] else x
        loss(x, labels, references=entries, reference_labels=torch.cat([other_labels, labels]) if own[0] else labels, own=own)
        assert not seen[-1][0][torch.arange(len(x)), own].any()


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("pair_margin", "pml/pair_margin_miner"),
        ("multi_similarity(epsilon=0.2)", "pml/multi_similarity_miner(epsilon=0.2)"),
        ("batch_hard", "pml/batch_hard_miner"),
    ],
)
def test_the_same_choice_as_dmlcores_own(ours: str, theirs: str) -> None:
    x, labels = batch(7, 24)
    values = [dmlcore.losses.create("contrastive", miner=miner)(x, labels) for miner in (ours, theirs)]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("name", sorted(catalogue.DRAWS))
def test_draws_are_the_librarys_and_repeat(name: str) -> None:
    x, labels = batch()
    text = f"{OFFERED[name].name}(seed=3)"
    loss, before = dmlcore.losses.create("pml/contrastive_loss", miner=text), torch.random.get_rng_state()
    first, second = loss(x, labels), loss(x, labels)
    assert torch.equal(before, torch.random.get_rng_state()) and first != second
    torch.manual_seed((3 << 32) + 1)
    direct = getattr(library, name)()(x, labels)
    torch.testing.assert_close(first, library_losses.ContrastiveLoss()(x, labels, direct))
    assert loss.reference(x, labels) == second
    twin = dmlcore.losses.create("pml/contrastive_loss", miner=text)
    twin.load_state_dict(loss.state_dict())
    assert twin(x, labels) == loss(x, labels)
    own = dmlcore.losses.create("contrastive", miner=text)
    assert own.reference(x, labels) == own.reference(x, labels)
    assert torch.isfinite(own(x, torch.zeros_like(labels)))  # one class: nothing to draw


def test_dmlcores_miners_inside_the_librarys_losses() -> None:
    x, labels = batch()
    for text in ("pair_margin", "multi_similarity", "batch_hard"):
        own = dmlcore.losses.create("contrastive", miner=text)(x, labels)
        torch.testing.assert_close(dmlcore.losses.create("pml/contrastive_loss", miner=text)(x, labels), own)
    miner = build_miner("pair_margin(neg_margin=0.7)")
    assert miner is not None
    value = dmlcore.losses.create("pml/contrastive_loss", miner=miner)(x, labels)
    torch.testing.assert_close(value, dmlcore.losses.create("contrastive", miner=miner)(x, labels))


def test_options_and_their_text() -> None:
    miner = build_miner("pml/batch_easy_hard_miner(pos_strategy=hard, allowed_pos_range=(0.1, 0.9), distance=lp(p=1, power=2))")
    assert miner is not None
    assert miner.inner.allowed_pos_range == (0.1, 0.9) and miner.inner.distance.p == 1 and miner.inner.distance.power == 2
    again = build_miner(miner.text)
    assert again is not None and again.options == miner.options
    with pytest.raises(ConfigError, match=r"pml/batch_easy_hard_miner: .*pos_strategy must be one of"):
        build_miner("pml/batch_easy_hard_miner(pos_strategy=harder)")


def test_relations_are_refused() -> None:
    tags = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]])
    for loss in ("contrastive", "pml/contrastive_loss"):
        with pytest.raises(ConfigError, match="takes one label per sample, neither label matrices nor relations"):
            dmlcore.losses.create(loss, miner="pml/pair_margin_miner")(torch.randn(4, 3), tags)
