"""Several losses as one: all that can be fused share a pass over the similarities, a weighting combines the terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.ensemble.weighting import Weighting, initial_weights
from dmlcore.errors import ConfigError, PluginError
from dmlcore.kernels import FunctorCall, functors, fused_rows
from dmlcore.losses import Loss, RowLoss, Rows, Sides, create
from dmlcore.losses.base import ProxyLoss, check_inputs


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return out


class LossEnsemble(nn.Module):
    """A weighted sum of losses on one embedding, as a module.

    Args:
        losses: `Loss` objects, or names (created with default options).
        weighting: the name of a weighting plugin (`fixed`, `uncertainty`, ...).
        weights: one number >= 0 per loss; None: all 1.
        weighting_options: options of the weighting by name.
        num_classes, embedding_dim: for names of losses that own proxies.

    Attributes:
        terms: the losses' values of the last call by name, detached and unweighted.
        active: the share of anchors with a non-zero value at the last call by name, detached (NaN for losses without rows).

    Raises:
        ConfigError: no losses, unknown names, wrong weights, `reduction = "none"`.
    """

    def __init__(self, losses: Sequence[Loss | str], weighting: str = "fixed", weights: Any = None, *,
                 weighting_options: dict[str, Any] | None = None, num_classes: int | None = None,
                 embedding_dim: int | None = None) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("an ensemble needs at least one loss")
        made = [create(loss, num_classes=num_classes, embedding_dim=embedding_dim) if isinstance(loss, str) else loss for loss in losses]
        for loss in made:
            if not isinstance(loss, Loss):
                raise ConfigError(f"an ensemble is made of dmlcore losses or their names, got {type(loss).__name__}")
            if getattr(loss.options, "reduction", "default") == "none":
                raise ConfigError(f"{loss.name}: reduction 'none' gives no term an ensemble could add")
        self.losses = nn.ModuleList(made)
        self.names = _unique([loss.name for loss in made])
        from dmlcore.plugins import find

        component = find("weighting", weighting).component
        options = build_options(component.Options, weighting_options or {}, weighting)
        self.weighting: Weighting = component(initial_weights(weights, len(made)), options)
        self.terms: dict[str, Tensor] = {}
        self.active: dict[str, Tensor] = {}

    @property
    def members(self) -> list[Loss]:
        """The losses in order."""
        return [loss for loss in self.losses if isinstance(loss, Loss)]

    @property
    def weights(self) -> Tensor:
        """`[L]` the effective weights now, detached."""
        return self.weighting.weights

    def _groups(self, sides: dict[int, Sides], device: torch.device) -> tuple[dict[tuple[int, int], list[int]], dict[int, FunctorCall]]:
        """Members that compare the same things, to run in one pass, and their functors."""
        groups: dict[tuple[int, int], list[int]] = {}
        calls: dict[int, FunctorCall] = {}
        for index, side in sides.items():
            loss = self.losses[index]
            assert isinstance(loss, RowLoss)
            call = loss.call_for(device)
            if call is not None:
                calls[index] = call
                groups.setdefault((id(side.anchors), id(side.references)), []).append(index)
        return groups, calls

    def rows(self, embeddings: Tensor, labels: Tensor, *, references: Tensor | None = None,
             reference_labels: Tensor | None = None) -> dict[int, Rows]:
        """Values and counts of every member that is defined by rows, by its index. Arguments as `forward`."""
        labels, reference_labels = check_inputs(embeddings, labels, references, reference_labels)
        sides: dict[int, Sides] = {}
        for index, loss in enumerate(self.losses):
            if isinstance(loss, ProxyLoss):
                sides[index] = loss.sides(embeddings, labels, None, None)
            elif isinstance(loss, RowLoss):
                sides[index] = loss.sides(embeddings, labels, references, reference_labels)
        groups, calls = self._groups(sides, embeddings.device)
        found: dict[int, Rows] = {}
        for members in groups.values():
            anchors, anchor_labels, others, other_labels = sides[members[0]]
            values, counts = fused_rows(anchors, anchor_labels, others, other_labels, tuple(calls[index] for index in members))
            at = 0
            for index in members:
                size = functors()[calls[index].functor][1]
                found[index] = Rows(values[at : at + size], counts[at : at + size])
                at += size
        for index, side in sides.items():
            if index not in found:
                loss = self.losses[index]
                assert isinstance(loss, RowLoss)
                found[index] = loss.plain_rows(side)
        return found

    def forward(self, embeddings: Tensor, labels: Tensor, *, references: Tensor | None = None,
                reference_labels: Tensor | None = None) -> Tensor:
        """The combined loss.

        Args:
            embeddings: `[B, D]` floating point, raw.
            labels: `[B]` int64 (0..C-1 where a member owns proxies).
            references, reference_labels: `[N, D]` and `[N]`, for the members that compare samples with samples.

        Returns:
            Scalar.

        Raises:
            PluginError: a member returns something else than a scalar.
        """
        rows = self.rows(embeddings, labels, references=references, reference_labels=reference_labels)
        terms, active = [], {}
        for index, (name, loss) in enumerate(zip(self.names, self.members, strict=True)):
            if index in rows:
                assert isinstance(loss, RowLoss)
                term = loss.reduce(rows[index])
                with torch.no_grad():
                    active[name] = (rows[index].values.detach() > 0).any(0).float().mean()
            else:
                term = loss(embeddings, labels, references=references, reference_labels=reference_labels)
                if not isinstance(term, Tensor) or term.ndim != 0:
                    got = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
                    raise PluginError(f"loss '{loss.name}' must return a scalar tensor, got {got}; see dmlcore.testing.check_loss")
                active[name] = term.detach().new_full((), torch.nan)
            terms.append(term)
        stacked = torch.stack([term.to(terms[0].dtype) for term in terms])  # [L]
        self.terms = dict(zip(self.names, stacked.detach().unbind(), strict=True))
        self.active = active
        return self.weighting(stacked)

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser group they belong to: `proxies`, `scalars`, `weights`."""
        roles: dict[str, list[nn.Parameter]] = {"proxies": [], "scalars": [], "weights": list(self.weighting.parameters())}
        for loss in self.members:
            for role, parameters in loss.parameter_roles().items():
                roles.setdefault(role, []).extend(parameters)
        return roles

    def describe(self) -> list[dict[str, Any]]:
        """Per member: its name, options, and whether it is fused or why not."""
        return [{"name": name, "loss": loss.name, "options": vars(loss.options).copy() if hasattr(loss.options, "__dict__") else {},
                 "fused": loss.is_fused, "why_not_fused": loss.why_not_fused}
                for name, loss in zip(self.names, self.members, strict=True)]

    @torch.no_grad()
    def non_finite_rows(self, embeddings: Tensor, labels: Tensor) -> dict[str, list[int]]:
        """Per member the anchors whose value is not finite, for diagnosis after a bad step (an extra forward pass).

        Args:
            embeddings: `[B, D]`.
            labels: `[B]`.

        Returns:
            Members with such anchors only. A member without rows has an empty list when its value is not finite.
        """
        found = {}
        rows = self.rows(embeddings, labels)
        for index, (name, loss) in enumerate(zip(self.names, self.members, strict=True)):
            if index in rows:
                bad = ~torch.isfinite(rows[index].values).all(0)
                if bool(bad.any()):
                    found[name] = bad.nonzero().flatten().tolist()
            elif not bool(torch.isfinite(loss(embeddings, labels)).all()):
                found[name] = []
        return found
