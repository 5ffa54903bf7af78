"""Every loss: the library's own value and gradient, dmlcore's contract, references and memory, roles of its numbers."""

from __future__ import annotations

import copy
import pickle

import dmlcore_pml
import pytest
import torch
from dmlcore_pml import catalogue, losses
from pytorch_metric_learning import losses as library
from torch import Tensor

import dmlcore
from dmlcore.errors import ConfigError, PluginError
from dmlcore.testing import run_checks

OFFERED = {name: loss for name, loss in losses.classes().items() if name not in catalogue.UNAVAILABLE}
CLASSES, WIDTH = 4, 6
OPTIONS = {
    "AngularLoss": {"alpha": 35},
    "ArcFaceLoss": {"margin": 20, "scale": 32.5},
    "CircleLoss": {"m": 0.3, "gamma": 64},
    "ContrastiveLoss": {"pos_margin": 0.2, "neg_margin": 1.1},
    "CosFaceLoss": {"margin": 0.2, "scale": 16},
    "DynamicSoftMarginLoss": {"num_bins": 12, "momentum": 0.1},
    "FastAPLoss": {"num_bins": 8},
    "GeneralizedLiftedStructureLoss": {"neg_margin": 1.2},
    "HistogramLoss": {"n_bins": 40},
    "InstanceLoss": {"gamma": 8},
    "IntraPairVarianceLoss": {"pos_eps": 0.05},
    "LargeMarginSoftmaxLoss": {"margin": 3},
    "LiftedStructureLoss": {"neg_margin": 1.5},
    "MarginLoss": {"margin": 0.1, "nu": 0.5, "learn_beta": True},
    "MultiSimilarityLoss": {"alpha": 1.5, "base": 0.4},
    "NCALoss": {"softmax_scale": 3},
    "NTXentLoss": {"temperature": 0.2},
    "NormalizedSoftmaxLoss": {"temperature": 0.1},
    "PNPLoss": {"variant": "Ib", "b": 3},
    "ProxyAnchorLoss": {"alpha": 16, "margin": 0.2},
    "ProxyNCALoss": {"softmax_scale": 2},
    "RankedListLoss": {"margin": 0.5, "Tn": 2},
    "SignalToNoiseRatioContrastiveLoss": {"neg_margin": 2.0},
    "SmoothAPLoss": {"temperature": 0.05},
    "SoftTripleLoss": {"centers_per_class": 3, "la": 10},
    "SphereFaceLoss": {"margin": 2},
    "SubCenterArcFaceLoss": {"sub_centers": 2, "margin": 15},
    "SupConLoss": {"temperature": 0.3},
    "ThresholdConsistentMarginLoss": {"lambda_plus": 2.0, "margin_minus": 0.1},
    "TripletMarginLoss": {"margin": 0.2, "swap": True},
    "TupletMarginLoss": {"margin": 3.0, "scale": 16},
}
# What the library's losses do not keep of dmlcore's contract; each is among the defects of the loss's help, but for circle's
# weights, which its paper makes constants for the gradient.
NOT_KEPT = {
    "CircleLoss": {"gradient = finite differences"},
    "DynamicSoftMarginLoss": {"fused = plain, value and gradient", "gradient = finite differences"},
    "HistogramLoss": {"finite value and gradient: duplicates", "finite value and gradient: collapsed"},
    "InstanceLoss": {"order of the batch"},
    "NCALoss": {"finite value and gradient: all different", "fused = plain, value and gradient", "cross-batch memory"},
    "NPairsLoss": {"order of the batch"},
    "P2SGradLoss": {"finite value and gradient: zero vectors", "gradient of parameters = finite differences", "bfloat16"},
    "ProxyNCALoss": {"bfloat16"},  # torch has no distances in it
    "SignalToNoiseRatioContrastiveLoss": {"finite value and gradient: zero vectors"},
    "SmoothAPLoss": {  # it refuses every batch whose classes differ in size
        "finite value and gradient: random",
        "finite value and gradient: duplicates",
        "finite value and gradient: collapsed",
        "finite value and gradient: zero vectors",
        "fused = plain, value and gradient",
        "order of the batch",
        "inputs stay as they are, in any layout",
        "gradient = finite differences",
        "float32",
        "bfloat16",
        "autocast",
        "state round trip",
        "inside an ensemble",
    },
    "TupletMarginLoss": {"finite value and gradient: duplicates", "cross-batch memory"},
}
pytestmark = pytest.mark.filterwarnings("ignore:Values of Tp or Tn:UserWarning")


def batch(seed: int = 0, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) // 4 % CLASSES
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) + 0.5 * labels[:, None], labels


def create(name: str, **options: object) -> losses.PmlLoss:
    torch.manual_seed(1)
    loss = dmlcore.losses.create(OFFERED[name].name, num_classes=CLASSES, embedding_dim=WIDTH, **options).double()
    assert isinstance(loss, losses.PmlLoss)
    return loss


def original(name: str, **options: object) -> torch.nn.Module:
    """The library's object, made by hand with the same random numbers."""
    arguments = {**catalogue.DEFAULTS.get(name, {}), **options}
    filled = losses.classes()[name].signature.filled  # type: ignore[attr-defined]
    if losses.classes()[name].needs_classes:
        arguments |= {key: CLASSES if key == "num_classes" else WIDTH for key in filled}
    torch.manual_seed(1)
    return getattr(library, name)(**arguments).double()


def gradients(value: Tensor, x: Tensor, module: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, [x, *module.parameters()], allow_unused=True, materialize_grads=True))


def assert_same(name: str, loss: losses.PmlLoss, direct: torch.nn.Module, *arguments: Tensor | None, **options: Tensor) -> None:
    x, labels, references, reference_labels = [*arguments, None, None][:4]
    assert x is not None and labels is not None
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    torch.manual_seed(2)
    value = loss(leaf, labels, references=references, reference_labels=reference_labels)
    torch.manual_seed(2)
    expected = direct(other, labels, None, references, reference_labels)
    assert value.ndim == 0 and value.item() != 0
    torch.testing.assert_close(value, expected.reshape(()), rtol=1e-12, atol=1e-12)
    for gradient, its in zip(gradients(value, leaf, loss), gradients(expected.sum(), other, direct), strict=True):
        torch.testing.assert_close(gradient, its, rtol=1e-10, atol=1e-12)


def test_every_class_is_offered_or_says_why_not() -> None:
    exported = {name for name in vars(library) if name.endswith(("Loss", "Losses", "Memory"))}
    assert set(losses.classes()) == exported - catalogue.ABSTRACT and set(OPTIONS) <= set(OFFERED)
    assert set(NOT_KEPT) <= set(OFFERED)
    for name in sorted(set(losses.classes()) - set(OFFERED)):
        with pytest.raises(ConfigError, match="is not offered: it "):
            dmlcore.losses.create(losses.classes()[name].name, num_classes=2, embedding_dim=2)


@pytest.mark.parametrize("name", OFFERED)
@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "options"])
def test_value_and_gradient_are_the_librarys(name: str, changed: bool) -> None:
    options = OPTIONS.get(name, {}) if changed else {}
    assert_same(name, create(name, **options), original(name, **options), *batch())


@pytest.mark.parametrize("name", OFFERED)
def test_references_are_compared_or_refused(name: str) -> None:
    loss, (x, labels), (references, other_labels) = create(name), batch(), batch(3, 12)
    if loss.takes_references:
        assert_same(name, loss, original(name), x, labels, references, other_labels)
        return
    with pytest.raises(ConfigError, match="takes no references"):
        loss(x, labels, references=references, reference_labels=other_labels)
    with pytest.raises(ConfigError, match="a memory has nothing to add"):
        dmlcore.CrossBatchMemory(loss, 32, WIDTH)


@pytest.mark.parametrize("name", OFFERED)
def test_the_contract(name: str) -> None:
    failed = {check.name for check in run_checks(OFFERED[name]) if not check.passed}
    assert failed == NOT_KEPT.get(name, set())
    assert not failed or name in catalogue.DEFECTS or name in ("CircleLoss", "ProxyNCALoss")


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "AngularLoss", "MultiSimilarityLoss", "NTXentLoss"])
def test_a_memory_is_the_librarys(name: str) -> None:
    memory = dmlcore.CrossBatchMemory(create(name), 40, WIDTH, dtype=torch.float64)
    theirs = library.CrossBatchMemory(original(name), WIDTH, 40)
    for step in range(4):
        x, labels = batch(step)
        torch.testing.assert_close(memory(x, labels), theirs(x, labels), rtol=1e-12, atol=1e-12)


def test_what_a_memory_cannot_leave_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot leave single references out"):
        dmlcore.CrossBatchMemory(create("NCALoss"), 40, WIDTH, dtype=torch.float64)(*batch())


def test_relations_where_pairs_say_it_all() -> None:
    x, labels = batch()
    tags = torch.nn.functional.one_hot(labels, CLASSES)
    torch.testing.assert_close(create("ContrastiveLoss")(x, tags), create("ContrastiveLoss")(x, labels))
    for name in ("AngularLoss", "ArcFaceLoss", "FastAPLoss"):
        with pytest.raises(ConfigError, match="takes one label per sample"):
            create(name)(x, tags)


def test_an_ensemble_beside_fused_losses_and_references() -> None:
    (x, labels), (references, other_labels) = batch(), batch(3, 12)
    members = ["ms", "pml/contrastive_loss", "pml/proxy_anchor_loss"]
    ensemble = dmlcore.LossEnsemble(members, weights=[1, 2, 3], num_classes=CLASSES, embedding_dim=WIDTH).double()
    total = ensemble(x, labels, references=references, reference_labels=other_labels)
    assert list(ensemble.terms) == members
    alone = [
        ensemble.members[0](x, labels, references=references, reference_labels=other_labels),
        ensemble.members[1](x, labels, references=references, reference_labels=other_labels),
        ensemble.members[2](x, labels),  # it compares with its proxies
    ]
    torch.testing.assert_close(total, sum(w * term for w, term in zip([1, 2, 3], alone, strict=True)))
    assert [len(parameters) for parameters in ensemble.parameter_roles().values()] == [1, 0, 0]


def test_numbers_of_classes_are_proxies_and_other_numbers_scalars() -> None:
    for name, loss in OFFERED.items():
        roles = create(name).parameter_roles()
        assert bool(roles["proxies"]) == loss.needs_classes and not roles["scalars"]
        proxies = create(name).proxies
        assert (proxies is None) == (not loss.needs_classes)
        if proxies is not None:
            assert proxies.shape[1] == WIDTH and proxies.shape[0] % CLASSES == 0
            with pytest.raises(ConfigError, match=r"knows labels 0\.\.3, got labels 0\.\.9"):
                create(name)(torch.randn(2, WIDTH), torch.tensor([0, 9]))
            with pytest.raises(ConfigError, match="create it with num_classes"):
                dmlcore.losses.create(loss.name)
    margin = create("MarginLoss", learn_beta=True, per_class=True)
    assert [p.shape for p in margin.parameter_roles()["scalars"]] == [(CLASSES,)]
    direct = library.MarginLoss(learn_beta=True, num_classes=CLASSES).double()
    assert_same("MarginLoss", margin, direct, *batch())


def test_what_reads_norms() -> None:
    def reads(name: str, **options: object) -> bool:
        return OFFERED[name].reads_norms(create(name, **options).options)

    assert reads("LargeMarginSoftmaxLoss") and reads("SphereFaceLoss") and reads("AngularLoss")
    assert not reads("ContrastiveLoss") and not reads("ArcFaceLoss")
    assert reads("ContrastiveLoss", distance="lp(normalize_embeddings=false)")
    assert reads("ContrastiveLoss", embedding_regularizer="lp") and not reads("NPairsLoss")  # its dot products have unit length


def test_autocast_does_not_reach_its_weights() -> None:
    x, labels = batch()
    for name in ("ArcFaceLoss", "PNPLoss", "ContrastiveLoss"):
        loss = create(name).float()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss((x.float() @ torch.eye(WIDTH)), labels)
        assert value.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in loss.parameters())
        loss(x.bfloat16(), labels)
        loss(x, labels)
        assert all(p.dtype == torch.float32 for p in loss.parameters())


def test_the_running_histogram_lasts() -> None:
    loss, (x, labels) = create("DynamicSoftMarginLoss"), batch()
    x.requires_grad_()
    for _ in range(2):  # the library's own loss fails at the second step
        loss(x, labels).backward()
    assert loss.inner.hist_.sum() > 0
    other = create("DynamicSoftMarginLoss")
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(x, labels), loss(x, labels))


def test_objects_can_be_copied_and_pickled() -> None:
    x, labels = batch()
    for name in ("ArcFaceLoss", "ContrastiveLoss"):
        loss = create(name)
        for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert torch.equal(twin(x, labels), loss(x, labels)) and twin.options == loss.options


def test_help_says_what_is_known() -> None:
    for name, loss in OFFERED.items():
        assert loss.__doc__ is not None
        assert ("known defects" in loss.__doc__) == (name in catalogue.DEFECTS)
        assert all(defect in loss.__doc__ for defect in catalogue.DEFECTS.get(name, ()))
        own = catalogue.OWN.get(name)
        assert own is None or (own in dmlcore.losses.names() and f"`{own}`" in loss.__doc__)
        assert not create(name).is_fused and "pytorch-metric-learning computes it" in create(name).why_not_fused


@pytest.mark.parametrize(
    "version_found, words",
    [(None, "which is not installed: pip install"), ("2.8.1", "but 2.8.1 is installed"), ("weird", "but weird")],
)
def test_a_missing_or_old_library_is_one_clear_line(
    version_found: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if version_found is None:
            raise dmlcore_pml.metadata.PackageNotFoundError(name)
        return version_found

    monkeypatch.setattr(dmlcore_pml.metadata, "version", version)
    with pytest.raises(PluginError, match=words) as error:
        dmlcore_pml.library_version()
    assert "\n" not in str(error.value)
