"""Batch statistics over the batch of all ranks: what `SyncBatchNorm` does on CUDA, for the CPU, where PyTorch has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from dmlcore.ranks.group import Group, is_inside


class _Shared(torch.autograd.Function):
    """A sum over ranks that every rank goes on with in its own way: so is the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _summed(values, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


def _summed(values: Tensor, group: Group) -> Tensor:
    values = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(values, group=group.process_group)
    return values


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the samples of all ranks."""

    group: Group

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and is_inside()):  # one rank may try the model out alone
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        values = input.double()  # the square of the mean is taken away from the mean of the squares
        count = values.new_tensor([values.numel() / max(values.shape[1], 1)])
        sums = torch.cat([values.sum(axes), values.square().sum(axes), count])
        sums = _Shared.apply(sums, self.group)
        total, squares, count = sums[: values.shape[1]], sums[values.shape[1] : -1], sums[-1].detach()
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                unbiased = variance * count / (count - 1).clamp_min(1)
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                self.running_var.lerp_(unbiased.to(self.running_var), share)
        normal = (values - mean.view(shape)) * torch.rsqrt(variance.view(shape) + self.eps)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)


class _SharedOnCuda(nn.SyncBatchNorm):
    """The same by PyTorch's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if is_inside() else nn.modules.batchnorm._BatchNorm.forward(self, input)


def share_statistics(model: nn.Module, group: Group, device: torch.device) -> None:
    """Let the batch normalisations of a model see the samples of all ranks. Names and numbers of its state stay the same."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if device.type == "cuda":
            module.__class__ = _SharedOnCuda  # the same attributes, but for the group
            module.process_group = group.process_group  # type: ignore[assignment]
        else:
            module.__class__ = _SharedBatchNorm
            module.group = group  # type: ignore[assignment]
