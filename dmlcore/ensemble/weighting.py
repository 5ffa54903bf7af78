"""What a weighting is, terms of several losses in, one number out, and what it may look at. The built-in ones are plugins."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmlcore.config import build_options
from dmlcore.ensemble.few_numbers import arithmetic
from dmlcore.errors import ConfigError
from dmlcore.kernels import Passed


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A weighting without options of its own."""


class Weighting(nn.Module, abc.ABC):
    """How the terms of an ensemble are combined. Subclasses set `name` and `Options` and write `forward` and `weights`.

    Learnable weights are parameters of the module; the ensemble puts them into an optimiser group of their own. Running means,
    counters and the like are buffers, so that a resumed run continues where it stopped. Bounds and projections are applied at
    the start of `forward`, after the optimiser's step. State moves only in training mode, and never by a batch with a value
    that is not finite: a gradient scaler skips such a step, and a mean that took it in would stay spoilt. What a backward pass
    keeps must be no buffer itself but a copy, because another thread's call may change it before.

    In training, an ensemble calls in this order: `learn`, where the class `looks_ahead` and `due()` says so; `observe`, where
    it `reads_gradients`; `forward`.

    Args:
        initial: `[L]` the weights asked for, all >= 0 and not all 0; what they mean is the weighting's to say.
        options: an instance of `Options`, or None for the defaults.
        options_by_name: options by name instead of `options`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The full name, as in `Dynamic weight averaging`."""
    paper: ClassVar[str]
    """Who published it where, as in `Liu et al., CVPR 2019`."""
    aliases: ClassVar[tuple[str, ...]]
    """Further names it is found by, those of other libraries among them."""
    Options: ClassVar[type] = NoOptions
    reads_gradients: ClassVar[bool] = False
    """Whether `observe` is called in training, which takes one backward pass per loss to the embedding."""
    looks_ahead: ClassVar[bool] = False
    """Whether `learn` is called in training when `due()`, which takes a look at classes outside the step."""
    initial: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__()
        self.options: Any = options if options is not None else build_options(self.Options, options_by_name, self.name)
        self.register_buffer("initial", initial.clone().float())

    @property
    def prior(self) -> Tensor:
        """`[L]` the weights asked for, scaled to sum 1."""
        return self.initial / self.initial.sum()

    def observe(self, gram: Tensor, terms: Tensor) -> None:
        """See the losses' gradients at the embedding before `forward`.

        Args:
            gram: `[L, L]` inner products of the terms' gradients with respect to the embeddings, detached.
            terms: `[L]` the losses' values, detached.
        """

    def due(self) -> bool:
        """Whether `learn` is to be called before the next `forward`."""
        return False

    def learn(self, alignments: Tensor) -> None:
        """Move the weights towards the losses that help classes they have not seen.

        Args:
            alignments: `[L]` in [-1, 1], detached: the cosine of the direction in which the validation loss falls and the
                step of each loss, measured on classes that loss has not seen; above 0 the loss helps.
        """

    @abc.abstractmethod
    def forward(self, terms: Tensor) -> Tensor:
        """The combined loss.

        Args:
            terms: `[L]` the losses' values, differentiable.

        Returns:
            Scalar.
        """

    @property
    @abc.abstractmethod
    def weights(self) -> Tensor:
        """`[L]` the effective factors of the terms now, detached: after `forward` its derivative by the terms."""

    @property
    def importances(self) -> Tensor:
        """`[L]` >= 0, sum 1, detached: what each loss is worth, the shares of the heads in a concatenation.

        They differ from `weights` where those also undo the scale of a loss.
        """
        weights = self.weights.clamp_min(0)
        return weights / weights.sum()


class RunningMeans(nn.Module):
    """Means of `L` numbers over all steps so far, the current one included.

    Args:
        count: L.
        horizon: None for the mean of all steps; otherwise the number of steps after which old ones fade: the mean is that of
            all steps up to there, and moves by `1 / horizon` of the difference from then on.
    """

    mean: Tensor
    steps: Tensor

    def __init__(self, count: int, horizon: int | None = None) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take in `[L]` values of one step. A step with a value that is not finite counts as none."""
        by, (mean, counted, values) = arithmetic(self.mean, self.steps, values.to(self.mean))
        finite = by.isfinite(values).all()  # no host asks: it would wait for the device
        counted += finite
        steps = by.at_least(counted if self.horizon is None else by.at_most(counted, self.horizon), 1)
        mean[...] = by.where(finite, mean + (values - mean) / by.number(steps), mean)


def gradients_at(embeddings: Tensor, terms: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
    """The gradient of each term `[L]`, or of some of them, at the embeddings `[B, W]`, zero where it does not reach them; the
    graph is kept."""
    gradients = []
    scalars = terms.unbind()
    for term in scalars if indices is None else (scalars[index] for index in indices):
        gradient = None
        if term.requires_grad:
            (gradient,) = torch.autograd.grad(term, embeddings, retain_graph=True, allow_unused=True)
        gradients.append(torch.zeros_like(embeddings) if gradient is None else gradient)
    return gradients


def gradients_of_terms(embeddings: Tensor, terms: Tensor, passed: Passed | None) -> Tensor:
    """The gradient of each term at the embeddings, `[L, B, W]`, from the kernels where they can give it: then a backward pass
    of any weighted sum of the terms only adds these up.

    Args:
        embeddings: `[B, W]`.
        terms: `[L]`.
        passed: what the passes gave to these terms. None: ask autograd for all.
    """
    of_passes = None if passed is None else passed.gradients_of_terms(embeddings)
    if of_passes is None:
        return torch.stack(gradients_at(embeddings, terms))
    indices, rows = of_passes
    if len(indices) == len(terms):
        return rows
    gradients = dict(zip(indices, rows.unbind(), strict=True))
    missing = [index for index in range(len(terms)) if index not in gradients]
    gradients.update(zip(missing, gradients_at(embeddings, terms, missing), strict=True))
    return torch.stack([gradients[index] for index in range(len(terms))])


def initial_weights(weights: Any, count: int) -> Tensor:
    """The weights asked for as a tensor `[count]`; None gives ones.

    Raises:
        ConfigError: a wrong number of weights, a negative or non-finite one, or all zero.
    """
    if weights is None:
        return torch.ones(count)
    try:
        values = torch.as_tensor(weights, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"weights must be {count} numbers, got {weights!r}") from None
    if len(values) != count:
        raise ConfigError(f"weights has {len(values)} numbers for {count} losses")
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()) or not bool((values > 0).any()):
        raise ConfigError(f"weights must be finite, >= 0 and not all 0, got {values.tolist()}")
    return values
