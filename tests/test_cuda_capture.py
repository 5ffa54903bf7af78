"""What a step on CUDA asks of PyTorch, with tensors that have no memory on a device that is not there (fake tensors): nothing
waits for the host, and nothing is copied from it. So it can be captured in a CUDA graph. Kernels are not launched."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import CLASSES, LOSSES, WIDTH, Case
from test_graphs import SHAPES, TRUNKS, model_of
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmlcore import LossEnsemble, plugins
from dmlcore.kernels import FunctorCall, Pass, extension, fused
from dmlcore.kernels.cuda import CudaPass
from dmlcore.kernels.encoding import encoded
from dmlcore.kernels.operator import fused_rows_backward_op, fused_rows_op

COUNT = 64
LABELS_TELL = ("angular", "prototypical")
"""Their work depends on how many pairs or classes a batch has. So does that of some options."""
OPTIONS_TELL = {"swap": True, "pairs": "one_per_class", "sampling": "distance_weighted"}


class Watched(TorchDispatchMode):
    """Collects operations that wait for the host or copy from it."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.faults = 0, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        places = {tensor.device.type for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, torch.Tensor)}
        self.count += 1
        if len(places) > 1 or function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.faults.append(str(function))
        return result


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """A CUDA device of fake tensors, and passes that plan but launch nothing."""
    native = extension.cuda() or request.getfixturevalue("emulated")

    class Planned:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            planned = native.Pass(*arguments, **options)
            self.plan, self.value_count, self.table_cells = planned.plan, planned.value_count, planned.table_cells

        def launch(self, *_: Any) -> None:
            pass

        prepare = forward = finish = backward = scatter = launch

    module = SimpleNamespace(Pass=Planned, functors=native.functors, has_slots=native.has_slots)
    built_in = {name: layout for name, layout in extension.FUNCTORS.items() if name in native.functors()}
    monkeypatch.setattr(extension, "_CUDA", module)
    monkeypatch.setattr(extension, "CUDA_FUNCTORS", built_in)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: 64, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return FakeTensorMode()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(COUNT, WIDTH, device="cuda"), torch.zeros(COUNT, dtype=torch.int64, device="cuda")


def moved(device: FakeTensorMode, module: torch.nn.Module) -> torch.nn.Module:
    """The module with fake parameters on the device."""
    with device:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        tensors[name] = torch.nn.Parameter(fake) if isinstance(tensor, torch.nn.Parameter) else fake
    return module


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.id)
def test_a_loss(device: FakeTensorMode, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[CudaPass] = []

    def kept(pass_: Pass) -> CudaPass:
        states.append(CudaPass(pass_))
        return states[-1]

    monkeypatch.setattr(fused, "device_pass", kept)
    loss = moved(device, case.create(torch.float32))
    asks = case.name in LABELS_TELL or any(case.options.get(name) == value for name, value in OPTIONS_TELL.items())
    with device:
        x, y = batch()
        with Watched() as watched:
            if asks:
                with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                    loss(x, y)
                return
            loss(x, y)
            for state in states:
                rows = torch.ones(state.native.value_count, state.anchors.shape[0], device="cuda")
                state.backward(rows, torch.ones(state.native.table_cells, device="cuda"))
    assert watched.count > 5 and watched.faults == []


@pytest.mark.parametrize("weighting", sorted(plugins.registry("weighting")))
def test_an_ensemble(device: FakeTensorMode, weighting: str) -> None:
    ensemble = LossEnsemble(
        ["ms", "triplet", "sup_con", "proxy_anchor"], weighting=weighting, num_classes=CLASSES, embedding_dim=WIDTH
    )
    moved(device, ensemble)
    with device:
        x, y = batch()
        with Watched() as watched:
            ensemble(x, y)
    assert watched.faults == []


def test_a_head_for_each_loss(device: FakeTensorMode) -> None:
    columns = tuple((k * WIDTH, (k + 1) * WIDTH) for k in range(3))
    ensemble = moved(device, LossEnsemble(["ms", "triplet", "sup_con"], columns=columns))
    with device:
        x, y = batch()
        with Watched() as watched:
            ensemble(torch.cat([x, x, x], 1), y)
    assert watched.faults == []


@pytest.mark.parametrize(("trunk", "end"), [("conv", "pca"), ("mlp", "compressed heads"), ("mlp", "heads beside a student")])
def test_a_model(device: FakeTensorMode, trunk: str, end: str) -> None:
    model = moved(device, model_of(trunk, end).model).train()
    with device:
        samples = torch.randn(8, *SHAPES[TRUNKS[trunk][1]], device="cuda")
        with Watched() as watched:
            model(samples)
    assert watched.faults == []


def test_the_operator(device: FakeTensorMode) -> None:
    calls = (FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("contrastive", (0.0, 1.0)))
    with device:
        x, y = batch()
        other = torch.randn(9, WIDTH, device="cuda")
        first = Pass(x, y, None, None, calls, owners=(1, 0, -1))
        second = Pass(x, y, other, y[:9], calls[1:], owners=(1, 1))
        arguments = ([x, other], *encoded([first, second], [((0, 0), (-1, 0)), ((0, 0), (1, 0))]))
        with Watched() as watched:
            terms, values, _, histograms = fused_rows_op._init_fn(*arguments, 2)
            gradients = fused_rows_backward_op._init_fn(terms, values, histograms, *arguments)
    assert watched.count > 5 and watched.faults == []
    assert [gradient.shape for gradient in gradients] == [x.shape, other.shape]
