"""One pass of several losses on a CUDA device. Ordering by class and the matrix products are PyTorch's work here, so that
products have the precision the user asked torch for; everything between them is in `csrc/cuda`."""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import extension
from dmlcore.kernels.jit import cuda_functors, sets
from dmlcore.kernels.passes import FunctorCall, Pass
from dmlcore.kernels.planning import plan, plan_options

WORKSPACE = 16 << 20
"""Bytes of the similarities of a chunk, and in backward as many for its slopes: together they stay in the second-level cache of
data-centre GPUs."""
MANY_REFERENCES = 1 << 16
"""References beyond which losses with slots wait for the host to read the size of the largest class, which memory for one
anchor with as many positives as references would dwarf. Not in a capture."""

ONE_LAUNCH = 0
"""Whether losses share a kernel where they can: 1 yes, 2 where it was measured to be faster for the losses and sizes at hand. 0
until a device has shown that it ever is. `plan_options(one_launch=...)` overrides it."""

Range = tuple[int, int]
_shared_is_faster: dict[Any, bool] = {}  # by device, losses and sizes


class NotTaken(ConfigError):
    """The kernels do not take this problem, but the plain definition can: the text says why."""


class CudaPass:
    """The state of one pass on a CUDA device, between forward and backward.

    Everything runs in the current stream of the anchors' device, memory comes from torch's allocator, and the host never waits
    (but see `MANY_REFERENCES`), so it can be captured in a CUDA graph. `plan_options` may set `workspace` (bytes of a
    chunk), `tile_rows` and `tile_columns` (its shape), and `one_launch` (losses share a kernel).

    Args:
        one: the pass. Vectors are float32, float16 or bfloat16, computed in float32. Relations are not checked: that would need
            the host.
        module: the binding. Another than `dmlcore._cuda` only in tests, where an emulator runs the kernels on CPU tensors.

    Raises:
        ConfigError: no extension, tensors on different devices, float64.
        NotTaken: a functor that cannot take these references.
    """

    def __init__(self, pass_: Pass, *, module: ModuleType | None = None) -> None:
        module = module or extension.cuda()
        if module is None:
            raise ConfigError(extension.why_not("cuda"))
        anchors, references, relations, calls = pass_.anchors, pass_.references, pass_.relations, pass_.calls
        if any(call.semihard is not None for call in calls):
            raise ConfigError("only the kernels of the CPU choose semi-hard pairs; give windows, or mine by masks")
        self.device = anchors.device
        tensors: dict[str, Any] = {
            "anchors": anchors,
            "anchor_labels": pass_.anchor_labels,
            "references": references,
            "reference_labels": pass_.reference_labels,
            **relations._asdict(),
        }
        tensors |= {f"given of {call.functor}": call.given for call in calls}
        tensors |= {f"windows of {call.functor}": call.windows for call in calls}
        _check(tensors, self.device)
        self.dtypes = (anchors.dtype, None if references is None else references.dtype)
        self.normalise, self.relations = pass_.normalise, relations
        self.calls = tuple(
            FunctorCall(call.functor, call.options, _numbers(call.given), _numbers(call.windows), call.cells) for call in calls
        )
        self.lists = relations.starts is not None and relations.positives is not None
        with self._on_device():
            self.raw = [_numbers(anchors), None if references is None else _numbers(references)]
            self.labels = [pass_.anchor_labels, pass_.reference_labels]
            self.orders: list[Tensor | None] = [None, None]
            if not self.lists:
                for side, labels in enumerate(self.labels):
                    if labels is not None:
                        self.labels[side], self.orders[side] = torch.sort(labels, stable=True)
            functors = [self._functor(call, module) for call in self.calls]
            options = getattr(plan, "options", {})
            self.workspace = options.get("workspace", WORKSPACE)
            shares = self._shares(pass_, functors, module, options.get("one_launch", ONE_LAUNCH))
            try:
                self.native: Any = module.Pass(
                    anchors.shape[0],
                    None if references is None else references.shape[0],
                    anchors.shape[1],
                    [
                        (functor, list(call.options), _pointer(call.given), _pointer(call.windows))
                        for functor, call in zip(functors, self.calls, strict=True)
                    ],
                    own=relations.own is not None,
                    list_length=None if relations.positives is None or not self.lists else relations.positives.numel(),
                    most_positives=self._most_positives(functors, module),
                    workspace=max(self.workspace, 4),
                    rows=options.get("tile_rows", 0),
                    columns=options.get("tile_columns", 0),
                    set=sets.shared_launch(self.calls, functors, self.device, module) if shares else None,
                )
            except ValueError as error:
                if any(call.functor not in (*module.functors(), *cuda_functors.joined) for call in calls):
                    raise
                raise NotTaken(f"{error}; DML_FUSED=0 runs the definition") from None
            self.plan: dict[str, Any] = self.native.plan
            self.unit = [None if side is None else torch.empty_like(side) for side in self.raw]
            self.factors = [None if side is None else side.new_empty(side.shape[0]) for side in self.raw]
            self.state_bytes = self._bytes(self.plan["kept"])
        self.stored: Tensor | None = None

    @property
    def anchors(self) -> Tensor:
        """`[A, D]` in class order, of unit norm where asked for; after `forward`."""
        assert self.unit[0] is not None
        return self.unit[0]

    @property
    def references(self) -> Tensor:
        """The same `[N, D]`; the anchors for a batch with itself."""
        return self.anchors if self.unit[1] is None else self.unit[1]

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values and counts, both `[V, A]` float32 in the anchors' order, and the histograms `[cells]`."""
        with self._on_device():
            stream, native = self._stream(), self.native
            self._prepare(stream)
            both = self.anchors.new_empty(2, native.value_count, self.anchors.shape[0])  # [2, V, A]
            values, counts = both[0], both[1]
            histograms = self.anchors.new_empty(native.table_cells)
            scratch = self._bytes(self.plan["forward"])
            products, single = self._chunk(), len(self._rows()) * len(self._columns()) == 1
            for r0, r1 in self._rows():
                for c0, c1 in self._columns():
                    self._multiply(products, (r0, r1), (c0, c1))
                    native.forward(
                        products.data_ptr(),
                        r0,
                        r1 - r0,
                        c0,
                        c1 - c0,
                        scratch.data_ptr(),
                        values.data_ptr(),
                        counts.data_ptr(),
                        stream,
                    )
            native.finish(scratch.data_ptr(), values.data_ptr(), counts.data_ptr(), histograms.data_ptr(), stream)
            self.stored = products if single and products.numel() * 4 <= self.workspace else None
        return values, counts, histograms

    def backward(
        self, cotangents: Tensor, histogram_cotangents: Tensor | None = None, with_references: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of anchors and references under the cotangents `[V, A]` of the values and `[cells]` of the histograms."""
        with self._on_device():
            stream, native = self._stream(), self.native
            cotangents = cotangents.float().contiguous()
            histograms = (
                self.anchors.new_empty(0) if histogram_cotangents is None else histogram_cotangents.float().contiguous()
            )
            scratch = self._bytes(self.plan["backward"])
            slopes, products = self._chunk(), self._chunk() if self.stored is None else self.stored
            on_anchors = _Sum(torch.empty_like(self.anchors))
            on_references = None
            if self.unit[1] is None:
                on_references = on_anchors
            elif with_references:
                on_references = _Sum(torch.empty_like(self.references))
            for r0, r1 in self._rows():
                for c0, c1 in self._columns():
                    if self.stored is None:
                        self._multiply(products, (r0, r1), (c0, c1))
                    native.backward(
                        products.data_ptr(),
                        slopes.data_ptr(),
                        r0,
                        r1 - r0,
                        c0,
                        c1 - c0,
                        self.stored is None,
                        scratch.data_ptr(),
                        cotangents.data_ptr(),
                        histograms.data_ptr(),
                        stream,
                    )
                    chunk = _shaped(slopes, r1 - r0, c1 - c0)
                    on_anchors.add(r0, r1, chunk, self.references[c0:c1])
                    if on_references is not None:
                        on_references.add(c0, c1, chunk.t(), self.anchors[r0:r1])
            grad_references = None
            if self.unit[1] is not None and on_references is not None:
                grad_references = self._scattered(1, on_references, stream)
            return self._scattered(0, on_anchors, stream), grad_references

    def _prepare(self, stream: int) -> None:
        sides = []
        for side in range(2):
            vectors = (self.raw[side], self.orders[side], self.labels[side], self.unit[side], self.factors[side])
            sides.append(None if self.raw[side] is None else (*map(_pointer, vectors), self.normalise[side]))
        own, starts, positives = map(_pointer, self.relations)
        if not self.lists:
            starts = positives = 0
        elif not positives:  # no pair at all: no address would mean no lists
            positives = starts
        self.native.prepare(sides[0], sides[1], own, starts, positives, self.state_bytes.data_ptr(), stream)

    def _scattered(self, side: int, grad: _Sum, stream: int) -> Tensor:
        out = torch.empty_like(grad.total)
        total = grad.total if grad.total.numel() == 0 or grad.filled else grad.total.zero_()
        self.native.scatter(side == 1, total.data_ptr(), out.data_ptr(), stream)
        dtype = self.dtypes[side]
        return out if dtype is None else out.to(dtype)

    def _rows(self) -> list[Range]:
        return _pieces(self.anchors.shape[0], self.plan["rows"])

    def _columns(self) -> list[Range]:
        return _pieces(self.references.shape[0], self.plan["columns"]) or [(0, 0)]

    def _chunk(self) -> Tensor:
        return self.anchors.new_empty(self.plan["rows"] * self.plan["columns"])

    def _multiply(self, into: Tensor, rows: Range, columns: Range) -> None:
        # out= variants are left alone by autocast
        out = _shaped(into, rows[1] - rows[0], columns[1] - columns[0])
        if out.numel():
            torch.mm(self.anchors[slice(*rows)], self.references[slice(*columns)].t(), out=out)

    def _most_positives(self, functors: list[Any], module: ModuleType) -> int:
        """Of any anchor, where it is worth waiting for; 0: unknown."""
        labels = self.labels[0] if self.labels[1] is None else self.labels[1]
        if self.lists or labels is None or labels.numel() <= MANY_REFERENCES:
            return 0
        if not any(map(module.has_slots, functors)):
            return 0
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return 0
        return int(torch.unique_consecutive(labels, return_counts=True)[1].max())

    def _functor(self, call: FunctorCall, module: ModuleType) -> Any:
        """As the binding wants it: a name, or an `External` where it was compiled at run time."""
        compiled = cuda_functors.joined.get(call.functor)
        return call.functor if compiled is None else compiled.on(self.device, call.options, module)

    def _shares(self, pass_: Pass, functors: list[Any], module: ModuleType, wish: int) -> bool:
        """Whether losses share a kernel. Measured once for losses and powers of two of sizes, but not in a capture."""
        if wish < 2:
            return wish == 1
        members = sets.joining(self.calls, functors, self.device, module)
        if sum(member is not None for member in members) < 2:
            return False
        rows = [side.shape[0].bit_length() for side in self.raw if side is not None]
        key = (self.device, *members, self.lists, self.raw[0].shape[1], *rows)
        if key not in _shared_is_faster:
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return False
            seconds = []
            try:
                for one_launch in range(2):
                    with plan_options(one_launch=one_launch):
                        seconds.append(sets.seconds_of(CudaPass(pass_, module=module).run, self.device))
            except torch.OutOfMemoryError:
                return False
            _shared_is_faster[key] = seconds[1] < seconds[0]
        return _shared_is_faster[key]

    def run(self) -> None:
        """Forward and backward, for a measurement."""
        values, _, histograms = self.forward()
        self.backward(torch.ones_like(values), torch.ones_like(histograms))

    def _on_device(self) -> Any:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self.device)


class _Sum:
    """A sum of products in place, part by part of its rows; in a fixed order."""

    def __init__(self, total: Tensor) -> None:
        self.total, self.filled = total, False

    def add(self, first: int, last: int, left: Tensor, right: Tensor) -> None:
        """Adds `left @ right` to the rows from `first` to `last`."""
        if self.filled:
            self.total[first:last].addmm_(left, right)
        elif last - first == self.total.shape[0]:
            torch.mm(left, right, out=self.total)
        else:
            self.total.zero_()
            torch.mm(left, right, out=self.total[first:last])
        self.filled = True


def _check(tensors: dict[str, Tensor | None], device: torch.device) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ConfigError(f"{name} are on {tensor.device}, but anchors are on {device}; move them to one device")
        if tensor is not None and tensor.dtype == torch.float64:
            raise ConfigError(f"{name} are float64, but the CUDA kernels compute in float32; use `.float()` or DML_FUSED=0")


def _numbers(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().float().contiguous()


def _pointer(tensor: Any) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _shaped(flat: Tensor, rows: int, columns: int) -> Tensor:
    return flat[: rows * columns].view(rows, columns)


def _pieces(count: int, size: int) -> list[Range]:
    return [(first, min(first + size, count)) for first in range(0, count, max(size, 1))]
