"""What a miner is: a predicate that says which pairs of a row count. The built-in ones are plugins.

A miner narrows the positives and negatives of each anchor before a loss sees them; no list of pairs or triplets is made. One
that comes down to two intervals of similarity per anchor (`WindowMiner`) runs inside the fused pass, others in plain PyTorch
over some anchors at a time. A miner that its authors define by triplets keeps, for each anchor, the pairs of its triplets:
losses that form triplets themselves may then combine a positive and a negative that no chosen triplet joins.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dmlcore.config import build_options, check_range
from dmlcore.errors import ConfigError

Windows = Tensor
"""Two intervals of similarity for each anchor, `[4, A]`.

A positive of anchor `a` counts if its similarity lies in `[windows[0, a], windows[1, a]]`, a negative if its similarity lies in
`[windows[2, a], windows[3, a]]`. Both ends belong to an interval. An interval is empty if its lower end is above its upper end.
"""


@dataclass(frozen=True, kw_only=True)
class MinerOptions:
    """A miner without options of its own."""


@dataclass(frozen=True, kw_only=True)
class SeededOptions(MinerOptions):
    """Options of every miner that draws."""

    seed: int = 0
    """Seed of the draws, >= 0."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, least=0, most=2**31)


class Extremes(NamedTuple):
    """The similarities at the ends of each anchor's row, all `[A]`; where there is none, lowest +inf, highest -inf."""

    lowest_positive: Tensor
    highest_positive: Tensor
    lowest_negative: Tensor
    highest_negative: Tensor


Measure = Callable[[Windows | None], Extremes]
"""The extremes of the pairs within windows; None: of all pairs."""


class Compared(NamedTuple):
    """What a miner may look at beside similarities.

    Attributes:
        anchors: `[A, D]` unit norm.
        references: `[N, D]` unit norm.
        rows: `[A]` int64, which anchor of the whole batch each row is.
        draw: scalar int64, which draw of a miner with a seed this is.
    """

    anchors: Tensor
    references: Tensor
    rows: Tensor
    draw: Tensor


class Mining(NamedTuple):
    """A miner at work on one batch.

    Attributes:
        miner: what chooses.
        draw: as in `Compared`, fixed when the batch came in, so that computing its rows again repeats it.
        anchors: `[A, D]` embeddings, raw. A loss may compare something derived from them; miners see themselves.
        references: `[N, D]` likewise.
        first: index of the first anchor, where the anchors are part of a batch.
    """

    miner: Miner
    draw: Tensor
    anchors: Tensor
    references: Tensor
    first: int = 0


class Miner(nn.Module, abc.ABC):
    """Which pairs count. Subclasses set `name` and `Options` and write `masks`; most are a `WindowMiner`.

    Args:
        options: an instance of `Options`, or None for the defaults.
        options_by_name: options by name instead of `options`.

    Raises:
        ConfigError: an unknown option or a value out of range.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The full name, as in `Multi-Similarity miner`."""
    paper: ClassVar[str]
    """Who published it where, as in `Wang et al., CVPR 2019`."""
    aliases: ClassVar[tuple[str, ...]]
    """Further names it is found by, those of other libraries among them."""
    Options: ClassVar[type] = MinerOptions
    by_row: ClassVar[bool] = True
    """Whether a row's choice depends on that row alone; else losses compute all rows together, whatever memory that takes."""

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__()
        if options is not None and options_by_name:
            raise ConfigError(f"{self.name}: give either an Options object or options by name, not both")
        self.options: Any = options if options is not None else build_options(self.Options, options_by_name, self.name)

    @abc.abstractmethod
    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        """The pairs that count, without gradients.

        Args:
            similarities: `[A, N]` cosines.
            positive: `[A, N]` bool, never an anchor with itself.
            negative: `[A, N]` bool.
            compared: the vectors, and which rows these are. A row must not depend on which others are there.

        Returns:
            Subsets of `positive` and `negative`.
        """

    @property
    def semihard_margin(self) -> float | None:
        """A margin where the choice is that of `semihard` with it, which the kernels of the CPU make. None: another."""
        return None

    def next_draw(self, *, advance: bool) -> Tensor:
        """The number of the draw for a batch, scalar int64; 0 for a miner without a seed.

        Args:
            advance: take a new one; else repeat the last.
        """
        return torch.zeros((), dtype=torch.int64)

    @property
    def text(self) -> str:
        """The miner as `build_miner` reads it: `multi_similarity(epsilon=0.2)`."""
        changed = ", ".join(
            f"{field.name}={getattr(self.options, field.name)}"
            for field in fields(self.options)
            if getattr(self.options, field.name) != field.default
        )
        return f"{self.name}({changed})" if changed else self.name

    def extra_repr(self) -> str:
        return str(self.options)


class WindowMiner(Miner):
    """A miner whose choice is an interval of similarity per anchor for the positives and one for the negatives."""

    @abc.abstractmethod
    def windows(self, extremes: Measure) -> Windows:
        """The intervals, `[4, A]`.

        Args:
            extremes: a function. `extremes(None)` returns the extremes of all pairs, and `extremes(windows)` those of the pairs
                inside windows. Each call costs a pass over the similarities.
        """

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        def extremes(windows: Windows | None) -> Extremes:
            masks = (positive, negative) if windows is None else within(similarities, positive, negative, windows)
            return extremes_of(similarities, *masks)

        return within(similarities, positive, negative, self.windows(extremes))


class SeededMiner(Miner):
    """A miner that chooses at random.

    A draw depends on the option `seed`, on a counter of batches, and on the anchor's place in the batch. It does not depend on
    how many anchors are computed together. The counter is part of the state, so a resumed run draws what it would have drawn.
    In training mode every batch gets new draws. In evaluation mode, and in `reference`, the last draws are repeated.

    Attributes:
        draws: scalar int64, how many batches were drawn for.
    """

    Options: ClassVar[type] = SeededOptions
    draws: Tensor

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def next_draw(self, *, advance: bool) -> Tensor:
        if advance and self.training:
            self.draws.add_(1)
        return self.draws.clone()

    def uniform(self, compared: Compared, count: int) -> Tensor:
        """Random numbers, `[A, count]` float64 in [0, 1). Each anchor has numbers of its own."""
        device = compared.rows.device
        key = _mixed(torch.full((), self.options.seed, dtype=torch.int64, device=device), compared.draw.to(device))
        rows = _mixed(key, compared.rows)[:, None]  # [A, 1]
        bits = _mixed(rows, torch.arange(count, device=device)[None, :])  # [A, count]
        return _shifted(bits, 11).double() * 2.0**-53


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # >> keeps the sign


def _mixed(key: Tensor, number: Tensor) -> Tensor:
    """A hash of two int64 tensors: one round of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) on their combination."""
    x = key ^ (number + 1) * -7046029254386353131  # 2^64 / golden ratio, as int64
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def extremes_of(similarities: Tensor, positive: Tensor, negative: Tensor) -> Extremes:
    """The extremes of each row's positives and negatives from masks."""
    if similarities.shape[1] == 0:
        far = similarities.new_full((len(similarities),), torch.inf)
        return Extremes(far, -far, far, -far)
    ends = []
    for mask in (positive, negative):
        ends.append(torch.where(mask, similarities, torch.inf).amin(1))
        ends.append(torch.where(mask, similarities, -torch.inf).amax(1))
    return Extremes(*ends)


def within(similarities: Tensor, positive: Tensor, negative: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Masks narrowed to windows."""
    low_positive, high_positive, low_negative, high_negative = windows[:, :, None].unbind()  # [A, 1] each
    return (
        positive & (similarities >= low_positive) & (similarities <= high_positive),
        negative & (similarities >= low_negative) & (similarities <= high_negative),
    )


def slack(like: Tensor) -> float:
    """How far apart similarities may be that count as equal: a few units in the last place of a cosine."""
    return 4 * torch.finfo(like.dtype).eps


def build_miner(miner: Miner | str | None) -> Miner | None:
    """A miner from its name, with options where wanted: `batch_hard`, `multi_similarity(epsilon=0.2)`.

    Args:
        miner: text; a `Miner` or None is returned as it is.

    Raises:
        ConfigError: text of another form, an unknown name or option, a value out of range.
    """
    if miner is None or isinstance(miner, Miner):
        return miner
    if not isinstance(miner, str):
        raise ConfigError(f"miner must be a Miner, its name or None, got {type(miner).__name__}")
    match = re.fullmatch(r"\s*([\w./-]+)\s*(?:\((.*)\)\s*)?", miner, re.DOTALL)
    if not match:
        raise ConfigError(f"miner is '{miner}', but must be a name, or a name and options: multi_similarity(epsilon=0.2)")
    options = {}
    for part in filter(None, (part.strip() for part in re.split(r",(?![^()]*\))", match[2] or ""))):  # not within (...)
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or key in options:
            raise ConfigError(f"miner is '{miner}': '{part}' is not of the form option=value, or given twice")
        options[key] = value
    from dmlcore.plugins import find

    component = find("miner", match[1]).component
    return component(build_options(component.Options, options, match[1]))
