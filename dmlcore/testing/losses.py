"""The contract of losses as checks. `check_loss(MyLoss)` in a test proves what users rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError, DmlcoreError, PluginError
from dmlcore.kernels import extension, info, why_not_loaded
from dmlcore.kernels.jit.cpu_functors import build
from dmlcore.losses import CrossBatchMemory, Loss, ProxyLoss, RowLoss, create
from dmlcore.testing import memory
from dmlcore.testing.batches import CLASSES, WIDTH, batches, near
from dmlcore.testing.report import Check, NotApplicable, Report
from dmlcore.testing.statements import where_both_stand

ORDER = torch.tensor([7, 2, 11, 0, 9, 4, 10, 1, 3, 8, 6, 5])
LOW = 0.1  # what bfloat16's 8 bits may cost, relative: it is a check for wrong results, not for the last digits

Compute = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss_class: type[Loss], **options: Any) -> list[Check]:
    """Prove that a loss keeps its contract: shapes, degenerate batches, fused = plain, order, scale, gradients, precisions,
    references and memories, state, ensembles.

    Args:
        loss_class: the class (not an object); created with 5 classes and 6 dimensions where it owns proxies.
        options: options by name.

    Returns:
        The checks, none failed; those that do not apply say why.

    Raises:
        PluginError: at least one failed; the message lists them.
    """
    report = report_loss(loss_class, **options)
    report.raise_failures()
    return report.checks


def run_checks(loss_class: type[Loss], **options: Any) -> list[Check]:
    """Every check, passed or not; arguments as `check_loss`."""
    return report_loss(loss_class, **options).checks


def report_loss(loss_class: type[Loss], *, measures_memory: bool = False, **options: Any) -> Report:
    """All checks as a report; arguments as `check_loss`.

    Args:
        loss_class, options: as `check_loss`.
        measures_memory: also measure how memory grows with the batch, in a process of its own: some seconds.
    """
    report = Report("loss", getattr(loss_class, "name", getattr(loss_class, "__name__", str(loss_class))))
    _Checks(loss_class, options, report).run()
    if measures_memory:
        report.check("memory", lambda: ":" + memory.growth(loss_class, options))
    else:
        report.check("memory", lambda: _not_applicable("measured by `dmlcore plugins check` only"))
    return report


def _not_applicable(reason: str) -> str | None:
    raise NotApplicable(reason)


def _gradients(compute: Compute, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient, detached; a gradient of zeros where there is none."""
    leaf = x.detach().clone().requires_grad_()
    value = compute(leaf, y)
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise AssertionError(f"forward must return a scalar tensor, got {got}")
    if not value.requires_grad:
        return value, torch.zeros_like(leaf)
    gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0]
    return value.detach(), torch.zeros_like(leaf) if gradient is None else gradient


class _Checks:
    """The checks of one loss class. A method that returns text has found a fault; see `Report.check`."""

    def __init__(self, loss_class: type[Loss], options: dict[str, Any], report: Report) -> None:
        self.loss_class, self.options, self.report = loss_class, options, report
        self.batches = batches()
        self.x, self.y = self.batches["random"]

    def create(self, dtype: torch.dtype = torch.float64) -> Loss:
        torch.manual_seed(0)
        return self.loss_class(num_classes=CLASSES, embedding_dim=WIDTH, **self.options).to(dtype)

    def run(self) -> None:
        check = self.report.check
        check("name, base class and docstring", self.has_contract)
        for name, (x, y) in self.batches.items():
            check(f"finite value and gradient: {name}", lambda x=x, y=y: self.is_finite(x, y))
        check("the header compiles", self.header_compiles)
        check("fused = plain, value and gradient", lambda: self.fused_is_plain(self.x.device))
        for level in info()["cpu"]["levels"]:
            check(f"fused = plain on the CPU, {level}", lambda level=level: self.fused_at(level))
        check("fused = plain on CUDA", self.fused_on_cuda)
        check("order of the batch", self.order)
        check("scale of the embeddings", self.scale)
        check("inputs stay as they are, in any layout", self.inputs)
        check("gradient = finite differences", self.gradient)
        check("gradient of parameters = finite differences", self.gradient_of_parameters)
        check("float32", lambda: self.precision(torch.float32, 1e-4))
        check("bfloat16", lambda: self.precision(torch.bfloat16, LOW))
        check("autocast", self.autocast)
        check("references", self.references)
        check("cross-batch memory", self.memory)
        check("state round trip", self.state)
        check("inside an ensemble", self.in_an_ensemble)

    def has_contract(self) -> str | None:
        if not isinstance(self.loss_class, type) or not issubclass(self.loss_class, Loss):
            return "the class must derive from dmlcore.losses.Loss (or PairLoss, ProxyLoss)"
        if not getattr(self.loss_class, "name", None):
            return "the class needs a `name`"
        return None if self.loss_class.__doc__ else "the class needs a docstring: its formula and source"

    def is_finite(self, x: Tensor, y: Tensor) -> str | None:
        value, gradient = _gradients(self.create(), x, y)
        if not bool(torch.isfinite(value)):
            return f"the value is {value.item()}"
        return None if bool(torch.isfinite(gradient).all()) else "the gradient is not finite"

    def header_compiles(self) -> str | None:
        header = self.loss_class.functor_header() if issubclass(self.loss_class, RowLoss) else None
        if header is None:
            raise NotApplicable("the class names no header")
        try:
            build(header)
        except (PluginError, ConfigError) as error:
            return str(error)
        except DmlcoreError as error:  # no compiler, or switched off: nothing is known about the header
            raise NotApplicable(str(error)) from None
        return None

    def fused_is_plain(
        self, device: torch.device | str, dtype: torch.dtype = torch.float64, tolerance: float = 1e-7
    ) -> str | None:
        loss = self.create(dtype).to(device)
        for name in ("random", "one class", "all different", "pairs"):
            x, y = (tensor.to(device) for tensor in self.batches[name])
            fused, plain = _gradients(loss, x.to(dtype), y), _gradients(loss.reference, x.to(dtype), y)
            if not near(fused[0], plain[0], tolerance):
                values = f"{fused[0].item()} and {plain[0].item()}"
                return f"forward and reference differ on the batch '{name}': {values}. {where_both_stand(loss)}".rstrip()
            if not near(fused[1], plain[1], tolerance):
                return f"the gradients of forward and reference differ on the batch '{name}'. {where_both_stand(loss)}".rstrip()
        return None

    def fused_at(self, level: str) -> str | None:
        loss = self.create()
        if not loss.is_fused:
            raise NotApplicable(loss.why_not_fused)
        before = info()["cpu"]["level"]
        try:
            extension.use_level(level)
            if not loss.is_fused:
                return f"it is fused with {before}, but not with {level}: {loss.why_not_fused}"
            return self.fused_is_plain("cpu") or self.fused_is_plain("cpu", torch.float32, 1e-4)
        finally:
            extension.use_level(before)

    def fused_on_cuda(self) -> str | None:
        if not torch.cuda.is_available():
            raise NotApplicable("torch sees no CUDA device")
        loss = self.create(torch.float32).cuda()
        call = loss.functor_call() if isinstance(loss, RowLoss) else ""
        reason = loss.why_not_fused or extension.why_not("cuda")
        if not reason and isinstance(loss, RowLoss) and not isinstance(call, str):
            reason = why_not_loaded(call.functor, loss.functor_header(), "cuda")
        if reason:
            raise NotApplicable(reason)
        return self.fused_is_plain("cuda", torch.float32, 1e-4)

    def order(self) -> str | None:
        value, gradient = _gradients(self.create(), self.x, self.y)
        other, other_gradient = _gradients(self.create(), self.x[ORDER], self.y[ORDER])
        if not near(other, value):
            return f"the value depends on the order of the batch: {value.item()} and {other.item()}"
        return None if near(other_gradient, gradient[ORDER]) else "the gradient does not follow the order of the batch"

    def scale(self) -> str | None:
        loss = self.create()
        if not isinstance(loss, RowLoss) or loss.normalise != (True, True):
            raise NotApplicable("it does not say that it normalises")
        value, gradient = _gradients(loss, self.x, self.y)
        other, other_gradient = _gradients(self.create(), 8 * self.x, self.y)
        if not near(other, value):
            return f"it says that it normalises, but 8 times longer embeddings give {other.item()} instead of {value.item()}"
        return None if near(8 * other_gradient, gradient) else "the gradient of 8 times longer embeddings is not an eighth"

    def inputs(self) -> str | None:
        x, y = self.x.clone(), self.y.clone()
        with torch.no_grad():
            value = self.create()(x, y)
        if not torch.equal(x, self.x) or not torch.equal(y, self.y):
            return "forward changes its arguments in place"
        with torch.no_grad():
            other = self.create()(x.T.contiguous().T, torch.stack([y, y], 1)[:, 0])
        return None if near(other, value) else f"tensors that are not contiguous give {other.item()} instead of {value.item()}"

    def gradient(self) -> str | None:
        loss, leaf = self.create(), self.x.detach().clone().requires_grad_()
        if loss.holds_constants:
            raise NotApplicable("it takes numbers that depend on the embeddings as constants")
        torch.autograd.gradcheck(lambda t: loss(t, self.y), (leaf,), eps=1e-7, atol=1e-5, rtol=1e-4)
        return None

    def gradient_of_parameters(self) -> str | None:
        loss = self.create()
        parameters = tuple(p for p in loss.parameters() if p.requires_grad)
        if not parameters:
            raise NotApplicable("it has no parameters")
        # gradcheck moves the parameters themselves, so what is called need not take them
        torch.autograd.gradcheck(lambda *_: loss(self.x, self.y), parameters, eps=1e-7, atol=1e-5, rtol=1e-4)
        return None

    def precision(self, dtype: torch.dtype, tolerance: float) -> str | None:
        rounded = self.x.to(dtype)
        value, gradient = _gradients(self.create(dtype), rounded, self.y)
        truth, true_gradient = _gradients(self.create(dtype).double(), rounded.double(), self.y)
        if not near(value.double(), truth, tolerance):
            return f"{str(dtype).removeprefix('torch.')} gives {value.item()}, float64 {truth.item()}"
        good = near(gradient.double(), true_gradient, 10 * tolerance)
        return None if good else f"the gradient in {str(dtype).removeprefix('torch.')} is far from that in float64"

    def autocast(self) -> str | None:
        truth, _ = _gradients(self.create(), self.x, self.y)
        loss = self.create(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, gradient = _gradients(loss, self.x.float(), self.y)
        if not bool(torch.isfinite(gradient).all()):
            return "the gradient under autocast is not finite"
        return None if near(value.double(), truth, LOW) else f"autocast gives {value.item()}, float64 {truth.item()}"

    def _takes(self, loss: Loss, *names: str) -> None:
        if not loss.takes_references:
            raise NotApplicable("it compares with its own proxies" if isinstance(loss, ProxyLoss) else "it takes no references")
        parameters = inspect.signature(loss.forward).parameters
        for name in names:
            if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise NotApplicable(f"its forward takes no {name}")

    def references(self) -> str | None:
        loss = self.create()
        self._takes(loss, "references", "reference_labels")
        vectors, labels = self.batches["pairs"]
        try:
            value, gradient = _gradients(lambda x, y: loss(x, y, references=vectors, reference_labels=labels), self.x, self.y)
        except ConfigError as error:
            raise NotApplicable(str(error)) from None
        return None if bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all()) else "not finite against references"

    def memory(self) -> str | None:
        loss = self.create()
        self._takes(loss, "references", "reference_labels", "own")
        with_memory = CrossBatchMemory(loss, 32, WIDTH, dtype=torch.float64)
        with_memory.eval()
        _gradients(with_memory, self.x, self.y)  # an empty memory
        with_memory.train()
        alone, _ = _gradients(self.create(), self.x, self.y)
        results = [_gradients(with_memory, x, self.y) for x in (self.x, 0.9 * self.x + 0.1, self.x)]
        if not all(bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all()) for value, gradient in results):
            return "value or gradient against a memory is not finite"
        same = near(results[0][0], alone)
        return None if same else f"a memory that holds the batch alone gives {results[0][0].item()}, without it {alone.item()}"

    def state(self) -> str | None:
        loss, other = self.create(), self.create()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1)
        other.load_state_dict(loss.state_dict())
        return None if torch.equal(loss(self.x, self.y), other(self.x, self.y)) else "state_dict does not restore the loss"

    def in_an_ensemble(self) -> str | None:
        from dmlcore.ensemble import LossEnsemble

        ensemble = LossEnsemble([self.create(), create("contrastive").double()], weights=[2.0, 1.0])
        alone, beside = self.create(), create("contrastive").double()
        together = _gradients(ensemble, self.x, self.y)
        sums = _gradients(lambda x, y: 2 * alone(x, y) + beside(x, y), self.x, self.y)
        if not near(together[0], sums[0]):
            return f"2 x this + contrastive is {sums[0].item()}, but an ensemble of both gives {together[0].item()}"
        return None if near(together[1], sums[1]) else "the gradient of an ensemble is not that of its members"
