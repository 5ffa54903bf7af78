"""One pass of several losses on a CUDA device: tensors in, the binding's pointers out. Ordering by class is PyTorch's work
here; everything else is in `csrc/cuda`."""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.rows import FunctorCall, Relations

SLOT_BYTES = 1 << 30
"""Device memory that losses comparing every positive with every negative may take, 12 bytes per anchor and positive."""


class NotTaken(ConfigError):
    """The kernels do not take this problem, but the plain definition can: the text says why."""


class CudaStep:
    """The state of one pass on a CUDA device, between forward and backward.

    Everything runs in the current stream of the anchors' device. The host waits only where a loss with slots asks for the size
    of the largest class.

    Args:
        anchors: `[A, D]` float32, float16 or bfloat16; computed in float32.
        anchor_labels: `[A]` int64.
        references: `[N, D]`, or None: the anchors themselves, without each anchor's pair with itself.
        reference_labels: `[N]` int64, or None with `references`.
        normalise: whether anchors and references are scaled to unit norm.
        calls: the functors.
        relations: must be empty: equal labels decide.
        module: the binding; another than `dmlcore._cuda` only in tests, where an emulator runs the kernels on CPU tensors.

    Raises:
        ConfigError: no extension, tensors on different devices, float64.
        NotTaken: relations, or too many positives for a loss that compares them all with every negative.
    """

    def __init__(
        self,
        anchors: Tensor,
        anchor_labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        normalise: tuple[bool, bool],
        calls: tuple[FunctorCall, ...],
        relations: Relations | None = None,
        *,
        module: ModuleType | None = None,
    ) -> None:
        module = module or extension.cuda()
        if module is None:
            raise ConfigError(extension.reason_against("cuda"))
        if any(tensor is not None for tensor in relations or ()) or any(call.windows is not None for call in calls):
            raise NotTaken("custom relations, cross-batch memories and miners have no CUDA kernels yet; use DML_FUSED=0")
        self.device = anchors.device
        given = {
            "anchors": anchors,
            "anchor_labels": anchor_labels,
            "references": references,
            "reference_labels": reference_labels,
        }
        for name, tensor in given.items():
            if tensor is not None and tensor.device != self.device:
                raise ConfigError(f"{name} are on {tensor.device}, but anchors are on {self.device}; move them to one device")
            if tensor is not None and tensor.dtype == torch.float64:
                raise ConfigError(f"{name} are float64, but the CUDA kernels compute in float32; use `.float()` or DML_FUSED=0")
        self.dtypes = (anchors.dtype, None if references is None else references.dtype)
        with self._on_device():
            self.anchors, labels, anchor_order = self._in_order(anchors, anchor_labels)
            self.references, order = None, anchor_order
            side = None
            others = labels
            if references is not None and reference_labels is not None:
                self.references, others, order = self._in_order(references, reference_labels)
                side = (self.references.data_ptr(), order.data_ptr(), self.references.shape[0], normalise[1])
            row_first = torch.searchsorted(others, labels)  # [A]
            row_last = torch.searchsorted(others, labels, right=True)  # [A]
            self.step: Any = module.Step(
                anchors=(self.anchors.data_ptr(), anchor_order.data_ptr(), self.anchors.shape[0], normalise[0]),
                references=side,
                row_first=row_first.data_ptr(),
                row_last=row_last.data_ptr(),
                width=self.anchors.shape[1],
                losses=[(call.functor, list(call.options)) for call in calls],
            )
            most = 0
            if self.step.has_slots and len(labels):
                most = int((row_last - row_first).max()) - (references is None)
            try:
                kept, self.forward_bytes, self.backward_bytes = self.step.plan(most, SLOT_BYTES)
            except module.NotTaken as error:
                raise NotTaken(f"{error}; use fewer samples per class, another mining, or DML_FUSED=0") from None
            self.kept = self._bytes(kept)
        self.held = (anchor_order, order, row_first, row_last)  # the step holds their addresses

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values and counts, both `[V, A]` float32 in the anchors' order, and no tables."""
        with self._on_device():
            both = self.anchors.new_empty(2, self.step.value_count, self.anchors.shape[0])  # [2, V, A]
            values, counts = both[0], both[1]
            scratch = self._bytes(self.forward_bytes)
            self.step.forward(self.kept.data_ptr(), scratch.data_ptr(), values.data_ptr(), counts.data_ptr(), self._stream())
        return values, counts, values.new_empty(0)

    def backward(
        self, cotangents: Tensor, table_cotangents: Tensor | None = None, with_references: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of anchors and references under the cotangents `[V, A]` of the values."""
        with self._on_device():
            cotangents = cotangents.float().contiguous()
            grad_anchors, grad_references = torch.empty_like(self.anchors), None
            if self.references is not None and with_references:
                grad_references = torch.empty_like(self.references)
            scratch = self._bytes(self.backward_bytes)
            pointer = grad_references.data_ptr() if grad_references is not None else 0
            self.step.backward(
                self.kept.data_ptr(),
                scratch.data_ptr(),
                cotangents.data_ptr(),
                grad_anchors.data_ptr(),
                pointer,
                self._stream(),
            )
            if grad_references is not None:
                grad_references = grad_references.to(self.dtypes[1])
            return grad_anchors.to(self.dtypes[0]), grad_references

    def _on_device(self) -> Any:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self.device)

    def _in_order(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels, order = torch.sort(labels, stable=True)
        return rows.detach().float().contiguous(), labels, order
