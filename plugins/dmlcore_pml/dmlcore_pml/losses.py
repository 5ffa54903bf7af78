"""Losses of pytorch-metric-learning as losses of dmlcore: what they see, which pairs count, and who owns their weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Unpack

import torch
from pytorch_metric_learning import losses as library_losses
from torch import Tensor, nn

from dmlcore.errors import ConfigError
from dmlcore.losses import Comparison, Loss, Miner, build_miner, compare
from dmlcore.losses.base import Against
from dmlcore.losses.mining import Mining
from dmlcore_pml import LIBRARY, catalogue, library_version, parts
from dmlcore_pml.miners import Indices, PmlMiner
from dmlcore_pml.signatures import CLASSES, Signature


@dataclass(frozen=True, kw_only=True)
class PmlOptions:
    """Options of a loss that chooses no pairs. The library's `reducer` takes the place of `reduction`."""


@dataclass(frozen=True, kw_only=True)
class MinedOptions(PmlOptions):
    """Options of a loss that can be told which pairs count."""

    miner: str | None = None
    """Which pairs count, by the name of a miner of dmlcore or of this library, with options where wanted, as in
    `pml/triplet_margin_miner(margin=0.1)`; `none`: all."""


class PmlLoss(Loss):
    """A loss of pytorch-metric-learning; each class has one subclass.

    It is computed in float32 at least (float64 for float64 embeddings), outside autocast, and in the dtype of its own weights
    where it has some: the library would turn the weights into the dtype of the embeddings.

    Attributes:
        inner: the object of the library.
    """

    signature: ClassVar[Signature]
    Options: ClassVar[type] = PmlOptions

    def __init__(
        self, options: Any = None, *, num_classes: int | None = None, embedding_dim: int | None = None, **options_by_name: Any
    ) -> None:
        super().__init__(options, **options_by_name)
        has_classes = self.needs_classes or getattr(self.options, "per_class", False)
        for noun, number, needed in (
            (CLASSES, num_classes, has_classes),
            ("embedding_dim", embedding_dim, self.needs_classes),
        ):
            if needed and (number is None or number < 1):
                raise ConfigError(f"{self.name} owns numbers of each class and needs {noun} >= 1, got {number}")
        self.num_classes = num_classes if has_classes else None
        self.inner = self.signature.create(self.options, self.name, num_classes, embedding_dim)
        if "hist_" in vars(self.inner):  # a running histogram is state: it is saved and moves with the loss
            running = self.inner.hist_
            del self.inner.hist_
            self.inner.register_buffer("hist_", running)

    def value_of(self, comparison: Comparison) -> Tensor:
        return self._value(comparison, advance=True)

    def reference(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        """As `forward`. A miner that draws repeats its last draws."""
        return self._value(compare(embeddings, labels, **against), advance=False)

    def _value(self, comparison: Comparison, *, advance: bool) -> Tensor:
        if comparison.references is not None and not self.takes_references:
            raise ConfigError(f"{self.name} takes no references")
        if comparison.relation is not None and not self.takes_relations():
            raise ConfigError(f"{self.name} takes one label per sample, neither label matrices nor relations")
        if comparison.own is not None and not self.is_told_pairs():
            raise ConfigError(f"{self.name} cannot leave single references out, so it takes no memory of the batch itself")
        labels, reference_labels, embeddings = comparison.labels, comparison.reference_labels, comparison.anchors
        self._check_labels(labels)
        dtype = next((p.dtype for p in self.inner.parameters()), torch.promote_types(embeddings.dtype, torch.float32))
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.to(dtype)
            references = None if comparison.references is None else comparison.references.to(dtype)
            pairs = self.pairs(comparison._replace(anchors=x, references=references), advance=advance)
            if comparison.relation is not None:  # the pairs say it all
                labels, reference_labels = None, None  # type: ignore[assignment]
            running = getattr(self.inner, "hist_", None)
            try:
                value = self.inner(x, labels, pairs, references, reference_labels)
            except ValueError as error:  # what the library does not take
                raise ConfigError(f"{self.name}: {' '.join(str(error).split())}") from error
        if isinstance(getattr(self.inner, "hist_", None), Tensor):
            moved = self.inner.hist_.detach()
            if isinstance(running, Tensor) and running.shape == moved.shape:  # no batch that is not finite moves it
                moved = torch.where(torch.isfinite(moved).all(), moved, running.to(moved))
            self.inner.hist_ = moved
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{self.name}: its reducer must give one number, got {got}")
        return value.reshape(())

    def pairs(self, comparison: Comparison, *, advance: bool) -> Indices | None:
        """The pairs that count as the library wants them, or None: all by equal labels."""
        if comparison.own is None and comparison.relation is None:
            return None
        return _listed(comparison)

    @classmethod
    def is_told_pairs(cls) -> bool:
        """Whether it compares the pairs it is told, and no others."""
        called = _called(cls.signature.library)
        return bool(called & {"convert_to_pairs", "convert_to_triplets", "get_pairs"}) and cls.takes_references

    @classmethod
    def takes_relations(cls) -> bool:
        """Whether it needs no labels beside the pairs it is told."""
        return cls.is_told_pairs() and cls.signature.library.__name__ not in catalogue.LABELS_BESIDE_PAIRS

    @classmethod
    def reads_norms(cls, options: Any) -> bool:
        if cls.signature.library.__name__ in catalogue.READ_NORMS or getattr(options, "embedding_regularizer", None):
            return True
        text = getattr(options, "distance", None)
        if text is None:
            return cls.signature.norms
        return not parts.build("distance", text, f"{cls.name}.distance").normalize_embeddings

    def _check_labels(self, labels: Tensor) -> None:
        """Labels without a number of their own, looked at on the CPU only: elsewhere it would wait."""
        if self.num_classes is None or labels.device.type != "cpu" or not len(labels) or labels.ndim != 1:
            return
        lowest, highest = (int(x) for x in torch.aminmax(labels))
        if lowest < 0 or highest >= self.num_classes:
            raise ConfigError(f"{self.name} knows labels 0..{self.num_classes - 1}, got labels {lowest}..{highest}")

    @property
    def why_not_fused(self) -> str:
        own = catalogue.OWN.get(self.signature.library.__name__)
        return f"{LIBRARY} computes it" + (f"; dmlcore's own form is '{own}'" if own else "")

    @property
    def proxies(self) -> Tensor | None:
        """`[C, D]` (or `[C * K, D]`) the weights of classes, or None."""
        matrix = next((p for p in self.inner.parameters() if p.ndim == 2), None)
        if matrix is None or not self.needs_classes:
            return None
        return matrix if "proxies" in dict(self.inner.named_parameters()) else matrix.T

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Weights of classes are proxies, whatever the library calls them; a learnt boundary is a scalar."""
        owned = list(self.inner.parameters())
        return {"proxies": [p for p in owned if p.ndim > 1], "scalars": [p for p in owned if p.ndim <= 1]}


class MinedPmlLoss(PmlLoss):
    """One that can be told which pairs count.

    Attributes:
        miner: what tells it, or None.
    """

    Options: ClassVar[type] = MinedOptions

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        miner = options_by_name.pop("miner") if isinstance(options_by_name.get("miner"), Miner) else None
        super().__init__(options, **options_by_name)
        self.use_miner(self.options.miner if miner is None else miner)

    def use_miner(self, miner: Miner | str | None) -> None:
        """Mine from now on with this one."""
        self.miner = build_miner(miner)

    def pairs(self, comparison: Comparison, *, advance: bool) -> Indices | None:
        if self.miner is None:
            return super().pairs(comparison, advance=advance)
        draw = self.miner.next_draw(advance=advance)
        if isinstance(self.miner, PmlMiner):
            if comparison.relation is not None:
                raise ConfigError(f"{self.miner.name} takes one label per sample, neither label matrices nor relations")
            pairs = self.miner.choose(*comparison[:4], draw)
            return pairs if comparison.own is None else _without_own(pairs, comparison.own)
        mining = Mining(self.miner, draw, comparison.anchors.detach(), comparison.other_vectors.detach())
        return _listed(comparison._replace(mining=mining))


class Unavailable(Loss):
    """A loss that is listed, but not offered."""

    Options: ClassVar[type] = PmlOptions
    reason: ClassVar[str]

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        raise ConfigError(f"{self.name} is not offered: {self.reason}")

    def forward(self, embeddings: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        raise NotImplementedError(self.reason)


def _listed(comparison: Comparison) -> Indices:
    positive, negative = comparison.masks()
    return (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))


def _without_own(pairs: Indices, own: Tensor) -> Indices:
    """Pairs or triplets without those whose positive is the anchor itself."""
    is_pair = pairs[1] != own[pairs[0]]
    if len(pairs) == 3:
        return tuple(index[is_pair] for index in pairs)
    return (pairs[0][is_pair], pairs[1][is_pair], *pairs[2:])


@cache
def _called(library: type) -> frozenset[str]:
    """Names that the methods of a class and its bases use; the library's base class for all losses is left out."""
    names: set[str] = set()
    for base in library.__mro__:
        if base is library_losses.BaseMetricLossFunction:
            break
        for method in vars(base).values():
            if inspect.isfunction(method):
                names.update(method.__code__.co_names)
    return frozenset(names)


def _compute_calls(library: type) -> frozenset[str]:
    return frozenset(library.compute_loss.__code__.co_names)  # type: ignore[attr-defined]


def _library_classes() -> Iterator[tuple[str, type]]:
    for name, library in sorted(vars(library_losses).items()):
        if inspect.isclass(library) and name.endswith(("Loss", "Losses", "Memory")) and name not in catalogue.ABSTRACT:
            yield name, library


def _adapted(name: str, library: type) -> type[Loss]:
    called = f"pml/{parts.snake(name)}"
    reason = catalogue.UNAVAILABLE.get(name)
    signature = None
    try:
        signature = None if reason else Signature.read(library)
    except Exception as error:  # a class that is not understood must not hide the others
        reason = f"its constructor fails: {type(error).__name__}: {' '.join(str(error).split())}"
    if signature is not None and signature.missing:
        reason = f"its constructor wants {', '.join(signature.missing)}, which dmlcore does not know"
    about = {"name": called, "__module__": __name__, "__qualname__": name}
    if reason is not None or signature is None:
        return type(name, (Unavailable,), {**about, "reason": reason, "__doc__": f"Not offered: {reason}."})
    calls = _compute_calls(library)
    is_mined = "indices_tuple_not_supported" not in calls
    takes_references = "ref_not_supported" not in calls and name not in catalogue.NO_REFERENCES
    base = MinedPmlLoss if is_mined else PmlLoss
    lines = [
        "It compares samples with references as well." if takes_references else "It takes no references and no memory.",
        "A miner does not choose its pairs, but weighs samples by how often they are mined."
        if is_mined and "convert_to_weights" in _called(library)
        else "",
    ]
    adapted: Any = type(
        name,
        (base,),
        {
            **about,
            "__doc__": catalogue.help_text(name, library_version(), [line for line in lines if line]),
            "signature": signature,
            "Options": signature.options(called, MinedOptions if is_mined else PmlOptions),
            "needs_classes": signature.wants_classes,
            "uses_classes": signature.may_have_classes,
            "takes_references": takes_references,
        },
    )
    return adapted


@cache
def classes() -> dict[str, type[Loss]]:
    """Every loss of the library that is installed, by the name of its class there."""
    return {name: _adapted(name, library) for name, library in _library_classes()}


def __getattr__(name: str) -> type[Loss]:
    """The classes as attributes, so that their objects can be pickled."""
    if not name.startswith("_") and name in classes():
        return classes()[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
