"""The passes of one call on the CPU: what the extension is told, its state between forward and backward, and the gradients of
single terms. The nodes of autograd are in `fused.py`, the arithmetic is in `csrc/cpu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.passes import Pass, Target
from dmlcore.kernels.planning import cpu_options, plan
from dmlcore.kernels.prepared import PreparedPasses


class CpuPasses:
    """The state of the passes of one call on the CPU, between forward and backward.

    Args:
        passes: with everything but the vectors as the kernels want it. All are float32, or all float64.
        terms: how many numbers the values are reduced to.
        targets: per pass where the gradients of its anchors and of its references go. None: a tensor for each, pass after pass.

    Raises:
        ConfigError: the extension is missing, or a tensor is on another device.
        ValueError: an unknown functor, or a wrong number of options for it.
    """

    __slots__ = ("__weakref__", "alive", "by_term", "like", "passes", "reaching", "terms")

    def __init__(self, passes: Sequence[Pass], terms: int = 0, targets: Sequence[tuple[Target, Target]] | None = None) -> None:
        module = extension.CPU
        if module is None:
            raise ConfigError(extension.why_not("cpu"))
        requests = []
        for k, pass_ in enumerate(passes):
            anchors_to, references_to = ((2 * k, 0), (2 * k + 1, 0)) if targets is None else targets[k]
            requests.append(request_of(pass_, anchors_to, references_to))
        self.like = passes[0].anchors.new_empty(0)
        self.terms = terms
        self.reaching = _reaching(passes, targets) if targets is not None else []
        self.by_term: list[Tensor | None] = []
        options = cpu_options()  # of tests and measurements: an overridden `threads` wins over PyTorch's
        is_double = self.like.dtype == torch.float64
        if options:
            self.passes = module.Passes(is_double, requests, terms, **{"threads": torch.get_num_threads(), **options})
        else:
            self.passes = module.Passes(is_double, requests, terms, threads=torch.get_num_threads())
        self.alive: list[Any] = [pass_.relations for pass_ in passes]  # the kernels copy everything else
        if self.streams:  # but for the vectors that they read again
            self.alive += [(pass_.anchors, pass_.references) for pass_ in passes]
        if (recorded := getattr(plan, "recorded", None)) is not None:  # `explain` wants to see what runs together
            recorded.extend(passes)

    @classmethod
    def begun(cls, prepared: PreparedPasses, anchors: Tensor, labels: Tensor) -> CpuPasses:
        """The state of prepared passes over a batch, as `PreparedPasses.begin` takes it."""
        state = cls.__new__(cls)
        state.passes = prepared.begin(anchors, labels)
        state.like, state.terms, state.reaching = anchors, prepared.terms, prepared.reaching
        state.by_term, state.alive = [], []
        return state

    @property
    def streams(self) -> bool:
        """Whether backward reads the vectors of an input again, which must not have changed."""
        return self.passes.streams

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Terms; values and counts of pass after pass, `[sum V A]`; histograms of pass after pass."""
        count, cells = self.passes.sizes
        like = self.like
        values, counts, terms = like.new_empty(count), like.new_empty(count), like.new_empty(self.terms)
        histograms = like.new_empty(cells)
        self.passes.forward(values.data_ptr(), counts.data_ptr(), histograms.data_ptr(), terms.data_ptr())
        return terms, values, counts, histograms

    def backward(
        self, terms: Tensor | None, values: Tensor | None, histograms: Tensor | None, to: Sequence[Tensor | None]
    ) -> None:
        """Fill the contiguous tensors `to` with gradients, under cotangents of what `forward` returned. None: they are 0."""
        self.passes.backward(
            0 if terms is None else terms.data_ptr(),
            0 if values is None else values.data_ptr(),
            0 if histograms is None else histograms.data_ptr(),
            [(0, 0, 0) if gradient is None else (gradient.data_ptr(), *gradient.shape) for gradient in to],
        )

    def differentiate_terms(self, sources: Sequence[Tensor]) -> None:
        """Compute the gradient of every term by itself. Backward then only adds them up, each times the cotangent of its term.

        Args:
            sources: whose columns the passes compare. Those without `requires_grad` get no gradient.
        """
        gradients: list[Tensor | None] = []
        to = []
        for source, terms in zip(sources, self.reaching, strict=True):
            rows = self.like.new_empty((len(terms), *source.shape)) if source.requires_grad else None
            gradients.append(rows)
            to.append((0 if rows is None else rows.data_ptr(), *source.shape, terms))
        self.passes.backward_by_term(to)
        self.by_term = gradients

    def combined(self, cotangents: Tensor) -> list[Tensor | None]:
        """The gradients of the sources under cotangents `[terms]`, from those of `differentiate_terms`."""
        factors = cotangents.tolist()
        sums: list[Tensor | None] = []
        for rows, terms in zip(self.by_term, self.reaching, strict=True):
            sums.append(None if rows is None else weighted_sum(rows, [factors[term] for term in terms]))
        return sums

    def plan(self, index: int = 0) -> dict[str, int]:
        """What the planner chose for a pass."""
        return self.passes.plan(index)


def gram(rows: Tensor) -> Tensor:
    """Inner products of rows `[L, ...]` with each other, `[L, L]` float64, on any device."""
    flat = rows.detach().flatten(1)
    if extension.CPU is None or not (flat.is_cpu and flat.dtype == torch.float32 and flat.is_contiguous()):
        flat = flat.double()
        return flat @ flat.T
    products = torch.empty(len(flat), len(flat), dtype=torch.float64)
    extension.CPU.gram(flat.data_ptr(), *flat.shape, products.data_ptr())
    return products


def weighted_sum(rows: Tensor, factors: list[float]) -> Tensor:
    """The sum of contiguous rows `[L, ...]` on the CPU, each times its factor, in their order. A row with a factor of 0 is left
    out, whatever it holds."""
    total = rows.new_empty(rows.shape[1:])
    if extension.CPU is not None and rows.dtype == torch.float32:
        extension.CPU.weighted_sum(rows.data_ptr(), len(factors), total.numel(), factors, total.data_ptr())
        return total
    total.zero_()
    for row, factor in zip(rows.unbind(), factors, strict=True):
        if factor != 0:
            total.add_(row, alpha=factor)
    return total


def _reaching(passes: Sequence[Pass], targets: Sequence[tuple[Target, Target]]) -> list[list[int]]:
    """The terms that reach each source, ascending."""
    reaching: list[set[int]] = [set() for _ in range(1 + max(index for pair in targets for index, _ in pair))]
    for pass_, pair in zip(passes, targets, strict=True):
        for index, _ in pair:
            if index >= 0:
                reaching[index].update(owner for owner in pass_.owners or () if owner >= 0)
    return [sorted(terms) for terms in reaching]


def request_of(pass_: Pass, anchors_to: Target, references_to: Target) -> tuple[Any, ...]:
    """What the binding is told of a pass. The tensors must live until it has begun. Those of `relations`, and the
    vectors of what `streams`, must live as long as it."""
    anchors, labels, references, reference_labels = pass_.anchors, pass_.anchor_labels, pass_.references, pass_.reference_labels
    own, starts, positives = pass_.relations
    # addresses and strides instead of tensors: columns of a wider tensor need no copy, and the binding needs no PyTorch
    if not (anchors.is_cpu and labels.is_cpu):
        _refuse_other_device(anchors if labels.is_cpu else labels)
    there = None
    if references is not None and reference_labels is not None:
        if not (references.is_cpu and reference_labels.is_cpu):
            _refuse_other_device(references if reference_labels.is_cpu else reference_labels)
        shape, stride = references.shape, references.stride(0)
        there = (references.data_ptr(), reference_labels.data_ptr(), shape[0], stride, pass_.normalise[1])
    calls = []
    for call in pass_.calls:
        per_anchor, windows = call.given, call.windows
        assert not callable(per_anchor) or isinstance(per_anchor, Tensor)
        pointers = 0 if per_anchor is None else per_anchor.data_ptr(), 0 if windows is None else windows.data_ptr()
        calls.append((call.functor, call.options, *pointers, -1.0 if call.semihard is None else call.semihard))
    return (
        (anchors.data_ptr(), labels.data_ptr(), anchors.shape[0], anchors.stride(0), pass_.normalise[0]),
        there,
        anchors.shape[1],
        calls,
        (
            0 if own is None else own.data_ptr(),
            0 if starts is None else starts.data_ptr(),
            0 if positives is None else positives.data_ptr(),
        ),
        (-1,) * pass_.size[0] if pass_.owners is None else pass_.owners,
        anchors_to,
        references_to,
    )


def _refuse_other_device(tensor: Tensor) -> None:
    raise ConfigError(f"embeddings, references, proxies and labels are on {tensor.device} and cpu; move them to one")
