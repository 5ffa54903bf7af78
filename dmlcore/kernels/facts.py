"""What is built and used on this machine, and why something is not: what `dmlcore info` shows."""

from __future__ import annotations

from typing import Any

import torch

from dmlcore.kernels import extension
from dmlcore.kernels.jit import dispatch


def info() -> dict[str, Any]:
    """What of the kernels is built, what is used, and why something is not.

    Returns:
        Facts by name.

        - `enabled`: whether fused forms are used at all (`DML_FUSED`).
        - `threads`: how many PyTorch uses.
        - `cpu`: `built`, the instruction set in use (`level`) and those that could be (`levels`), whose matrix products it uses
          (`blas`: `vendor` or `own`), and `reason`, why it is missing.
        - `cuda`: `built`, the architectures it was compiled for (`archs`), the `devices` of this machine, and `reason`.
        - `fused`: the functors, for `cpu` with the names of their options, for `cuda` as a list.
        - `runtime`: compilation of plugins' functors: `enabled`, `compiler`, `folder`, `functors` with their headers, and
          `failed` with the reasons. Its entry `cuda` holds `compiler`, `loader`, `functors` and `failed` for GPUs.
    """
    module, gpu = extension.cpu(), extension.cuda()
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    reason = extension.why_not("cuda")
    if not reason and not devices:
        reason = "torch sees no CUDA device"
    return {
        "enabled": extension.fused_enabled(),
        "threads": torch.get_num_threads(),
        "cpu": {
            "built": module is not None,
            "level": module.level() if module else None,
            "levels": module.levels() if module else [],
            "blas": ("vendor" if module.has_blas() else "own") if module else None,
            "reason": extension.why_not("cpu"),
        },
        "cuda": {
            "built": gpu is not None,
            "archs": getattr(gpu, "archs", None),
            "devices": devices,
            "reason": reason,
        },
        "fused": {
            "cpu": {name: list(options) for name, (options, _) in extension.FUNCTORS.items()},
            "cuda": sorted({*gpu.functors(), *extension.CUDA_FUNCTORS}) if gpu else [],
        },
        "runtime": dispatch.facts(),
    }
