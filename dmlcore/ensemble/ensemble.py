"""Several losses as one: all that can be fused share a pass over the similarities, a weighting combines the terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.config import build_options, unique_names
from dmlcore.ensemble.lookahead import alignments, gradients_at
from dmlcore.ensemble.views import Views, columns_checked
from dmlcore.ensemble.weighting import Weighting, initial_weights
from dmlcore.errors import ConfigError, PluginError
from dmlcore.kernels import FunctorCall, functors
from dmlcore.losses import Loss, RowLoss, Rows, Sides, create
from dmlcore.losses.base import ProxyLoss, RowMeasure, check_inputs, run_together, table_rows, with_lists
from dmlcore.losses.relations import Relation


def _apart(groups: list[tuple[list[int], list[int], Rows]]) -> dict[int, Rows]:
    """The rows of each member out of the passes'."""
    found = {}
    for members, sizes, rows in groups:
        for index, values, counts in zip(members, rows.values.split(sizes), rows.counts.split(sizes), strict=True):
            found[index] = Rows(values, counts)
    return found


def _row_loss(loss: Loss) -> RowLoss:
    assert isinstance(loss, RowLoss)
    return loss


class LossEnsemble(nn.Module):
    """A weighted sum of losses on one embedding, or on parts of it, as a module.

    Args:
        losses: `Loss` objects, or names (created with default options).
        weighting: the name of a weighting plugin (`fixed`, `uncertainty`, ...).
        weights: one number >= 0 per loss; None: all 1.
        weighting_options: options of the weighting by name.
        columns: per loss the columns `(first, last + 1)` of the embeddings that it sees: heads side by side; None: all columns
            for each. Losses of the same columns share a pass. A regulariser of norms with None in its place sees every head.
        class_masks: `[L, C]` bool, the classes whose samples a loss sees; None: all.
        num_classes, embedding_dim: for names of losses that own proxies.

    Raises:
        ConfigError: no losses, unknown names, wrong weights, wrong columns or masks, `reduction = "none"`.
    """

    class_masks: Tensor | None

    def __init__(
        self,
        losses: Sequence[Loss | str],
        weighting: str = "fixed",
        weights: Any = None,
        *,
        weighting_options: dict[str, Any] | None = None,
        columns: Sequence[tuple[int, int] | None] | None = None,
        class_masks: Tensor | None = None,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("an ensemble needs at least one loss")
        made = [
            create(loss, num_classes=num_classes, embedding_dim=embedding_dim) if isinstance(loss, str) else loss
            for loss in losses
        ]
        for loss in made:
            if not isinstance(loss, Loss):
                raise ConfigError(f"an ensemble is made of dmlcore losses or their names, got {type(loss).__name__}")
            if getattr(loss.options, "reduction", "default") == "none":
                raise ConfigError(f"{loss.name}: reduction 'none' gives no term an ensemble could add")
        self.losses = nn.ModuleList(made)
        self.names = unique_names(loss.name for loss in made)
        from dmlcore.plugins import find

        component = find("weighting", weighting).component
        options = build_options(component.Options, weighting_options or {}, weighting)
        self.weighting: Weighting = component(initial_weights(weights, len(made)), options)
        self.columns = columns_checked(columns, class_masks, made)
        self.register_buffer("class_masks", class_masks)
        self.measures_gradients = False
        self._last_gradients: Tensor | None = None
        self._last_terms: Tensor | None = None
        self._last_rows: list[tuple[list[int], list[int], Rows]] = []

    @property
    def members(self) -> list[Loss]:
        """The losses in order."""
        return list(self.losses)  # type: ignore[arg-type]

    @property
    def weights(self) -> Tensor:
        """`[L]` the effective weights now, detached."""
        return self.weighting.weights

    def _groups(
        self, sides: dict[int, Sides], embeddings: Tensor
    ) -> tuple[list[list[int]], dict[int, FunctorCall], dict[int, Tensor | None]]:
        """Members that compare the same things, to run in one pass, the functors of all fused members, and what those of groups
        are given. A loss with `fused_rows` of its own is in no group: it compares what nobody else does."""
        groups: list[list[int]] = []
        calls: dict[int, FunctorCall] = {}
        given: dict[int, Tensor | None] = {}
        measures: list[RowMeasure] = []
        for index, side in sides.items():
            loss = _row_loss(self.members[index])
            call = loss.call_for(embeddings, side)
            if call is None:
                continue
            if type(loss).fused_rows is not RowLoss.fused_rows:
                calls[index] = call
                continue
            for other in sides.values():  # members that compare the same things share the list of positives
                if other.lists is not None and side.anchors is other.anchors and side.references is other.references:
                    side = side._replace(lists=other.lists)
            side = sides[index] = with_lists(side)
            measure = None
            if side.mining is not None:  # members that mine share what they measure
                known = (m for m in measures if m.sides.anchors is side.anchors and m.sides.references is side.references)
                measure = next(known, None)
                if measure is None:
                    measure = RowMeasure(side)
                    measures.append(measure)
            calls[index], given[index] = loss.ready_call(call, side, measure)
            for members in groups:  # compared by identity, which every version of torch.compile can trace
                other, first = sides[members[0]], _row_loss(self.members[members[0]])
                if (
                    side.anchors is other.anchors
                    and side.references is other.references
                    and loss.normalise == first.normalise
                    and (calls[index].windows is None) == (calls[members[0]].windows is None)
                ):
                    members.append(index)
                    break
            else:
                groups.append([index])
        return groups, calls, given

    def _grouped_rows(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        own: Tensor | None,
        relation: Relation | Tensor | None,
        views: Views,
        *,
        advance: bool,
    ) -> list[tuple[list[int], list[int], Rows]]:
        """One entry per pass: the members, how many values each has, and the values and counts of all of them, `[V, A]`."""
        labels, reference_labels, relation = check_inputs(embeddings, labels, references, reference_labels, relation)
        sides: dict[int, Sides] = {}
        for index, loss in enumerate(self.members):
            if type(loss).forward is not RowLoss.forward:
                continue  # a plugin's own forward is called as it is
            x, y, others, other_labels = views.of(index, labels, reference_labels)
            if isinstance(loss, ProxyLoss):
                sides[index] = loss.sides(x, y, None, None)
            elif isinstance(loss, RowLoss):
                sides[index] = loss.sides_for(x, y, others, other_labels, own, relation, advance=advance)
        groups, calls, given = self._groups(sides, embeddings)
        found = []
        for members in groups:
            losses = [_row_loss(self.members[index]) for index in members]
            values, counts, tables = run_together(
                sides[members[0]], tuple(calls[index] for index in members), losses[0].normalise
            )
            rows = Rows(values, counts)
            sizes = [functors()[calls[index].functor][1] for index in members]
            if any(type(loss).complete is not RowLoss.complete for loss in losses):
                parts = _apart([(members, sizes, rows)])
                for index, table in zip(members, tables.split([calls[index].cells for index in members]), strict=True):
                    if calls[index].cells:
                        parts[index] = table_rows(table)
                done = [loss.complete(parts[k], sides[k], given[k]) for k, loss in zip(members, losses, strict=True)]
                sizes = [len(part.values) for part in done]
                rows = Rows(torch.cat([part.values for part in done]), torch.cat([part.counts for part in done]))
            found.append((members, sizes, rows))
        grouped = {index for members in groups for index in members}
        for index, side in sides.items():
            if index not in grouped:
                loss = _row_loss(self.members[index])
                rows = loss.fused_rows(side, calls[index]) if index in calls else loss.plain_rows(side)
                found.append(([index], [len(rows.values)], rows))
        return found

    def rows(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> dict[int, Rows]:
        """Values and counts of every member that is defined by rows, by its index. Arguments as `forward`; a miner with a seed
        repeats its last draw."""
        views = self._views(embeddings, references, own, relation)
        return _apart(self._grouped_rows(embeddings, labels, references, reference_labels, own, relation, views, advance=False))

    def _views(self, embeddings: Tensor, references: Tensor | None, own: Any, relation: Any) -> Views:
        """What each member sees.

        Raises:
            ConfigError: columns beyond the embeddings; subsets of classes together with `own` or a relation.
        """
        if self.class_masks is not None and (own is not None or relation is not None):
            raise ConfigError("losses that see some classes only take neither a relation nor a memory")
        return Views(self.columns, self.class_masks, embeddings, references)

    def _reduced(self, members: list[int], sizes: list[int], rows: Rows) -> Tensor:
        """`[len(members)]` terms of one pass. Members reduced by default take a few operations together, not each its own."""
        losses = [_row_loss(self.members[index]) for index in members]
        if any(loss.options.reduction != "default" or type(loss).reduce is not RowLoss.reduce for loss in losses):
            apart = _apart([(members, sizes, rows)])
            return torch.stack([loss.reduce(apart[index]) for loss, index in zip(losses, members, strict=True)])
        averages = rows.values.sum(1) / rows.counts.sum(1).clamp_min(1)  # [V]
        if len(averages) == len(members):
            return averages
        owner = [position for position, size in enumerate(sizes) for _ in range(size)]
        return averages.new_zeros(len(members)).index_add(0, torch.tensor(owner, device=averages.device), averages)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        own: Tensor | None = None,
        relation: Relation | Tensor | None = None,
    ) -> Tensor:
        """The combined loss.

        Args:
            embeddings: `[B, D]` floating point, raw.
            labels: `[B]` int64 (0..C-1 where a member owns proxies), or a binary matrix `[B, L]` as in `Loss.forward`.
            references, reference_labels: `[N, D]` and `[N]` (or `[N, L]`), for the members that compare samples with samples.
            own: `[B]` int64, which reference is the sample itself (-1: none) and so no pair; needs references.
            relation: which pairs are positives, as in `Loss.forward`, for members that compare samples with samples.

        Returns:
            Scalar.

        Raises:
            PluginError: a member returns something else than a scalar.
        """
        more = {name: given for name, given in (("own", own), ("relation", relation)) if given is not None}
        learns = self.training and torch.is_grad_enabled() and isinstance(embeddings, Tensor) and embeddings.requires_grad
        if learns and self.weighting.looks_ahead and self.weighting.due():
            self.weighting.learn(alignments(self, embeddings.detach(), labels))
        terms = self._terms(embeddings, labels, references, reference_labels, advance=True, **more)
        self._last_terms = terms.detach()
        if learns and (self.measures_gradients or self.weighting.reads_gradients):
            gram = self._gradient_products(terms, embeddings)
            self._last_gradients = gram
            if self.weighting.reads_gradients:
                self.weighting.observe(gram, terms.detach())
        return self.weighting(terms)

    def _terms(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        *,
        advance: bool,
        **more: Any,
    ) -> Tensor:
        """`[L]` the members' values. The rows of the last call are kept for `active`."""
        own, relation = more.get("own"), more.get("relation")
        views = self._views(embeddings, references, own, relation)
        groups = self._grouped_rows(embeddings, labels, references, reference_labels, own, relation, views, advance=advance)
        order = [index for members, _, _ in groups for index in members]
        parts = [self._reduced(*group) for group in groups]
        for index, loss in enumerate(self.members):
            if index in order:
                continue
            x, y, others, other_labels = views.of(index, labels, reference_labels)
            told = {"references": others, "reference_labels": other_labels, **more} if loss.takes_references else {}
            term = loss(x, y, **told)
            if not isinstance(term, Tensor) or term.ndim != 0:
                got = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise PluginError(f"loss '{loss.name}' must return a scalar tensor, got {got}; see dmlcore.testing.check_loss")
            parts.append(term[None])
            order.append(index)
        terms = parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].dtype) for part in parts])  # [L]
        if order != sorted(order):
            terms = terms[torch.tensor([order.index(index) for index in range(len(order))], device=terms.device)]
        if advance:
            self._last_rows = [
                (members, sizes, Rows(rows.values.detach(), rows.counts.detach())) for members, sizes, rows in groups
            ]
        return terms

    def _gradient_products(self, terms: Tensor, embeddings: Tensor) -> Tensor:
        """`[L, L]` inner products of the terms' gradients at the embeddings, float64: as many backward passes as losses."""
        stacked = torch.stack(gradients_at(embeddings, terms)).flatten(1).double()  # [L, B D]
        return stacked @ stacked.T

    @property
    def gradient_norms(self) -> dict[str, Tensor]:
        """Norms of the losses' gradients at the embeddings by name, unweighted, as last measured; empty before.

        They are measured in training where the weighting reads them, or while `measures_gradients` is True.
        """
        if self._last_gradients is None:
            return {}
        return dict(zip(self.names, self._last_gradients.diagonal().sqrt().unbind(), strict=True))

    @property
    def gradient_cosines(self) -> Tensor | None:
        """`[L, L]` cosines between the losses' gradients at the embeddings, as last measured; 0 where one is zero."""
        if self._last_gradients is None:
            return None
        norms = self._last_gradients.diagonal().sqrt()
        scale = norms[:, None] * norms[None]
        return torch.where(scale > 0, self._last_gradients / scale.clamp_min(1e-300), 0.0)

    @property
    def terms(self) -> dict[str, Tensor]:
        """The losses' values of the last call by name, detached and unweighted; empty before the first call."""
        return {} if self._last_terms is None else dict(zip(self.names, self._last_terms.unbind(), strict=True))

    @property
    def active(self) -> dict[str, Tensor]:
        """The share of anchors with a non-zero value at the last call by name; NaN for losses without rows."""
        if self._last_terms is None:
            return {}
        rows = _apart(self._last_rows)
        nothing = self._last_terms.new_full((), torch.nan)
        return {
            name: (rows[index].values > 0).any(0).float().mean() if index in rows else nothing
            for index, name in enumerate(self.names)
        }

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser group they belong to: `proxies`, `scalars`, `weights`."""
        roles: dict[str, list[nn.Parameter]] = {"proxies": [], "scalars": [], "weights": list(self.weighting.parameters())}
        for loss in self.members:
            for role, parameters in loss.parameter_roles().items():
                group = roles.setdefault(role, [])
                group.extend(parameter for parameter in parameters if not any(parameter is known for known in group))
        return roles

    def describe(self) -> list[dict[str, Any]]:
        """Per member: its name, options, and whether it is fused or why not."""
        return [
            {
                "name": name,
                "loss": loss.name,
                "options": vars(loss.options).copy() if hasattr(loss.options, "__dict__") else {},
                "fused": loss.is_fused,
                "why_not_fused": loss.why_not_fused,
            }
            for name, loss in zip(self.names, self.members, strict=True)
        ]

    @torch.no_grad()
    def non_finite_rows(self, embeddings: Tensor, labels: Tensor) -> dict[str, list[int]]:
        """Per member the anchors whose value is not finite, for diagnosis after a bad step (an extra forward pass).

        Args:
            embeddings: `[B, D]`.
            labels: `[B]`.

        Returns:
            Members with such anchors only, counted among the samples a member sees. A member without rows has an empty list
            when its value is not finite.
        """
        found = {}
        rows = self.rows(embeddings, labels)
        for index, (name, loss) in enumerate(zip(self.names, self.members, strict=True)):
            if index in rows:
                bad = ~torch.isfinite(rows[index].values).all(0)
                if bool(bad.any()):
                    found[name] = bad.nonzero().flatten().tolist()
            else:
                x, y, _, _ = self._views(embeddings, None, None, None).of(index, labels, None)
                if not bool(torch.isfinite(loss(x, y)).all()):
                    found[name] = []
        return found
