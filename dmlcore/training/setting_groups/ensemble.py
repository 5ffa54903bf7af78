"""Settings of how the losses of a run are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.training.setting_groups.fields import setting


@dataclass(frozen=True)
class EnsembleSettings:
    """How several losses share a model."""

    kind: Literal["shared", "heads", "wel", "wedl"] = setting("ensemble", "shared")
    """`shared`: one embedding for all losses; `heads`: a linear head for each. The published methods: `wel` is `shared` with
    learned weights and classifiers on the trunk's features, `wedl` is `heads` with learned weights and a diversity term.
    Without `plugins` these join the four published losses with their prior weights."""
    heads_see: Literal["all", "blocks"] = "all"
    """What each head sees of the trunk: `all` features, or `blocks`: the first loss the deepest block, the next one the block
    before it, and so on. The trunk must give several blocks: `--conv.pooled-blocks 3`."""
    weighting: str | None = None
    """How the losses are weighed against each other (default: gradients of equal norm for several losses on one embedding,
    unless `weights` are given or one is a regulariser of norms; learned weights with `wel` and `wedl`; else fixed ones)."""
    weights: tuple[float, ...] | None = None
    """Weight of each loss, in the order of `plugins` (default: 1 each)."""
    shares: tuple[float, ...] | None = None
    """Share of each head in the whole embedding, in the order of `plugins`: of the squared distance. They are divided by their
    sum (default: as the losses are weighed)."""
    classifier: Literal["embedding", "features"] | None = None
    """What losses that can take the trunk's features see: the `embedding`, or the `features` (default with `wel`)."""
    diversity: Literal["off", "distance", "adversarial"] | None = None
    """A term that drives heads apart: `distance` between them, as published (default with `wedl`); `adversarial`: networks
    learn to map the other heads to the first, which these learn to make hard."""
    diversity_weight: float = 0.01
    """Weight of the diversity term. Publications take 100 to 1500 for `adversarial`."""

    def __post_init__(self) -> None:
        for weight in self.weights or ():
            check_range("weights", weight, least=0)
        for share in self.shares or ():
            check_range("shares", share, least=0)
        if self.shares is not None and not (self.has_heads and sum(self.shares) > 0):
            raise ConfigError("shares are of heads: they need ensemble = heads or wedl, and a sum above 0")
        if self.heads_see == "blocks" and not self.has_heads:
            raise ConfigError("heads_see is blocks, which needs a head per loss: ensemble = heads or wedl")
        check_range("diversity_weight", self.diversity_weight, least=0)
        if self.diversity not in (None, "off") and not self.has_heads:
            raise ConfigError("diversity needs a head per loss: ensemble = heads or wedl")

    @property
    def has_heads(self) -> bool:
        """Whether each loss has a head of its own."""
        return self.kind in ("heads", "wedl")

    @property
    def is_published(self) -> bool:
        """Whether it is one of the published methods, WEL or WEDL."""
        return self.kind in ("wel", "wedl")
