"""Several losses as one: all that can be fused share a pass over the similarities, a weighting combines the terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.config import build_options, unique_names
from dmlcore.ensemble.lookahead import alignments, gradients_at
from dmlcore.ensemble.passes import FoundRows, found_rows, sides_of, terms_of
from dmlcore.ensemble.views import Views, columns_checked
from dmlcore.ensemble.weighting import Weighting, initial_weights
from dmlcore.errors import ConfigError, PluginError
from dmlcore.losses import Loss, RowLoss, Rows, create
from dmlcore.losses.relations import Relation


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
        self._last_rows: FoundRows | None = None

    @property
    def members(self) -> list[Loss]:
        """The losses in order."""
        return list(self.losses)  # type: ignore[arg-type]

    @property
    def weights(self) -> Tensor:
        """`[L]` the effective weights now, detached."""
        return self.weighting.weights

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
        views, members = self._views(embeddings, references, own, relation), self.members
        sides = sides_of(members, embeddings, labels, references, reference_labels, own, relation, views, advance=False)
        found = found_rows(members, sides, embeddings, views)
        rows = {index: found.rows_of(index) for index in sides}
        return {index: one for index, one in rows.items() if one is not None}

    def _views(self, embeddings: Tensor, references: Tensor | None, own: Any, relation: Any) -> Views:
        """What each member sees.

        Raises:
            ConfigError: columns beyond the embeddings; subsets of classes together with `own` or a relation.
        """
        if self.class_masks is not None and (own is not None or relation is not None):
            raise ConfigError("losses that see some classes only take neither a relation nor a memory")
        return Views(self.columns, self.class_masks, embeddings, references)

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
        own, relation, members = more.get("own"), more.get("relation"), self.members
        views = self._views(embeddings, references, own, relation)
        sides = sides_of(members, embeddings, labels, references, reference_labels, own, relation, views, advance=advance)
        found = found_rows(members, sides, embeddings, views)
        others = {}
        for index, loss in enumerate(members):
            if index in found.averaged:
                continue
            if index in found.own:
                assert isinstance(loss, RowLoss)
                others[index] = loss.reduce(found.own[index])
                continue
            x, y, there, labels_there = views.of(index, labels, reference_labels)
            told = {"references": there, "reference_labels": labels_there, **more} if loss.takes_references else {}
            term = loss(x, y, **told)
            if not isinstance(term, Tensor) or term.ndim != 0:
                got = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise PluginError(f"loss '{loss.name}' must return a scalar tensor, got {got}; see dmlcore.testing.check_loss")
            others[index] = term
        if advance:
            self._last_rows = found.detached()
        return terms_of(found, others)

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
        if self._last_terms is None or self._last_rows is None:
            return {}
        nothing = self._last_terms.new_full((), torch.nan)
        rows = [self._last_rows.rows_of(index) for index in range(len(self.names))]
        return {
            name: nothing if one is None else (one.values > 0).any(0).float().mean()
            for name, one in zip(self.names, rows, strict=True)
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
