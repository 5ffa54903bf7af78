"""Options: what signatures say, objects from text, mistakes in one line."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from dmlcore_pml import losses, parts
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as library

import dmlcore
from dmlcore.description import describe_options
from dmlcore.errors import ConfigError


def create(name: str, **options: object) -> losses.PmlLoss:
    loss = dmlcore.losses.create(f"pml/{name}", num_classes=3, embedding_dim=4, **options)
    assert isinstance(loss, losses.PmlLoss)
    return loss


def test_types_defaults_and_help_come_from_the_signatures() -> None:
    by_name = {option["name"]: option for option in describe_options(losses.classes()["TripletMarginLoss"].Options)}
    assert {name: (option["type"], option["default"]) for name, option in by_name.items()} == {
        "miner": ("text | none", None),
        "margin": ("number", 0.05),
        "swap": ("true | false", False),
        "smooth_loss": ("true | false", False),
        "triplets_per_anchor": ("text", "all"),
        "embedding_regularizer": ("text | none", None),
        "embedding_reg_weight": ("number", 1),
        "reducer": ("text | none", None),
        "distance": ("text | none", None),
        "collect_stats": ("true | false | none", None),
    }
    for name, loss in losses.classes().items():
        for option in describe_options(loss.Options):
            assert option["help"] and not option["help"].startswith("As in "), f"{name}.{option['name']} has no help"


def test_values_reach_the_library() -> None:
    inner = create("contrastive_loss", pos_margin="0.2", neg_margin=2).inner
    assert inner.pos_margin == 0.2 and inner.neg_margin == 2 and isinstance(inner.neg_margin, int)
    assert create("triplet_margin_loss", triplets_per_anchor="5").inner.triplets_per_anchor == 5
    assert create("soft_triple_loss", centers_per_class=2).inner.fc.shape == (4, 6)
    assert create("histogram_loss", delta=0.1).inner.delta == 0.1
    assert create("contrastive_loss", collect_stats="true").inner.collect_stats is True


def test_every_object_can_be_named() -> None:
    built = [
        ("distance", "lp(p=1)", distances.LpDistance),
        ("distance", "lp_distance", distances.LpDistance),
        ("distance", "cosine", distances.CosineSimilarity),
        ("distance", "dot_product(normalize_embeddings=False)", distances.DotProductSimilarity),
        ("distance", "snr", distances.SNRDistance),
        ("reducer", "mean", reducers.MeanReducer),
        ("reducer", "sum", reducers.SumReducer),
        ("reducer", "avg_non_zero", reducers.AvgNonZeroReducer),
        ("reducer", "threshold(low=0.1, high=none)", reducers.ThresholdReducer),
        ("reducer", "divisor", reducers.DivisorReducer),
        ("reducer", "per_anchor(reducer=threshold(low=0))", reducers.PerAnchorReducer),
        ("reducer", "multiple(reducers={'loss': sum})", reducers.MultipleReducers),
        ("reducer", "class_weighted(weights=[1, 2, 0.5])", reducers.ClassWeightedReducer),
        ("embedding_regularizer", "lp(p=1, power=2)", regularizers.LpRegularizer),
        ("embedding_regularizer", "zero_mean", regularizers.ZeroMeanRegularizer),
        ("weight_regularizer", "center_invariant", regularizers.CenterInvariantRegularizer),
        ("weight_regularizer", "regular_face", regularizers.RegularFaceRegularizer),
        ("weight_regularizer", "sparse_centers(centers_per_class=2)", regularizers.SparseCentersRegularizer),
    ]
    for option, text, kind in built:
        assert type(parts.build(option, text, "x", num_classes=3)) is kind, text
    for option in parts.KINDS:
        module, _ = parts.KINDS[option]
        exported = {name for name in vars(module) if name[0].isupper() and not name.startswith("Base")}
        assert {kind.__name__ for kind in parts.choices_of(option).values()} == exported - parts.LEFT_OUT
    assert parts.build("distance", "lp(p=1, power=2)", "x").power == 2


def test_objects_do_what_they_say() -> None:
    x, labels = torch.randn(9, 4), torch.arange(9) % 3
    mean, total = (create("arc_face_loss", reducer=reducer, weight_init_func="ones") for reducer in ("mean", "sum"))
    torch.testing.assert_close(total(x, labels), 9 * mean(x, labels))
    assert bool((mean.inner.W == 1).all())
    weighted = create("arc_face_loss", reducer="class_weighted(weights=[1, 2, 0.5])", weight_init_func="ones")
    assert weighted(x, labels) != mean(x, labels)
    regular = create("arc_face_loss", weight_init_func="ones", weight_regularizer="lp", weight_reg_weight=2)
    torch.testing.assert_close(regular(x, labels), mean(x, labels) + 2 * 2)  # columns of four ones have the norm 2
    sparse = create("soft_triple_loss", centers_per_class=2, weight_regularizer="sparse_centers(centers_per_class=2)")
    assert torch.isfinite(sparse(x, labels))


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("contrastive_loss", {"pos_margn": 1}, "has no option 'pos_margn'. Did you mean 'pos_margin'"),
        ("contrastive_loss", {"pos_margin": "far"}, "pml/contrastive_loss.pos_margin is 'far', but must be a number"),
        ("contrastive_loss", {"distance": "cosin"}, "distance names 'cosin'. Did you mean 'cosine'"),
        ("contrastive_loss", {"distance": "lp(q=1)"}, "which LpDistance refuses"),
        ("contrastive_loss", {"distance": "lp(1)"}, r"must be a name, or a name and arguments: lp\(p=1\)"),
        ("contrastive_loss", {"distance": "lp(p=1"}, "must be a name, or a name and arguments"),
        ("contrastive_loss", {"distance": "lp(p=__import__('os'))"}, "must be a name, or a name and arguments"),
        ("angular_loss", {"distance": "cosine"}, "AngularLoss refuses its options: AngularLoss requires the distance metric"),
        ("ranked_list_loss", {"imbalance": 2}, "Imbalance must be between 0 and 1"),
        ("pnp_loss", {"variant": "X"}, "variant=X but must be one of"),
        ("arc_face_loss", {"weight_init_func": "normal(size=3)"}, "torch.nn.init.normal_ refuses its arguments"),
        ("arc_face_loss", {"weight_init_func": "norml"}, "Did you mean 'normal'"),
        ("contrastive_loss", {"miner": "pml/nothing"}, "there is no miner 'pml/nothing'"),
        ("instance_loss", {"miner": "batch_hard"}, "has no option 'miner'"),
        ("contrastive_loss", {"reducer": "multiple(reducers=3)"}, "which MultipleReducers refuses"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        create(name, **options)(torch.randn(6, 4), torch.arange(6) % 3)
    assert "\n" not in str(error.value)


def test_classes_of_different_sizes_are_one_line_for_smooth_ap() -> None:
    with pytest.raises(ConfigError, match="All classes must have the same number of elements") as error:
        create("smooth_ap_loss")(torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1]))
    assert "\n" not in str(error.value)


def test_classes_of_a_newer_library() -> None:
    class NewLoss(library.ContrastiveLoss):
        def __init__(self, sharpness: float = 2, kind: str | None = None, **kwargs: object) -> None:
            super().__init__(neg_margin=sharpness, **kwargs)

    class WantingLoss(library.BaseMetricLossFunction):
        def __init__(self, table: object, **kwargs: object) -> None:
            super().__init__(**kwargs)

    class FailingLoss(library.BaseMetricLossFunction):
        def __init__(self, **kwargs: object) -> None:
            raise RuntimeError("no licence")

    new = losses._adapted("NewLoss", NewLoss)
    by_name = {option["name"]: option for option in describe_options(new.Options)}
    assert "neg_margin" not in by_name, "the class gives it itself"
    assert by_name["sharpness"]["help"] == "As in NewLoss." and by_name["pos_margin"]["default"] == 0
    x, labels = torch.randn(6, 4), torch.arange(6) % 3
    torch.testing.assert_close(new(sharpness=0.5)(x, labels), library.ContrastiveLoss(neg_margin=0.5)(x, labels))
    for name, kind, words in (
        ("WantingLoss", WantingLoss, "its constructor wants table, which dmlcore does not know"),
        ("FailingLoss", FailingLoss, "its constructor fails: RuntimeError: no licence"),
    ):
        with pytest.raises(ConfigError, match=words):
            losses._adapted(name, kind)()


def test_options_are_plain_values() -> None:
    for loss in losses.classes().values():
        for field in dataclasses.fields(loss.Options):
            assert field.default is None or isinstance(field.default, bool | int | float | str)
