"""Miners of pytorch-metric-learning as miners of dmlcore: masks of pairs for any loss, triplets as they are for its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from pytorch_metric_learning import miners as library_miners
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.losses import Compared, Miner, MinerOptions, SeededMiner, SeededOptions
from dmlcore_pml import catalogue, library_version, parts
from dmlcore_pml.signatures import Signature

Indices = tuple[Tensor, ...]
"""Pairs `(a1, p, a2, n)` or triplets `(a, p, n)`, int64 each."""


@dataclass(frozen=True, kw_only=True)
class PmlMinerOptions(MinerOptions):
    """Options of a miner of the library."""


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(SeededOptions):
    """Options of a miner of the library that draws."""


class PmlMiner(Miner):
    """A miner of pytorch-metric-learning; each class has one subclass.

    Losses of that library get its pairs or triplets as they are. Other losses get, for each anchor, the pairs of its triplets,
    mined on embeddings of unit length. Against a memory the miner sees an embedding's own entry too, as in that library's
    memory; it is left out afterwards.

    Attributes:
        inner: the object of the library.
    """

    signature: ClassVar[Signature]
    Options: ClassVar[type] = PmlMinerOptions

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        self.inner = self.signature.create(self.options, self.name)

    def choose(
        self, embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None, draw: Tensor
    ) -> Indices:
        """What the library's miner returns.

        Args:
            embeddings: `[A, D]`.
            labels: `[A]` int64.
            references, reference_labels: `[N, D]` and `[N]`, or None: the batch itself.
            draw: which draw of a miner that draws, scalar int64.
        """
        other_labels = labels if reference_labels is None else reference_labels
        if not len(labels) or not len(other_labels):
            return (labels[:0],) * 4
        if self.signature.library.__name__ not in catalogue.DRAWS:
            return self.inner(embeddings, labels, references, reference_labels)
        if bool((labels[:, None] == other_labels).all()):  # there is nothing to draw from
            return (labels[:0],) * 4
        devices = [embeddings.device] if embeddings.is_cuda else []
        with torch.random.fork_rng(devices):  # as often as wanted, without a trace in torch's own generator
            torch.manual_seed((self.options.seed << 32) + int(draw))
            return self.inner(embeddings, labels, references, reference_labels)

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        if not positive.numel():
            return positive, negative
        labels, reference_labels = _labels(~negative)
        if not torch.equal(labels[:, None] == reference_labels, ~negative):
            raise ConfigError(f"{self.name} takes one label per sample, neither label matrices nor relations")
        rows = compared.rows
        if _is_batch_itself(positive | negative, compared):
            mined = self.choose(compared.references, reference_labels, None, None, compared.draw)
        else:
            mined = self.choose(compared.anchors, labels, compared.references, reference_labels, compared.draw)
            rows = rows - rows[0]
        first, positives, second, negatives = mined if len(mined) == 4 else (mined[0], mined[1], mined[0], mined[2])
        selected = [torch.zeros_like(positive) for _ in range(2)]
        for mask, anchors, references in ((selected[0], first, positives), (selected[1], second, negatives)):
            here = (anchors >= rows[0]) & (anchors <= rows[-1])
            mask[anchors[here] - rows[0], references[here]] = True
        return positive & selected[0], negative & selected[1]


class DrawingMiner(PmlMiner, SeededMiner):
    """A miner of the library that draws, by a seed and a counter of its own: a resumed run goes on as it would have."""

    Options: ClassVar[type] = DrawingOptions


class Unavailable(Miner):
    """A miner that is listed, but not offered."""

    reason: ClassVar[str]

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        raise ConfigError(f"{self.name} is not offered: {self.reason}")

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(self.reason)


def _labels(together: Tensor) -> tuple[Tensor, Tensor]:
    """Labels by which anchors and references belong together as a matrix says.

    Args:
        together: `[A, N]` bool.

    Returns:
        `[A]` and `[N]` int64. A class has the number of its first anchor; what belongs to nothing has a number of its own.
    """
    anchors, references = together.shape
    device = together.device
    first = together.int().argmax(0)  # [N] the first anchor of each reference
    alone = anchors + references + torch.arange(references, device=device)
    reference_labels = torch.where(together.any(0), first, alone)
    column = together.int().argmax(1)  # [A] the first reference of each anchor
    return torch.where(together.any(1), reference_labels[column], torch.arange(anchors, device=device)), reference_labels


def _is_batch_itself(counted: Tensor, compared: Compared) -> bool:
    """Whether references are the batch that the anchors are rows of, and what is left out are the anchors themselves."""
    rows = compared.rows
    if int(rows[-1]) >= len(compared.references) or int((~counted).sum()) != len(rows):
        return False
    at = torch.arange(len(rows), device=rows.device)
    return not bool(counted[at, rows].any()) and torch.equal(compared.references[rows], compared.anchors)


def _adapted(name: str, library: type) -> type[Miner]:
    called = f"pml/{parts.snake(name)}"
    reason = catalogue.UNAVAILABLE.get(name)
    signature = None
    try:
        signature = None if reason else Signature.read(library)
    except Exception as error:  # a class that is not understood must not hide the others
        reason = f"its constructor fails: {type(error).__name__}: {' '.join(str(error).split())}"
    if signature is not None and (signature.missing or signature.filled):
        names = ", ".join((*signature.missing, *signature.filled))
        reason = f"its constructor wants {names}, which dmlcore does not know"
    about = {"name": called, "__module__": __name__, "__qualname__": name}
    if reason is not None or signature is None:
        return type(name, (Unavailable,), {**about, "reason": reason, "__doc__": f"Not offered: {reason}."})
    draws = name in catalogue.DRAWS
    adapted: Any = type(
        name,
        (DrawingMiner if draws else PmlMiner,),
        {
            **about,
            "__doc__": catalogue.help_text(name, library_version(), []),
            "signature": signature,
            "Options": signature.options(called, DrawingOptions if draws else PmlMinerOptions),
            "by_row": not draws and name not in catalogue.WHOLE_BATCH,
        },
    )
    return adapted


@cache
def classes() -> dict[str, type[Miner]]:
    """Every miner of the library that is installed, by the name of its class there."""
    return {
        name: _adapted(name, library)
        for name, library in sorted(vars(library_miners).items())
        if inspect.isclass(library) and name not in catalogue.ABSTRACT
    }


def __getattr__(name: str) -> type[Miner]:
    """The classes as attributes, so that their objects can be pickled."""
    if not name.startswith("_") and name in classes():
        return classes()[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
