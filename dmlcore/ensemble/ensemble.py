"""Several losses as one: all that can be fused share a pass over the similarities, a weighting combines the terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from dmlcore.config import build_options, unique_names
from dmlcore.ensemble.columns import Heads, check_columns
from dmlcore.ensemble.divided_again import DividedAgain
from dmlcore.ensemble.division import Division
from dmlcore.ensemble.lookahead import alignments
from dmlcore.ensemble.weighting import Weighting, gradients_of_terms, initial_weights
from dmlcore.errors import ConfigError, PluginError
from dmlcore.kernels import Passed, gram
from dmlcore.losses import Comparison, Loss, RowLoss, Rows, compare, create
from dmlcore.losses.base import Against
from dmlcore.losses.divided_memory import DividedEntries
from dmlcore.losses.gathering import Meeting, check_group, meeting
from dmlcore.losses.parting import check_engine, shards_of
from dmlcore.losses.path import Outcome, compared, evaluate
from dmlcore.losses.relations import share_a_label
from dmlcore.losses.repeating import evaluate_again
from dmlcore.ranks import Group, Layout, agreed, first_of, inside, refuse_alone, same_everywhere, summed


class _LastCall:
    """What an ensemble tells of its last call, without history. An object of its own: a module takes long to set an attribute.

    Attributes:
        terms: `[L]`.
        gradients: inner products of the terms' gradients, `[L, L]`, as last measured.
        outcome: of the members that are defined by rows.
        active: shares of anchors of members that were divided among ranks, by index, as tensors or as numbers.
        is_total: whether all terms are sums over the ranks, of which every rank has the same bits.
        again: how the next one may go, where ranks have divided this one.
    """

    def __init__(self) -> None:
        self.terms: Tensor | None = None
        self.gradients: Tensor | None = None
        self.outcome: Outcome | None = None
        self.active: dict[int, Any] = {}
        self.is_total = False
        self.again: DividedAgain | None = None


class LossEnsemble(nn.Module):
    """A weighted sum of losses on one embedding, or on parts of it, as a module.

    Args:
        losses: `Loss` objects, or names (created with default options).
        weighting: the name of a weighting plugin (`fixed`, `uncertainty`, ...).
        weights: one number >= 0 per loss; None: all 1.
        weighting_options: options of the weighting by name.
        columns: per loss the columns `(first, last + 1)` of the embeddings that it sees: heads side by side; None: all columns
            for each. Losses of the same columns share a pass. A regulariser of norms with None in its place sees every head.
        num_classes, embedding_dim: for names of losses that own proxies.
        group: the ranks whose batches together are the batch: `"world"`, a `ProcessGroup`, a `DeviceMesh` of one dimension, or
            a `dmlcore.ranks.Group`. None: there is one process. `"local"`: there are several, and each trains for itself.

    Raises:
        ConfigError: no losses, unknown names, wrong weights, wrong columns, `reduction = "none"`.
    """

    def __init__(
        self,
        losses: Sequence[Loss | str],
        weighting: str = "fixed",
        weights: Any = None,
        *,
        weighting_options: dict[str, Any] | None = None,
        columns: Sequence[tuple[int, int] | None] | None = None,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
        group: Any = None,
    ) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("an ensemble needs at least one loss")
        members = [
            create(loss, num_classes=num_classes, embedding_dim=embedding_dim) if isinstance(loss, str) else loss
            for loss in losses
        ]
        for loss in members:
            if not isinstance(loss, Loss):
                raise ConfigError(f"an ensemble is made of dmlcore losses or their names, got {type(loss).__name__}")
            if getattr(loss.options, "reduction", "default") == "none":
                raise ConfigError(f"{loss.name}: reduction 'none' gives no term an ensemble could add")
        self.losses = nn.ModuleList(members)
        self.names = unique_names(loss.name for loss in members)
        from dmlcore.plugins import find

        component = find("weighting", weighting).component
        options = build_options(component.Options, weighting_options or {}, weighting)
        self.weighting: Weighting = component(initial_weights(weights, len(members)), options)
        self.columns = check_columns(columns, members)
        self.group: Group | None = check_group(group)
        self.layout: Layout | None = None
        self._is_same_everywhere = False
        self.measures_gradients = False
        self._last = _LastCall()

    @property
    def members(self) -> list[Loss]:
        """The losses in order."""
        return list(self.losses)  # type: ignore[arg-type]

    @property
    def weights(self) -> Tensor:
        """`[L]` the effective weights now, detached."""
        return self.weighting.weights

    def rows(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> dict[int, Rows]:
        """Values and counts of every member that is defined by rows, by its index. Arguments as `forward`. A miner with a seed
        repeats its last draw."""
        comparison, members = self.compared(embeddings, labels, **against), self.members
        heads = None if self.columns is None else Heads(self.columns, comparison)
        outcome = self._evaluate(comparison, members, heads, advance=False)
        rows = {index: outcome.rows_of(index) for index in range(len(members))}
        return {index: values for index, values in rows.items() if values is not None}

    def forward(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        """The combined loss. With a group every rank gives its own samples, and gets the loss of all.

        Args:
            embeddings: `[B, D]` floating point, raw.
            labels: `[B]` int64 (0..C-1 where a member owns proxies), or a binary matrix `[B, L]` as in `Loss.forward`.
            references, reference_labels: `[N, D]` and `[N]` (or `[N, L]`), for the members that compare samples with samples.
            own: `[B]` int64, which reference is the sample itself (-1: none) and so no pair. Needs references.
            relation: which pairs are positives, as in `Loss.forward`, for members that compare samples with samples.
            keys: `[B, D]` embeddings of another view of each sample, for members with a `key_momentum`.

        Returns:
            Scalar.

        Raises:
            PluginError: a member returns something else than a scalar.
        """
        if self.group is None:
            if self.training and torch.is_grad_enabled() and embeddings.requires_grad:
                refuse_alone("an ensemble")
            return self.value_of(compare(embeddings, labels, **against))
        with inside():
            if against or self.group.size == 1:
                return self.value_of(self.compared(embeddings, labels, **against))
            last, again = self._last, self._last.again
            met = self._met(embeddings, labels, agrees=again is not None and again.is_of(self, embeddings))
            parts = again.terms(met) if again is not None and met.agrees else None
            if parts is None:
                return self.value_of(self._whole(met))
            terms, shares = parts
            self.layout = met.layout
            last.terms, last.outcome, last.active = terms.detach(), Outcome(), dict(enumerate(shares))
            return self.weighting(terms)

    def compared(self, embeddings: Tensor, labels: Tensor, state: str = "", **against: Unpack[Against]) -> Comparison:
        """What is compared with what, of all ranks where there is a group. Arguments as `forward`, and `state` as
        `whole_comparison`."""
        if self.group is None or self.group.size == 1:
            return compare(embeddings, labels, **against)
        return self._whole(self._met(embeddings, labels, state, **against))

    def _met(
        self, embeddings: Tensor, labels: Tensor, state: str = "", *, agrees: bool = False, **against: Unpack[Against]
    ) -> Meeting:
        """What the ranks have told one another. Arguments as `meeting`."""
        assert self.group is not None
        state = f"{state}, {'training' if self.training else 'evaluation'} mode"
        return meeting(self.group, embeddings, labels, state, agrees=agrees, **against)

    def _whole(self, met: Meeting) -> Comparison:
        """The comparison of all ranks' samples. The first one also compares the ensembles of the ranks."""
        comparison, layout = met.whole()
        self.layout = layout
        if not self._is_same_everywhere:
            check_engine(self)
            form, device = str(self.describe()), comparison.anchors.device
            same_everywhere(self, form, layout.group, device, except_for=shards_of(self))
            self._is_same_everywhere = True
        return comparison

    def value_of(self, comparison: Comparison, entries: DividedEntries | None = None) -> Tensor:
        """The combined loss of a comparison, of all ranks where there is a group.

        Args:
            comparison: of whole embeddings.
            entries: of a divided memory, for the members that compare samples with samples. The comparison has no references.
        """
        weighting: Weighting = self.weighting
        embeddings = comparison.anchors
        learns = self.training and torch.is_grad_enabled() and embeddings.requires_grad
        layout, group = self.layout, None if self.layout is None else self.layout.group
        if learns and weighting.looks_ahead and weighting.due():
            helps = alignments(self, embeddings.detach(), comparison.labels)
            weighting.learn(helps if group is None else first_of(helps, group))
        terms, passed = self._terms_of(comparison, advance=True, layout=layout, entries=entries)
        if group is not None:
            passed = None  # every rank steps by what autograd makes of all terms
            if not self._last.is_total:
                terms = agreed(terms, self.names, group)
        detached = self._last.terms = terms.detach()
        if learns and (self.measures_gradients or weighting.reads_gradients):
            stacked = gradients_of_terms(embeddings, terms, passed)  # [L, B, D]
            products = gram(stacked if layout is None else stacked[:, layout.own])
            products = self._last.gradients = products if group is None else summed(products, group)
            if weighting.reads_gradients:
                weighting.observe(products, detached)
        return weighting(terms)

    def terms_of(self, comparison: Comparison, *, advance: bool, layout: Layout | None = None) -> Tensor:
        """`[L]` the members' values, unweighted.

        Args:
            comparison: of whole embeddings.
            advance: a new batch: its rows are kept for `active`, and miners with a seed draw anew.
            layout: whose samples the anchors are, of all ranks; members that can be are then divided among these.
        """
        return self._terms_of(comparison, advance=advance, layout=layout)[0]

    def _terms_of(
        self, comparison: Comparison, *, advance: bool, layout: Layout | None, entries: DividedEntries | None = None
    ) -> tuple[Tensor, Passed | None]:
        """The terms, and what the passes gave those of them that come from averages alone, if there are such."""
        members = self.members
        heads = None if self.columns is None else Heads(self.columns, comparison)
        division = None if layout is None else Division(members, self.columns, comparison, layout, entries)
        outcome = self._evaluate(comparison, members, heads, division, advance=advance)
        scalars = {}
        if division is not None:
            outcome.completed |= division.rows_of_entries(advance=advance)
            scalars = division.terms(outcome, advance=advance)
        for index, loss in enumerate(members):
            if division is None:
                loss.check_is_whole()
            if not loss.by_rows:
                scalars[index] = _called(loss, comparison if heads is None else heads.view(index))
        terms = None if division is None else division.all_terms
        if terms is None:
            terms = outcome.terms(members, scalars)
        passed = outcome.passed if outcome.averaged else None
        if advance:
            outcome.detach()
            self._last.outcome = outcome
            self._last.active = {} if division is None else division.active
            self._last.is_total = len(self._last.active) == len(members)
            self._last.again = None
            if division is not None and division.all_terms is not None and heads is None:
                self._last.again = DividedAgain.of(members, division.of_tiles)
        return terms, passed

    def _evaluate(
        self,
        comparison: Comparison,
        members: list[Loss],
        heads: Heads | None,
        division: Division | None = None,
        *,
        advance: bool,
    ) -> Outcome:
        """Values of the members that are defined by rows."""
        comparisons = []
        for index, loss in enumerate(members):
            if division is not None and index in division.indices:
                comparisons.append(division.view(index, advance=advance))
                continue
            if not loss.by_rows or _is_parted(loss) or (division is not None and division.computes(index)):
                comparisons.append(None)
                continue
            view = comparison if heads is None else heads.view(index)
            if not loss.takes_references:  # whatever the others are called with
                view = Comparison(view.anchors, view.labels)
            comparisons.append(compared(cast(RowLoss, loss), view, advance=advance))
        if division is None and heads is None and (outcome := evaluate_again(members, comparisons)) is not None:
            return outcome
        divided = () if division is None else division.indices
        return evaluate(members, comparisons, None if heads is None else heads.whole, unaveraged=divided)

    @property
    def gradient_norms(self) -> dict[str, Tensor]:
        """Norms of the losses' gradients at the embeddings by name, unweighted, as last measured; empty before.

        They are measured in training where the weighting reads them, or while `measures_gradients` is True.
        """
        if self._last.gradients is None:
            return {}
        return dict(zip(self.names, self._last.gradients.diagonal().sqrt().unbind(), strict=True))

    @property
    def gradient_cosines(self) -> Tensor | None:
        """`[L, L]` cosines between the losses' gradients at the embeddings, as last measured; 0 where one is zero."""
        if self._last.gradients is None:
            return None
        norms = self._last.gradients.diagonal().sqrt()
        scale = norms[:, None] * norms[None]
        return torch.where(scale > 0, self._last.gradients / scale.clamp_min(1e-300), 0.0)

    @property
    def terms(self) -> dict[str, Tensor]:
        """The losses' values of the last call by name, detached and unweighted; empty before the first call."""
        return {} if self._last.terms is None else dict(zip(self.names, self._last.terms.unbind(), strict=True))

    @property
    def active(self) -> dict[str, Tensor]:
        """The share of anchors with a non-zero value at the last call by name; NaN for losses without rows."""
        if self._last.terms is None or self._last.outcome is None:
            return {}
        nothing = self._last.terms.new_full((), torch.nan)
        outcome = self._last.outcome
        of_rows = outcome.active_rows()
        shares = {}
        for index, name in enumerate(self.names):
            if index in self._last.active:
                shares[name] = torch.as_tensor(self._last.active[index], dtype=torch.float32, device=nothing.device)
                continue
            if index in of_rows:
                shares[name] = of_rows[index]
                continue
            rows = outcome.rows_of(index)
            shares[name] = nothing if rows is None else (rows.values > 0).any(0).float().mean()
        return shares

    def parameter_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimiser group they belong to: `proxies`, `scalars`, `weights`."""
        roles: dict[str, list[nn.Parameter]] = {"proxies": [], "scalars": [], "weights": list(self.weighting.parameters())}
        for loss in self.members:
            for role, parameters in loss.parameter_roles().items():
                group = roles.setdefault(role, [])
                group.extend(parameter for parameter in parameters if not any(parameter is member for member in group))
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
        spoiled = {}
        rows, comparison = self.rows(embeddings, labels), self.compared(embeddings, labels)
        heads = None if self.columns is None else Heads(self.columns, comparison)
        for index, (name, loss) in enumerate(zip(self.names, self.members, strict=True)):
            if index in rows:
                is_bad = ~torch.isfinite(rows[index].values).all(0)
                if bool(is_bad.any()):
                    spoiled[name] = is_bad.nonzero().flatten().tolist()
            elif _is_parted(loss):
                if self._last.terms is not None and not bool(torch.isfinite(self._last.terms[index])):
                    spoiled[name] = []
            elif not bool(torch.isfinite(_called(loss, comparison if heads is None else heads.view(index))).all()):
                spoiled[name] = []
        return spoiled


def _is_parted(loss: Loss) -> bool:
    """Whether this rank has some of the classes of a loss only."""
    return loss.shard is not None


def _called(loss: Loss, comparison: Comparison) -> Tensor:
    """The value of a member with a `forward` of its own, which is called with what it can take."""
    arguments: dict[str, Any] = {}
    if loss.takes_references:
        arguments = {"references": comparison.references, "reference_labels": comparison.reference_labels}
        if comparison.own is not None:
            arguments["own"] = comparison.own
        if comparison.relation not in (None, share_a_label):  # a label matrix says it by itself
            arguments["relation"] = comparison.relation
    if loss.key_momentum is not None and comparison.keys is not None:
        arguments["keys"] = comparison.keys
    term = loss(comparison.anchors, comparison.labels, **arguments)
    if not isinstance(term, Tensor) or term.ndim != 0:
        shape = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
        raise PluginError(f"loss '{loss.name}' must return a scalar tensor, got {shape}; see dmlcore.testing.check_loss")
    return term
